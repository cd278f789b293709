"""BCCD, compared with an independent reading of its XML files."""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from d2_plugins.data import register_all
from d2_plugins.data.datasets.bccd import CLASS_NAMES
from d2_plugins.data.prepare.prepare import prepare
from tests.support.helpers import shared_path

SPLITS = {"train": 205, "val": 87, "test": 72}


@pytest.fixture
def root(tmp_path: Path, empty_catalogs: None) -> Path:
    (tmp_path / "BCCD").symlink_to(shared_path("data/bccd"))
    register_all(tmp_path)
    return tmp_path


def test_every_cell_with_an_area_is_there(root: Path) -> None:
    expected: Counter[tuple[str, str, float, float, float, float]] = Counter()
    for path in (root / "BCCD" / "Annotations").glob("*.xml"):
        for cell in ElementTree.parse(path).getroot().iter("object"):
            x0, y0, x1, y1 = (
                float(cell.find(f"bndbox/{k}").text) for k in ("xmin", "ymin", "xmax", "ymax")
            )
            if x1 > x0 and y1 > y0:
                expected[path.stem, cell.find("name").text, x0 - 1, y0 - 1, x1, y1] += 1
    assert sum(expected.values()) == 4155 + 372 + 361 - 2
    found: Counter[tuple[str, str, float, float, float, float]] = Counter()
    for split, count in SPLITS.items():
        dicts = DatasetCatalog.get(f"bccd_{split}")
        assert len(dicts) == count
        for item in dicts:
            for a in item["annotations"]:
                box = BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
                name = CLASS_NAMES[a["category_id"]]
                found[(Path(item["file_name"]).stem, name, *map(float, box))] += 1
    assert found == expected


def test_splits_share_no_image(root: Path) -> None:
    ids: list[int] = []
    for split in SPLITS:
        DatasetCatalog.get(f"bccd_{split}")
        content = json.loads((root / "d2_plugins" / f"bccd_{split}.json").read_text())
        ids += [image["id"] for image in content["images"]]
    assert len(set(ids)) == len(ids) == 364


def test_prepared_from_a_folder_on_disk(tmp_path: Path, empty_catalogs: None) -> None:
    source = tmp_path / "checkout"
    source.mkdir()
    (source / "BCCD").symlink_to(shared_path("data/bccd"))
    prepare("bccd", tmp_path / "root", source=source, link=True)
    assert (tmp_path / "root" / "BCCD" / "ImageSets" / "Main" / "val.txt").is_file()
