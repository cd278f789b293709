"""Predictions, losses, and fusion of scores and boxes of a Double-Head.

Wu et al., CVPR 2020; the weights of the losses and the fusion of scores as in the authors' code.

Shape shorthand: R RoIs of the whole batch, S of them chosen for the conv head, K foreground
classes, B box dimensions (4 K, or 4 if class-agnostic).

In a plain Double-Head, predictions are the pair of detectron2's ``FastRCNNOutputLayers``: class
logits of the fc head, box deltas of the conv head. Double-Head-Ext adds the unfocused ones: class
logits of the conv head and box deltas of the fc head, None where that head keeps to its own task.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat, cross_entropy
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from ...layers.nms import exportable_nms

__all__ = ["DoubleHeadOutputLayers", "Predictions", "fuse_boxes", "fuse_scores"]

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
_BOX_FUSIONS = ("conv", "fc", "mean")

# Double-Head-Ext detects the same with it, see docs/double_head.md.
_EXT_MIN_SCORE = 0.05
# No probability exceeds it.
_NO_ROI = 1.0


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


def fuse_boxes(fc: Tensor, conv: Tensor, mode: str = "conv") -> Tensor:
    """Combine the box deltas of the two heads, element by element.

    Args:
        fc: (R, B) deltas of the fc head.
        conv: (R, B) deltas of the conv head.
        mode: "conv" (the paper's), "fc" or "mean".

    Returns:
        (R, B) deltas.
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
        box_fusion: str = "conv",
        conv_head_min_score: float | None = None,
        conv_head_nms_thresh: float = 1.0,
        conv_head_foreground_only: bool = False,
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
            box_fusion: see :func:`fuse_boxes`; other than "conv" needs ``lambda_fc`` below 1.
            conv_head_min_score: at inference, RoIs whose best foreground score of the fc head does
                not exceed this skip the conv head. Negative: none skip it. None: the highest value
                that is known to cost nothing, see :meth:`choose`.
            conv_head_nms_thresh: at inference, RoIs that overlap one of their class with a better
                score of the fc head by more than this IoU skip the conv head. 1: none do.
            conv_head_foreground_only: in training, only foreground RoIs go through the conv head;
                needs ``lambda_conv`` 1.
            kwargs: arguments of ``FastRCNNOutputLayers``. Its ``loss_weight`` multiplies these
                weights: "loss_cls" both class losses, "loss_box_reg" both box losses.

        Raises:
            ValueError: for a setting that is out of range, with its config key.
        """
        super().__init__(input_shape, **kwargs)
        _check_settings(lambda_fc, lambda_conv, fusion, box_fusion, conv_head_nms_thresh)
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
        self.box_fusion = box_fusion
        if conv_head_min_score is None:
            conv_head_min_score = self._harmless_min_score()
        self.conv_head_min_score = conv_head_min_score
        self.conv_head_nms_thresh = conv_head_nms_thresh
        if conv_head_foreground_only and lambda_conv < 1:
            raise ValueError(
                "MODEL.DOUBLE_HEAD.CONV_HEAD_FOREGROUND_ONLY is True, but with "
                f"MODEL.DOUBLE_HEAD.LAMBDA_CONV {lambda_conv} the conv head learns classes, the "
                "background among them; allowed: False, or LAMBDA_CONV 1"
            )
        self.conv_head_foreground_only = conv_head_foreground_only

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
            "box_fusion": node.BOX_FUSION,
            "conv_head_min_score": node.CONV_HEAD_MIN_SCORE,
            "conv_head_nms_thresh": node.CONV_HEAD_NMS_THRESH,
            "conv_head_foreground_only": node.CONV_HEAD_FOREGROUND_ONLY,
        }

    @property
    def is_selective(self) -> bool:
        """True if some RoIs may skip the conv head at inference."""
        return self.conv_head_min_score >= 0 or self.conv_head_nms_thresh < 1

    def forward(self, x: tuple[Tensor, Tensor], chosen: Tensor | None = None) -> Predictions:
        """Predict from the vectors of the two heads.

        Args:
            x: (R, fc_dim) of the fc head and (R, conv_dim) of the conv head, or (S, conv_dim) if
                not all RoIs went through it.
            chosen: (S,) indices of the RoIs that went through the conv head; None stands for all.

        Returns:
            Predictions for all R RoIs. A RoI that skipped the conv head has the score of the fc
            head for every fusion, and the box of the fc head, or its own if that head has none.
        """
        x_fc, x_conv = x
        scores, deltas_fc = self.predict_fc(x_fc)
        deltas = self.bbox_pred(x_conv)
        scores_conv = None if self.cls_score_conv is None else self.cls_score_conv(x_conv)
        if chosen is not None:
            others = deltas.new_zeros(x_fc.shape[0], deltas.shape[1])
            deltas = (others if deltas_fc is None else deltas_fc).index_put((chosen,), deltas)
            if scores_conv is not None:
                scores_conv = self._neutral_scores(scores).index_put((chosen,), scores_conv)
        if scores_conv is None and deltas_fc is None:
            return scores, deltas
        return scores, deltas, scores_conv, deltas_fc

    def predict_fc(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predict from the fc head's vector (R, fc_dim): logits (R, K + 1), deltas (R, B)."""
        return self.cls_score(x), None if self.bbox_pred_fc is None else self.bbox_pred_fc(x)

    def choose(self, scores: Tensor, deltas: Tensor | None, rois: Tensor) -> Tensor:
        """Choose the RoIs of a batch that the conv head shall see at inference.

        The conv head of a plain Double-Head only moves boxes. A RoI without a score above
        ``test_score_thresh`` is not a detection, so with this threshold, the default, the
        detections are the same. In Double-Head-Ext it is an approximation.

        Args:
            scores: (R, K + 1) logits of the fc head.
            deltas: (R, B) deltas of the fc head, None if it has none.
            rois: (R, 5) image index and XYXY.

        Returns:
            (S,) indices.
        """
        best, classes = self._probabilities(scores)[:, :-1].max(dim=1)
        (chosen,) = (best > self.conv_head_min_score).nonzero(as_tuple=True)
        if self.conv_head_nms_thresh >= 1:
            return chosen
        best, classes, rois = best[chosen], classes[chosen], rois[chosen]
        boxes = rois[:, 1:]
        if deltas is not None:
            boxes = self.box2box_transform.apply_deltas(deltas[chosen], boxes)
            boxes = boxes.unflatten(1, (-1, 4))  # (S, K or 1, 4)
            rows = torch.arange(boxes.shape[0], device=boxes.device)
            boxes = boxes[rows, classes % boxes.shape[1]]
        # batched_nms branches on the number of boxes, which an exporter cannot follow.
        extent = F.pad(boxes.abs().flatten(), (0, 1)).max()
        shift = torch.stack([classes, rois[:, 0].long()], dim=1) * (2 * extent + 1)
        boxes = boxes + shift.repeat(1, 2)
        return chosen[exportable_nms(boxes, best, self.conv_head_nms_thresh)]

    def foreground(self, proposals: list[Instances]) -> Tensor:
        """Return the indices of the foreground RoIs of a batch, which alone have a box loss."""
        gt_classes = cat([p.gt_classes for p in proposals])
        foreground = (gt_classes >= 0) & (gt_classes < self.num_classes)
        return foreground.nonzero(as_tuple=True)[0]

    def drop_unused_layers(self) -> None:
        """Remove the layers that inference does not read; there are no losses afterwards."""
        if self.fusion == "fc":
            self.cls_score_conv = None
        if self.box_fusion == "conv" and not self.is_selective:
            self.bbox_pred_fc = None

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
        weights = dict(self.head_weight)
        scores_conv, deltas_fc = predictions[2:] or (None, None)
        # Not by super().losses, which would log a second set of accuracies and wait for the device.
        gt_classes = cat([p.gt_classes for p in proposals])
        if scores_conv is not None:
            losses["loss_cls_conv"] = self._classification_loss(scores_conv, gt_classes)
            weights["loss_cls_conv"] *= self.loss_weight.get("loss_cls", 1.0)
        if deltas_fc is not None:
            boxes = _boxes(proposals)
            losses["loss_box_reg_fc"] = self.box_reg_loss(*boxes, deltas_fc, gt_classes)
            weights["loss_box_reg_fc"] *= self.loss_weight.get("loss_box_reg", 1.0)
        return {name: losses[name] * weight for name, weight in weights.items()}

    def predict_probs(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Fused class probabilities, (Ri, K + 1) for each image."""
        fc = super().predict_probs(predictions[:2], proposals)
        if self.fusion == "fc":
            return fc
        conv = super().predict_probs((predictions[2], predictions[1]), proposals)
        return [fuse_scores(a, b, self.fusion) for a, b in zip(fc, conv, strict=True)]

    def predict_boxes(self, predictions: Predictions, proposals: list[Instances]) -> list[Tensor]:
        """Fused boxes, (Ri, K * 4) or (Ri, 4) for each image."""
        return super().predict_boxes(self._with_fused_boxes(predictions), proposals)

    def predict_boxes_for_gt_classes(
        self, predictions: Predictions, proposals: list[Instances]
    ) -> list[Tensor]:
        """Fused boxes for the true classes, (Ri, 4) for each image."""
        return super().predict_boxes_for_gt_classes(self._with_fused_boxes(predictions), proposals)

    def _with_fused_boxes(self, predictions: Predictions) -> Predictions:
        if self.box_fusion == "conv":
            return predictions[:2]
        scores, deltas, _, deltas_fc = predictions
        assert deltas is not None
        assert deltas_fc is not None  # else the constructor refuses to fuse boxes
        return scores, fuse_boxes(deltas_fc, deltas, self.box_fusion)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.use_sigmoid_ce else logits.softmax(dim=1)

    def _harmless_min_score(self) -> float:
        if self.fusion != "fc":
            return _EXT_MIN_SCORE
        # Only the box of a detection is left to the conv head, if that.
        return _NO_ROI if self.box_fusion == "fc" else self.test_score_thresh

    def _neutral_scores(self, scores_fc: Tensor) -> Tensor:
        """Logits of the conv head that leave the fc head's scores as they are."""
        if self.fusion != "complementary":
            return scores_fc
        background = torch.full_like(scores_fc, -torch.inf)
        background[:, -1] = 0
        return background

    def _classification_loss(self, scores: Tensor, gt_classes: Tensor) -> Tensor:
        if self.use_sigmoid_ce:
            return self.sigmoid_cross_entropy_loss(scores, gt_classes)
        return cross_entropy(scores, gt_classes, reduction="mean")


def _boxes(proposals: list[Instances]) -> tuple[Tensor, Tensor]:
    """Return the RoIs (R, 4) and their ground truth (R, 4)."""
    boxes = cat([p.proposal_boxes.tensor for p in proposals])
    # An image without objects has no gt_boxes, and none of its RoIs has a box loss.
    gt_boxes = cat(
        [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
    )
    return boxes, gt_boxes


def _linear(in_features: int, out_features: int, *, std: float) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _check_settings(
    lambda_fc: float, lambda_conv: float, fusion: str, box_fusion: str, nms_thresh: float
) -> None:
    key = "MODEL.DOUBLE_HEAD"
    for name, value in (("LAMBDA_FC", lambda_fc), ("LAMBDA_CONV", lambda_conv)):
        if not 0 < value <= 1:
            raise ValueError(f"{key}.{name} is {value}; allowed: above 0, at most 1")
    if nms_thresh <= 0:
        raise ValueError(f"{key}.CONV_HEAD_NMS_THRESH is {nms_thresh}; allowed: above 0")
    for name, mode, allowed in (
        ("FUSION", fusion, tuple(_FUSIONS)),
        ("BOX_FUSION", box_fusion, _BOX_FUSIONS),
    ):
        if mode not in allowed:
            raise ValueError(f"{key}.{name} is '{mode}'; allowed: {', '.join(allowed)}")
    # Complementary fusion, the default, with a head without scores gives the other head's.
    if lambda_conv == 1 and fusion not in ("complementary", "fc"):
        raise ValueError(
            f"{key}.FUSION is '{fusion}', but with {key}.LAMBDA_CONV 1 the conv head does not "
            "classify; allowed: complementary, fc, or a LAMBDA_CONV below 1 (the paper's is 0.8)"
        )
    if lambda_fc == 1 and box_fusion != "conv":
        raise ValueError(
            f"{key}.BOX_FUSION is '{box_fusion}', but with {key}.LAMBDA_FC 1 the fc head has no "
            "boxes; allowed: conv, or a LAMBDA_FC below 1 (the paper's is 0.7)"
        )
