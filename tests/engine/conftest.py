"""A registered toy data set, for tests that train on it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from tests.toy import write_toy_coco

NAME = "toy"


@pytest.fixture
def toy_data(tmp_path: Path) -> Iterator[list[Any]]:
    """KEY VALUE pairs that train and evaluate on it."""
    json_file, images = write_toy_coco(tmp_path)
    register_coco_instances(NAME, {}, str(json_file), str(images))
    yield ["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)]
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
