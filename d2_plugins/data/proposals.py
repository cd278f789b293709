"""Precomputed box proposals (``MODEL.LOAD_PROPOSALS``), read without running code.

detectron2 reads ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST`` with ``pickle.load``, local files
and downloads alike, so that a config can run any code. The datasets of this package are built
without it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.structures import BoxMode

from ..errors import UsageError
from ..safe_pickle import UnknownGlobalError, load_arrays

__all__ = ["add_proposals", "dataset_with_proposals"]

logger = logging.getLogger(__name__)

# Keys of Detectron1's files, and their names in detectron2.
_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}


def dataset_with_proposals(
    cfg: CfgNode, names: Sequence[str], files: Sequence[str], **options: Any
) -> list[dict[str, Any]]:
    """Return the dataset dicts of several datasets, with proposals if ``MODEL.LOAD_PROPOSALS``.

    Args:
        cfg: the whole config.
        names: names of registered datasets.
        files: one file of proposals per dataset; not read without ``MODEL.LOAD_PROPOSALS``.
        options: arguments of detectron2's ``get_detection_dataset_dicts``.

    Raises:
        UsageError: a file of proposals is missing, is not local, could run code, or does not fit
            the dataset.
    """
    dataset = get_detection_dataset_dicts(list(names), **options)
    if cfg.MODEL.LOAD_PROPOSALS:
        add_proposals(dataset, files)
    return dataset


def add_proposals(dataset: list[dict[str, Any]], files: Sequence[str]) -> None:
    """Add the proposals of each image to its dataset dict, in place and best first.

    Adds ``proposal_boxes`` (P, 4), ``proposal_objectness_logits`` (P,) and ``proposal_bbox_mode``,
    as detectron2 does.

    Args:
        dataset: detectron2's dataset dicts, each with an ``image_id``.
        files: files in the format of detectron2's ``box_proposals.pkl``.

    Raises:
        UsageError: see :func:`dataset_with_proposals`.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray, BoxMode]] = {}
    for file in files:
        found |= _read(file)
    for record in dataset:
        image_id = str(record["image_id"])
        if image_id not in found:
            raise UsageError(f"{', '.join(files)}: there are no proposals for image {image_id}")
        boxes, scores, mode = found[image_id]
        order = scores.argsort()[::-1]
        record["proposal_boxes"] = boxes[order]
        record["proposal_objectness_logits"] = scores[order]
        record["proposal_bbox_mode"] = mode


def _read(file: str) -> dict[str, tuple[np.ndarray, np.ndarray, BoxMode]]:
    """Return boxes (P, 4), scores (P,) and box mode by image id."""
    content = _load(file)
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds a {type(content).__name__}, not box proposals")
    content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
    try:
        mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS.value))
        columns = [content[key] for key in ("ids", "boxes", "objectness_logits")]
        logger.info("Proposals of %d images: %s", len(columns[0]), file)
        return {
            str(image_id): (*_checked(boxes, scores), mode)
            for image_id, boxes, scores in zip(*columns, strict=True)
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file} does not hold box proposals: {error!r}") from error


def _load(file: str) -> Any:
    if "://" in file:
        raise UsageError(f"DATASETS.PROPOSAL_FILES has {file}; allowed: local files")
    try:
        with Path(file).open("rb") as opened:
            return load_arrays(opened)
    except UnknownGlobalError as error:
        raise UsageError(
            f"{file} is refused: reading it would call {error}, and a file of proposals may hold "
            "only arrays, numbers and text"
        ) from error
    except OSError as error:
        raise UsageError(f"DATASETS.PROPOSAL_FILES has {file}: {error.strerror}") from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise UsageError(f"{file} is not a readable pickle: {error!r}") from error


def _checked(boxes: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = np.asarray(boxes, np.float32), np.asarray(scores, np.float32)
    if boxes.shape != (len(scores), 4) or scores.ndim != 1:
        raise ValueError(f"boxes {boxes.shape} and scores {scores.shape} do not belong together")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("a box or a score is not finite")
    return boxes, scores
