"""Predictions, losses and score fusion of a Double-Head.

Wu et al., CVPR 2020; the losses' weights and the fusion as in the authors' code.

Shape shorthand: R RoIs of the whole batch, K foreground classes.

Predictions are, in a plain Double-Head, the pair of detectron2's ``FastRCNNOutputLayers``: class
logits of the fc head, box deltas of the conv head. Double-Head-Ext adds the unfocused ones: class
logits of the conv head and box deltas of the fc head, None where that head keeps to its own task.
"""

from collections.abc import Callable

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

__all__ = ["DoubleHeadOutputLayers", "Predictions", "fuse_scores"]

# (logits, deltas) or (logits, deltas, conv head's logits or None, fc head's deltas or None)
Predictions = tuple[Tensor | None, ...]

_FUSIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # Written so that it is exactly the other head's score where one is 0.
    "complementary": lambda fc, conv: fc + conv * (1 - fc),
    "fc": lambda fc, conv: fc,
    "conv": lambda fc, conv: conv,
    "max": torch.maximum,
    "mean": lambda fc, conv: (fc + conv) / 2,
}


def fuse_scores(fc: Tensor, conv: Tensor, mode: str = "complementary") -> Tensor:
    """Combine the class probabilities of the two heads, element by element.

    Args:
        fc: (R, K + 1) probabilities of the fc head.
        conv: (R, K + 1) probabilities of the conv head.
        mode: "complementary" (the paper's 1 - (1 - fc)(1 - conv)), "fc", "conv", "max" or "mean".

    Returns:
        (R, K + 1). Complementary scores of a RoI may sum to more than 1.
    """
    return _FUSIONS[mode](fc, conv)


