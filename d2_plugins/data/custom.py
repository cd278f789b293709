"""Registration of your own data in COCO format, under names for the config."""

from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UsageError
from .coco_json import Json, read_coco, readable_json
from .preflight.check import check_categories, check_content
from .preflight.findings import Report

__all__ = ["CocoSummary", "CustomData", "register_coco_json", "register_custom"]


@dataclass(frozen=True, kw_only=True)
class CocoSummary:
    """Properties of a COCO JSON that a config depends on.

    Attributes:
        class_names: class names by ascending category id, the order of the model's class indices.
        mask_format: value for ``INPUT.MASK_FORMAT``: "bitmask" if the mask of an object is given
            as RLE, else "polygon"; None without masks.
    """

    class_names: tuple[str, ...]
    mask_format: str | None


@dataclass(frozen=True, kw_only=True)
class CustomData:
    """Properties of your own data that a config depends on.

    Attributes:
        train_names: value for ``DATASETS.TRAIN``; empty without training data.
        test_names: value for ``DATASETS.TEST``; empty without validation data.
        class_names: class names in the order of the model's class indices.
        mask_format: as in :class:`CocoSummary`, for training and validation data together.
        reports: reports of the pre-flight checks; empty if they were switched off.
    """

    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    class_names: tuple[str, ...]
    mask_format: str | None
    reports: tuple[Report, ...]


def register_coco_json(name: str, json_file: str | Path, image_root: str | Path) -> CocoSummary:
    """Register a COCO JSON under ``name``, with its classes known before it is loaded.

    A name that is registered already is replaced.

    Args:
        name: name for the config, e.g. "my_train".
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.

    Returns:
        Classes and mask format of the JSON.

    Raises:
        FileNotFoundError: the file or the folder does not exist.
        UsageError: the file is not a COCO JSON.
    """
    _check_folder(image_root)
    return _register(name, json_file, image_root, read_coco(json_file))


def register_custom(
    train_json: str | None,
    train_images: str | None,
    val_json: str | None,
    val_images: str | None,
    *,
    check: bool = True,
    needs_masks: bool = False,
) -> CustomData:
    """Register the data of the options ``--train-json``, ``--val-json`` and their image folders.

    Args:
        train_json: annotations to train on; None, with ``train_images``, for evaluation only.
        train_images: folder of the training images.
        val_json: annotations to evaluate on, or None with ``val_images``.
        val_images: folder of the validation images.
        check: run the pre-flight check of :func:`check_dataset` first.
        needs_masks: True if masks will be trained or evaluated.

    Returns:
        The names ``custom_train`` and ``custom_val``, the classes and the reports.

    Raises:
        FileNotFoundError: a file or folder does not exist.
        UsageError: the check finds errors, or the two files have different classes.
    """
    sources = {
        name: (json_file, image_root)
        for name, json_file, image_root in (
            ("custom_train", train_json, train_images),
            ("custom_val", val_json, val_images),
        )
        if json_file and image_root
    }
    reports, summaries = [], []
    for name, (json_file, image_root) in sources.items():
        _check_folder(image_root)
        content = read_coco(json_file)
        if check:
            report = Report(title=json_file)
            check_content(report, content, image_root, needs_masks=needs_masks)
            report.raise_for_errors()
            reports.append(report)
        summaries.append(_register(name, json_file, image_root, content))
    class_names = summaries[0].class_names if summaries else ()
    for summary in summaries:
        if summary.class_names != class_names:
            raise UsageError(
                f"{train_json} and {val_json} have different classes: {', '.join(class_names)} "
                f"and {', '.join(summary.class_names)}"
            )
    return CustomData(
        train_names=tuple(name for name in sources if name == "custom_train"),
        test_names=tuple(name for name in sources if name == "custom_val"),
        class_names=class_names,
        # "bitmask" can hold polygons too, and comes first in the alphabet.
        mask_format=min((s.mask_format for s in summaries if s.mask_format), default=None),
        reports=tuple(reports),
    )


def _register(
    name: str, json_file: str | Path, image_root: str | Path, content: Json
) -> CocoSummary:
    report = Report(title=str(json_file))
    names = check_categories(report, content["categories"])
    report.raise_for_errors()
    category_ids = sorted(names)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    class_names = [names[id_] for id_ in category_ids]
    metadata = {
        "thing_classes": class_names,
        "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(category_ids)},
    }
    register_coco_instances(name, metadata, readable_json(json_file), str(image_root))
    return CocoSummary(
        class_names=tuple(class_names),
        mask_format=_mask_format(content["annotations"]),
    )


def _check_folder(image_root: str | Path) -> None:
    if not Path(image_root).is_dir():
        raise FileNotFoundError(f"There is no image folder '{image_root}'")


def _mask_format(annotations: list[Json]) -> str | None:
    masks = [a.get("segmentation") for a in annotations if not a.get("iscrowd")]
    if any(isinstance(mask, dict) and mask for mask in masks):
        return "bitmask"
    return "polygon" if any(masks) else None
