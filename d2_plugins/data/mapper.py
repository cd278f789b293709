"""Dataset mapper for images and annotations that detectron2's own mapper cannot use."""

import math
from typing import Any

from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode

from ..errors import UsageError
from .images import readable_name

__all__ = ["PluginDatasetMapper"]


class PluginDatasetMapper(DatasetMapper):
    """DatasetMapper that reads 16-bit and EXIF-rotated images and names what it cannot use.

    In training, detectron2 clips boxes to the image; boxes without a positive width and height
    are dropped before a flip can turn them into valid ones. Errors in an image or its annotations
    are raised as :class:`UsageError` with file and image id.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Convert one of detectron2's dataset dicts to an input of the model.

        Args:
            dataset_dict: image and annotations; not changed.

        Raises:
            UsageError: the image cannot be read, has another size than the annotations state, or
                an annotation cannot be used.
        """
        file_name = dataset_dict["file_name"]
        width, height = dataset_dict.get("width"), dataset_dict.get("height")
        size = (width, height) if width and height else None
        try:
            name = readable_name(file_name, size)
            mapped = super().__call__({**dataset_dict, "file_name": name})
        except Exception as error:  # readers and transforms can raise any exception
            image_id = dataset_dict.get("image_id")
            message = f"{type(error).__name__}: {error}"
            raise UsageError(f"{file_name} (image id {image_id}): {message}") from error
        mapped["file_name"] = file_name
        return mapped

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        kept = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0) and _has_area(a)]
        if self.use_instance_mask:
            for annotation in kept:
                self._check_mask(annotation)
        if not kept:  # with recompute_boxes, detectron2 would read masks that do not exist
            del dataset_dict["annotations"]
            dataset_dict["instances"] = utils.annotations_to_instances([], image_shape)
            return
        dataset_dict["annotations"] = kept
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _check_mask(self, annotation: dict[str, Any]) -> None:
        mask = annotation.get("segmentation")
        if not mask:
            raise ValueError(
                "MODEL.MASK_ON is True, but an annotation with box "
                f"{annotation['bbox']} has no mask ('segmentation')"
            )
        if isinstance(mask, dict) and self.instance_mask_format == "polygon":
            raise ValueError(
                "INPUT.MASK_FORMAT is 'polygon', but the masks are given as RLE, which may have "
                "holes that polygons cannot hold; set INPUT.MASK_FORMAT to 'bitmask'"
            )


def _has_area(annotation: dict[str, Any]) -> bool:
    if annotation["bbox_mode"] not in (BoxMode.XYWH_ABS, BoxMode.XYXY_ABS):
        return True
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    x0, y0, x1, y1 = box
    return all(map(math.isfinite, box)) and x1 > x0 and y1 > y0
