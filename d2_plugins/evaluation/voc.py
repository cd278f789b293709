"""VOC's own average precision for VOC datasets in COCO form."""

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator

__all__ = ["VOCEvaluator", "voc_form"]


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """VOC's own AP for a VOC dataset in COCO form, under the key ``bbox_voc``.

    It is built with the name of the dataset in VOC's own form. The XML files of that form identify
    an image by its file name, COCO's JSON by a number.
    """

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Collect the predictions of a batch under the file names of its images."""
        named = [image | {"image_id": Path(image["file_name"]).stem} for image in inputs]
        super().process(named, outputs)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{"bbox_voc": {"AP": ..., "AP50": ..., "AP75": ...}}``; None in other ranks."""
        results = super().evaluate()
        return None if results is None else {"bbox_voc": results["bbox"]}


def voc_form(dataset_name: str) -> str | None:
    """Return the name of a dataset in VOC's own form.

    Args:
        dataset_name: name of a registered dataset, e.g. ``voc_2007_test_coco``.

    Returns:
        The name, e.g. ``voc_2007_test``; None if there is no such dataset or its XML files are
        missing.
    """
    name = dataset_name.removesuffix("_coco")
    if name == dataset_name or name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    if metadata.get("evaluator_type") != "pascal_voc":
        return None
    return name if Path(metadata.dirname, "Annotations").is_dir() else None
