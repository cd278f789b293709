"""Each thing that can be wrong with a data set is found, and named with file and id."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_plugins.data import Report, check_dataset
from d2_plugins.errors import UsageError
from tests.support.helpers import shared_path
from tests.support.odd_images import SIZE, write_odd_image

Content = dict[str, Any]
PLACE = r"rgb\.png \(image id 5\)"
FIRST = PLACE + ", annotation 1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, rgb.png and gray.png, of 48 x 32."""
    write_odd_image(tmp_path, "rgb")
    write_odd_image(tmp_path, "gray")
    return tmp_path


def content() -> Content:
    width, height = SIZE
    image = {"width": width, "height": height}
    annotation = {"iscrowd": 0, "area": 200}
    return {
        "images": [
            {"id": 5, "file_name": "rgb.png", **image},
            {"id": 9, "file_name": "gray.png", **image},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 3, "bbox": [10, 5, 20, 10], **annotation},
            {"id": 2, "image_id": 9, "category_id": 7, "bbox": [0, 0, 48, 32], **annotation},
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def check(folder: Path, data: Any, **options: Any) -> Report:
    json_file = folder / "data.json"
    json_file.write_text(json.dumps(data))
    return check_dataset(json_file, folder, **options)


def found(report: Report) -> dict[str, str]:
    """Severity by kind, notes left out."""
    return {f.kind: f.severity for f in report.findings if f.severity != "note"}


def test_good_data_has_no_findings(folder: Path) -> None:
    report = check(folder, content(), decode=True)
    assert found(report) == {}
    assert report.ok
    assert (report.num_images, report.num_annotations, report.num_empty) == (2, 2, 0)
    assert report.class_counts == {"cat": 1, "dog": 1}
    report.raise_for_errors()
    assert "2 images (0 without annotations), 2 annotations (0 crowds), 2 classes" in str(report)
    assert "grayscale image (1): gray.png (image id 9)" in str(report)


def first_annotation(**changes: Any) -> Callable[[Content], Any]:
    return lambda data: data["annotations"][0].update(changes)


def first_image(**changes: Any) -> Callable[[Content], Any]:
    return lambda data: data["images"][0].update(changes)


def new_category(**entry: Any) -> Callable[[Content], Any]:
    return lambda data: data["categories"].append(entry)


@pytest.mark.parametrize(
    ("change", "severity", "kind", "example"),
    [
        (first_annotation(bbox=[10, 5, 0, 10]), "warning", "box without area", FIRST),
        (first_annotation(bbox=[10, 5, -3, 10]), "error", "negative width", FIRST),
        (first_annotation(bbox=[10, 5, float("nan"), 10]), "error", "four finite", FIRST),
        (first_annotation(bbox=[10, 5, 1e999, 10]), "error", "four finite", FIRST),
        (first_annotation(bbox=[10, 5, 20]), "error", "four finite", FIRST),
        (first_annotation(bbox=["10", 5, 20, 10]), "error", "four finite", FIRST),
        (first_annotation(bbox=None), "error", "four finite", FIRST),
        (first_annotation(bbox=[60, 5, 10, 10]), "warning", "outside the image", FIRST),
        (first_annotation(bbox=[40, 45, 9, 1]), "warning", "outside the image", FIRST),
        (first_annotation(bbox=[-9, 5, 20, 10]), "warning", "over the border", FIRST),
        (first_annotation(bbox=[40, 5, 20, 10]), "warning", "over the border", FIRST),
        (first_annotation(category_id=4), "error", "category id not in", FIRST + ": category 4"),
        (first_annotation(category_id=[]), "error", "category id not in", FIRST),
        (first_annotation(ignore=1), "error", "'ignore' is set", FIRST),
        (first_annotation(id=2), "error", "duplicate annotation id", "2 .2 times"),
        (first_annotation(image_id=6), "warning", "not listed", "annotation 1 of image 6"),
        (first_annotation(segmentation=[[1, 2, 3, 4]]), "warning", "no valid polygon", FIRST),
        (
            first_annotation(segmentation={"size": [48, 32], "counts": "x"}),
            *("error", "mask of another size", FIRST),
        ),
        (first_image(id=9), "error", "duplicate image id", "9 .2 times"),
        (first_image(id=[1]), "error", "image entry without a key", "rgb.png"),
        (first_image(file_name="gray.png"), "warning", "file listed twice", "gray.png"),
        (first_image(file_name="no.png"), "error", "image file missing", r"no\.png \(image id 5\)"),
        (first_image(width=47), "error", "image of another size", PLACE + ": listed 47 x 32.*48 x"),
        (first_image(width=0), "error", "size that is no positive", PLACE),
        (lambda d: d["images"][0].pop("height"), "error", "without a key", "rgb.png.*no height"),
        (
            lambda d: d["categories"].append({"id": 7, "name": "cow"}),
            "error",
            "category id",
            "7 .2",
        ),
        (
            lambda d: d["categories"].append({"id": 8, "name": "dog"}),
            "warning",
            "class name",
            "dog",
        ),
        (lambda d: d["categories"].append({"name": "cow"}), "error", "category without", "cow"),
        (
            lambda d: d["annotations"][0].pop("iscrowd"),
            *("error", "annotation without a key", "annotation 1 of image 5: no iscrowd"),
        ),
        (
            first_annotation(segmentation=[[1, 2, 3, 4, 5, 6]]),
            *("warning", "no mask, though others", "annotation 2 of image 9"),
        ),
        (lambda d: d.pop("images"), "error", "not COCO's", "data.json.*'images'"),
        (lambda d: d.update(annotations={}), "error", "not COCO's", "data.json.*'annotations'"),
        (lambda d: d.update(annotations=[]), "error", "empty annotation file", "data.json"),
        (lambda d: d.update(categories=[]), "error", "empty annotation file", "data.json"),
    ],
)
def test_each_fault_is_found(
    change: Callable[[Content], Any], severity: str, kind: str, example: str, folder: Path
) -> None:
    data = content()
    change(data)
    report = check(folder, data)
    kinds = [k for k, s in found(report).items() if kind in k and s == severity]
    assert kinds, str(report)
    assert report.ok == (severity != "error" and "error" not in found(report).values())
    lines = [line for line in str(report).splitlines() if kinds[0] in line]
    assert re.search(example, lines[0]), lines


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null"])
def test_files_that_are_no_annotations(text: str, folder: Path) -> None:
    json_file = folder / "data.json"
    json_file.write_text(text)
    report = check_dataset(json_file, folder)
    with pytest.raises(UsageError, match=r"data\.json"):
        report.raise_for_errors()
    with pytest.raises(UsageError, match=r"gone\.json"):
        check_dataset(folder / "gone.json", folder).raise_for_errors()


def test_damaged_images(folder: Path) -> None:
    path = folder / "rgb.png"
    whole = path.read_bytes()
    path.write_text("not an image")
    assert "image file cannot be read" in found(check(folder, content()))
    path.write_bytes(whole[:-40])  # the header is whole, the pixels are not
    assert found(check(folder, content())) == {}
    report = check(folder, content(), decode=True)
    assert found(report) == {"image file cannot be read": "error"}
    assert "rgb.png (image id 5)" in str(report)
    path.unlink()
    Image.fromarray(np.zeros(SIZE[::-1], np.float32)).save(folder / "real.tif")
    data = content()
    data["images"][0]["file_name"] = "real.tif"
    assert found(check(folder, data)) == {"floating-point pixels: save with 8 or 16 bits": "error"}


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("gray", "grayscale image"),
        ("rgba", "image with transparency, which is ignored"),
        ("palette", "palette image"),
        ("deep", "16-bit image, read as its high byte"),
        ("cmyk", "CMYK image"),
    ],
)
def test_odd_images_are_noted(kind: str, note: str, folder: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = write_odd_image(folder, kind).name
    report = check(folder, data)
    assert report.ok
    assert any(f.kind == note and f"{kind}." in str(f) for f in report.select("note"))


def test_turned_images_by_the_size_that_is_listed(folder: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = write_odd_image(folder, "turned").name
    stored = check(folder, data)
    assert [*found(stored).values()] == ["warning"]
    assert "read without it" in str(stored)
    data["images"][0].update(width=SIZE[1], height=SIZE[0])
    upright = check(folder, data)
    assert "image of another size than listed" not in found(upright)
    assert any(f.kind == "image turned by EXIF" for f in upright.select("note"))
    data["images"][0].update(width=31)
    assert found(check(folder, data))["image of another size than listed"] == "error"


def test_corners_written_as_sizes_are_suspected(folder: Path) -> None:
    data = content()
    corners = [[10, 5, 30, 15], [20, 10, 47, 30], [30, 2, 40, 31], [1, 1, 9, 9]]
    for i, box in enumerate(corners, start=10):
        data["annotations"].append({**data["annotations"][0], "id": i, "bbox": box})
    report = check(folder, data)
    assert any("look like x1, y1, x2, y2" in kind for kind in found(report))
    assert "2 of 6 boxes" in str(report)
    real = shared_path("data/PennFudanPed_coco.json")
    assert found(check_dataset(real, shared_path("data/PennFudanPed/PNGImages"))) == {}


def test_images_in_another_folder_are_pointed_at(folder: Path) -> None:
    json_file = folder / "data.json"
    json_file.write_text(json.dumps(content()))
    report = check_dataset(json_file, folder / "train")
    assert not report.ok
    assert f"the images are in another folder (1): {folder}" in str(report)


def test_many_findings_stay_readable(folder: Path) -> None:
    data = content()
    first = data["annotations"][0]
    data["annotations"] += [{**first, "id": i, "category_id": 99} for i in range(10, 110)]
    text = str(check(folder, data))
    assert "category id not in the list (100)" in text
    assert "and 95 more" in text
    assert len(text) < 2000


def test_crowds_and_images_without_annotations_are_counted(folder: Path) -> None:
    data = content()
    data["annotations"].pop()
    data["annotations"][0]["iscrowd"] = 1
    report = check(folder, data)
    assert (report.num_crowds, report.num_empty) == (1, 1)
    assert report.ok


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 60) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def entry(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, JSON))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(entry("id", "file_name", "width", "height"), max_size=2),
    st.lists(
        entry("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd", "ignore"),
        max_size=3,
    ),
    st.lists(entry("id", "name"), max_size=2),
)
def test_nothing_in_a_json_makes_the_check_itself_fail(
    folder: Path, images: list[Content], annotations: list[Content], categories: list[Content]
) -> None:
    data = content()
    data["images"] += images
    data["annotations"] += annotations
    data["categories"] += categories
    str(check(folder, data))
