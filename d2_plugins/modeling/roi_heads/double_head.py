"""Double-Head R-CNN: an fc head classifies each RoI, a conv head finds its box.

Wu et al., "Rethinking Classification and Localization for Object Detection", CVPR 2020. Everything
but the box heads is detectron2's: sampling, mask and keypoint heads, box losses, the cascade.

Deviations from the authors' code: detectron2's RoIAlign (aligned, adaptive sampling) and its box
convention without the "+ 1".
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from .double_head_box_head import ConvHead, DoubleHeadBoxHead
from .double_head_pooler import DoubleHeadPooler
from .double_head_predictor import DoubleHeadOutputLayers, Predictions
from .inverted_attention import Inversion
from .inverted_attention_heads import InvertedAttentionMixin, PluginCascadeROIHeads, PluginROIHeads

__all__ = ["CascadeDoubleHeadROIHeads", "DoubleHeadROIHeads"]


class _DoubleHeadMixin(InvertedAttentionMixin):
    box_pooler: DoubleHeadPooler

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        # detectron2 makes the pooler, the matchers and, by this name, our box heads; its output
        # layers, which know one head only, are replaced.
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_BOX_HEAD.NAME = DoubleHeadBoxHead.__name__
        ret = super()._init_box_head(cfg, input_shape)  # type: ignore[misc]
        ret["box_pooler"] = DoubleHeadPooler(ret["box_pooler"], cfg.MODEL.DOUBLE_HEAD.REG_ROI_SCALE)

        is_cascade = "box_heads" in ret
        if is_cascade and cfg.MODEL.DOUBLE_HEAD.CONV_HEAD_FOREGROUND_ONLY:
            raise ValueError(
                "MODEL.DOUBLE_HEAD.CONV_HEAD_FOREGROUND_ONLY is True; allowed: False in a cascade, "
                "whose next stage starts from the boxes of all RoIs"
            )
        settings: dict[str, object] = {}
        if is_cascade and cfg.MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE is None:
            # Scores are averaged over the stages and boxes go on to the next one: no threshold is
            # known to cost nothing.
            settings["conv_head_min_score"] = -1.0

        def output_layers(
            head: DoubleHeadBoxHead, single: FastRCNNOutputLayers
        ) -> DoubleHeadOutputLayers:
            return DoubleHeadOutputLayers(
                cfg, head.output_shape, box2box_transform=single.box2box_transform, **settings
            )

        if is_cascade:
            ret["box_predictors"] = [
                output_layers(*pair)
                for pair in zip(ret["box_heads"], ret["box_predictors"], strict=True)
            ]
        else:
            ret["box_predictor"] = output_layers(ret["box_head"], ret["box_predictor"])
        return ret

    def predict_rois(
        self,
        features: list[Tensor],
        proposals: list[Instances],
        head: DoubleHeadBoxHead,  # type: ignore[override]  # the one built above
        predictor: DoubleHeadOutputLayers,
        *,
        gradient_scale: float = 1.0,
        scope: str = "",
    ) -> Predictions:
        """As for a single head; at inference the conv head sees the chosen RoIs only.

        The fc head goes first. Which RoIs the conv head sees is up to
        :meth:`DoubleHeadOutputLayers.choose`; the enlarged view is pooled for these.
        """
        if self.training or not predictor.is_selective:
            return super().predict_rois(
                features, proposals, head, predictor, gradient_scale=gradient_scale, scope=scope
            )
        pooler = self.box_pooler
        rois, levels = pooler.locate([p.proposal_boxes for p in proposals])
        regions = pooler.pool(features, rois, levels)
        fc = head.fc_head(regions)
        chosen = predictor.choose(*predictor.predict_fc(fc), rois)
        if pooler.scale == 1:
            regions = regions[chosen]
        else:
            regions = pooler.pool(features, pooler.enlarge(rois[chosen]), levels[chosen])
        return predictor((fc, _run_conv_head(head.conv_head, regions)), chosen)

    def _predict(
        self,
        regions: Tensor,
        proposals: list[Instances],
        head: DoubleHeadBoxHead,  # type: ignore[override]  # the one built above
        predictor: DoubleHeadOutputLayers,
    ) -> Predictions:
        if not (self.training and predictor.conv_head_foreground_only):
            return predictor(head(regions))
        chosen = predictor.foreground(proposals)
        return predictor((head.fc_head(regions[0]), head.conv_head(regions[-1][chosen])), chosen)

    def invert_regions(
        self,
        regions: Tensor,
        labels: Tensor,
        head: DoubleHeadBoxHead,  # type: ignore[override]  # the one built above
        predictor: DoubleHeadOutputLayers,
    ) -> tuple[Tensor, Inversion]:
        """As for a single head, by the fc head's score; ``APPLY_TO`` says which views to mask.

        In the enlarged view the mask hides the same places of the image.
        """
        assert self.inverted_attention is not None
        fc_view, inversion = self.inverted_attention(
            regions[0],
            labels,
            lambda x: predictor.cls_score(head.fc_head(x)),
            modules=(head, predictor),
            sigmoid=predictor.use_sigmoid_ce,
        )
        conv_view = regions[-1]
        if self.inverted_attention.apply_to == "both":
            mask = self.box_pooler.align_mask(inversion.mask)
            conv_view = conv_view * mask.to(conv_view)
        return torch.stack([fc_view, conv_view]), inversion


def _run_conv_head(conv_head: ConvHead, regions: Tensor) -> Tensor:
    """Run the conv head on any number of RoIs, none included."""
    if not torch.compiler.is_compiling():
        return conv_head(regions)
    # torch.export has to know that there are RoIs, as batch norm without any is another program.
    with_one_more = F.pad(regions, (0, 0, 0, 0, 0, 0, 0, 1))
    return conv_head(with_one_more)[:-1]


@ROI_HEADS_REGISTRY.register()
class DoubleHeadROIHeads(_DoubleHeadMixin, PluginROIHeads):
    """StandardROIHeads with a Double-Head, settings in ``MODEL.DOUBLE_HEAD``.

    ``MODEL.ROI_BOX_HEAD``'s pooler, box and loss settings hold; its NAME, NUM_FC, FC_DIM, NUM_CONV,
    CONV_DIM and NORM are not used. Inverted Attention as in :class:`PluginROIHeads`.
    """


@ROI_HEADS_REGISTRY.register()
class CascadeDoubleHeadROIHeads(_DoubleHeadMixin, PluginCascadeROIHeads):
    """Cascade R-CNN with a Double-Head in each stage.

    Each stage's conv head sees that stage's boxes enlarged and makes the next stage's boxes; its
    class scores are fused before detectron2 averages the stages.
    """
