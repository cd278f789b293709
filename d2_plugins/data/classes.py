"""The classes of a detector, which are kept with its run and in its checkpoints."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from ..errors import UsageError
from ..files import atomic_write_json

__all__ = ["Classes", "count_classes", "find_classes"]

logger = logging.getLogger(__name__)

_FILE_NAME = "classes.json"


@dataclass(frozen=True)
class Classes:
    """Names and COCO category ids, in the order of the model's class indices.

    A checkpoint holds its :meth:`state_dict` under the name "classes".
    """

    names: tuple[str, ...]
    category_ids: tuple[int | str, ...]

    @classmethod
    def of_dataset(cls, name: str) -> "Classes | None":
        """Return the classes of a registered dataset; None if the catalog does not know them.

        Datasets without category ids, such as VOC's, are numbered from 0.
        """
        if name not in DatasetCatalog:
            return None
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if not names:
            return None
        indices = metadata.get("thing_dataset_id_to_contiguous_id") or dict(
            zip(range(len(names)), range(len(names)), strict=True)
        )
        ids = {index: category for category, index in indices.items()}
        return cls(tuple(names), tuple(ids[index] for index in range(len(names))))

    @classmethod
    def of_config(cls, cfg: CfgNode) -> "Classes | None":
        """Return the classes of the first dataset of a config that are known and fit its model.

        ``DATASETS.TEST`` comes before ``DATASETS.TRAIN``.
        """
        for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
            classes = cls.of_dataset(name)
            if classes is not None and len(classes.names) >= count_classes(cfg):
                return classes
        return None

    @classmethod
    def from_state(cls, state: Any) -> "Classes | None":
        """Return the classes of a checkpoint's entry or of a file; None if it is not valid."""
        if not isinstance(state, Mapping):
            return None
        names, ids = state.get("names"), state.get("category_ids")
        if not isinstance(names, list | tuple) or not isinstance(ids, list | tuple):
            return None
        if len(names) != len(ids) or not all(isinstance(i, int | str) for i in ids):
            return None
        return cls(tuple(map(str, names)), tuple(ids))

    @classmethod
    def read(cls, folder: str | Path) -> "Classes | None":
        """Read ``classes.json`` in the folder of a run; None if it is missing or not valid."""
        try:
            return cls.from_state(json.loads((Path(folder) / _FILE_NAME).read_text("utf-8")))
        except (OSError, ValueError):
            return None

    @classmethod
    def from_json(cls, path: str | Path) -> "Classes":
        """Read the categories of a COCO JSON by rising id, or a ``classes.json``.

        Raises:
            UsageError: the file is missing or names no categories.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
            if (classes := cls.from_state(content)) is None:
                categories = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
                classes = cls(tuple(n for _, n in categories), tuple(i for i, _ in categories))
        except OSError as error:
            raise UsageError(f"There is no file '{path}' ({error.strerror})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} has no COCO categories: {error!r}") from error
        if not classes.names:
            raise UsageError(f"{path} has no COCO categories")
        return classes

    def write(self, folder: str | Path) -> None:
        """Write ``classes.json`` into the folder of a run."""
        atomic_write_json(Path(folder) / _FILE_NAME, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return names and category ids as plain lists."""
        return {"names": list(self.names), "category_ids": list(self.category_ids)}

    def metadata(self) -> Metadata:
        """Return the classes as detectron2's visualizers and evaluators take them."""
        return Metadata(
            thing_classes=list(self.names),
            thing_dataset_id_to_contiguous_id={id_: k for k, id_ in enumerate(self.category_ids)},
        )


def count_classes(cfg: CfgNode) -> int:
    """Return the number of classes that the model of a config predicts."""
    is_retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    return (cfg.MODEL.RETINANET if is_retinanet else cfg.MODEL.ROI_HEADS).NUM_CLASSES


def find_classes(cfg: CfgNode, checkpoint: dict[str, Any]) -> Classes | None:
    """Return the classes of a model: of its checkpoint, its run or its datasets.

    Args:
        cfg: config of the model.
        checkpoint: content of the file ``MODEL.WEIGHTS``.

    Returns:
        The first of these that is known and has a name for each class; None if there is none.
    """
    number = count_classes(cfg)
    for where, classes in (
        ("The checkpoint", Classes.from_state(checkpoint.get("classes"))),
        ("classes.json", Classes.read(Path(cfg.MODEL.WEIGHTS).parent)),
        ("The config's dataset", Classes.of_config(cfg)),
    ):
        if classes is not None and len(classes.names) >= number:
            return classes
        if classes is not None:
            logger.warning("%s names %d classes, the model has %d", where, len(classes.names),
                           number)  # fmt: skip
    return None
