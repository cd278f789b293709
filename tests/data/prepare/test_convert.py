"""VOC XML and YOLO text files become COCO JSON with the same boxes; damaged ones are named."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2_plugins.data import check_dataset
from d2_plugins.data.prepare.convert import convert
from d2_plugins.errors import UsageError
from tests.support.helpers import shared_path
from tests.support.train_step import train_and_evaluate

pytestmark = pytest.mark.usefixtures("catalogs")

Objects = dict[str, list[tuple[str, list[float]]]]


def read_converted(json_file: Path) -> Objects:
    """Class names and boxes by file name."""
    content = json.loads(json_file.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    found: Objects = {name: [] for name in files.values()}
    for annotation in content["annotations"]:
        entry = (names[annotation["category_id"]], annotation["bbox"])
        found[files[annotation["image_id"]]].append(entry)
    return found


def voc_by_regex(folder: Path, names: list[str]) -> Objects:
    """The same from the XML's text: corners count from 1 and include the last pixel."""
    found: Objects = {}
    for name in names:
        text = (folder / "Annotations" / f"{name}.xml").read_text()
        objects = found.setdefault(f"JPEGImages/{name}.jpg", [])
        for block in re.findall(r"<object>(.*?)</object>", text, re.S):
            corner = {
                k: float(v) for k, v in re.findall(r"<([xy]m(?:in|ax))>\s*([\d.]+)", block)[:4]
            }
            x, y = corner["xmin"] - 1, corner["ymin"] - 1
            label = re.search(r"<name>\s*(.*?)\s*</name>", block)
            assert label
            objects.append((label[1], [x, y, corner["xmax"] - x, corner["ymax"] - y]))
    return found


def test_bccd_equals_its_xml_files(tmp_path: Path) -> None:
    source = shared_path("data/bccd")
    for converted in convert(source, tmp_path):
        lists = source / "ImageSets" / "Main" / f"{converted.json_file.stem}.txt"
        expected = voc_by_regex(source, lists.read_text().split())
        assert read_converted(converted.json_file) == expected
        assert converted.objects == sum(map(len, expected.values()))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("test.json", "train.json", "val.json")
    ]
    assert check_dataset(tmp_path / "val.json", source).ok


def test_bccd_split_again_is_stratified(tmp_path: Path) -> None:
    source = shared_path("data/bccd")
    train, val = convert(source, tmp_path, split=0.8)
    assert train.objects + val.objects == 4155 + 372 + 361  # as its authors count
    files = {*read_converted(train.json_file)}, {*read_converted(val.json_file)}
    assert len(files[0] | files[1]) == len(files[0]) + len(files[1]) == 364
    for converted, fraction in ((train, 0.8), (val, 0.2)):
        with_class = [
            {name for name, _ in objects}
            for objects in read_converted(converted.json_file).values()
        ]
        share = sum("Platelets" in names for names in with_class)
        total = sum("Platelets" in Path(f).read_text() for f in source.glob("Annotations/*.xml"))
        assert abs(share - fraction * total) <= 2


def test_voc_with_segmentations_of_the_same_name(tmp_path: Path) -> None:
    """Its images, XML files and masks share their names."""
    source = shared_path("data/voc_small/VOCdevkit/VOC2012")
    (converted,) = convert(source, tmp_path)[:1]
    names = [Path(name).stem for name in read_converted(converted.json_file)]
    assert read_converted(converted.json_file) == voc_by_regex(source, names)


@pytest.mark.parametrize("layout", ["ultralytics", "roboflow", "lists", "flat"])
def test_yolo_from_coco_gives_the_boxes_back(layout: str, tmp_path: Path) -> None:
    source = shared_path("data/coco_small")
    content = json.loads((source / "instances_val2017.json").read_text())
    expected = write_yolo(tmp_path / "data", content, source / "images", layout)
    converted = convert(tmp_path / "data", tmp_path / "coco")
    names = ["annotations"] if layout == "flat" else ["train", "val"]
    assert [file.json_file.stem for file in converted] == names
    found: Objects = {}
    for file in converted:
        found |= {Path(k).name: v for k, v in read_converted(file.json_file).items()}
        assert not check_dataset(file.json_file, file.image_root).select("error")
    assert found.keys() == expected.keys()
    for name, objects in expected.items():
        assert [label for label, _ in found[name]] == [label for label, _ in objects]
        boxes = [box for _, box in found[name]], [box for _, box in objects]
        np.testing.assert_allclose(*map(np.array, boxes), atol=1e-3)


