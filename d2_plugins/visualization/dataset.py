"""Pictures of a dataset's annotations and of augmented training samples."""

import itertools
from typing import Any

import numpy as np
from detectron2.data import Metadata
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.utils.visualizer import Visualizer

from ..data.images import read_photo
from ..errors import UsageError

__all__ = ["draw_annotations", "draw_sample"]


def draw_annotations(item: dict[str, Any], metadata: Metadata, *, scale: float = 1.0) -> np.ndarray:
    """Draw the boxes, masks, keypoints and class names of an image of a dataset.

    Args:
        item: one of detectron2's dataset dicts.
        metadata: metadata of the dataset.
        scale: size of the picture relative to the image.

    Returns:
        (H * scale, W * scale, 3) uint8, RGB.

    Raises:
        OSError: the image cannot be read.
    """
    width, height = item.get("width"), item.get("height")
    size = (width, height) if width and height else None
    canvas = Visualizer(read_photo(item["file_name"], "RGB", size), metadata, scale=scale)

    def fields(annotation: dict[str, Any]) -> tuple[bool, bool]:
        return "segmentation" in annotation, "keypoints" in annotation

    # The Visualizer takes masks for all objects or for none.
    annotations = sorted(item.get("annotations", ()), key=fields)
    for _, group in itertools.groupby(annotations, fields):
        canvas.draw_dataset_dict({"annotations": list(group)})
    return canvas.get_output().get_image()


def draw_sample(
    sample: dict[str, Any], image_format: str, metadata: Metadata, *, scale: float = 1.0
) -> np.ndarray:
    """Draw an augmented training sample.

    Args:
        sample: what the mapper gives to the model: ``image`` (3, H, W) and ``instances``.
        image_format: ``INPUT.FORMAT``.
        metadata: metadata of the dataset.
        scale: size of the picture relative to the image.

    Returns:
        (H * scale, W * scale, 3) uint8, RGB.

    Raises:
        UsageError: the sample has no objects' annotations to draw.
    """
    if "instances" not in sample:
        raise UsageError(f"the loader gives {', '.join(sample)}, but no instances to draw")
    pixels = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
    canvas = Visualizer(pixels, metadata, scale=scale)
    instances = sample["instances"]
    names = metadata.get("thing_classes")
    classes = instances.gt_classes.tolist()
    canvas.overlay_instances(
        boxes=instances.gt_boxes,
        masks=instances.get("gt_masks") if instances.has("gt_masks") else None,
        keypoints=instances.get("gt_keypoints") if instances.has("gt_keypoints") else None,
        labels=[names[k] if names else str(k) for k in classes],
    )
    return canvas.get_output().get_image()
