"""detectron2's StandardROIHeads and CascadeROIHeads with Inverted Attention.

With Inverted Attention off, and in any case outside training, they are detectron2's bit for bit,
and their state has the same keys either way.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from .inverted_attention import Inversion, InvertedAttention

__all__ = ["InvertedAttentionMixin", "PluginCascadeROIHeads", "PluginROIHeads"]

# Reading the statistics waits for the device; detectron2's writers look every 20 iterations.
_LOG_PERIOD = 20


class InvertedAttentionMixin:
    """Inverted Attention for any RoI heads built like detectron2's StandardROIHeads."""

    training: bool

    @configurable
    def __init__(
        self, *, inverted_attention: InvertedAttention | None = None, **kwargs: object
    ) -> None:
        """Build the heads.

        Args:
            inverted_attention: masks the box head's input in training; None is off.
            kwargs: of the RoI heads.
        """
        super().__init__(**kwargs)
        self.inverted_attention = inverted_attention

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Arguments from detectron2's keys, ``CLS_LOSS_WEIGHT`` and ``INVERTED_ATTENTION``."""
        ret = super().from_config(cfg, input_shape)  # type: ignore[misc]
        for predictor in ret.get("box_predictors") or [ret["box_predictor"]]:
            predictor.loss_weight["loss_cls"] = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT
        if cfg.MODEL.INVERTED_ATTENTION.ENABLED:
            ret["inverted_attention"] = InvertedAttention(cfg)
        return ret

    @contextmanager
    def _inverting(
        self,
        head: nn.Module,
        predictor: FastRCNNOutputLayers,
        proposals: list[Instances],
        prefix: str = "",
    ) -> Iterator[None]:
        """Mask what ``head`` is given the next time it is called, in training.

        detectron2 pools the RoIs and runs the head on them within one method. A hook that lives
        for one call gets in between, where an override would have to repeat that method.
        """
        attention = self.inverted_attention
        if (
            attention is None
            or not self.training
            or get_event_storage().iter < attention.start_iter
        ):
            yield
            return

        def invert(_: nn.Module, args: tuple[Tensor]) -> Tensor:
            handle.remove()  # first of all: the scoring below calls the head again
            labels = torch.cat([p.gt_classes for p in proposals])
            regions, inversion = self.invert_regions(*args, labels, head, predictor)
            storage = get_event_storage()
            if storage.iter % _LOG_PERIOD == 0:
                with storage.name_scope(f"{prefix}inverted_attention"):
                    storage.put_scalars(**inversion.statistics())
            return regions

        handle = head.register_forward_pre_hook(invert)
        try:
            yield
        finally:
            handle.remove()

    def invert_regions(
        self, regions: Tensor, labels: Tensor, head: nn.Module, predictor: FastRCNNOutputLayers
    ) -> tuple[Tensor, Inversion]:
        """Apply Inverted Attention.

        Args:
            regions: what the box pooler returns for R RoIs.
            labels: (R,) true classes.
            head: the box head.
            predictor: the layers after it.

        Returns:
            The regions, masked, and how the masks came about.
        """
        assert self.inverted_attention is not None
        return self.inverted_attention(
            regions,
            labels,
            lambda x: predictor(head(x))[0],
            modules=(head, predictor),
            sigmoid=predictor.use_sigmoid_ce,
        )


@ROI_HEADS_REGISTRY.register()
class PluginROIHeads(InvertedAttentionMixin, StandardROIHeads):
    """StandardROIHeads with Inverted Attention."""

    def _forward_box(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        with self._inverting(self.box_head, self.box_predictor, proposals):
            return super()._forward_box(features, proposals)


@ROI_HEADS_REGISTRY.register()
class PluginCascadeROIHeads(InvertedAttentionMixin, CascadeROIHeads):
    """CascadeROIHeads with Inverted Attention in each stage."""

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> tuple[Tensor, ...]:
        head, predictor = self.box_head[stage], self.box_predictor[stage]
        with self._inverting(head, predictor, proposals, prefix=f"stage{stage}/"):
            return super()._run_stage(features, proposals, stage)
