"""Targets and losses of the stages of Cascade RPN.

Shape shorthand:

    N: number of images
    R: number of cells of all levels together; cell r of image n is number n * R + r of the batch
    P: number of cells of the batch that learn to regress a box
    S: number of cells of the batch whose objectness is trained

Naming convention:

    stages are numbered from 1, in losses, events and messages.

    matches: index of the ground-truth box that a cell is matched with, or NEGATIVE or IGNORED.

    gt_boxes: ground-truth boxes, of an image or of the cells that regress.

    gt_labels: 1 for cells with an object, 0 for those without.

    boxes, pred_deltas, pred_boxes: the boxes that a stage starts from, the predicted
    transformation, and the boxes it leads to.

    pred_objectness_logits: predicted objectness, before the sigmoid.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from fvcore.nn import giou_loss
from torch import Tensor

from .cascade_rpn_stage import CascadeRPNStage, StageOutput
from .matching import IGNORED, CellGrid, iou_match, region_match_images, sample_matches

__all__ = [
    "REGRESSION_LOSSES",
    "CascadeRPNLoss",
    "IoUTargets",
    "RegionTargets",
    "StageTargets",
    "aligned_iou",
    "without_unusable",
]

_IOU_EPS = 1e-6
_EPS = torch.finfo(torch.float32).eps
# Reading the mean IoUs waits for the device; detectron2's writers look every 20 iterations.
_LOG_PERIOD = 20


def aligned_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of each box with the other one at the same index.

    Args:
        boxes: (..., 4) XYXY.
        others: (..., 4) XYXY.

    Returns:
        (...), 0 where both boxes are empty.
    """
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    intersection = (high - low).clamp(min=0).prod(dim=-1)
    area, other = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (boxes, others))
    return intersection / (area + other - intersection).clamp(min=_IOU_EPS)


