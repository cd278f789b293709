"""Penn-Fudan from its masks, compared with a COCO JSON that others derived."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from d2_plugins.data import register_all
from tests.support.helpers import shared_path
from tests.support.perfect_detections import perfect_scores


@pytest.fixture
def root(tmp_path: Path, empty_catalogs: None) -> Path:
    (tmp_path / "PennFudanPed").symlink_to(shared_path("data/PennFudanPed"))
    register_all(tmp_path)
    return tmp_path


def load_both() -> dict[str, list[dict[str, Any]]]:
    return {split: DatasetCatalog.get(f"penn_fudan_{split}") for split in ("train", "val")}


def test_every_fourth_image_is_validation(root: Path) -> None:
    names = {
        split: [Path(d["file_name"]).name for d in dicts] for split, dicts in load_both().items()
    }
    all_names = sorted(path.name for path in (root / "PennFudanPed" / "PNGImages").iterdir())
    assert names["val"] == all_names[3::4]
    assert len(names["val"]) == 42
    assert sorted(names["train"] + names["val"]) == all_names


def test_boxes_and_masks_equal_the_reference(root: Path) -> None:
    reference = json.loads(shared_path("data/PennFudanPed_coco.json").read_text())
    names = {image["id"]: image["file_name"] for image in reference["images"]}
    expected: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for annotation in reference["annotations"]:
        expected[names[annotation["image_id"]]].append(annotation)
    seen = 0
    for item in (item for dicts in load_both().values() for item in dicts):
        theirs = expected[Path(item["file_name"]).name]
        assert len(item["annotations"]) == len(theirs)
        for ours, other in zip(item["annotations"], theirs, strict=True):
            assert ours["bbox_mode"] == BoxMode.XYWH_ABS
            assert ours["bbox"] == other["bbox"]
            np.testing.assert_array_equal(
                mask_util.decode(ours["segmentation"]), mask_util.decode(other["segmentation"])
            )
            seen += 1
    assert seen == 423


def test_boxes_agree_with_the_authors_text_files(root: Path) -> None:
    # Most boxes there were drawn by hand; the great majority is within a few pixels of the mask's.
    box = re.compile(r"\((\d+), (\d+)\) - \((\d+), (\d+)\)")
    near = total = 0
    for item in DatasetCatalog.get("penn_fudan_val"):
        text = root / "PennFudanPed" / "Annotation" / f"{Path(item['file_name']).stem}.txt"
        drawn = np.array([list(map(int, m)) for m in box.findall(text.read_text())])
        ours = np.array([a["bbox"] for a in item["annotations"]])
        corners = np.hstack([ours[:, :2] + 1, ours[:, :2] + ours[:, 2:]])
        near += int((np.abs(corners - drawn).max(axis=1) <= 4).sum())
        total += len(drawn)
    assert near >= 0.9 * total


def test_coco_evaluation_runs_and_finds_the_ground_truth_perfect(root: Path) -> None:
    results = perfect_scores("penn_fudan_val", ("bbox", "segm"))
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)


def test_json_is_written_once_and_again_when_the_images_change(root: Path) -> None:
    json_file = root / "d2_plugins" / "penn_fudan_val.json"
    DatasetCatalog.get("penn_fudan_val")
    first = json_file.stat()
    DatasetCatalog.get("penn_fudan_val")
    assert json_file.stat().st_mtime_ns == first.st_mtime_ns
    stale = json.loads(json_file.read_text())
    json_file.write_text(json.dumps({**stale, "info": {"source": "another"}, "images": []}))
    assert len(DatasetCatalog.get("penn_fudan_val")) == 42
