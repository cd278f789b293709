"""The options of MODEL.ATTENTION, which every backbone that can hold attention shares."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from torch import nn

from d2_plugins.layers.attention import ATTENTION_NAMES, build_attention

__all__ = ["POSITIONS", "STAGE_NAMES", "AttentionOptions"]

POSITIONS = ("block_mid", "block_out", "branch", "concat", "stage_out")
STAGE_NAMES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Which attention a backbone gets, where, and in which stages.

    Attributes:
        name: "" (none), "eca", "cbam" or "se".
        position: one of ``POSITIONS``; a backbone may allow only some of them.
        stages: on or off for res2..res5.
        reduction: r of CBAM and SE.
        kernel_sizes: ECA's odd k for res2..res5; empty takes the paper's formula.
        ignore_padding: whether the padding of a batch is kept out of the features.

    Raises:
        ValueError: an option is impossible; the message names its config key.
    """

    name: str = ""
    position: str = "block_out"
    stages: Sequence[bool] = (True, True, True, True)
    reduction: int = 16
    kernel_sizes: Sequence[int] = ()
    ignore_padding: bool = True

    def __post_init__(self) -> None:
        if self.name and self.name not in ATTENTION_NAMES:
            allowed = ", ".join(repr(name) for name in ("", *ATTENTION_NAMES))
            raise ValueError(f"MODEL.ATTENTION.NAME is '{self.name}'; allowed: {allowed}")
        self.require_position(POSITIONS)
        if len(self.stages) != len(STAGE_NAMES):
            raise ValueError(
                f"MODEL.ATTENTION.STAGES is {list(self.stages)}; "
                "it needs four entries, true or false for res2..res5"
            )
        if len(self.kernel_sizes) not in (0, len(STAGE_NAMES)) or any(
            k < 1 or k % 2 == 0 for k in self.kernel_sizes
        ):
            raise ValueError(
                f"MODEL.ATTENTION.KERNEL_SIZES is {list(self.kernel_sizes)}; it needs four odd "
                "numbers, for res2..res5, or none at all for the paper's formula"
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "AttentionOptions":
        """Read ``cfg.MODEL.ATTENTION``."""
        node = cfg.MODEL.ATTENTION
        return cls(
            name=node.NAME,
            position=node.POSITION,
            stages=tuple(node.STAGES),
            reduction=node.REDUCTION,
            kernel_sizes=tuple(node.KERNEL_SIZES),
            ignore_padding=node.IGNORE_PADDING,
        )

    @property
    def enabled(self) -> bool:
        """Whether any stage gets attention."""
        return bool(self.name) and any(self.stages)

    def require_position(self, allowed: Sequence[str]) -> None:
        """Raise ValueError unless the position is one that the backbone at hand has."""
        if self.position not in allowed:
            raise ValueError(
                f"MODEL.ATTENTION.POSITION is '{self.position}'; allowed: {', '.join(allowed)}"
            )

    def build(self, stage: int, channels: int) -> nn.Module | None:
        """A new attention module for a stage; None where the stage has none.

        Args:
            stage: 0 to 3 for res2..res5.
            channels: of the map it will see.

        Raises:
            ValueError: the options are impossible at this width.
        """
        if not self.name or not self.stages[stage]:
            return None
        kernel_size = self.kernel_sizes[stage] if self.kernel_sizes else None
        try:
            return build_attention(
                self.name, channels, reduction=self.reduction, kernel_size=kernel_size
            )
        except ValueError as error:
            raise ValueError(
                f"MODEL.ATTENTION.REDUCTION cannot be {self.reduction} with '{self.name}' in "
                f"{STAGE_NAMES[stage]}: {error}"
            ) from error
