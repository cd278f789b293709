"""The objects found in one image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
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

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Return the objects in COCO's result format, with ``file_name`` next to ``image_id``.

        The category ids are those of the dataset that the model was trained on; class indices if
        its classes are unknown.

        Args:
            image_id: number of the image.
        """
        to_index = self.metadata.get("thing_dataset_id_to_contiguous_id", {})
        to_category = {index: category for category, index in to_index.items()}
        rows = instances_to_coco_json(self.instances, image_id)
        for row in rows:
            row["category_id"] = to_category.get(row["category_id"], row["category_id"])
            row["file_name"] = self.file_name
        return rows

    def draw(self) -> Image.Image:
        """Return the image with boxes, masks, classes and scores drawn on it."""
        canvas = Visualizer(self.image[:, :, ::-1], _without_formulas(self.metadata))
        return Image.fromarray(canvas.draw_instance_predictions(self.instances).get_image())


def _without_formulas(metadata: Metadata) -> Metadata:
    """Return metadata in whose class names matplotlib does not read $...$ as a formula."""
    names = metadata.get("thing_classes", [])
    if not any("$" in name for name in names):
        return metadata
    return Metadata(thing_classes=[name.replace("$", r"\$") for name in names])
