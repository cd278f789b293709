"""VOC's own average precision, for VOC's datasets in their own and in COCO form."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.evaluation.pascal_voc_evaluation import parse_rec

__all__ = ["VOCEvaluator", "voc_form"]

# Both of VOC's metrics, the average precision at IoU 0.5: of eleven points of the curve until
# VOC 2009, the area under it since VOC 2010.
_ELEVEN_POINTS, _AREA = "mAP_07", "mAP_10"


class VOCEvaluator(PascalVOCDetectionEvaluator):
    """detectron2's evaluation of VOC with both of VOC's metrics.

    ``mAP_07`` and ``mAP_10`` are the mean over the classes of the average precision at IoU 0.5, in
    percent: over the precision at the recalls 0, 0.1, ..., 1 (Everingham et al. 2010, section 4.2),
    and as the area under the curve. ``AP``, ``AP50`` and ``AP75`` are detectron2's, with the metric
    of the dataset's year. Classes without objects are left out. The images may be those of the
    dataset in COCO form, whose ids are numbers: VOC's XML files identify an image by its file name.
    """

    _is_2007: bool  # detectron2's switch between the two metrics
    _class_names: list[str]

    def __init__(self, dataset_name: str, *, task: str = "bbox") -> None:
        """Initialize.

        Args:
            dataset_name: name of a dataset in VOC's own form, such as ``voc_2007_test``.
            task: name of the results.
        """
        super().__init__(dataset_name)
        self._all_names: list[str] = list(self._class_names)
        self._task = task

    def reset(self) -> None:
        """Forget the predictions."""
        self._predictions: dict[int, list[str]] = defaultdict(list)
        self._class_names = self._all_names

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Collect the predictions of a batch under the file names of its images."""
        named = [
            image | {"image_id": Path(image["file_name"]).stem} if "file_name" in image else image
            for image in inputs
        ]
        super().process(named, outputs)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return ``{task: {"AP": ..., "mAP_07": ...}}``; None in other processes than the main."""
        of_year = self._is_2007
        self._leave_out_classes_without_objects()
        both = {}
        for metric, use_eleven_points in ((_ELEVEN_POINTS, True), (_AREA, False)):
            self._is_2007 = use_eleven_points
            both[metric] = super().evaluate()
        self._is_2007 = of_year
        eleven_points, area = both[_ELEVEN_POINTS], both[_AREA]
        if eleven_points is None or area is None:
            return None
        results = dict((eleven_points if of_year else area)["bbox"])
        for metric, values in both.items():
            results[metric] = values["bbox"]["AP50"]
        return {self._task: results}

    def _leave_out_classes_without_objects(self) -> None:
        """Drop classes for which there is no precision, as in a part of a dataset.

        detectron2 counts them as 0 or NaN, which depends on the metric.
        """
        names = Path(self._image_set_path).read_text(encoding="utf-8").split()
        present = {
            found["name"]
            for name in names
            for found in parse_rec(self._anno_file_template.format(name))
            if not found["difficult"]
        }
        kept = [i for i, name in enumerate(self._class_names) if name in present]
        if kept:
            self._class_names = [self._class_names[i] for i in kept]
            lines = {new: self._predictions.get(old, []) for new, old in enumerate(kept)}
            self._predictions = {new: of_class for new, of_class in lines.items() if of_class}


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
