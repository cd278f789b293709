"""What the stages of Cascade RPN learn from, and their losses.

Shapes: N images, R cells of all levels together; cell r of image n has the number n * R + r in the
batch. P cells regress, S cells are scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from fvcore.nn import giou_loss
from torch import Tensor

from .cascade_rpn_stage import CascadeRPNStage, StageOutput
from .matching import IGNORED, CellGrid, iou_match, sample_matches
from .region_matcher import region_match

__all__ = ["REGRESSION_LOSSES", "CascadeRPNLoss", "StageTargets", "aligned_iou"]

_IOU_EPS = 1e-6
_EPS = torch.finfo(torch.float32).eps


def aligned_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the other at the same place: (..., 4) and (..., 4) -> (...).

    It is 0 where both are empty.
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    area, other = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (boxes, others))
    return intersection / (area + other - intersection).clamp(min=_IOU_EPS)


def _linear_iou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    return (1 - aligned_iou(boxes, gt_boxes).clamp(min=_IOU_EPS)).sum()


def _giou_loss(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    return giou_loss(boxes, gt_boxes, reduction="sum")


REGRESSION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": _linear_iou_loss,
    "giou": _giou_loss,
}
"""Loss of boxes (P, 4) against their ground truth (P, 4), summed."""


@dataclass(frozen=True)
class StageTargets:
    """What one stage learns from.

    Attributes:
        positives: (P,) numbers of the cells that regress.
        gt_boxes: (P, 4), what they regress to.
        normalizer: what the sum of their losses is divided by.
        scored: (S,) numbers of the cells whose objectness counts.
        labels: (S,) 1 for an object, else 0.
        score_normalizer: what the sum of their losses is divided by.
    """

    positives: Tensor
    gt_boxes: Tensor
    normalizer: float
    scored: Tensor
    labels: Tensor
    score_normalizer: float


@dataclass(frozen=True, kw_only=True)
class CascadeRPNLoss:
    """Matches the boxes of each stage with the ground truth and computes the losses.

    The first stage is matched by regions and all its positives regress. Later stages are matched by
    IoU, on the boxes they start from, and learn from a sample. The normalisers are mmdetection's.

    Attributes:
        regression_loss: "iou" (1 - IoU) or "giou".
        regression_weight: factor of the regression losses.
        score_weight: factor of the objectness loss.
        center_ratio: see :func:`.region_matcher.region_match`.
        ignore_ratio: see there.
        cells_per_positive: the regression loss of the first stage is divided by the number of cells
            of the batch over this, whatever the number of positives.
        iou_threshold: see :func:`.matching.iou_match`.
        low_quality_iou: see there.
        batch_size_per_image: cells sampled of an image.
        positive_fraction: part of them that positives take at most.

    Raises:
        ValueError: a value makes no sense; the message names its config key.
    """

    regression_loss: str = "iou"
    regression_weight: float = 10.0
    score_weight: float = 1.0
    center_ratio: float = 0.2
    ignore_ratio: float = 0.5
    cells_per_positive: float = 200.0
    iou_threshold: float = 0.7
    low_quality_iou: float = 0.3
    batch_size_per_image: int = 256
    positive_fraction: float = 0.5

    def __post_init__(self) -> None:
        key = "MODEL.CASCADE_RPN."
        if self.regression_loss not in REGRESSION_LOSSES:
            raise ValueError(
                f"{key}BBOX_REG_LOSS_TYPE is '{self.regression_loss}'; "
                f"allowed: {', '.join(REGRESSION_LOSSES)}"
            )
        if not 0 <= self.center_ratio <= self.ignore_ratio <= 1:
            raise ValueError(
                f"{key}CENTER_RATIO {self.center_ratio} and {key}IGNORE_RATIO {self.ignore_ratio} "
                "must be in 0..1, the first not above the second"
            )
        if not 0 < self.low_quality_iou <= self.iou_threshold <= 1:
            raise ValueError(
                f"{key}LOW_QUALITY_IOU {self.low_quality_iou} and {key}IOU_THRESHOLD "
                f"{self.iou_threshold} must be above 0 and at most 1, the first not above the "
                "second"
            )
        if self.cells_per_positive <= 0:
            raise ValueError(
                f"{key}CELLS_PER_POSITIVE must be positive, not {self.cells_per_positive}"
            )

    def __call__(
        self,
        stages: Sequence[CascadeRPNStage],
        outputs: Sequence[StageOutput],
        gt_boxes: Sequence[Boxes],
        grid: CellGrid,
    ) -> dict[str, Tensor]:
        """Losses of all stages, and diagnostics in the event storage if there is one.

        Args:
            stages: the stages.
            outputs: what they predicted.
            gt_boxes: of the N images.
            grid: where the cells are.

        Returns:
            ``loss_rpn_s{i}_reg`` of every stage i and ``loss_rpn_s{i}_cls`` of those that score.
            All have a gradient path to their stage's parameters, also without ground truth.
        """
        losses = {}
        for i, (stage, output) in enumerate(zip(stages, outputs, strict=True)):
            matches = [self.match(i, n, output, gt, grid) for n, gt in enumerate(gt_boxes)]
            targets = self.targets(i, matches, gt_boxes, with_scores=bool(output.logits))
            losses.update(self.stage_losses(i, stage, output, targets))
        return losses

    @torch.no_grad()
    def match(self, i: int, n: int, output: StageOutput, gt_boxes: Boxes, grid: CellGrid) -> Tensor:
        """Match the cells of image n with its ground truth, for stage i.

        Args:
            i: number of the stage, from 0.
            n: number of the image.
            output: of the stage; its boxes are matched.
            gt_boxes: of the image; empty ones and those that are not finite match nothing.
            grid: where the cells are; those that are not valid are ignored.

        Returns:
            (R,) int64: k >= 0 the matched box, -1 negative, -2 ignored.
        """
        usable = gt_boxes.nonempty() & gt_boxes.tensor.isfinite().all(dim=1)
        gt_boxes = Boxes(gt_boxes.tensor.where(usable[:, None], torch.nan))
        valid = grid.valid[n]
        if i == 0:
            matches = region_match(
                gt_boxes,
                grid.feature_sizes,
                grid.strides,
                anchor_scale=grid.anchor_scale,
                center_ratio=self.center_ratio,
                ignore_ratio=self.ignore_ratio,
            )
        else:
            boxes = torch.cat([b[n] for b in output.boxes])
            matches = iou_match(
                gt_boxes,
                # Nor may an invalid cell's box be the best one of a ground truth: empty it.
                Boxes(boxes * valid[:, None]),
                iou_threshold=self.iou_threshold,
                low_quality_iou=self.low_quality_iou,
            )
        return matches.masked_fill(~valid, IGNORED)

    def sample(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the positives and negatives of an image (R,) that are learned from."""
        return sample_matches(matches, self.batch_size_per_image, self.positive_fraction)

    def targets(
        self, i: int, matches: Sequence[Tensor], gt_boxes: Sequence[Boxes], *, with_scores: bool
    ) -> StageTargets:
        """What stage i learns from, given the matches of its cells.

        Args:
            i: number of the stage, from 0.
            matches: of each image, see :meth:`match`.
            gt_boxes: of each image.
            with_scores: the stage scores; only then and behind the first stage cells are sampled.
        """
        num_cells = len(matches[0])
        sampled = [self.sample(m) if with_scores or i > 0 else (m[:0], m[:0]) for m in matches]
        positives = [pos for pos, _ in sampled]
        negatives = [neg for _, neg in sampled]
        score_normalizer = float(sum(max(len(index), 1) for index in positives + negatives))
        scored = torch.cat([_numbers(positives, num_cells), _numbers(negatives, num_cells)])
        labels = torch.zeros(len(scored), device=scored.device)
        labels[: sum(map(len, positives))] = 1
        if i == 0:
            positives = [(m >= 0).nonzero()[:, 0] for m in matches]
            normalizer = len(matches) * num_cells / self.cells_per_positive
        else:
            normalizer = score_normalizer
        matched = [
            gt.tensor[m[index]] for gt, m, index in zip(gt_boxes, matches, positives, strict=True)
        ]
        return StageTargets(
            positives=_numbers(positives, num_cells),
            gt_boxes=torch.cat(matched),
            normalizer=normalizer,
            scored=scored,
            labels=labels,
            score_normalizer=score_normalizer,
        )

    def stage_losses(
        self, i: int, stage: CascadeRPNStage, output: StageOutput, targets: StageTargets
    ) -> dict[str, Tensor]:
        """The losses of stage i, see :meth:`__call__`."""
        # (N, Hi*Wi, 4) of each level -> (N * R, 4) -> (P, 4)
        boxes = torch.cat(output.boxes, dim=1).flatten(0, 1)[targets.positives]
        deltas = torch.cat(output.deltas, dim=1).flatten(0, 1)[targets.positives]
        moved = stage.decode(deltas, boxes)
        _log(i, len(output.boxes[0]), boxes, moved, targets.gt_boxes)
        loss = REGRESSION_LOSSES[self.regression_loss](moved, targets.gt_boxes)
        losses = {f"loss_rpn_s{i}_reg": self.regression_weight * loss / (targets.normalizer + _EPS)}
        if output.logits:
            logits = torch.cat(output.logits, dim=1).flatten()[targets.scored]
            loss = F.binary_cross_entropy_with_logits(logits, targets.labels, reduction="sum")
            loss = self.score_weight * loss / (targets.score_normalizer + _EPS)
            losses[f"loss_rpn_s{i}_cls"] = loss
        return losses


def _numbers(cells: Sequence[Tensor], num_cells: int) -> Tensor:
    """Indices within each image (R,) -> numbers in the batch (N * R,)."""
    return torch.cat([index + n * num_cells for n, index in enumerate(cells)])


@torch.no_grad()
def _log(i: int, num_images: int, boxes: Tensor, moved: Tensor, gt_boxes: Tensor) -> None:
    """Positives of stage i per image, and their mean IoU before and after it."""
    if not has_event_storage():
        return
    storage = get_event_storage()
    with storage.name_scope(f"rpn_s{i}"):
        storage.put_scalar("num_positives", len(boxes) / num_images)
        if len(boxes) > 0:
            ious = [aligned_iou(b, gt_boxes).mean() for b in (boxes, moved)]
            before, after = torch.stack(ious).tolist()
            storage.put_scalar("mean_iou_before", before)
            storage.put_scalar("mean_iou_after", after)
