"""Which attention goes where in a backbone: the `MODEL.ATTENTION` node as a checked value.

Shared by every backbone of this package and by the FPN, so that the keys mean the same and are
refused in the same words everywhere.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from ...layers import build_attention

__all__ = ["POSITIONS", "AttentionPlan", "StageAttention", "freeze_but_attention"]

# Positions A to E: in the block before its last 3x3 or 1x1; on the block's output before the
# shortcut is added (where CBAM and ECA-Net put theirs); on the processed half of a cross stage; on
# both halves before they are fused; on the stage's output.
POSITIONS = ("block_mid", "block_out", "branch", "concat", "stage_out")


@dataclass(frozen=True)
class StageAttention:
    """Attention of one stage: its position and how to make the module for C channels."""

    position: str
    build: Callable[[int], nn.Module]


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Attention of a whole backbone.

    Attributes:
        name: "" (none), "eca", "cbam" or "se".
        position: one of :data:`POSITIONS`.
        stages: on or off for res2..res5, or for res1..res5 where the backbone has a res1.
        reduction: channel reduction of CBAM and SE.
        kernel_sizes: ECA's kernel sizes, as long as ``stages``; empty takes the paper's formula.
        ignore_padding: global pooling leaves out the padding of each image of a batch.
    """

    name: str = ""
    position: str = "block_out"
    stages: tuple[bool, ...] = (True, True, True, True)
    reduction: int = 16
    kernel_sizes: tuple[int, ...] = ()
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
            ignore_padding=node.IGNORE_PADDING,
        )

    def for_stages(
        self, stage_names: Collection[str], positions: Collection[str] = POSITIONS
    ) -> dict[str, StageAttention]:
        """Attention of the stages that have one.

        Args:
            stage_names: all stages of the backbone: res2..res5, with or without a res1.
            positions: the positions that this backbone has.

        Returns:
            Stage name to its attention; stages without attention are left out.

        Raises:
            ValueError: a position this backbone does not have, or a list of the wrong length.
        """
        if not self.name:
            return {}
        if self.position not in positions:
            raise ValueError(
                f"MODEL.ATTENTION.POSITION = '{self.position}' is not a position of this "
                f"backbone; it has: {', '.join(positions)}."
            )
        names = self._check_lengths(stage_names)
        sizes: tuple[int | None, ...] = self.kernel_sizes or (None,) * len(names)
        return {
            name: StageAttention(self.position, self._builder(size))
            for name, on, size in zip(names, self.stages, sizes, strict=True)
            if on
        }

    def build(self, channels: int, kernel_size: int | None = None) -> nn.Module:
        """One attention module for ``channels`` channels.

        Raises:
            ValueError: an unknown name, or options that are impossible for so many channels.
        """
        try:
            return build_attention(
                self.name, channels, reduction=self.reduction, kernel_size=kernel_size
            )
        except ValueError as error:
            raise ValueError(
                f"MODEL.ATTENTION (NAME '{self.name}', REDUCTION {self.reduction}, KERNEL_SIZES "
                f"{list(self.kernel_sizes)}) for {channels} channels: {error}"
            ) from error

    def _builder(self, kernel_size: int | None) -> Callable[[int], nn.Module]:
        return lambda channels: self.build(channels, kernel_size)

    def _check_lengths(self, stage_names: Collection[str]) -> list[str]:
        lists = [["res2", "res3", "res4", "res5"]]
        if "res1" in stage_names:
            lists.append(["res1", *lists[0]])
        allowed = " or ".join(f"{len(names)} ({names[0]}..{names[-1]})" for names in lists)
        names = next((names for names in lists if len(names) == len(self.stages)), None)
        if names is None:
            raise ValueError(
                f"MODEL.ATTENTION.STAGES = {list(self.stages)} has {len(self.stages)} entries; "
                f"this backbone takes {allowed}."
            )
        if len(self.kernel_sizes) not in (0, len(names)):
            raise ValueError(
                f"MODEL.ATTENTION.KERNEL_SIZES = {list(self.kernel_sizes)} has "
                f"{len(self.kernel_sizes)} entries; it must be empty or as long as "
                f"MODEL.ATTENTION.STAGES ({len(names)})."
            )
        return names


def freeze_but_attention(module: nn.Module) -> None:
    """Freeze ``module`` in place, except for its children called "attention", at any depth.

    Parameters get ``requires_grad = False`` and every BatchNorm becomes a FrozenBatchNorm2d.
    Attention is left out because its weights are new when the rest is pretrained; CBAM's spatial
    norm, which starts with weight 0, would stay there forever.
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
