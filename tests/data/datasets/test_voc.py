"""VOC as COCO, compared with detectron2's own VOC and a COCO JSON that others derived."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances
from detectron2.structures import BoxMode

from d2_plugins.data import register_all
from d2_plugins.data.datasets.voc import read_annotation
from d2_plugins.errors import UsageError
from tests.support.helpers import shared_path
from tests.support.perfect_detections import perfect_scores

NAME = "voc_2012_trainval_coco"


@pytest.fixture
def root(tmp_path: Path, empty_catalogs: None) -> Path:
    (tmp_path / "VOC2012").symlink_to(shared_path("data/voc_small/VOCdevkit/VOC2012"))
    register_all(tmp_path)
    return tmp_path


def test_training_sees_what_detectron2s_own_voc_has(root: Path) -> None:
    theirs = load_voc_instances(str(root / "VOC2012"), "trainval", CLASS_NAMES)
    by_name = {item["file_name"]: item for item in theirs}
    ours = DatasetCatalog.get(NAME)
    assert len(ours) == len(theirs) == 100
    for item in ours:
        other = by_name[item["file_name"]]
        assert (item["height"], item["width"]) == (other["height"], other["width"])
        assert [
            (BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS), a["category_id"])
            for a in item["annotations"]
        ] == [(a["bbox"], a["category_id"]) for a in other["annotations"]]
        assert all(a["iscrowd"] == 0 for a in item["annotations"])


def test_json_agrees_with_the_reference(root: Path) -> None:
    reference = json.loads(shared_path("data/voc_small/instances_v2.json").read_text())
    files = {image["id"]: image["file_name"] for image in reference["images"]}
    classes = {category["id"]: category["name"] for category in reference["categories"]}
    # Its boxes leave VOC's coordinates as they are; ours count from 0 and include the last pixel.
    theirs = sorted(
        (files[a["image_id"]], classes[a["category_id"]], x - 1, y - 1, w + 1, h + 1)
        for a in reference["annotations"]
        for x, y, w, h in [a["bbox"]]
    )
    DatasetCatalog.get(NAME)
    content = json.loads((root / "d2_plugins" / "voc_2012_trainval.json").read_text())
    files = {image["id"]: image["file_name"] for image in content["images"]}
    assert len(files) == 100
    ours = sorted(
        (files[a["image_id"]], CLASS_NAMES[a["category_id"] - 1], *a["bbox"])
        for a in content["annotations"]
    )
    assert len(ours) == 273
    assert ours == theirs
    assert sum(a["iscrowd"] for a in content["annotations"]) == 38


def test_difficult_objects_neither_help_nor_harm_in_evaluation(root: Path) -> None:
    DatasetCatalog.get(NAME)
    content = json.loads((root / "d2_plugins" / "voc_2012_trainval.json").read_text())
    difficult = {tuple(a["bbox"]) for a in content["annotations"] if a["iscrowd"]}
    everything = perfect_scores(NAME, ("bbox",))
    easy = perfect_scores(NAME, ("bbox",), keep=lambda a: tuple(a["bbox"]) not in difficult)
    assert everything["bbox"]["AP"] == pytest.approx(100)
    assert easy["bbox"]["AP"] == pytest.approx(100)


def test_another_list_of_images_is_noticed(root: Path, tmp_path: Path) -> None:
    DatasetCatalog.get(NAME)
    own = tmp_path / "own"
    for name in ("Annotations", "JPEGImages"):
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).symlink_to((root / "VOC2012" / name).resolve())
    main = own / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "trainval.txt").write_text("2007_000027\n2007_000032\n")
    (root / "VOC2012").unlink()
    own.rename(root / "VOC2012")
    assert [item["image_id"] for item in DatasetCatalog.get(NAME)] == [2007000027, 2007000032]


BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox>"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotation><size>", "no element found|mismatched|unclosed"),
        ("<annotation><size><width>3</width></size></annotation>", "no <size>"),
        (
            "<annotation><size><width>3</width><height>3</height></size>"
            f"<object><name>unicorn</name>{BOX}</object></annotation>",
            "unicorn",
        ),
    ],
)
def test_broken_xml_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "000001.xml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said) as error:
        read_annotation(path)
    assert "000001.xml" in str(error.value)
