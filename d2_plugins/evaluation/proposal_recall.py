"""Average recall of box proposals.

P proposals, G ground-truth boxes, T IoU thresholds, A areas, M limits. Boxes are XYXY in pixels of
the original image.
"""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, Instances, pairwise_iou
from pycocotools.coco import COCO
from torch import Tensor

from ..files import atomic_open

__all__ = ["AREAS", "LIMITS", "ProposalRecall", "recall_counts", "save_proposals"]

LIMITS = (100, 300, 1000)
# Suffix of the key -> lowest and highest area of a ground-truth box, both included.
AREAS = {"": (0, 1e5**2), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e5**2)}
# In float32, as in detectron2.
_THRESHOLDS = torch.arange(0.5, 0.95 + 1e-5, 0.05)


class ProposalRecall:
    """Counts, image by image, the ground-truth boxes that proposals cover.

    Average recall (Hosang et al., arXiv 1502.05082, section 5; COCO's AR) is the share of boxes
    that are covered, averaged over IoU 0.5 to 0.95. Proposals are matched to boxes as in detectron2
    and Detectron, the source of the published AR figures of proposals: the pair with the highest
    IoU is matched first, then the next pair of the others. pycocotools matches in the order of the
    scores instead, so its AR (with ``useCats = 0``) is equal or slightly lower. Crowd regions are
    not counted.

    One difference to detectron2: the boxes of an image without any proposal count as missed.
    detectron2 ignores them, which raises the result.
    """

    def __init__(self, ground_truth: COCO, *, limits: Sequence[int] = LIMITS) -> None:
        """Initialize the counts.

        Args:
            ground_truth: boxes and areas.
            limits: numbers of proposals per image, best scores first, to evaluate.
        """
        self._ground_truth = ground_truth
        self.limits = tuple(limits)
        self.covered = np.zeros((len(self.limits), len(AREAS), len(_THRESHOLDS)), np.int64)
        self.total = np.zeros(len(AREAS), np.int64)

    def add(self, image_id: int, proposals: Instances) -> None:
        """Count the proposals of one image.

        Args:
            image_id: id of the image in the ground truth.
            proposals: Instances with ``proposal_boxes`` and ``objectness_logits``, in any order.
        """
        order = proposals.objectness_logits.argsort(descending=True)[: max(self.limits)]
        boxes, areas = _image_ground_truth(self._ground_truth, image_id)
        covered, total = recall_counts(
            proposals.proposal_boxes.tensor[order], boxes, areas, self.limits
        )
        self.covered += covered
        self.total += total

    def merge(self, other: "ProposalRecall") -> None:
        """Add the counts of another process."""
        self.covered += other.covered
        self.total += other.total

    def results(self) -> dict[str, float]:
        """Return ``AR@100``, ``ARs@100``, ... in percent; NaN for an area without ground truth."""
        with np.errstate(invalid="ignore"):
            recall = 100 * self.covered.mean(axis=-1) / self.total
        return {
            f"AR{suffix}@{limit}": float(recall[i, j])
            for i, limit in enumerate(self.limits)
            for j, suffix in enumerate(AREAS)
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the counts without the ground truth, which is large and known to all processes."""
        return self.__dict__ | {"_ground_truth": None}


def recall_counts(
    proposals: Tensor, gt_boxes: Tensor, gt_areas: Tensor, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Count the ground-truth boxes of an image that are covered.

    Args:
        proposals: (P, 4), best first.
        gt_boxes: (G, 4).
        gt_areas: (G,), areas that decide between small and large; may be those of masks.
        limits: M numbers of proposals.

    Returns:
        Numbers of covered boxes (M, A, T) per limit, area and threshold, and of all boxes (A,) per
        area.
    """
    ranges = torch.tensor(list(AREAS.values()), dtype=torch.float64)
    areas = gt_areas.double()
    in_area = (areas >= ranges[:, :1]) & (areas <= ranges[:, 1:])  # (A, G)
    ious = pairwise_iou(Boxes(proposals), Boxes(gt_boxes))
    # Pairs below the lowest threshold do not affect the pairs above it.
    rows, columns = (ious >= _THRESHOLDS[0]).nonzero(as_tuple=True)
    values, order = ious[rows, columns].sort(descending=True, stable=True)
    rows, columns = rows[order], columns[order]
    covered = np.zeros((len(limits), len(AREAS), len(_THRESHOLDS)), np.int64)
    for i, limit in enumerate(limits):
        for j in range(len(AREAS)):
            candidate = (rows < limit) & in_area[j, columns]
            taken = _greedy(rows[candidate].tolist(), columns[candidate].tolist())
            overlaps = values[candidate][taken]
            covered[i, j] = (overlaps[:, None] >= _THRESHOLDS).sum(0).numpy()
    return covered, in_area.sum(1).numpy()


def _greedy(rows: list[int], columns: list[int]) -> list[int]:
    """Return the indices of the pairs whose row and column no earlier pair has taken."""
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    kept = []
    for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            kept.append(index)
    return kept


def _image_ground_truth(ground_truth: COCO, image_id: int) -> tuple[Tensor, Tensor]:
    """Return boxes (G, 4) and areas (G,) of an image, without crowd regions."""
    objects = [a for a in ground_truth.imgToAnns.get(image_id, ()) if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in objects]
    areas = torch.tensor([a["area"] for a in objects], dtype=torch.float64)
    return torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4), areas


def save_proposals(path: Path, proposals: Iterable[tuple[int, Instances]]) -> None:
    """Write proposals in the format of ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``.

    Args:
        path: path of the pickle.
        proposals: pairs of image id and Instances, in pixels of the original image.
    """
    pairs = list(proposals)
    content = {
        "ids": [image_id for image_id, _ in pairs],
        "boxes": [p.proposal_boxes.tensor.numpy() for _, p in pairs],
        "objectness_logits": [p.objectness_logits.numpy() for _, p in pairs],
        "bbox_mode": BoxMode.XYXY_ABS.value,
    }
    with atomic_open(path, "wb") as file:
        pickle.dump(content, file)
