"""Your own data in COCO format, under names for the config."""

import json
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UsageError
from .preflight.check import Report, check_dataset

__all__ = ["CocoSummary", "CustomData", "register_coco_json", "register_custom"]


@dataclass(frozen=True, kw_only=True)
class CocoSummary:
    """What a config has to know of a COCO json.

    Attributes:
        class_names: by rising category id, the order of the model's class indices.
        mask_format: for ``INPUT.MASK_FORMAT``: "bitmask" if an object's mask is given as RLE, else
            "polygon"; None without masks.
    """

    class_names: tuple[str, ...]
    mask_format: str | None


@dataclass(frozen=True, kw_only=True)
class CustomData:
    """What a config has to know of your own data.

    Attributes:
        train_names: for ``DATASETS.TRAIN``; empty if there is nothing to train on.
        test_names: for ``DATASETS.TEST``.
        class_names: in the order of the model's class indices.
        mask_format: as in :class:`CocoSummary`, for all of it.
        reports: of the pre-flight checks, if they were asked for.
    """

    train_names: tuple[str, ...]
    test_names: tuple[str, ...]
    class_names: tuple[str, ...]
    mask_format: str | None
    reports: tuple[Report, ...]


def register_coco_json(name: str, json_file: str | Path, image_root: str | Path) -> CocoSummary:
    """Register a COCO json under ``name``, with its classes known before it is loaded.

    A name that was registered before now means these files.

    Args:
        name: for the config, e.g. "my_train".
        json_file: annotations in COCO's instances format.
        image_root: folder of the images.

    Raises:
        FileNotFoundError: there is no such file or folder.
        UsageError: the file is no COCO json.
    """
    if not Path(image_root).is_dir():
        raise FileNotFoundError(f"There is no image folder '{image_root}'")
    category_ids, summary = _read(Path(json_file))
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    metadata = {
        "thing_classes": list(summary.class_names),
        "thing_dataset_id_to_contiguous_id": {id_: i for i, id_ in enumerate(category_ids)},
    }
    register_coco_instances(name, metadata, str(json_file), str(image_root))
    return summary


def register_custom(
    train_json: str | None,
    train_images: str | None,
    val_json: str | None,
    val_images: str | None,
    *,
    check: bool = True,
) -> CustomData:
    """Register the data of the training tool's ``--train-json`` option and its like.

    Args:
        train_json: annotations to train on; None, with ``train_images``, for evaluation only.
        train_images: folder of the training images.
        val_json: annotations to evaluate on, or None with ``val_images``.
        val_images: folder of the evaluation images.
        check: run the pre-flight check of :func:`check_dataset` first.

    Returns:
        The names ``custom_train`` and ``custom_val``, the classes and the findings.

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
    reports = [check_dataset(*source) for source in sources.values()] if check else []
    for report in reports:
        report.raise_for_errors()
    summaries = [register_coco_json(name, *source) for name, source in sources.items()]
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


def _read(json_file: Path) -> tuple[list[int], CocoSummary]:
    """The category ids, rising, and the summary."""
    if not json_file.is_file():
        raise FileNotFoundError(f"There is no annotation file '{json_file}'")
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
        categories = sorted((item["id"], str(item["name"])) for item in content["categories"])
        masks = [
            item["segmentation"]
            for item in content["annotations"]
            if item.get("segmentation") and not item.get("iscrowd", 0)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{json_file} is no COCO annotation file: {error!r}") from error
    if not categories:
        raise UsageError(f"{json_file} has no categories")
    mask_format = None
    if masks:
        mask_format = "bitmask" if any(isinstance(mask, dict) for mask in masks) else "polygon"
    names = tuple(name for _, name in categories)
    return [id_ for id_, _ in categories], CocoSummary(class_names=names, mask_format=mask_format)
