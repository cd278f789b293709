"""Your own COCO json under a name: classes, masks, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from d2_plugins.data import register_coco_json, register_custom
from d2_plugins.errors import UsageError
from tests.support.toy import CLASSES, write_toy_coco

pytestmark = pytest.mark.usefixtures("catalogs")


def edit(json_file: Path, **changes: Any) -> str:
    """Write a copy with some lists replaced."""
    copy = json_file.with_name("edited.json")
    copy.write_text(json.dumps({**json.loads(json_file.read_text()), **changes}))
    return str(copy)


def test_both_splits_are_registered_and_load(tmp_path: Path) -> None:
    json_file, images = map(str, write_toy_coco(tmp_path))
    for _ in range(2):  # a second run in the same process
        data = register_custom(json_file, images, json_file, images)
    assert data.class_names == CLASSES
    assert data.mask_format == "polygon"
    assert len(data.reports) == 2
    assert all(report.ok for report in data.reports)
    for name in (*data.train_names, *data.test_names):
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == list(CLASSES)
        assert metadata.evaluator_type == "coco"
        assert len(get_detection_dataset_dicts(name)) == 8
    only_val = register_custom(None, None, json_file, images, check=False)
    assert (only_val.train_names, only_val.test_names) == ((), data.test_names)
    assert only_val.reports == ()


def test_category_ids_with_gaps_and_out_of_order_become_indices(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path)
    annotations = json.loads(json_file.read_text())["annotations"]
    new_ids = {1: 40, 2: 7}
    edited = edit(
        json_file,
        categories=[{"id": 40, "name": "dark"}, {"id": 7, "name": "bright"}],
        annotations=[{**a, "category_id": new_ids[a["category_id"]]} for a in annotations],
    )
    assert register_coco_json("gaps", edited, images).class_names == ("bright", "dark")
    loaded = [a for item in DatasetCatalog.get("gaps") for a in item["annotations"]]
    assert [a["category_id"] for a in loaded] == [2 - a["category_id"] for a in annotations]


def test_masks_as_rle_ask_for_bitmask(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path)
    annotations = json.loads(json_file.read_text())["annotations"]
    rle = {"size": [64, 80], "counts": "x"}

    def mask_format(**change: Any) -> str | None:
        edited = edit(json_file, annotations=[{**annotations[0], **change}, *annotations[1:]])
        return register_coco_json("masks", edited, images).mask_format

    assert mask_format(segmentation=rle) == "bitmask"
    assert mask_format(segmentation=rle, iscrowd=1) == "polygon"
    bare = [{k: v for k, v in a.items() if k != "segmentation"} for a in annotations]
    edited = edit(json_file, annotations=bare)
    assert register_coco_json("masks", edited, images).mask_format is None


def test_a_name_means_the_files_it_was_last_given(tmp_path: Path) -> None:
    first, images = write_toy_coco(tmp_path / "first")
    second, more_images = write_toy_coco(tmp_path / "second", num_images=3)
    register_coco_json("mine", first, images)
    register_coco_json("mine", edit(second, categories=[{"id": 1, "name": "a"}]), more_images)
    assert MetadataCatalog.get("mine").thing_classes == ["a"]


def test_refused_with_the_reason(tmp_path: Path) -> None:
    json_file, root = write_toy_coco(tmp_path)
    good, images = str(json_file), str(root)
    renamed = edit(json_file, categories=[{"id": 1, "name": "x"}, {"id": 2, "name": "y"}])
    with pytest.raises(UsageError, match="different classes: dark, bright and x, y"):
        register_custom(good, images, renamed, images)
    with pytest.raises(UsageError, match="empty list 'categories'"):
        register_coco_json("mine", edit(json_file, categories=[]), images)
    with pytest.raises(FileNotFoundError, match="annotation file"):
        register_coco_json("mine", tmp_path / "gone.json", images)
    with pytest.raises(FileNotFoundError, match="image folder"):
        register_coco_json("mine", good, tmp_path / "gone")
    (root / "004.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"004\.png \(image id 4\)"):
        register_custom(good, images, good, images)
    broken = tmp_path / "broken.json"
    for text in ("{", "[]", "{}", '{"categories": [3], "annotations": [{}], "images": [{}]}'):
        broken.write_text(text)
        with pytest.raises(UsageError, match=r"broken\.json is not (JSON|COCO)"):
            register_coco_json("mine", broken, images)
    unnamed = edit(json_file, categories=[{"id": 1, "name": None}])
    with pytest.raises(UsageError, match=r"category 1: name is None"):
        register_coco_json("mine", unnamed, images)
