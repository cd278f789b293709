"""A detector as a function of tensors, as exporters require it.

It calls the model's own backbone, heads and box arithmetic; only the selection of boxes is written
differently (:mod:`.selection`). It processes one image at a time.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..modeling.proposal_generator import CascadeRPN
from ..modeling.roi_heads import InvertedAttentionMixin
from .selection import clip_boxes, select_detections, select_proposals

__all__ = ["OUTPUTS", "ExportableDetector", "check_exportable", "pad_input"]

# Outputs of the exported program, in this order; masks only if the model has them.
OUTPUTS = ("boxes", "scores", "classes", "masks")


class ExportableDetector(nn.Module):
    """A detectron2 ``GeneralizedRCNN`` from tensors to tensors.

    Takes RPN or Cascade RPN; Standard and Cascade RoI heads with all of this package's heads; boxes
    and masks.

    Attributes:
        divisor: the sides of a padded image are multiples of this.
        least_side: smallest side of a padded image.
    """

    model: GeneralizedRCNN

    def __init__(self, model: GeneralizedRCNN) -> None:
        """Wrap a copy of a model, in evaluation mode and without gradients.

        Args:
            model: the detector.

        Raises:
            ValueError: the model has a part that cannot be exported; the message names it.
        """
        super().__init__()
        check_exportable(model)
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.divisor = max(int(model.backbone.size_divisibility), 1)
        # Exporters specialize on feature maps of a single row or column.
        coarsest = max(shape.stride for shape in model.backbone.output_shape().values())
        self.least_side = (coarsest // self.divisor + 1) * self.divisor

    @torch.no_grad()
    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """Detect objects in one image.

        Args:
            image: (3, H, W) float32 in 0..255, channels in the order of ``INPUT.FORMAT``; padded at
                the bottom and on the right with any values, see :func:`pad_input`.
            size: (2,) int64, height and width of the image without its padding.

        Returns:
            Boxes (D, 4), XYXY in pixels of ``image``, clipped to ``size``; scores (D,); classes
            (D,), int64; and, for a model with masks, (D, 1, M, M), the probability of each cell of
            the box. Best first.
        """
        model = self.model
        images = ImageList(self._normalise(image, size)[None], [size])
        features = model.backbone(images.tensor)
        proposals, valid = self._propose(images, features, size)
        boxes, scores, predictor = self._classify(features, proposals, size)
        boxes, scores, classes = select_detections(
            boxes,
            scores,
            valid,
            size,
            score_thresh=predictor.test_score_thresh,
            nms_thresh=predictor.test_nms_thresh,
            topk=predictor.test_topk_per_image,
        )
        outputs = [boxes, scores, classes]
        if model.roi_heads.mask_on:
            outputs.append(self._masks(features, boxes, classes))
        found = scores.isfinite().nonzero()[:, 0]
        return tuple(output[found] for output in outputs)

    def pad_input(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`pad_input` for this detector."""
        return pad_input(image, divisor=self.divisor, least_side=self.least_side)

    def _normalise(self, image: Tensor, size: Tensor) -> Tensor:
        """Normalise as ``preprocess_image`` does: the padding is zero afterwards."""
        rows = torch.arange(image.shape[1], device=image.device) < size[0]
        columns = torch.arange(image.shape[2], device=image.device) < size[1]
        image = (image - self.model.pixel_mean) / self.model.pixel_std
        return torch.where(rows[:, None] & columns, image, 0.0)

    def _propose(
        self, images: ImageList, features: dict[str, Tensor], size: Tensor
    ) -> tuple[Tensor, Tensor]:
        generator = self.model.proposal_generator
        if isinstance(generator, CascadeRPN):
            outputs = generator.run_stages(images, features)
            boxes = generator.stages[-1].decode_all(outputs[-1])
            logits = outputs[-1].pred_objectness_logits
        else:
            maps = [features[f] for f in generator.in_features]
            logits, deltas = generator.rpn_head(maps)
            # (N, A, Hi, Wi) -> (N, Hi*Wi*A), (N, A*4, Hi, Wi) -> (N, Hi*Wi*A, 4)
            logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
            deltas = [
                x.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float() for x in deltas
            ]
            boxes = generator._decode_proposals(generator.anchor_generator(maps), deltas)
        return select_proposals(
            [b[0] for b in boxes],
            [x[0] for x in logits],
            size,
            pre_nms_topk=generator.pre_nms_topk[False],
            post_nms_topk=generator.post_nms_topk[False],
            nms_thresh=generator.nms_thresh,
            min_box_size=generator.min_box_size,
        )

    def _classify(
        self, features: dict[str, Tensor], boxes: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the last stage's boxes (P, K * 4 or 4), mean scores (P, K + 1) and predictor."""
        heads = self.model.roi_heads
        maps = [features[f] for f in heads.box_in_features]
        cascade = isinstance(heads, CascadeROIHeads)
        box_heads: Sequence[nn.Module] = heads.box_head if cascade else [heads.box_head]
        predictors: Sequence[Any] = heads.box_predictor if cascade else [heads.box_predictor]
        scores = []
        for i, (head, predictor) in enumerate(zip(box_heads, predictors, strict=True)):
            proposals = _instances(clip_boxes(boxes, size) if i else boxes)
            if isinstance(heads, InvertedAttentionMixin):
                predictions = heads.predict_rois(maps, [proposals], head, predictor)
            else:
                predictions = predictor(head(heads.box_pooler(maps, [proposals.proposal_boxes])))
            (boxes,) = predictor.predict_boxes(predictions, [proposals])
            scores.append(predictor.predict_probs(predictions, [proposals])[0])
        return boxes, sum(scores) * (1.0 / len(scores)), predictor

    def _masks(self, features: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        heads = self.model.roi_heads
        maps = [features[f] for f in heads.mask_in_features]
        logits = heads.mask_head.layers(heads.mask_pooler(maps, [Boxes(boxes)]))
        if logits.shape[1] > 1:
            logits = logits[torch.arange(len(classes), device=classes.device), classes][:, None]
        return logits.sigmoid()


def pad_input(image: Tensor, *, divisor: int = 32, least_side: int = 96) -> tuple[Tensor, Tensor]:
    """Pad an image for the exported programs.

    Args:
        image: (3, H, W).
        divisor: the padded sides are multiples of this, see :class:`ExportableDetector`.
        least_side: smallest padded side.

    Returns:
        The image, float32 and padded at the bottom and on the right, and its (2,) height and width
        before.
    """
    height, width = image.shape[-2:]
    bottom, right = (max(-side % divisor, least_side - side) for side in (height, width))
    size = torch.tensor([height, width], device=image.device)
    return F.pad(image.float(), (0, right, 0, bottom)), size


def _instances(boxes: Tensor) -> Instances:
    # Predictors on pooled features do not read the image size.
    return Instances((0, 0), proposal_boxes=Boxes(boxes))


def check_exportable(model: GeneralizedRCNN) -> None:
    """Refuse models with parts that :class:`ExportableDetector` does not support.

    Raises:
        ValueError: a part cannot be exported; the message names it and what can be.
    """

    def refuse(key: str, part: object, allowed: str) -> None:
        raise ValueError(f"{key}: {part} cannot be exported, only {allowed}")

    if type(model) is not GeneralizedRCNN:
        refuse("MODEL.META_ARCHITECTURE", type(model).__name__, "GeneralizedRCNN")
    generator, heads = model.proposal_generator, model.roi_heads
    if type(generator) is not RPN and not isinstance(generator, CascadeRPN):
        name = type(generator).__name__
        refuse("MODEL.PROPOSAL_GENERATOR.NAME", name, "RPN and CascadeRPN")
    if not isinstance(heads, StandardROIHeads):
        name = type(heads).__name__
        refuse(
            "MODEL.ROI_HEADS.NAME", name, "StandardROIHeads, CascadeROIHeads and their subclasses"
        )
    if heads.keypoint_on:
        refuse("MODEL.KEYPOINT_ON", True, "boxes and masks")
    if heads.mask_on and not isinstance(heads.mask_head, BaseMaskRCNNHead):
        name = type(heads.mask_head).__name__
        refuse("MODEL.ROI_MASK_HEAD.NAME", name, "MaskRCNNConvUpsampleHead and its subclasses")
    last = heads.box_predictor[-1] if isinstance(heads, CascadeROIHeads) else heads.box_predictor
    if last.test_topk_per_image < 1:
        refuse("TEST.DETECTIONS_PER_IMAGE", last.test_topk_per_image, "1 or more")
