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
# Suffix of the key -> least and greatest area of a ground-truth box, both included.
AREAS = {"": (0, 1e5**2), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e5**2)}
# As detectron2 makes them: the comparison is in float32.
_THRESHOLDS = torch.arange(0.5, 0.95 + 1e-5, 0.05)


class ProposalRecall:
    """Sums up, image by image, how many ground-truth boxes proposals cover.

    Average recall (Hosang et al., arXiv 1502.05082, section 5; COCO's AR) is the share of boxes
    that are covered, averaged over IoU 0.5 to 0.95. Which proposal covers which box is decided as
    in detectron2 and Detectron, from where published AR figures of proposals come: the pair of
    highest IoU is taken first, and both leave. pycocotools goes down the scores instead, so its AR
    (with ``useCats = 0``) is never higher and slightly different. Crowd regions do not count.

    One difference to detectron2: boxes of an image without any proposal count as missed; there
    they are left out, which raises the figure.
    """

    def __init__(self, ground_truth: COCO, *, limits: Sequence[int] = LIMITS) -> None:
        """Prepare the counts.

        Args:
            ground_truth: annotations with boxes and areas.
            limits: numbers of best-scored proposals per image to evaluate.
        """
        self._ground_truth = ground_truth
        self.limits = tuple(limits)
        self.covered = np.zeros((len(self.limits), len(AREAS), len(_THRESHOLDS)), np.int64)
        self.total = np.zeros(len(AREAS), np.int64)

    def add(self, image_id: int, proposals: Instances) -> None:
        """Count the proposals of one image.

        Args:
            image_id: of the ground truth.
            proposals: ``proposal_boxes`` and ``objectness_logits``, in any order.
        """
        order = proposals.objectness_logits.argsort(descending=True)[: max(self.limits)]
        boxes, areas = _image_ground_truth(self._ground_truth, image_id)
        covered, total = recall_counts(
            proposals.proposal_boxes.tensor[order], boxes, areas, self.limits
        )
        self.covered += covered
        self.total += total

    def merge(self, other: "ProposalRecall") -> None:
        """Add what another process has counted."""
        self.covered += other.covered
        self.total += other.total

    def results(self) -> dict[str, float]:
        """``AR@100``, ``ARs@100``, ... in percent; NaN for an area without ground truth."""
        with np.errstate(invalid="ignore"):
            recall = 100 * self.covered.mean(axis=-1) / self.total
        return {
            f"AR{suffix}@{limit}": float(recall[i, j])
            for i, limit in enumerate(self.limits)
            for j, suffix in enumerate(AREAS)
        }

    def __getstate__(self) -> dict[str, Any]:
        """The counts without the ground truth, which is large and which every process has."""
        return self.__dict__ | {"_ground_truth": None}


def recall_counts(
    proposals: Tensor, gt_boxes: Tensor, gt_areas: Tensor, limits: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Count the ground-truth boxes of an image that are covered.

    Args:
        proposals: (P, 4), best first.
        gt_boxes: (G, 4).
        gt_areas: (G,), areas that define small, medium and large; may be those of masks.
        limits: M numbers of proposals.

    Returns:
        The covered boxes (M, A, T) per limit, area and threshold, and all boxes (A,) per area.
    """
    ranges = torch.tensor(list(AREAS.values()), dtype=torch.float64)
    areas = gt_areas.double()
    in_area = (areas >= ranges[:, :1]) & (areas <= ranges[:, 1:])  # (A, G)
    ious = pairwise_iou(Boxes(proposals), Boxes(gt_boxes))
    # Pairs below the least threshold cannot take a partner from one above it.
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
    """Indices of the pairs that are kept when each, in turn, takes its row and column away."""
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
    """Boxes (G, 4) and areas (G,) of an image, without crowd regions."""
    objects = [a for a in ground_truth.imgToAnns.get(image_id, ()) if not a.get("iscrowd", 0)]
    boxes = [BoxMode.convert(a["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for a in objects]
    areas = torch.tensor([a["area"] for a in objects], dtype=torch.float64)
    return torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4), areas


def save_proposals(path: Path, proposals: Iterable[tuple[int, Instances]]) -> None:
    """Write proposals as detectron2 reads them (``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST``).

    Args:
        path: of the pickle.
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
