"""Datasets whose COCO JSON is derived from the files that their authors publish."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ...files import atomic_open
from .missing import missing_message

__all__ = ["CocoDataset", "coco_content", "derive_json"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CocoDataset:
    """Dataset whose COCO JSON is written before its first use.

    Attributes:
        name: name in detectron2's catalogs.
        class_names: class names; their category ids are 1, 2, ...
        json_file: COCO annotations, present after :attr:`derive`.
        image_root: folder of the images.
        requires: files and folders that must be on disk beforehand.
        derive: function that writes the missing files.
        adapt: function that changes one loaded annotation for training, in place.
        extra_keys: annotation keys kept for ``adapt``.
    """

    name: str
    class_names: tuple[str, ...]
    json_file: Path
    image_root: Path
    requires: tuple[Path, ...]
    derive: Callable[[], None]
    adapt: Callable[[dict[str, Any]], None] | None = None
    extra_keys: tuple[str, ...] = ()

    def register(self) -> None:
        """Add the dataset to detectron2's catalogs, unless the name is already taken."""
        if self.name in DatasetCatalog:
            return
        DatasetCatalog.register(self.name, self.load)
        MetadataCatalog.get(self.name).set(
            thing_classes=list(self.class_names),
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(self.class_names))},
            json_file=_DerivedJson.url(self),
            image_root=str(self.image_root),
            evaluator_type="coco",
            required_paths=tuple(str(path) for path in self.requires),
        )

    def load(self) -> list[dict[str, Any]]:
        """Load detectron2's dataset dicts.

        Raises:
            FileNotFoundError: the data is not on disk; the message gives the command to prepare it.
        """
        self.ensure()
        dicts = load_coco_json(
            str(self.json_file),
            str(self.image_root),
            self.name,
            extra_annotation_keys=list(self.extra_keys),
        )
        if self.adapt is not None:
            for item in dicts:
                for annotation in item["annotations"]:
                    self.adapt(annotation)
        return dicts

    def ensure(self) -> None:
        """Write the missing files.

        Raises:
            FileNotFoundError: as in :meth:`load`.
        """
        missing = [path for path in self.requires if not path.exists()]
        if missing:
            raise FileNotFoundError(missing_message(self.name, str(missing[0])))
        self.derive()


class _DerivedJson(PathHandler):
    """Derives a JSON file when detectron2 opens it.

    detectron2's evaluator reads the metadata's ``json_file``, sometimes before the data is loaded.
    """

    _PREFIX = "d2_plugins-derived://"
    _datasets: ClassVar[dict[str, CocoDataset]] = {}

    @classmethod
    def url(cls, dataset: CocoDataset) -> str:
        """Return the URL under which PathManager opens the JSON file of ``dataset``."""
        url = f"{cls._PREFIX}{dataset.json_file}"
        cls._datasets[url] = dataset
        return url

    def _get_supported_prefixes(self) -> list[str]:
        return [self._PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        dataset = self._datasets[path]
        dataset.ensure()
        return str(dataset.json_file)


PathManager.register_handler(_DerivedJson(), allow_override=True)


def derive_json(json_file: Path, source: str, build: Callable[[], dict[str, Any]]) -> None:
    """Write ``build()`` to ``json_file``, unless the file was made from the same source.

    Args:
        json_file: target file, written completely or not at all, also by several processes.
        source: identifier of the input files; stored in the ``info`` of the JSON file.
        build: function that makes the COCO content.
    """
    if json_file.is_file():
        with open(json_file, encoding="utf-8") as file:
            if json.load(file)["info"].get("source") == source:
                return
    logger.info("Writing %s (once)", json_file)
    content = {"info": {"source": source}, **build()}
    with atomic_open(json_file) as file:
        json.dump(content, file)


def coco_content(
    images: list[dict[str, Any]],
    annotations: list[list[dict[str, Any]]],
    class_names: tuple[str, ...],
) -> dict[str, Any]:
    """Assemble a COCO dictionary.

    Args:
        images: image entries with ids.
        annotations: for each image, its annotations without ``id`` and ``image_id``.
        class_names: class names; their category ids are 1, 2, ...
    """
    flat = [
        {"id": number, "image_id": image["id"], **annotation}
        for number, (image, annotation) in enumerate(
            (
                (image, annotation)
                for image, of_image in zip(images, annotations, strict=True)
                for annotation in of_image
            ),
            start=1,
        )
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
    return {"images": images, "annotations": flat, "categories": categories}
