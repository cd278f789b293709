"""Comparison of an exported program's detections with those of its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor

from ..data.classes import Classes
from .detector import ExportableDetector
from .formats import check_sizes, load_exported, write

__all__ = ["Difference", "compare", "detect", "export_and_check"]


@dataclass(frozen=True)
class Difference:
    """The largest differences between the model's detections and a program's.

    Attributes:
        detections: number of detections of the model.
        missing: number of them without a counterpart of the same class.
        extra: number of the program's detections without a counterpart.
        box: largest difference of a coordinate, in pixels.
        score: largest difference of a score.
        mask: largest difference of a mask's probability; 0 without masks.
    """

    detections: int
    missing: int
    extra: int
    box: float
    score: float
    mask: float

    def within(self, *, box: float, score: float) -> bool:
        """Return True if every detection has its counterpart within these tolerances.

        Args:
            box: tolerance of coordinates, in pixels.
            score: tolerance of scores and of mask probabilities.
        """
        same = not (self.missing or self.extra)
        return same and self.box <= box and max(self.score, self.mask) <= score

    def __str__(self) -> str:
        unmatched = f"; {self.missing} missing, {self.extra} extra" * bool(
            self.missing or self.extra
        )
        return (
            f"{self.detections} detections, largest difference {self.box:.1e} px, "
            f"{self.score:.1e} in score, {self.mask:.1e} in masks{unmatched}"
        )


@torch.no_grad()
def detect(model: GeneralizedRCNN, image: Tensor) -> Instances:
    """Return what a detectron2 model finds in one image, in pixels of that image.

    Args:
        model: detector in evaluation mode.
        image: image (3, H, W), not padded.
    """
    (found,) = model.inference([{"image": image}], do_postprocess=False)
    return found


def compare(expected: Instances, outputs: Sequence[Tensor]) -> Difference:
    """Pair the detections and return the largest differences.

    The order is not compared, because scores may differ by rounding only. Each expected detection
    is paired with the nearest free one of its class. If two overlapping boxes have the same score,
    as neighbouring cells in a plain sky do, rounding also decides which one NMS keeps; that counts
    as a difference.

    Args:
        expected: detections of the model, see :func:`detect`.
        outputs: outputs of the exported program: boxes, scores, classes and, if any, masks.
    """
    boxes, scores, classes, *masks = outputs
    want = expected.to(boxes.device)
    distances = (want.pred_boxes.tensor[:, None] - boxes).abs().amax(dim=2)
    distances[want.pred_classes[:, None] != classes] = torch.inf
    ours: list[int] = []
    theirs: list[int] = []
    for k, row in enumerate(distances.clone()):
        row[theirs] = torch.inf
        if len(row) and row.min().isfinite():
            ours.append(k)
            theirs.append(int(row.argmin()))

    def largest(x: Tensor) -> float:
        return x.abs().max().item() if x.numel() else 0.0

    return Difference(
        detections=len(want),
        missing=len(want) - len(ours),
        extra=len(boxes) - len(theirs),
        box=largest(distances[ours, theirs]),
        score=largest(want.scores[ours] - scores[theirs]),
        mask=largest(want.pred_masks[ours] - masks[0][theirs]) if masks else 0.0,
    )


def export_and_check(
    detector: ExportableDetector,
    model: GeneralizedRCNN,
    images: Sequence[Tensor],
    paths: Sequence[str | Path],
    *,
    box_tolerance: float = 0.1,
    score_tolerance: float = 1e-4,
    fixed_size: bool = False,
    classes: Classes | None = None,
) -> bool:
    """Write a detector, read every file back, and print how its detections differ.

    The files are traced with a part of the first image or, for a fixed size, with its mirror image.
    The images themselves then show that no constant of the traced example is left in the program.

    Args:
        detector: detector to write.
        model: model that the detector was made from.
        images: images (3, H, W), not padded.
        paths: files to write, see :func:`~.formats.write`.
        box_tolerance: tolerance of coordinates, in pixels.
        score_tolerance: tolerance of scores and of mask probabilities.
        fixed_size: see :func:`~.formats.write`.
        classes: see :func:`~.formats.write`.

    Returns:
        True if every program finds what the model finds in every image. An image in which the model
        finds nothing proves nothing, and counts as a failure.

    Raises:
        ValueError, ImportError: as :func:`~.formats.check_paths` and :func:`~.formats.check_sizes`.
    """
    images = [image.to(model.device) for image in images]
    check_sizes(detector, images, paths, fixed_size=fixed_size)
    height, width = images[0].shape[-2:]
    part = images[0][:, : height * 3 // 4, : width * 3 // 4]
    example = images[0].flip(2) if fixed_size else part
    write(detector, example, paths, fixed_size=fixed_size, classes=classes)
    good = True
    for path in paths:
        program = load_exported(path)
        for image in images:
            difference = compare(detect(model, image), program(*detector.pad_input(image)))
            same = difference.within(box=box_tolerance, score=score_tolerance)
            verdict = "same" if same else "DIFFERENT"
            if not difference.detections:
                verdict = "NOTHING FOUND: lower MODEL.ROI_HEADS.SCORE_THRESH_TEST"
            good &= verdict == "same"
            print(f"{path}, {image.shape[2]} x {image.shape[1]}: {verdict}, {difference}")
    return good
