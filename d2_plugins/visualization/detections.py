"""The objects found in one image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.colormap import colormap
from detectron2.utils.visualizer import GenericMask, VisImage, Visualizer
from PIL import Image

__all__ = ["Detections"]


@dataclass(frozen=True)
class Detections:
    """The objects that a detector found in an image, best first.

    Attributes:
        image: (H, W, 3) uint8, BGR.
        instances: detectron2's Instances with R objects, on the CPU, in pixels of ``image``.
        metadata: detectron2's Metadata with the names of the classes, if they are known.
        file_name: file of the image; "" if it was not read from a file.
    """

    image: np.ndarray
    instances: Instances
    metadata: Metadata
    file_name: str = ""

    def __len__(self) -> int:
        return len(self.instances)

    @property
    def boxes(self) -> np.ndarray:
        """Boxes (R, 4), XYXY in pixels."""
        return self.instances.pred_boxes.tensor.numpy()

    @property
    def scores(self) -> np.ndarray:
        """Scores (R,) in 0..1."""
        return self.instances.scores.numpy()

    @property
    def classes(self) -> list[str]:
        """Names of the R classes; the class indices as text if the names are unknown."""
        names = self.metadata.get("thing_classes")
        indices = self.instances.pred_classes.tolist()
        return [names[k] if names else str(k) for k in indices]

    @property
    def track_ids(self) -> list[int | None] | None:
        """Numbers of the R objects, see :class:`Tracker`; None if they are not tracked."""
        if not self.instances.has("track_ids"):
            return None
        return [number if number >= 0 else None for number in self.instances.track_ids.tolist()]

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return the objects in COCO's result format, with ``file_name`` next to ``image_id``.

        The category ids are those of the dataset that the model was trained on; class indices if
        its classes are unknown. Where objects are tracked, ``track_id`` is the number of the
        object, or None before it has one.

        Args:
            image_id: number of the image.
        """
        to_index = self.metadata.get("thing_dataset_id_to_contiguous_id", {})
        to_category = {index: category for category, index in to_index.items()}
        rows = instances_to_coco_json(self.instances, image_id)
        for row in rows:
            row["category_id"] = to_category.get(row["category_id"], row["category_id"])
            row["file_name"] = self.file_name
        if self.track_ids is not None:
            for row, track_id in zip(rows, self.track_ids, strict=True):
                row["track_id"] = track_id
        return rows

    def draw(self) -> Image.Image:
        """Return the image with boxes, masks, classes and scores drawn on it.

        Where objects are tracked, each has its number and a colour of its own.
        """
        canvas = Visualizer(self.image[:, :, ::-1], _without_formulas(self.metadata))
        if self.track_ids is None:
            drawn = canvas.draw_instance_predictions(self.instances)
        else:
            drawn = self._draw_tracked(canvas, self.track_ids)
        return Image.fromarray(drawn.get_image())

    def _draw_tracked(self, canvas: Visualizer, track_ids: list[int | None]) -> VisImage:
        height, width = self.image.shape[:2]
        fields = self.instances.get_fields()
        masks = fields.get("pred_masks")
        names = [name.replace("$", r"\$") for name in self.classes]
        numbers = ["" if track_id is None else f" #{track_id}" for track_id in track_ids]
        colors = colormap(rgb=True, maximum=1)
        return canvas.overlay_instances(
            boxes=self.instances.pred_boxes,
            masks=None if masks is None else [GenericMask(m, height, width) for m in masks.numpy()],
            keypoints=fields.get("pred_keypoints"),
            labels=[
                f"{name}{number} {score:.0%}"
                for name, number, score in zip(names, numbers, self.scores, strict=True)
            ],
            assigned_colors=[colors[(track_id or 0) % len(colors)] for track_id in track_ids],
        )


def _without_formulas(metadata: Metadata) -> Metadata:
    """Return metadata in whose class names matplotlib does not read $...$ as a formula."""
    names = metadata.get("thing_classes", [])
    if not any("$" in name for name in names):
        return metadata
    return Metadata(thing_classes=[name.replace("$", r"\$") for name in names])