class DoubleHeadOutputLayers(FastRCNNOutputLayers):
    """The prediction layers of both heads.

    Layers: ``cls_score`` on the fc head and ``bbox_pred`` on the conv head (detectron2's names);
    ``cls_score_conv`` and ``bbox_pred_fc`` exist only where they are trained, so that no parameter
    is without a gradient.

    Losses: ``loss_cls`` (fc head), ``loss_box_reg`` (conv head), and ``loss_cls_conv``,
    ``loss_box_reg_fc`` where the layers exist.
    """

    bbox_pred: nn.Linear

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        conv_dim: int,
        lambda_fc: float = 1.0,
        lambda_conv: float = 1.0,
        loss_weight_fc: float = 2.0,
        loss_weight_conv: float = 2.5,
        fusion: str = "complementary",
        **kwargs: object,
    ) -> None:
        """Build the layers.

        Args:
            input_shape: shape of the fc head's vector.
            conv_dim: width of the conv head's vector.
            lambda_fc: share of the fc head's loss that goes to classes, in (0, 1].
            lambda_conv: share of the conv head's loss that goes to boxes, in (0, 1].
            loss_weight_fc: weight of the fc head's loss (the paper's omega).
            loss_weight_conv: weight of the conv head's loss.
            fusion: see :func:`fuse_scores`.
            kwargs: of ``FastRCNNOutputLayers``. Its ``loss_weight`` multiplies these weights:
                "loss_cls" both class losses, "loss_box_reg" both box losses.

        Raises:
            ValueError: for a setting that is out of range, with its config key.
        """
        super().__init__(input_shape, **kwargs)
        _check_settings(lambda_fc, lambda_conv, fusion)
        box_dim = self.bbox_pred.out_features
        self.bbox_pred = _linear(conv_dim, box_dim, std=0.001)
        self.cls_score_conv = self.bbox_pred_fc = None
        self.head_weight = {
            "loss_cls": loss_weight_fc * lambda_fc,
            "loss_box_reg": loss_weight_conv * lambda_conv,
        }
        if lambda_conv < 1:
            self.cls_score_conv = _linear(conv_dim, self.num_classes + 1, std=0.01)
            self.head_weight["loss_cls_conv"] = loss_weight_conv * (1 - lambda_conv)
        if lambda_fc < 1:
            self.bbox_pred_fc = _linear(self.cls_score.in_features, box_dim, std=0.001)
            self.head_weight["loss_box_reg_fc"] = loss_weight_fc * (1 - lambda_fc)
        self.fusion = fusion if self.cls_score_conv is not None else "fc"

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, object]:
        """Arguments from detectron2's keys and ``MODEL.DOUBLE_HEAD``."""
        node = cfg.MODEL.DOUBLE_HEAD
        return super().from_config(cfg, input_shape) | {
            "conv_dim": node.CONV_DIM,
            "lambda_fc": node.LAMBDA_FC,
            "lambda_conv": node.LAMBDA_CONV,
            "loss_weight_fc": node.LOSS_WEIGHT_FC,
            "loss_weight_conv": node.LOSS_WEIGHT_CONV,
            "fusion": node.FUSION,
        }

    def forward(self, x: tuple[Tensor, Tensor]) -> Predictions:
        """Predict from the two heads' vectors, (R, fc_dim) and (R, conv_dim)."""
        x_fc, x_conv = x
        focused = self.cls_score(x_fc), self.bbox_pred(x_conv)
        if self.cls_score_conv is None and self.bbox_pred_fc is None:
            return focused
        return (
            *focused,
            None if self.cls_score_conv is None else self.cls_score_conv(x_conv),
            None if self.bbox_pred_fc is None else self.bbox_pred_fc(x_fc),
        )

    def losses(self, predictions: Predictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """detectron2's losses for each head, times the head's weights.

        Args:
            predictions: of :meth:`forward`.
            proposals: the sampled RoIs, see the base class.

        Returns:
            Weighted scalars by name.
        """
        focused = super().losses(predictions[:2], proposals)
        losses = {name: focused[name] for name in ("loss_cls", "loss_box_reg")}
        if len(predictions) == 4:
            scores, deltas, scores_conv, deltas_fc = predictions
            # A head without the unfocused task lends the other's output; head_weight drops it.
            unfocused = (
                scores if scores_conv is None else scores_conv,
                deltas if deltas_fc is None else deltas_fc,
            )
            with get_event_storage().name_scope("unfocused"):
                other = super().losses(unfocused, proposals)
            losses["loss_cls_conv"] = other["loss_cls"]
            losses["loss_box_reg_fc"] = other["loss_box_reg"]
        return {name: losses[name] * weight for name, weight in self.head_weight.items()}

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Fused class probabilities, (Ri, K + 1) for each image."""
        fc = super().predict_probs(predictions[:2], proposals)
        if self.fusion == "fc":
            return fc
        conv = super().predict_probs((predictions[2], predictions[1]), proposals)
        return [fuse_scores(a, b, self.fusion) for a, b in zip(fc, conv, strict=True)]

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Boxes of the conv head, (Ri, K * 4) or (Ri, 4) for each image."""
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[Tensor]:
        """Boxes of the conv head for the true classes, (Ri, 4) for each image."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)


def _linear(in_features: int, out_features: int, *, std: float) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _check_settings(lambda_fc: float, lambda_conv: float, fusion: str) -> None:
    key = "MODEL.DOUBLE_HEAD"
    for name, value in (("LAMBDA_FC", lambda_fc), ("LAMBDA_CONV", lambda_conv)):
        if not 0 < value <= 1:
            raise ValueError(f"{key}.{name} is {value}: it must be in (0, 1]")
    if fusion not in _FUSIONS:
        raise ValueError(f"{key}.FUSION is '{fusion}': it must be one of {tuple(_FUSIONS)}")
    # Complementary fusion (the default) with a head that says nothing is the other head.
    if lambda_conv == 1 and fusion not in ("complementary", "fc"):
        raise ValueError(
            f"{key}.FUSION is '{fusion}', but with {key}.LAMBDA_CONV 1 the conv head does not "
            "classify: lower LAMBDA_CONV (the paper's is 0.8), or use 'complementary' or 'fc'"
        )
