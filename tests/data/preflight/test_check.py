"""Each fault of a dataset is found, and named with file, id and field."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from d2_plugins.data import Report, check_dataset
from d2_plugins.data.images import read_photo
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


def without(kind: str, key: str) -> Callable[[Content], Any]:
    return lambda data: data[kind][0].pop(key)


RLE = {"size": [32, 48], "counts": [1000, 36, 500]}
NESTED = json.loads("[" * 200 + "]" * 200)


@pytest.mark.parametrize(
    ("change", "severity", "kind", "example"),
    [
        (first_annotation(bbox=[10, 5, 0, 10]), "warning", "box without area", FIRST),
        (first_annotation(bbox=[10, 5, -3, 10]), "error", "negative width", FIRST),
        (first_annotation(bbox=[60, 5, 10, 10]), "warning", "outside the image", FIRST),
        (first_annotation(bbox=[40, 45, 9, 1]), "warning", "outside the image", FIRST),
        (first_annotation(bbox=[-9, 5, 20, 10]), "warning", "over the border", FIRST),
        (first_annotation(bbox=[40, 5, 20, 10]), "warning", "over the border", FIRST),
        (first_annotation(category_id=4), "error", "category id not in", FIRST + ": category 4"),
        (first_annotation(id=2), "error", "duplicate annotation id", "2 .2 times"),
        (first_annotation(image_id=6), "warning", "not listed", "annotation 1 of image 6"),
        (first_annotation(segmentation=[[1, 2, 3, 4]]), "warning", "fewer than three", FIRST),
        (
            first_annotation(segmentation=[[1, 2, 3, 4, 5, 200]]),
            *("error", "polygon far outside", FIRST),
        ),
        (
            first_annotation(segmentation=RLE | {"size": [48, 32]}),
            *("error", "mask of another size", FIRST),
        ),
        (
            first_annotation(segmentation=RLE | {"counts": [1000, 36]}),
            *("error", "do not add up", FIRST + ": 1036 of 1536"),
        ),
        (
            first_annotation(segmentation=RLE | {"counts": "00P0"}),
            *("error", "do not add up", FIRST),
        ),
        (  # 1540, -4
            first_annotation(segmentation=RLE | {"counts": "T`1L"}),
            *("error", "do not add up", FIRST + ": 1536 of 1536"),
        ),
        (first_image(id=9), "error", "duplicate image id", "9 .2 times"),
        (first_image(file_name="gray.png"), "warning", "file listed twice", "gray.png"),
        (first_image(file_name="no.png"), "error", "image file missing", r"no\.png \(image id 5\)"),
        (first_image(width=47), "error", "image of another size", PLACE + ": listed 47 x 32.*48 x"),
        (new_category(id=7, name="cow"), "error", "category id", "7 .2"),
        (new_category(id=8, name="dog"), "warning", "class name", "dog"),
        (
            first_annotation(segmentation=[[1, 2, 3, 4, 5, 6]]),
            *("warning", "no mask, though others", "annotation 2 of image 9"),
        ),
        (lambda d: d.pop("images"), "error", "not a COCO JSON", "data.json.*'images'"),
        (
            lambda d: d.update(annotations={}),
            "error",
            "not a COCO JSON",
            "data.json.*'annotations'",
        ),
        (
            lambda d: d.update(annotations=[]),
            "error",
            "not a COCO JSON",
            "empty list 'annotations'",
        ),
        (lambda d: d.update(categories=[]), "error", "not a COCO JSON", "empty list 'categories'"),
        (lambda d: d["images"].append(7), "error", "not a COCO JSON", r"images\[2\] is '7'"),
        (lambda d: d["images"].clear(), "error", "not a COCO JSON", "empty list 'images'"),
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


# Values that some tools write; each is refused with entry, field and value.
REFUSED: dict[str, dict[str, list[Any]]] = {
    "images": {
        "id": [None, "1", "id_1", 1.0, True, [1], {}],
        "file_name": [None, 3, "", " ", ["rgb.png"], "rgb\n.png", "rgb\x00.png", "\ud800.png"],
        "width": [None, 0, -48, 48.0, "48", [48], 1 << 40],
        "height": [None, 0, -32, 32.5, "32", float("nan")],
    },
    "annotations": {
        "id": [None, "1", 1.5, [1], True],
        "image_id": [None, "5", 5.0, [5], {}],
        "category_id": [None, "3", 3.0, [], True],
        "bbox": [None, [], [10, 5, 20], [10, 5, 20, 10, 1], ["10", 5, 20, 10], [[10, 5, 20, 10]]]
        + [[10, 5, value, 10] for value in (None, True, float("nan"), float("inf"), 10**400, 1e300)]
        + ["10,5,20,10", {"x": 1}, 7, NESTED],
        "area": [None, "200", float("nan"), float("inf"), -1, [3], 1e308, 10**400, True],
        "iscrowd": [None, "0", "1", "text", 2, -1, 0.5, [0], float("nan")],
        "ignore": [None, 1, True, "0", []],
        "segmentation": [7, "text", True, [7], [[1, 2, 3, 4, 5, 6], 7], [[1, 2, 3, 4, 5]], [[]]]
        + [[[1, 2, 3, 4, 5, value]] for value in (None, "6", float("nan"), [6], 10**400)]
        + [{"size": [32, 48]}, {"counts": [1536]}, RLE | {"size": 3}, RLE | {"size": [32, "48"]}]
        + [RLE | {"counts": counts} for counts in (None, "P", "", "é", [-1, 1537], [1.5], ["1"])],
        "keypoints": ["text", [1, 2], [1, 2, None], 7, {}],
    },
    "categories": {
        "id": [None, "3", 3.0, [3], True],
        "name": [None, 3, "", " \t", ["cat"], {}, "ca\nt", "\x1b[31mcat", "cat\u2028", "\udc80"],
    },
}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (kind, key, value)
        for kind, fields in REFUSED.items()
        for key, values in fields.items()
        for value in values
    ],
)
def test_invalid_values_are_named_with_entry_and_field(
    kind: str, key: str, value: Any, folder: Path
) -> None:
    data = content()
    data[kind][0][key] = value
    report = check(folder, data)
    findings = [f for f in report.select("error") if f.kind.startswith(f"invalid '{key}'; allowed")]
    assert len(findings) == 1, str(report)
    place = {
        "images": "image id 5" if key != "id" else r"rgb\.png",
        "annotations": "annotation 1" if key != "id" else r"rgb\.png \(image id 5\)",
        "categories": "category 3" if key != "id" else "category",
    }[kind]
    assert re.search(f"{place}.*: {key} is ", findings[0].examples[0])
    assert len(str(report).splitlines()) <= 10
    assert len(str(report).encode()) < 3000


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (kind, key)
        for kind, fields in REFUSED.items()
        for key in fields
        if key not in ("ignore", "segmentation", "keypoints")
    ],
)
def test_missing_fields_are_named(kind: str, key: str, folder: Path) -> None:
    data = content()
    without(kind, key)(data)
    (finding,) = [f for f in check(folder, data).select("error") if f.kind.startswith("invalid")]
    assert finding.examples[0].endswith(f": {key} is missing")


def test_masks_are_required_where_a_model_needs_them(folder: Path) -> None:
    data = content()
    assert check(folder, data).ok
    report = check(folder, data, needs_masks=True)
    assert found(report) == {"no mask, though others have one: MODEL.MASK_ON fails": "error"}
    for annotation in data["annotations"]:
        annotation["segmentation"] = RLE
    assert found(check(folder, data, needs_masks=True)) == {}
    data["annotations"][0].update(segmentation=[[1, 2, 3, 4]])
    assert "error" in found(check(folder, data, needs_masks=True)).values()


def test_data_without_objects_is_refused(folder: Path) -> None:
    data = content()
    for annotation in data["annotations"]:
        annotation["iscrowd"] = 1
    assert [*found(check(folder, data))] == [
        "no annotation is an object to train on or to find (crowds are not)"
    ]
    for annotation in data["annotations"]:
        annotation.update(iscrowd=0, segmentation=[[1, 2, 3, 4]])  # detectron2 drops these
    assert "error" in found(check(folder, data)).values()


def test_errors_are_raised_in_one_line(folder: Path) -> None:
    data = content()
    data["annotations"][0].update(bbox=None, area="large")
    data["images"][1]["width"] = -1
    with pytest.raises(UsageError) as error:
        check(folder, data).raise_for_errors()
    assert str(error.value) == (
        f"{folder / 'data.json'}: gray.png (image id 9): width is -1: invalid 'width'; allowed: a "
        "positive integer; 2 more errors, listed by d2-plugins check"
    )


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
    assert any(f.kind == "image rotated by EXIF" for f in upright.select("note"))
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
    data["annotations"][1].update(image_id=5, iscrowd=1)
    report = check(folder, data)
    assert (report.num_crowds, report.num_empty) == (1, 1)
    assert report.ok


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_files_that_are_not_regular_are_refused_without_waiting(kind: str, folder: Path) -> None:
    path = folder / "rgb.png"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert found(check(folder, content())) == {"image file cannot be read": "error"}
    with pytest.raises(OSError, match="is a folder, a pipe or a device"):
        read_photo(path, "BGR")


def test_images_that_resizing_would_lose_are_refused(folder: Path) -> None:
    Image.new("L", (4, 401)).save(folder / "rgb.png")
    data = content()
    data["images"][0].update(width=4, height=401)
    (kind,) = (k for k, severity in found(check(folder, data)).items() if severity == "error")
    assert "resizing would lose it" in kind


def test_32_bit_images_out_of_range_are_refused(folder: Path) -> None:
    Image.fromarray(np.full(SIZE[::-1], 70_000, np.int32)).save(folder / "deep.tif")
    data = content()
    data["images"][0]["file_name"] = "deep.tif"
    assert found(check(folder, data)) == {"image file cannot be read": "error"}