def write_yolo(folder: Path, content: dict[str, Any], images: Path, layout: str) -> Objects:
    """Write 20 images as YOLO, 14 to train; return their boxes in pixels."""
    names = [category["name"] for category in content["categories"]]
    labels = {category["id"]: number for number, category in enumerate(content["categories"])}
    expected: Objects = {}
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for number, image in enumerate(content["images"][:20]):
        split = "train" if number < 14 else "val"
        places = {
            "ultralytics": (f"images/{split}", f"labels/{split}"),
            "roboflow": (f"{split}/images", f"{split}/labels"),
            "lists": ("images", "labels"),
            "flat": ("", ""),
        }[layout]
        name = Path(image["file_name"]).name
        image_folder, label_folder = (folder / place for place in places)
        image_folder.mkdir(parents=True, exist_ok=True)
        label_folder.mkdir(parents=True, exist_ok=True)
        os.symlink(images / image["file_name"], image_folder / name)
        lists[split].append(f"./images/{name}")
        objects = expected.setdefault(name, [])
        lines = []
        for annotation in content["annotations"]:
            if annotation["image_id"] == image["id"]:
                x, y, w, h = annotation["bbox"]
                width, height = image["width"], image["height"]
                values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                label = labels[annotation["category_id"]]
                lines.append(" ".join([str(label), *(f"{value:.7f}" for value in values)]))
                objects.append((names[label], annotation["bbox"]))
        if lines:  # an image without a text file has no objects
            (label_folder / name).with_suffix(".txt").write_text("\n".join(lines))
    quoted = json.dumps(names)
    yaml = {
        "ultralytics": f"path: /not/here\ntrain: images/train\nval: images/val\nnames: {quoted}",
        "roboflow": f"train: ../train/images\nval: ../val/images\nnc: 80\nnames: {quoted}",
        "lists": "train: train.txt\nval: val.txt\nnames: "
        + json.dumps(dict(enumerate(names))).replace('"', "'"),
    }
    if layout == "flat":
        (folder / "classes.txt").write_text("\n".join(names))
    else:
        (folder / "data.yaml").write_text(yaml[layout])
    if layout == "lists":
        for split, lines in lists.items():
            (folder / f"{split}.txt").write_text("\n".join(lines))
    return expected


XML = """<annotation><filename>a.png</filename>
<size><width>{width}</width><height>64</height></size>
<object><name>{name}</name><bndbox><xmin>{xmin}</xmin><ymin>5</ymin><xmax>60</xmax><ymax>50</ymax>
</bndbox></object></annotation>"""


def write_voc(folder: Path, text: str | None = None, **changes: object) -> Path:
    folder.mkdir()
    Image.new("RGB", (80, 64)).save(folder / "a.png")
    values = {"width": 80, "name": "blood cell", "xmin": 1} | changes
    (folder / "a.xml").write_text(XML.format(**values) if text is None else text)
    return folder


def write_flat_yolo(folder: Path, line: str, names: str = "names: [cat, dog]") -> Path:
    folder.mkdir()
    Image.new("RGB", (80, 64)).save(folder / "a.png")
    (folder / "a.txt").write_text(line)
    (folder / "data.yaml").write_text(names)
    return folder


def test_missing_size_and_any_class_name(tmp_path: Path) -> None:
    (converted,) = convert(write_voc(tmp_path / "data", width=0, name="猫 &amp; dog"), tmp_path)
    content = json.loads(converted.json_file.read_text())
    assert content["images"] == [{"id": 1, "file_name": "a.png", "width": 80, "height": 64}]
    assert content["annotations"][0]["bbox"] == [0, 4, 60, 46]
    assert content["annotations"][0]["area"] == 60 * 46
    assert content["categories"] == [{"id": 1, "name": "猫 & dog"}]


def test_yolo_outlines_become_polygons(tmp_path: Path) -> None:
    line = "1 0.25 0.25 0.75 0.25 0.75 0.5\n\n0 0.5 0.5 0.5 1"
    (converted,) = convert(write_flat_yolo(tmp_path / "data", line), tmp_path)
    outline, box = json.loads(converted.json_file.read_text())["annotations"]
    assert outline["segmentation"] == [[20, 16, 60, 16, 60, 32]]
    assert (outline["bbox"], outline["area"], outline["category_id"]) == ([20, 16, 40, 16], 320, 2)
    assert (box["bbox"], box["area"], box["category_id"]) == ([20, 0, 40, 64], 40 * 64, 1)


@pytest.mark.parametrize("write", [write_voc, lambda f: write_flat_yolo(f, "0 0.5 0.5 0.4 0.3")])
def test_converted_data_trains(write: Callable[[Path], Path], tmp_path: Path) -> None:
    (converted,) = convert(write(tmp_path / "data"), tmp_path)
    assert "bbox" in train_and_evaluate(converted.json_file, converted.image_root)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;">'
    "]><annotation><filename>&b;</filename></annotation>"
)


def nested_yaml(depth: int) -> str:
    """Return aliases that stand for 2 ** depth words."""
    lines = ["x0: &x0 [w, w]"]
    lines += [f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, depth)]
    return "\n".join(lines) + "\n"


