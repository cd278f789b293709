"""Files that are not a COCO JSON in UTF-8 are named as what they are."""

import bz2
import gzip
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from d2_plugins.data.coco_json import read_coco
from d2_plugins.errors import UsageError
from tests.support.toy import write_toy_coco
from tests.support.train_step import train_and_evaluate

GOOD = {"images": [{"file_name": "Größe.png"}], "annotations": [{}], "categories": [{}]}
TEXT = json.dumps(GOOD, ensure_ascii=False)
VOC = "<?xml version='1.0'?>\n<!-- made by hand -->\n<annotation><folder>a</folder></annotation>"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf_8_is_read_with_and_without_mark(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(TEXT, encoding)
    assert read_coco(tmp_path / "a.json") == GOOD


@pytest.mark.usefixtures("catalogs")
def test_a_file_with_byte_order_mark_trains(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path, num_images=2)
    json_file.write_text(json_file.read_text(), "utf-8-sig")
    assert "bbox" in train_and_evaluate(json_file, images)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "is UTF-16 text: save it as UTF-8"),
        (TEXT.encode("utf-16-be"), "is UTF-16 text: save it as UTF-8"),
        (TEXT.encode("utf-32"), "is UTF-32 text: save it as UTF-8"),
        (TEXT.encode("utf-32-le"), "is UTF-32 text: save it as UTF-8"),
        (TEXT.encode("utf-32-be"), "is UTF-32 text: save it as UTF-8"),
        (TEXT.encode("latin-1"), "is not UTF-8 text .*: save it as UTF-8"),
        (gzip.compress(TEXT.encode(), mtime=0), "is a compressed file: unpack it"),
        (bz2.compress(TEXT.encode()), "is a compressed file: unpack it"),
        (b"\x93NUMPY\x01\x00v", "is a binary file"),
        (VOC.encode(), "is VOC XML: convert it with: d2-plugins prepare convert .*"),
        (b"\n" + VOC[22:].encode(), "is VOC XML: convert it with: d2-plugins prepare convert .*"),
        (b"<svg></svg>", "is XML, not a COCO JSON"),
        (b"<!DOCTYPE html><html></html>", "is an HTML page"),
        (b"0 0.5 0.5 0.1 0.2\n3 .1 .2 .3 .4\n", "is YOLO text: .* d2-plugins prepare convert"),
        (b"# data\npath: .\ntrain: a\nnames: [cat]\n", "is YOLO's data.yaml: .* prepare convert"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON: Expecting property name"),
        (b"{'images': []}", "is not JSON: Expecting property name"),
        (b'{"id": 1' + b"0" * 5000 + b"}", "is not JSON: Exceeds the limit"),
        (b'{"a":' * 100_000, "is not COCO's format: it is nested too deeply"),
        (b"[" * 100_000, "is not COCO's format: it is nested too deeply"),
        (b"[]", "is not COCO's format: it holds a list, not an object"),
        (b"null", "is not COCO's format: it holds a NoneType"),
    ],
)
def test_other_files_are_named_as_what_they_are(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UsageError, match=rf"^\S*a\.json {said}") as error:
        read_coco(tmp_path / "a.json")
    assert len(str(error.value).splitlines()) == 1


def test_an_image_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.json", "png")
    with pytest.raises(UsageError, match="is an image, not a COCO JSON"):
        read_coco(tmp_path / "a.json")


def test_pipes_folders_and_missing_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="pipe is not a regular file"):
        read_coco(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"is a folder.* d2-plugins prepare convert"):
        read_coco(tmp_path)
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        read_coco(tmp_path / "gone.json")
