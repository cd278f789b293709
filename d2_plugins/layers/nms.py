"""Non-maximum suppression that an exported program runs for any number of boxes."""

import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

__all__ = ["exportable_nms"]


def exportable_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Apply torchvision's ``nms``.

    torchvision declares to ``torch.export`` that at least two boxes are kept, and the exported
    program then fails where there are fewer. Two more boxes of size 0, which overlap nothing, make
    the declaration true.

    Args:
        boxes: (R, 4) XYXY.
        scores: (R,).
        iou_threshold: boxes with a higher IoU than this with a better box are dropped.

    Returns:
        Indices of the kept boxes, best first.
    """
    kept = nms(F.pad(boxes, (0, 0, 0, 2)), F.pad(scores, (0, 2)), iou_threshold)
    return kept[kept < boxes.shape[0]]
