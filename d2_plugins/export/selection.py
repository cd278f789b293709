"""Selection of boxes in which every size but that of NMS's result is known in advance.

detectron2's ``find_top_rpn_proposals`` and ``fast_rcnn_inference`` branch on values (is any box not
finite?) and drop rows in between, which an exporter cannot follow. These functions keep all rows,
mark dropped ones with a score of minus infinity, and select the same boxes.

Shapes: L levels, Ri boxes of level i, P proposals, K classes, D detections.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers.nms import exportable_nms

__all__ = ["clip_boxes", "select_detections", "select_proposals"]

_DROPPED = -math.inf


def clip_boxes(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes to the image, as ``Boxes.clip`` does.

    Args:
        boxes: (..., 4) XYXY.
        size: (2,) height and width of the image.
    """
    return torch.minimum(boxes.clamp(min=0), size[[1, 0, 1, 0]].to(boxes))


def select_proposals(
    boxes: Sequence[Tensor],
    logits: Sequence[Tensor],
    size: Tensor,
    *,
    pre_nms_topk: int,
    post_nms_topk: int,
    nms_thresh: float,
    min_box_size: float,
) -> tuple[Tensor, Tensor]:
    """Select the best of each level, apply NMS per level, and select the best of all.

    This is the choice of ``find_top_rpn_proposals``.

    Args:
        boxes: L tensors (Ri, 4), boxes of one image.
        logits: L tensors (Ri,).
        size: (2,) height and width of the image.
        pre_nms_topk: number of boxes of each level that go into NMS.
        post_nms_topk: P, unless the levels together have fewer.
        nms_thresh: boxes with a higher IoU than this with a better box are dropped.
        min_box_size: boxes with a side of at most this are dropped, in pixels.

    Returns:
        (P, 4) boxes, best first, and (P,) bool, which of them are valid. The others, at the end,
        are boxes of size 0.
    """
    kept_boxes, kept_logits = [], []
    for boxes_i, logits_i in zip(boxes, logits, strict=True):
        # Smaller levels are filled up, so that the number of boxes does not depend on the image.
        logits_i, order = F.pad(logits_i, (0, pre_nms_topk), value=_DROPPED).topk(pre_nms_topk)
        boxes_i = F.pad(boxes_i, (0, 0, 0, pre_nms_topk))[order]
        finite = boxes_i.isfinite().all(dim=1) & logits_i.isfinite()
        boxes_i = clip_boxes(torch.where(finite[:, None], boxes_i, 0.0), size)
        usable = finite & (boxes_i[:, 2:] - boxes_i[:, :2] > min_box_size).all(dim=1)
        # A box of size 0 overlaps nothing.
        boxes_i = torch.where(usable[:, None], boxes_i, 0.0)
        logits_i = torch.where(usable, logits_i, _DROPPED)
        best = exportable_nms(boxes_i, logits_i, nms_thresh)
        kept_boxes.append(boxes_i)
        kept_logits.append(torch.full_like(logits_i, _DROPPED).scatter(0, best, logits_i[best]))
    all_logits = torch.cat(kept_logits)
    all_logits, order = all_logits.topk(min(post_nms_topk, len(boxes) * pre_nms_topk))
    valid = all_logits > _DROPPED
    return torch.where(valid[:, None], torch.cat(kept_boxes)[order], 0.0), valid


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    valid: Tensor,
    size: Tensor,
    *,
    score_thresh: float,
    nms_thresh: float,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply threshold and NMS per class and select the best of all, for one image.

    This is the choice of ``fast_rcnn_inference``.

    Args:
        boxes: (P, K * 4) or (P, 4) XYXY.
        scores: (P, K + 1), the background last.
        valid: (P,) bool, which proposals are valid.
        size: (2,) height and width of the image.
        score_thresh: scores of at most this are dropped.
        nms_thresh: as in :func:`select_proposals`.
        topk: D.

    Returns:
        Boxes (D, 4), scores (D,) and classes (D,), best first. If there are fewer than D, the
        others have a score of minus infinity.
    """
    num_classes = scores.shape[1] - 1
    finite = valid & boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores = torch.where(finite[:, None], scores[:, :-1], _DROPPED)
    boxes = torch.where(finite[:, None], boxes, 0.0).unflatten(1, (-1, 4))
    boxes = clip_boxes(boxes, size).expand(-1, num_classes, -1)
    rows, classes = (scores > max(score_thresh, _DROPPED)).nonzero().unbind(1)
    boxes, scores = boxes[rows, classes], scores[rows, classes]
    keep = exportable_nms(boxes + _apart(classes, num_classes, size), scores, nms_thresh)
    # Filled up to D, for the same reason as above.
    scores, order = F.pad(scores[keep], (0, topk), value=_DROPPED).topk(topk)
    boxes, classes = boxes[keep], classes[keep]
    return F.pad(boxes, (0, 0, 0, topk))[order], scores, F.pad(classes, (0, topk))[order]


def _apart(classes: Tensor, num_classes: int, size: Tensor) -> Tensor:
    """Return offsets that keep boxes of different classes from overlapping.

    Classes are offset onto a square grid around the origin, one image size apart. In a row, as in
    torchvision's ``batched_nms``, 80 classes would reduce the precision of float32 coordinates to a
    hundredth of a pixel.

    Args:
        classes: (R,) classes of the boxes.
        num_classes: K.
        size: (2,) height and width of the image, which no box exceeds.

    Returns:
        (R, 4) offsets to add to boxes.
    """
    columns = math.ceil(math.sqrt(num_classes))
    place = torch.stack([classes % columns, classes // columns], dim=1) - columns // 2
    shift = place * (size.max() + 1)
    return torch.cat([shift, shift], dim=1).float()
