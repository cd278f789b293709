"""Reading of COCO JSON files, and one-line errors for files in another format or encoding."""

import atexit
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ..errors import UsageError

__all__ = ["Json", "read_coco", "readable_json"]

Json = dict[str, Any]

_LISTS = ("images", "annotations", "categories")
_UTF8_MARK = b"\xef\xbb\xbf"
_SAVE = "save it as UTF-8"
_CONVERT = "convert it with: d2-plugins prepare convert {folder} --output coco"

# Formats by the first bytes of a file, most specific first; {folder} is the folder of the file.
_FORMATS: tuple[tuple[bytes, str], ...] = (
    (rb"\x1f\x8b|PK\x03\x04|BZh|\xfd7zXZ|7z\xbc\xaf", "is a compressed file: unpack it first"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\x00|MM\x00\*|RIFF", "is an image"),
    (
        rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff|\x00\x00\x00.|[\s\[{]\x00\x00\x00",
        "is UTF-32 text: save it as UTF-8",
    ),
    (rb"\xff\xfe|\xfe\xff|\x00.|[\s\[{]\x00", "is UTF-16 text: save it as UTF-8"),
    (rb"[^\x00]{0,200}\x00", "is a binary file"),
    (rb"\s*<(?=[^>]*>)(?s:.){0,2000}<annotation\b|\s*<annotation\b", f"is VOC XML: {_CONVERT}"),
    (rb"(?i)\s*<(!doctype )?html", "is an HTML page"),
    (rb"\s*<", "is XML"),
    (rb"\s*\d+([ \t]+-?[\d.]+(e-?\d+)?){4,}\s", f"is YOLO text: {_CONVERT}"),
    (rb"(?s:.){0,4000}?(^|\n)(names|nc|train|val)\s*:", f"is YOLO's data.yaml: {_CONVERT}"),
)


def read_coco(json_file: str | Path) -> Json:
    """Read a COCO instances JSON and check its outermost structure.

    Args:
        json_file: path of the file, UTF-8 with or without a byte order mark.

    Returns:
        The content; ``images``, ``annotations`` and ``categories`` are lists of dictionaries that
        are not empty.

    Raises:
        FileNotFoundError: the file does not exist.
        UsageError: the file is not a COCO JSON; the message names it and its actual format.
    """
    content = _read_json(Path(json_file))
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UsageError(f"{json_file} is not COCO's format: it holds a {kind}, not an object")
    for key in _LISTS:
        entries = content.get(key)
        if not isinstance(entries, list):
            raise UsageError(f"{json_file} is not COCO's format: it has no list '{key}'")
        if not entries:
            raise UsageError(f"{json_file} has an empty list '{key}'")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                found = f"{key}[{number}] is {str(entry)[:80]!r}, not an object"
                raise UsageError(f"{json_file} is not COCO's format: {found}")
    return content


def _read_json(json_file: Path) -> Any:
    if not json_file.exists():
        raise FileNotFoundError(f"There is no annotation file '{json_file}'")
    if json_file.is_dir():
        raise UsageError(
            f"{json_file} is a folder, not a COCO JSON file; if it holds VOC XML or YOLO files, "
            + _CONVERT.format(folder=json_file)
        )
    if not json_file.is_file():
        raise UsageError(f"{json_file} is not a regular file")
    try:
        text = json_file.read_bytes().removeprefix(_UTF8_MARK).decode("utf-8")
        return json.loads(text)
    except OSError as error:
        raise UsageError(f"{json_file} cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise UsageError(f"{json_file} is not COCO's format: it is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{json_file} {_reason(json_file, error)}") from error


def _reason(json_file: Path, error: ValueError) -> str:
    """Describe a file that is not JSON in UTF-8, for example "is VOC XML"."""
    with open(json_file, "rb") as file:
        data = file.read(4096)
    if not data.strip():
        return "is empty"
    for pattern, text in _FORMATS:
        if re.match(pattern, data):
            text = text.format(folder=json_file.parent)
            return text if ":" in text else f"{text}, not a COCO JSON"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text (byte {error.start} is not valid): {_SAVE}"
    return f"is not JSON: {error}"


def readable_json(json_file: str | Path) -> str:
    """Return the name under which pycocotools can read a JSON file.

    Args:
        json_file: path of the file.

    Returns:
        The path itself; with a prefix that makes PathManager drop it if the file has a byte order
        mark, which Python's JSON reader refuses.
    """
    with open(json_file, "rb") as file:
        has_mark = file.read(len(_UTF8_MARK)) == _UTF8_MARK
    return f"{_WithoutMark.PREFIX if has_mark else ''}{json_file}"


class _WithoutMark(PathHandler):
    """Serves copies of JSON files without their byte order mark."""

    PREFIX = "d2_plugins-without-mark://"

    def __init__(self) -> None:
        super().__init__()
        self._folder = ""

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        json_file = Path(path.removeprefix(self.PREFIX))
        if not self._folder:
            self._folder = tempfile.mkdtemp(prefix="d2_plugins.")
            atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
        copy = Path(self._folder, f"{abs(hash(str(json_file.resolve())))}.json")
        copy.write_bytes(json_file.read_bytes().removeprefix(_UTF8_MARK))
        return str(copy)


PathManager.register_handler(_WithoutMark(), allow_override=True)
