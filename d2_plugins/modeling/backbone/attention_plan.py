"""The validated `MODEL.ATTENTION` settings of a backbone.

Every backbone of this package and the FPN use them, so that the keys have one meaning and one set
of error messages.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from ...layers import build_attention

__all__ = ["GATE_POSITIONS", "POSITIONS", "AttentionPlan", "StageAttention", "freeze_but_attention"]

# Positions:
# - block_mid: inside a block, before its last convolution;
# - block_out: on a block's output, before the shortcut is added (the place in CBAM and ECA-Net);
# - branch: on the half of a cross stage that runs through the blocks;
# - concat: on both halves, before they are fused;
# - stage_out: on the output of the stage.
# - cross: on the half of a cross stage that skips the blocks (the shortcut), for "local" only: it
#   replaces features, where the others are gates, which would only weaken the shortcut.
GATE_POSITIONS = ("block_mid", "block_out", "branch", "concat", "stage_out")
LOCAL_POSITIONS = ("cross",)
POSITIONS = GATE_POSITIONS + LOCAL_POSITIONS


@dataclass(frozen=True)
class StageAttention:
    """Attention of one stage: its position, and a function from channels to the module."""

    position: str
    build: Callable[[int], nn.Module]


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Attention of a whole backbone.

    Attributes:
        name: "" (none), "eca", "cbam", "se" or "local".
        position: one of :data:`POSITIONS`.
        stages: on or off for res2..res5, or for res1..res5 if the backbone has a res1.
        reduction: channel reduction of CBAM and SE.
        kernel_sizes: ECA's kernel size per stage; empty for the formula of the paper.
        window: window of local attention.
        heads: number of heads of local attention.
        ignore_padding: leave the padding of a batch out of the global pooling.
    """

    name: str = ""
    position: str = "block_out"
    stages: tuple[bool, ...] = (True, True, True, True)
    reduction: int = 16
    kernel_sizes: tuple[int, ...] = ()
    window: int = 7
    heads: int = 8
    ignore_padding: bool = True

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "AttentionPlan":
        """Read ``MODEL.ATTENTION``."""
        node = cfg.MODEL.ATTENTION
        return cls(
            name=node.NAME,
            position=node.POSITION,
            stages=tuple(node.STAGES),
            reduction=node.REDUCTION,
            kernel_sizes=tuple(node.KERNEL_SIZES),
            window=node.WINDOW,
            heads=node.HEADS,
            ignore_padding=node.IGNORE_PADDING,
        )

    def for_stages(
        self, stage_names: Collection[str], positions: Collection[str] = POSITIONS
    ) -> dict[str, StageAttention]:
        """Return the attention of each stage that has one.

        Args:
            stage_names: all stages of the backbone: res2..res5, with or without a res1.
            positions: the positions that the backbone offers.

        Returns:
            Attention by stage name, without the stages that have none.

        Raises:
            ValueError: the backbone does not offer the position, or none for this attention; or a
                list has the wrong length.
        """
        if not self.name:
            return {}
        self._check_position(positions)
        names = self._check_lengths(stage_names)
        sizes: tuple[int | None, ...] = self.kernel_sizes or (None,) * len(names)
        return {
            name: StageAttention(self.position, self._builder(size))
            for name, on, size in zip(names, self.stages, sizes, strict=True)
            if on
        }

    def build(self, channels: int, kernel_size: int | None = None) -> nn.Module:
        """Build one attention module.

        Args:
            channels: number of input and output channels.
            kernel_size: ECA's kernel size; None for the formula of the paper.

        Raises:
            ValueError: the name is unknown, or the options do not fit the number of channels.
        """
        try:
            return build_attention(
                self.name,
                channels,
                reduction=self.reduction,
                kernel_size=kernel_size,
                window=self.window,
                heads=self.heads,
            )
        except ValueError as error:
            raise ValueError(
                f"MODEL.ATTENTION (NAME '{self.name}', REDUCTION {self.reduction}, KERNEL_SIZES "
                f"{list(self.kernel_sizes)}, WINDOW {self.window}, HEADS {self.heads}) for "
                f"{channels} channels: {error}"
            ) from error

    def _builder(self, kernel_size: int | None) -> Callable[[int], nn.Module]:
        return lambda channels: self.build(channels, kernel_size)

    def _check_position(self, positions: Collection[str]) -> None:
        fitting = LOCAL_POSITIONS if self.name == "local" else GATE_POSITIONS
        allowed = [position for position in positions if position in fitting]
        if not allowed:
            raise ValueError(
                f"MODEL.ATTENTION.NAME is '{self.name}'; allowed in this backbone, which has no "
                "cross-stage shortcut: '', eca, cbam, se"
            )
        if self.position not in allowed:
            raise ValueError(
                f"MODEL.ATTENTION.POSITION is '{self.position}'; allowed in this backbone with "
                f"MODEL.ATTENTION.NAME '{self.name}': {', '.join(allowed)}"
            )

    def _check_lengths(self, stage_names: Collection[str]) -> list[str]:
        lists = [["res2", "res3", "res4", "res5"]]
        if "res1" in stage_names:
            lists.append(["res1", *lists[0]])
        allowed = " or ".join(f"{len(names)} ({names[0]}..{names[-1]})" for names in lists)
        names = next((names for names in lists if len(names) == len(self.stages)), None)
        if names is None:
            raise ValueError(
                f"MODEL.ATTENTION.STAGES is {list(self.stages)}, {len(self.stages)} entries; "
                f"allowed in this backbone: {allowed}"
            )
        if len(self.kernel_sizes) not in (0, len(names)):
            raise ValueError(
                f"MODEL.ATTENTION.KERNEL_SIZES is {list(self.kernel_sizes)}, "
                f"{len(self.kernel_sizes)} entries; allowed: none, or {len(names)} as in "
                "MODEL.ATTENTION.STAGES"
            )
        return names


def freeze_but_attention(module: nn.Module) -> None:
    """Freeze ``module`` in place, except for descendants named "attention".

    Parameters get ``requires_grad = False``, and every BatchNorm becomes a FrozenBatchNorm2d.
    Attention stays trainable because it starts from random weights when the rest is pretrained.
    CBAM's spatial norm starts with weight 0 and would keep it forever if it were frozen.
    """
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad = False
    for name, child in module.named_children():
        if name == "attention":
            continue
        if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
            setattr(module, name, FrozenBatchNorm2d.convert_frozen_batchnorm(child))
        else:
            freeze_but_attention(child)