YAML_BOMB = nested_yaml(60) + "names: [*x59, *x59]"


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda f: write_voc(f, ""), r"a\.xml: no element found"),
        (lambda f: write_voc(f, "<annotation>"), r"a\.xml: no element found"),
        (lambda f: write_voc(f, "<html/>"), r"a\.xml: is not VOC XML: it begins with <html>"),
        (lambda f: write_voc(f, BOMB), r"a\.xml: XML entities are not read"),
        (lambda f: write_voc(f, "<annotation/>"), "1 XML files, but no object"),
        (lambda f: write_voc(f, xmin="left"), r"a\.xml: could not convert .*'left'"),
        (lambda f: write_voc(f, width="wide"), r"a\.xml: invalid literal .*'wide'"),
        (
            lambda f: write_voc(f, "<annotation><object><name>a</name></object></annotation>"),
            r"a\.xml: no <bndbox/xmin>",
        ),
        (lambda f: write_flat_yolo(f, "2 0.5 0.5 0.1 0.1"), r"a\.txt: line 1: class is '2'"),
        (lambda f: write_flat_yolo(f, "cat 0.5 0.5 0.1 0.1"), "class is 'cat'; allowed: 0 to 1"),
        (lambda f: write_flat_yolo(f, "-1 0.5 0.5 0.1 0.1"), "class is '-1'"),
        (lambda f: write_flat_yolo(f, "9" * 5000 + " .5 .5 .1 .1"), "class is '9{20}'"),
        (lambda f: write_flat_yolo(f, "\n0 0.5 0.5 0.1"), r"a\.txt: line 2: 4 values"),
        (lambda f: write_flat_yolo(f, "0 .5 .5 .1 .1 .9"), "6 values"),
        (lambda f: write_flat_yolo(f, "0 nan 0.5 0.1 0.1"), "numbers from 0 to 1"),
        (lambda f: write_flat_yolo(f, "0 40 32 10 10"), "numbers from 0 to 1"),
        (lambda f: write_flat_yolo(f, "0 a b c d"), r"a\.txt: could not convert"),
        (lambda f: write_flat_yolo(f, "", "names: 3"), "has no class names"),
        (lambda f: write_flat_yolo(f, "", "a: 3"), "has no class names"),
        (lambda f: write_flat_yolo(f, "", "names: {1: a, 3: b}"), "keys of names"),
        (lambda f: write_flat_yolo(f, "", "names: [[a]]"), "names; allowed: a list of texts"),
        (lambda f: write_flat_yolo(f, "", YAML_BOMB), "names; allowed: a list of texts"),
        (
            lambda f: write_flat_yolo(f, "", nested_yaml(60) + "names: [a]\ntrain: *x59"),
            "train is a list, which does not exist",
        ),
        (lambda f: write_flat_yolo(f, "", "names: [a"), r"data\.yaml is not a YAML file"),
        (
            lambda f: write_flat_yolo(f, "", "names: !!python/object/apply:os.system [ls]"),
            r"data\.yaml is not a YAML file",
        ),
        (lambda f: write_flat_yolo(f, "", "names: [a]\ntrain: gone"), "train is 'gone'"),
        (lambda f: write_flat_yolo(f, "", "names: [a]\ntrain: [[3]]"), "which does not exist"),
        (lambda f: write_flat_yolo(f, "", "names: [a]\ntrain: .\nval: data.yaml"), "no image"),
    ],
)
def test_damaged_data_is_named_in_one_line(
    write: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "data")
    with pytest.raises(UsageError, match=said) as error:
        convert(folder, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_named(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "data")
    for split in (0.0, 1.0, 80.0, float("nan")):
        with pytest.raises(UsageError, match="allowed: numbers between 0 and 1"):
            convert(folder, tmp_path, split=split)
    with pytest.raises(UsageError, match=r"no images for (train|val)\.json"):
        convert(folder, tmp_path, split=0.5)  # one image cannot be split
    with pytest.raises(UsageError, match="there is no folder"):
        convert(tmp_path / "gone", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="neither VOC's XML files nor YOLO's text files"):
        convert(tmp_path / "empty", tmp_path)
    convert(folder, tmp_path)
    with pytest.raises(UsageError, match=r"annotations\.json exists already"):
        convert(folder, tmp_path)
    (folder / "a.png").unlink()
    with pytest.raises(UsageError, match=r"a\.xml: no image has the name 'a'"):
        convert(folder, tmp_path / "out")
    os.mkfifo(folder / "a.png")  # not an image, and never waited for
    with pytest.raises(UsageError, match="no image has the name 'a'"):
        convert(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.txt", "data.yaml"])
def test_other_encodings_and_pipes_are_named(name: str, tmp_path: Path) -> None:
    folder = write_flat_yolo(tmp_path / "data", "0 0.5 0.5 0.1 0.1")
    file = folder / name
    text = file.read_text()
    file.write_text(text, "utf-8-sig")
    convert(folder, tmp_path / "with_mark")
    file.write_text(text, "utf-16")
    with pytest.raises(UsageError, match=f"{name} is not UTF-8 text"):
        convert(folder, tmp_path / "out")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UsageError, match=f"{name} is not a regular file"):
        convert(folder, tmp_path / "out")
