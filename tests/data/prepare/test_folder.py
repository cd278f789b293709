"""Layouts of a dataset folder: each is recognized, and gives the files that a training reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from d2_plugins.data import check_dataset
from d2_plugins.data.prepare.folder import FoundData, find_data
from d2_plugins.errors import UsageError
from tests.support.helpers import shared_path
from tests.support.toy import write_toy_coco

XML = """<annotation><filename>{name}.png</filename>
<size><width>80</width><height>64</height></size>
<object><name>cell</name><bndbox><xmin>9</xmin><ymin>5</ymin><xmax>60</xmax><ymax>50</ymax></bndbox>
</object></annotation>"""


def coco(json_file: Path, images: Path, num_images: int) -> None:
    """Write a toy COCO JSON, with its images in another folder."""
    made, made_images = write_toy_coco(json_file.parent / "toy", num_images)
    images.mkdir(parents=True, exist_ok=True)
    for image in made_images.iterdir():
        shutil.move(image, images / image.name)
    json_file.parent.mkdir(exist_ok=True)
    shutil.move(made, json_file)
    shutil.rmtree(json_file.parent / "toy")


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 64)).save(path)


def roboflow(folder: Path) -> None:
    for split, number in (("train", 4), ("valid", 3), ("test", 2)):
        coco(folder / split / "_annotations.coco.json", folder / split, number)


def coco_2017(folder: Path) -> None:
    for split, number in (("train", 4), ("val", 3)):
        file = folder / "annotations" / f"instances_{split}2017.json"
        coco(file, folder / f"{split}2017", number)
        shutil.copy(file, file.with_name(f"person_keypoints_{split}2017.json"))


def coco_images(folder: Path) -> None:
    for split, number in (("train", 4), ("val", 3)):
        coco(folder / "annotations" / f"{split}.json", folder / "images" / split, number)


def shapes(folder: Path) -> None:
    for split, number in (("train", 4), ("val", 3)):
        coco(folder / f"annotations_{split}.json", folder / split, number)


def voc(folder: Path) -> None:
    for number in range(9):
        photo(folder / "JPEGImages" / f"{number}.png")
        file = folder / "Annotations" / f"{number}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(XML.format(name=number))
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for split, names in (("train", "0123"), ("val", "456"), ("test", "78")):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))


def voc_folders(folder: Path) -> None:
    for split, numbers in (("train", range(4)), ("valid", range(4, 7)), ("test", range(7, 9))):
        for number in numbers:
            photo(folder / split / f"{number}.png")
            (folder / split / f"{number}.xml").write_text(XML.format(name=number))


def yolo_folders(folder: Path) -> None:
    for split, numbers in (("train", range(4)), ("val", range(4, 7))):
        for number in numbers:
            photo(folder / "images" / split / f"{number}.png")
            label = folder / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.5 0.5")
    (folder / "classes.txt").write_text("cell")


def yolo(folder: Path) -> None:
    yolo_folders(folder)
    (folder / "classes.txt").unlink()
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cell]")


def around(folder: Path) -> None:
    roboflow(folder / "My data.v1i.coco")


LAYOUTS: dict[Callable[[Path], None], str] = {
    roboflow: "COCO JSON (train/_annotations.coco.json, valid/_annotations.coco.json)",
    around: "COCO JSON (train/_annotations.coco.json, valid/_annotations.coco.json)",
    coco_2017: "COCO JSON (annotations/instances_train2017.json, annotations/instances_val2017",
    coco_images: "COCO JSON (annotations/train.json, annotations/val.json)",
    shapes: "COCO JSON (annotations_train.json, annotations_val.json)",
    voc: "VOC XML with ImageSets/Main",
    voc_folders: "VOC XML",
    yolo: "YOLO text files",
    yolo_folders: "YOLO text files",
}


def counts(found: FoundData) -> list[int]:
    """Numbers of images that the pre-flight check of the found files counts."""
    files = found.files
    numbers = []
    for json_file, images in (
        (files.train_json, files.train_images),
        (files.val_json, files.val_images),
    ):
        if json_file and images:
            report = check_dataset(json_file, images)
            assert report.ok, str(report)
            numbers.append(report.num_images)
    return numbers


@pytest.mark.parametrize("write", LAYOUTS)
def test_layouts(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "data")
    found = find_data(tmp_path / "data", tmp_path / "out")
    assert f"data: {LAYOUTS[write]}" if write is not around else LAYOUTS[write] in found.description
    assert "4 training and 3 validation images" in found.description
    assert counts(found) == [4, 3]
    is_converted = not LAYOUTS[write].startswith("COCO")
    assert (tmp_path / "out").exists() == is_converted
    assert found.output == (tmp_path / "out" if is_converted else None)


def one_json(folder: Path) -> None:
    coco(folder / "annotations.json", folder / "images", 9)


def one_list(folder: Path) -> None:
    voc(folder)
    (folder / "ImageSets" / "Main" / "train.txt").rename(folder / "ImageSets/Main/trainval.txt")
    (folder / "ImageSets" / "Main" / "val.txt").unlink()


def flat_yolo(folder: Path) -> None:
    for number in range(9):
        photo(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (folder / "classes.txt").write_text("cell")


@pytest.mark.parametrize(("write", "number"), [(one_json, 9), (one_list, 4), (flat_yolo, 9)])
def test_a_validation_set_is_split_off(
    write: Callable[[Path], None], number: int, tmp_path: Path
) -> None:
    write(tmp_path / "data")
    first = find_data(tmp_path / "data", tmp_path / "out")
    assert "20 % of the images were chosen, seed 0" in first.description
    train, val = counts(first)
    assert train + val == number
    assert val == pytest.approx(number / 5, abs=1)
    parts = [json.loads(Path(f).read_text()) for f in (first.files.train_json, first.files.val_json)
             if f]  # fmt: skip
    names = [{image["file_name"] for image in part["images"]} for part in parts]
    assert not names[0] & names[1]
    assert all({a["image_id"] for a in p["annotations"]} == {i["id"] for i in p["images"]}
               for p in parts)  # fmt: skip
    again = find_data(tmp_path / "data", tmp_path / "again")
    for split in ("train", "val"):
        texts = [(tmp_path / f / f"{split}.json").read_text() for f in ("out", "again")]
        assert texts[0] == texts[1]
    assert again.description == first.description
    assert (first.output, again.output) == (tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("write", [voc, flat_yolo])
def test_pictures_of_runs_inside_the_folder_are_not_data(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    """As after `--data .`, and predictions drawn below ./output under the names of their images."""
    write(tmp_path)
    first = find_data(tmp_path, tmp_path / "output" / "own" / "data")
    (tmp_path / "output" / "own" / "run.json").touch()
    photo(tmp_path / "output" / "own" / "detected" / "0.png")
    again = find_data(tmp_path, tmp_path / "output" / "own" / "data")
    assert again == first
    assert sum(counts(again)) == (7 if write is voc else 9)


def test_one_image_is_not_split(tmp_path: Path) -> None:
    coco(tmp_path / "data" / "annotations.json", tmp_path / "data", 1)
    assert counts(find_data(tmp_path / "data", tmp_path / "out")) == [1]


def test_bccd_keeps_its_lists(tmp_path: Path) -> None:
    found = find_data(shared_path("data/bccd"), tmp_path)
    assert "VOC XML with ImageSets/Main, 205 training and 87 validation images" in found.description
    assert found.files.train_images == str(shared_path("data/bccd"))


def broken_json(folder: Path) -> None:
    (folder / "train.json").write_text('{"images": [')


def labels_only(folder: Path) -> None:
    photo(folder / "images" / "a.png")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5")


def two_files(folder: Path) -> None:
    for name in ("train_a.json", "train_b.json"):
        coco(folder / name, folder, 2)


def images_elsewhere(folder: Path) -> None:
    coco(folder / "train.json", folder / "a" / "b", 2)


def bad_ids(folder: Path) -> None:
    one_json(folder)
    content = json.loads((folder / "annotations.json").read_text())
    content["images"][0]["id"] = content["annotations"][-1]["image_id"] = [1]
    (folder / "annotations.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: photo(folder / "a.png"), r"data is not a dataset of a known layout; looked "
         r"for: COCO JSON \(.*VOC XML \(\*\.xml\), YOLO \(data\.yaml or classes\.txt.*"),
        (broken_json, r"train\.json is not JSON: .*"),
        (labels_only, r"data has no class names: no data\.yaml with names, no classes\.txt"),
        (two_files, r"several JSON files for the same split: train_a\.json, train_b\.json; .*"),
        (images_elsewhere, r"train\.json: its first image, '000\.png', is in none of .*"),
    ],
)  # fmt: skip
def test_unknown_layouts_are_one_line(
    write: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    with pytest.raises(UsageError, match=rf"^.*{said}$"):
        find_data(tmp_path / "data", tmp_path / "out")


def test_ids_that_are_not_valid_reach_the_check(tmp_path: Path) -> None:
    bad_ids(tmp_path / "data")
    files = find_data(tmp_path / "data", tmp_path / "out").files
    assert files.train_images
    reports = [check_dataset(tmp_path / "out" / f"{s}.json", files.train_images)
               for s in ("train", "val")]  # fmt: skip
    assert not all(report.ok for report in reports)


@pytest.mark.parametrize(("name", "said"), [("a.zip", "is a file"), ("gone", "does not exist")])
def test_paths_that_are_not_folders(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").touch()
    with pytest.raises(UsageError, match=rf"--data is .*{name}, which {said}; allowed: "):
        find_data(tmp_path / name, tmp_path / "out")
