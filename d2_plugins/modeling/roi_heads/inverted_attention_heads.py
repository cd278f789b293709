"""detectron2's StandardROIHeads and CascadeROIHeads with Inverted Attention.

With Inverted Attention off, and in any case outside training, they are detectron2's bit for bit,
and their state has the same keys either way.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from detectron2.modeling.roi_heads.cascade_rcnn import _ScaleGradient
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from .inverted_attention import Inversion, InvertedAttention

__all__ = ["InvertedAttentionMixin", "PluginCascadeROIHeads", "PluginROIHeads"]

# Reading the statistics waits for the device; detectron2's writers look every 20 iterations.
_LOG_PERIOD = 20


class InvertedAttentionMixin:
    """Inverted Attention for any RoI heads built like detectron2's StandardROIHeads."""

    training: bool
    box_pooler: nn.Module

    @configurable
    def __init__(
        self, *, inverted_attention: InvertedAttention | None = None, **kwargs: object
    ) -> None:
        """Build the heads.

        Args:
            inverted_attention: masks the box head's input in training; None is off.
            kwargs: arguments of the RoI heads.
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

    def predict_rois(
        self,
        features: list[Tensor],
        proposals: list[Instances],
        head: nn.Module,
        predictor: FastRCNNOutputLayers,
        *,
        gradient_scale: float = 1.0,
        scope: str = "",
    ) -> tuple[Tensor | None, ...]:
        """Pool the RoIs, in training mask them, and run a box head on them.

        Args:
            features: maps of ``box_in_features``.
            proposals: the RoIs of each image, in training with ``gt_classes``.
            head: the box head.
            predictor: the layers after it.
            gradient_scale: factor of the gradient that goes back to ``features``.
            scope: prefix of the statistics' names.

        Returns:
            The output of ``predictor`` for all RoIs.
        """
        regions = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        if gradient_scale != 1:
            regions = _ScaleGradient.apply(regions, gradient_scale)
        if self._attention_is_on:
            regions = self._mask(regions, proposals, head, predictor, scope)
        return self._predict(regions, proposals, head, predictor)

    def _predict(
        self,
        regions: Tensor,
        proposals: list[Instances],
        head: nn.Module,
        predictor: FastRCNNOutputLayers,
    ) -> tuple[Tensor | None, ...]:
        return predictor(head(regions))

    @property
    def _attention_is_on(self) -> bool:
        attention = self.inverted_attention
        return (
            attention is not None
            and self.training
            and get_event_storage().iter >= attention.start_iter
        )

    def _mask(
        self,
        regions: Tensor,
        proposals: list[Instances],
        head: nn.Module,
        predictor: FastRCNNOutputLayers,
        scope: str,
    ) -> Tensor:
        labels = torch.cat([p.gt_classes for p in proposals])
        regions, inversion = self.invert_regions(regions, labels, head, predictor)
        storage = get_event_storage()
        if storage.iter % _LOG_PERIOD == 0:
            with storage.name_scope(f"{scope}inverted_attention"):
                storage.put_scalars(**inversion.statistics())
        return regions

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
        # The base class's method, which has no place between pooling and the box head.
        predictor = self.box_predictor
        maps = [features[f] for f in self.box_in_features]
        predictions = self.predict_rois(maps, proposals, self.box_head, predictor)
        if not self.training:
            return predictor.inference(predictions, proposals)[0]
        losses = predictor.losses(predictions, proposals)
        if self.train_on_pred_boxes:
            with torch.no_grad():
                pred_boxes = predictor.predict_boxes_for_gt_classes(predictions, proposals)
            for proposals_i, boxes_i in zip(proposals, pred_boxes, strict=True):
                proposals_i.proposal_boxes = Boxes(boxes_i)
        return losses


@ROI_HEADS_REGISTRY.register()
class PluginCascadeROIHeads(InvertedAttentionMixin, CascadeROIHeads):
    """CascadeROIHeads with Inverted Attention in each stage."""

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> tuple[Tensor | None, ...]:
        return self.predict_rois(
            features,
            proposals,
            self.box_head[stage],
            self.box_predictor[stage],
            gradient_scale=1 / self.num_cascade_stages if self.training else 1.0,
            scope=f"stage{stage}/",  # numbered as detectron2 numbers the stages of Cascade R-CNN
        )