def _linear_iou_loss(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    return (1 - aligned_iou(pred_boxes, gt_boxes).clamp(min=_IOU_EPS)).sum()


def _giou_loss(pred_boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    return giou_loss(pred_boxes, gt_boxes, reduction="sum")


REGRESSION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": _linear_iou_loss,
    "giou": _giou_loss,
}
"""Losses of predicted boxes (P, 4) and their ground truth (P, 4), summed over the boxes."""


@dataclass(frozen=True)
class StageTargets:
    """Targets of one stage.

    Attributes:
        positives: (P,) numbers of the cells that regress.
        gt_boxes: (P, 4) boxes that they regress to.
        normalizer: divisor of the sum of their losses.
        sampled: (S,) numbers of the cells whose objectness is trained.
        gt_labels: (S,) float32, 1 for an object and 0 for none.
        score_normalizer: divisor of the sum of their losses.
    """

    positives: Tensor
    gt_boxes: Tensor
    normalizer: float
    sampled: Tensor
    gt_labels: Tensor
    score_normalizer: float


@dataclass(frozen=True, kw_only=True)
class _Targets(ABC):
    """Rules that turn ground-truth boxes into the targets of a stage.

    Attributes:
        batch_size_per_image: number of cells sampled per image.
        positive_fraction: maximum fraction of positives among them.
    """

    batch_size_per_image: int
    positive_fraction: float

    @abstractmethod
    def match(self, output: StageOutput, gt_boxes: Sequence[Boxes], grid: CellGrid) -> Tensor:
        """Match the cells of all images with their ground truth.

        Args:
            output: predictions of the stage, whose boxes are matched.
            gt_boxes: ground-truth boxes of each image; those with a NaN match nothing.
            grid: positions of the cells; those that are not valid are ignored.

        Returns:
            (N, R) int64 matches: k >= 0, -1 negative, -2 ignored.
        """

    @abstractmethod
    def targets(
        self, matches: Tensor, gt_boxes: Sequence[Boxes], *, with_scores: bool
    ) -> StageTargets:
        """Return the targets of a stage, given the matches of its cells.

        Args:
            matches: (N, R), see :meth:`match`.
            gt_boxes: ground-truth boxes of each image.
            with_scores: True if the stage predicts objectness.
        """

    def sample(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of the sampled positives and negatives of one image (R,)."""
        return sample_matches(matches, self.batch_size_per_image, self.positive_fraction)

    def _sample_batch(self, matches: Tensor) -> tuple[Tensor, Tensor, float]:
        """Sample the cells of all images.

        Returns:
            Numbers of the positives and of the negatives in the batch; and mmdetection's
            normalizer, the number of both, where an image without any counts as one.
        """
        num_cells = matches.shape[1]
        samples = [self.sample(m) for m in matches]
        counts = [max(len(index), 1) for sample in samples for index in sample]
        positives, negatives = (
            torch.cat([index + n * num_cells for n, index in enumerate(indices)])
            for indices in zip(*samples, strict=True)
        )
        return positives, negatives, float(sum(counts))


@dataclass(frozen=True, kw_only=True)
class RegionTargets(_Targets):
    """Targets of the first stage: matched by regions, and all positives regress.

    Attributes:
        center_ratio: see :func:`.matching.region_match`.
        ignore_ratio: see :func:`.matching.region_match`.
        cells_per_positive: the regression loss is divided by the number of cells of the batch over
            this number, independently of the number of positives.
    """

    center_ratio: float
    ignore_ratio: float
    cells_per_positive: float

    def match(self, output: StageOutput, gt_boxes: Sequence[Boxes], grid: CellGrid) -> Tensor:
        """Match by regions, which do not depend on the boxes of the stage."""
        matches = region_match_images(
            gt_boxes,
            grid.feature_sizes,
            grid.strides,
            anchor_scale=grid.anchor_scale,
            center_ratio=self.center_ratio,
            ignore_ratio=self.ignore_ratio,
        )
        return matches.masked_fill_(~grid.valid, IGNORED)

    def targets(
        self, matches: Tensor, gt_boxes: Sequence[Boxes], *, with_scores: bool
    ) -> StageTargets:
        """Regress all positives; sample cells for the objectness only if the stage predicts it."""
        positives = (matches >= 0).flatten().nonzero()[:, 0]
        negatives, sampled_positives, score_normalizer = positives[:0], positives[:0], 1.0
        if with_scores:
            sampled_positives, negatives, score_normalizer = self._sample_batch(matches)
        return StageTargets(
            positives=positives,
            gt_boxes=_matched_boxes(matches, gt_boxes, positives),
            normalizer=matches.numel() / self.cells_per_positive,
            score_normalizer=score_normalizer,
            **_objectness_targets(sampled_positives, negatives),
        )


@dataclass(frozen=True, kw_only=True)
class IoUTargets(_Targets):
    """Targets of all later stages: matched by IoU, and a sample of the cells learns.

    Attributes:
        iou_threshold: see :func:`.matching.iou_match`.
        low_quality_iou: see :func:`.matching.iou_match`.
    """

    iou_threshold: float
    low_quality_iou: float

    def match(self, output: StageOutput, gt_boxes: Sequence[Boxes], grid: CellGrid) -> Tensor:
        """Match the boxes that the stage starts from by IoU."""
        # Empty the boxes of invalid cells so that they cannot be a ground truth's best match.
        boxes = torch.cat(output.boxes, dim=1) * grid.valid[:, :, None]
        matches = [
            iou_match(
                gt,
                Boxes(b),
                iou_threshold=self.iou_threshold,
                low_quality_iou=self.low_quality_iou,
            )
            for gt, b in zip(gt_boxes, boxes, strict=True)
        ]
        return torch.stack(matches).masked_fill_(~grid.valid, IGNORED)

    def targets(
        self, matches: Tensor, gt_boxes: Sequence[Boxes], *, with_scores: bool
    ) -> StageTargets:
        """Sample cells, which serve both losses; so does their number as the normalizer."""
        positives, negatives, normalizer = self._sample_batch(matches)
        return StageTargets(
            positives=positives,
            gt_boxes=_matched_boxes(matches, gt_boxes, positives),
            normalizer=normalizer,
            score_normalizer=normalizer,
            **_objectness_targets(positives, negatives),
        )


def _matched_boxes(matches: Tensor, gt_boxes: Sequence[Boxes], positives: Tensor) -> Tensor:
    """Return the ground-truth boxes (P, 4) of the given cells."""
    # Turn indices within each image into indices within the batch.
    firsts = itertools.accumulate((len(gt) for gt in gt_boxes), initial=0)
    index = torch.cat([m + first for m, first in zip(matches, firsts, strict=False)])
    return torch.cat([gt.tensor for gt in gt_boxes])[index[positives]]


def _objectness_targets(positives: Tensor, negatives: Tensor) -> dict[str, Tensor]:
    labels = torch.cat([torch.ones_like(positives), torch.zeros_like(negatives)])
    return {"sampled": torch.cat([positives, negatives]), "gt_labels": labels.float()}


@dataclass(frozen=True, kw_only=True)
class CascadeRPNLoss:
    """Match the boxes of each stage with the ground truth and compute the losses.

    The first stage is matched by regions (:class:`RegionTargets`), later stages by IoU
    (:class:`IoUTargets`). The normalizers are mmdetection's.

    Attributes:
        regression_loss: "iou" (1 - IoU) or "giou".
        regression_weight: factor of the regression losses.
        score_weight: factor of the objectness loss.
        center_ratio: see :class:`RegionTargets`.
        ignore_ratio: see :class:`RegionTargets`.
        cells_per_positive: see :class:`RegionTargets`.
        iou_threshold: see :class:`IoUTargets`.
        low_quality_iou: see :class:`IoUTargets`.
        batch_size_per_image: number of cells sampled per image.
        positive_fraction: maximum fraction of positives among them.

    Raises:
        ValueError: a value is not allowed; the message names its config key.
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
        if not 0 <= self.ignore_ratio <= 1:
            raise ValueError(f"{key}IGNORE_RATIO is {self.ignore_ratio}; allowed: 0 to 1")
        if not 0 <= self.center_ratio <= self.ignore_ratio:
            raise ValueError(
                f"{key}CENTER_RATIO is {self.center_ratio}; "
                f"allowed: 0 to IGNORE_RATIO ({self.ignore_ratio})"
            )
        if not 0 < self.iou_threshold <= 1:
            raise ValueError(
                f"{key}IOU_THRESHOLD is {self.iou_threshold}; allowed: above 0, up to 1"
            )
        if not 0 < self.low_quality_iou <= self.iou_threshold:
            raise ValueError(
                f"{key}LOW_QUALITY_IOU is {self.low_quality_iou}; "
                f"allowed: above 0, up to IOU_THRESHOLD ({self.iou_threshold})"
            )
        if not self.cells_per_positive > 0:
            raise ValueError(
                f"{key}CELLS_PER_POSITIVE is {self.cells_per_positive}; allowed: above 0"
            )

    def targets(self, number: int) -> RegionTargets | IoUTargets:
        """Return the rules that give the targets of a stage.

        Args:
            number: number of the stage, from 1.
        """
        if number == 1:
            return RegionTargets(
                batch_size_per_image=self.batch_size_per_image,
                positive_fraction=self.positive_fraction,
                center_ratio=self.center_ratio,
                ignore_ratio=self.ignore_ratio,
                cells_per_positive=self.cells_per_positive,
            )
        return IoUTargets(
            batch_size_per_image=self.batch_size_per_image,
            positive_fraction=self.positive_fraction,
            iou_threshold=self.iou_threshold,
            low_quality_iou=self.low_quality_iou,
        )

    def __call__(
        self,
        stages: Sequence[CascadeRPNStage],
        outputs: Sequence[StageOutput],
        gt_boxes: Sequence[Boxes],
        grid: CellGrid,
    ) -> dict[str, Tensor]:
        """Compute the losses of all stages, and log diagnostics if there is an event storage.

        Args:
            stages: stages of the cascade.
            outputs: predictions of each stage.
            gt_boxes: ground-truth boxes of the N images; those that are empty or not finite match
                nothing.
            grid: positions of the cells.

        Returns:
            ``loss_rpn_stage{i}_loc`` of every stage i, counted from 1, and
            ``loss_rpn_stage{i}_cls`` of those that predict objectness. All have a gradient path to
            their stage's parameters, also without ground truth.
        """
        losses = {}
        usable = without_unusable(gt_boxes)
        for number, (stage, output) in enumerate(zip(stages, outputs, strict=True), start=1):
            rules = self.targets(number)
            with torch.no_grad():
                matches = rules.match(output, usable, grid)
                targets = rules.targets(
                    matches, usable, with_scores=bool(output.pred_objectness_logits)
                )
            for name, loss in self.stage_losses(number, stage, output, targets).items():
                losses[f"loss_rpn_stage{number}_{name}"] = loss
        return losses

    def stage_losses(
        self, number: int, stage: CascadeRPNStage, output: StageOutput, targets: StageTargets
    ) -> dict[str, Tensor]:
        """Compute the losses of one stage.

        Args:
            number: number of the stage, from 1.
            stage: the stage.
            output: its predictions.
            targets: its targets.

        Returns:
            ``loc`` and, if the stage predicts objectness, ``cls``.
        """
        # (N, Hi*Wi, 4) of each level -> (N * R, 4) -> (P, 4)
        boxes = torch.cat(output.boxes, dim=1).flatten(0, 1)[targets.positives]
        pred_deltas = torch.cat(output.pred_deltas, dim=1).flatten(0, 1)[targets.positives]
        pred_boxes = stage.decode(pred_deltas, boxes)
        _log(number, len(output.boxes[0]), boxes, pred_boxes, targets.gt_boxes)
        # Without positives the sum is 0, but still has a gradient path to the deltas.
        loss = REGRESSION_LOSSES[self.regression_loss](pred_boxes, targets.gt_boxes)
        losses = {"loc": self.regression_weight * loss / (targets.normalizer + _EPS)}
        if output.pred_objectness_logits:
            # (N, Hi*Wi) of each level -> (N * R,) -> (S,)
            logits = torch.cat(output.pred_objectness_logits, dim=1).flatten()[targets.sampled]
            loss = F.binary_cross_entropy_with_logits(logits, targets.gt_labels, reduction="sum")
            losses["cls"] = self.score_weight * loss / (targets.score_normalizer + _EPS)
        return losses


def without_unusable(gt_boxes: Sequence[Boxes]) -> list[Boxes]:
    """Replace boxes that are empty or not finite by NaN, which matches nothing.

    The others keep their index.

    Args:
        gt_boxes: ground-truth boxes of each image.
    """
    boxes = torch.cat([gt.tensor for gt in gt_boxes])
    usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
    boxes = boxes.where(usable[:, None], torch.nan)
    return [Boxes(b) for b in boxes.split([len(gt) for gt in gt_boxes])]


@torch.no_grad()
def _log(number: int, num_images: int, boxes: Tensor, pred_boxes: Tensor, gt_boxes: Tensor) -> None:
    """Log the positives of a stage per image, and their mean IoU before and after the stage."""
    if not has_event_storage() or get_event_storage().iter % _LOG_PERIOD:
        return
    storage = get_event_storage()
    with storage.name_scope(f"rpn_stage{number}"):
        storage.put_scalar("num_positives", len(boxes) / num_images)
        if len(boxes) > 0:
            ious = [aligned_iou(b, gt_boxes).mean() for b in (boxes, pred_boxes)]
            before, after = torch.stack(ious).tolist()
            storage.put_scalar("mean_iou_before", before)
            storage.put_scalar("mean_iou_after", after)
