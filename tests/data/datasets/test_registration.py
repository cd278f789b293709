"""Names in detectron2's catalogs, and the messages for datasets that are not on disk."""

import importlib
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin import register_all_coco, register_all_pascal_voc

import d2_plugins.data
from d2_plugins.data import missing_dataset_hint, register_all
from tests.support.toy import write_toy_coco

OURS = {
    *("shapes_train", "shapes_val", "penn_fudan_train", "penn_fudan_val"),
    *("bccd_train", "bccd_val", "bccd_test"),
    *(f"voc_{year}_{split}_coco" for year in (2007, 2012) for split in ("train", "val")),
    *("voc_2007_trainval_coco", "voc_2012_trainval_coco", "voc_2007_test_coco"),
}


def test_importing_again_changes_nothing() -> None:
    before = {name: DatasetCatalog[name] for name in DatasetCatalog}
    assert set(before) >= OURS
    importlib.reload(d2_plugins.data)
    register_all()
    assert {name: DatasetCatalog[name] for name in DatasetCatalog} == before


@pytest.mark.usefixtures("empty_catalogs")
def test_a_taken_name_is_left_as_it_is(tmp_path: Path) -> None:
    DatasetCatalog.register("shapes_train", list)
    register_all(tmp_path)
    assert DatasetCatalog["shapes_train"] is list
    assert set(DatasetCatalog) == OURS


@pytest.mark.usefixtures("empty_catalogs")
def test_classes_are_known_before_any_data_is_read(tmp_path: Path) -> None:
    register_all(tmp_path)
    counts = {"shapes_val": 4, "penn_fudan_val": 1, "voc_2007_test_coco": 20}
    for name, count in counts.items():
        metadata = MetadataCatalog.get(name)
        assert len(metadata.thing_classes) == count
        assert metadata.evaluator_type == "coco"


@pytest.mark.usefixtures("empty_catalogs")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("penn_fudan_val", "penn_fudan"),
        ("voc_2012_trainval_coco", "voc"),
        ("voc_2007_test", "voc"),
        ("coco_2017_train", "coco2017"),
        ("keypoints_coco_2017_val", "coco2017"),
        ("coco_2017_test", "coco2017 --splits test"),
        (
            "coco_2017_val_panoptic_separated",
            "coco2017 --splits panoptic-train panoptic-val",
        ),
    ],
)
def test_missing_data_comes_with_the_command(name: str, arguments: str, tmp_path: Path) -> None:
    register_all(tmp_path)
    register_all_coco(str(tmp_path))
    register_all_pascal_voc(str(tmp_path))
    hint = missing_dataset_hint(name)
    assert hint is not None
    assert f"d2-plugins prepare {arguments} " in hint
    assert str(tmp_path) in hint
    if name in OURS:
        with pytest.raises(FileNotFoundError, match=f"d2-plugins prepare {arguments}"):
            DatasetCatalog.get(name)


@pytest.mark.usefixtures("empty_catalogs")
def test_hints_of_other_names(tmp_path: Path) -> None:
    register_all(tmp_path)
    assert missing_dataset_hint("shapes_train") is None  # rendered on first use
    assert missing_dataset_hint("never_heard_of") is None
    json_file, images = write_toy_coco(tmp_path / "toy")
    register_coco_instances("toy", {}, str(json_file), str(images))
    assert missing_dataset_hint("toy") is None
    json_file.unlink()
    hint = missing_dataset_hint("toy")
    assert hint is not None
    assert str(json_file) in hint
    assert "d2-plugins" not in hint
