"""Reading of VOC XML and YOLO text datasets, with any class names and in the usual layouts."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...errors import UsageError
from ..datasets.voc import read_objects
from ..images import read_header

__all__ = ["SPLIT_NAMES", "LabelledImage", "Source", "has_yolo_names", "read_voc", "read_yolo"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
_SPLITS = ("train", "val", "test")

# Words of folder and file names for the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image file with its objects.

    Attributes:
        file: the image.
        size: width and height that the annotations refer to.
        objects: for each object its class ``name``, ``bbox`` (x, y, width, height in pixels) and,
            for outlines, ``segmentation``.
    """

    file: Path
    size: tuple[int, int]
    objects: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset that has been read.

    Attributes:
        class_names: names of the classes, in the order of their category ids.
        splits: images by split; the only key is "annotations" if the dataset has no splits.
    """

    class_names: tuple[str, ...]
    splits: dict[str, list[LabelledImage]]


def read_voc(folder: Path) -> Source:
    """Read all VOC XML files below a folder.

    The image of an XML file is the one with the same name, next to it or elsewhere below
    ``folder``. ``ImageSets/Main/{train,val,test}.txt`` define the splits if they exist (or
    ``trainval.txt``, instead of the first two), otherwise folders ``train``, ``valid`` and so on.
    The classes are those of the objects, in alphabetical order.

    Args:
        folder: folder with the XML files and the images.

    Raises:
        UsageError: a file is not VOC's XML, or its image is missing; the message names it.
    """
    files = sorted(path for path in folder.rglob("*.xml") if path.is_file())
    by_stem: dict[str, list[Path]] = {}
    for image in _images(folder):
        by_stem.setdefault(image.stem, []).append(image)
    found = {file: _read_xml(file, by_stem.get(file.stem, [])) for file in files}
    names = {entry["name"] for image in found.values() for entry in image.objects}
    if not names:
        raise UsageError(f"{folder}: {len(files)} XML files, but no object in them")
    return Source(class_names=tuple(sorted(names)), splits=_voc_splits(folder, found))


def _read_xml(file: Path, images: list[Path]) -> LabelledImage:
    file_name, size, objects = read_objects(file)
    # Several files may have the name, for example an image and its segmentation.
    for is_meant in (lambda i: i.parent == file.parent, lambda i: i.name == Path(file_name).name):
        if len(images) > 1:
            images = [image for image in images if is_meant(image)] or images
    if len(images) != 1:
        which = f"{len(images)} images have" if images else "no image has"
        raise UsageError(f"{file}: {which} the name '{file.stem}'")
    given = (size["width"], size["height"])
    # Some tools write 0; the pre-flight check compares other sizes with the file.
    return LabelledImage(
        file=images[0],
        size=given if all(given) else _size(images[0]),
        objects=[{"name": entry["name"], "bbox": entry["bbox"]} for entry in objects],
    )


def _voc_splits(folder: Path, found: dict[Path, LabelledImage]) -> dict[str, list[LabelledImage]]:
    lists = {split: sorted(folder.rglob(f"ImageSets/Main/{split}.txt")) for split in _SPLITS}
    if not (lists["train"] or lists["val"]):
        lists["train"] = sorted(folder.rglob("ImageSets/Main/trainval.txt"))
    if not any(lists.values()):
        parts = _splits_by_folder(folder, list(found))
        return {split: [found[file] for file in files] for split, files in parts.items()}
    by_stem = {file.stem: image for file, image in found.items()}
    splits = {}
    for split, files in lists.items():
        names = [name for file in files for line in _lines(file) for name in line.split()]
        missing = [name for name in names if name not in by_stem]
        if missing:
            raise UsageError(f"{files[0]}: there is no XML file '{missing[0]}.xml' in {folder}")
        if names:
            splits[split] = [by_stem[name] for name in names]
    return splits


def read_yolo(folder: Path) -> Source:
    """Read a dataset in YOLO's format: one text file per image, coordinates from 0 to 1.

    A YAML file with ``names`` (``data.yaml``) gives the classes and the splits; without one,
    ``classes.txt`` or ``obj.names`` gives the classes, one a line. The text file of an image has
    the same name, in a folder ``labels`` instead of ``images`` or next to the image; an image
    without one has no objects. If the YAML file names no splits, folders ``train``, ``valid`` and
    so on do.

    Args:
        folder: folder of the dataset.

    Raises:
        UsageError: class names or images are missing, or a line is not valid; the message names
            file and line.
    """
    settings = _settings(folder)
    names = _class_names(folder, settings)
    files = {s: list(_split_images(folder, settings, s)) for s in _SPLITS if settings.get(s)}
    if "valid" in settings and "val" not in files:
        files["val"] = list(_split_images(folder, settings, "valid"))
    files = files or _splits_by_folder(folder, _images(folder))
    splits = {split: [_read_labels(f, names) for f in images] for split, images in files.items()}
    return Source(class_names=names, splits=splits)


def _splits_by_folder(folder: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Sort files by a folder named after a split in their paths.

    Returns:
        Files by split; all of them as "annotations" unless each is in such a folder.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        names = [part.lower() for part in file.relative_to(folder).parent.parts]
        found = {SPLIT_NAMES[name] for name in names if name in SPLIT_NAMES}
        splits.setdefault(found.pop() if len(found) == 1 else "", []).append(file)
    return {"annotations": files} if "" in splits or "train" not in splits else splits


def _settings(folder: Path) -> dict[str, Any]:
    """Return the content of the only YAML file that has class names."""
    found: dict[Path, dict[str, Any]] = {}
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        text = "\n".join(_lines(file))
        try:
            content = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{file} is not a YAML file: {reason}") from error
        if isinstance(content, dict) and "names" in content:
            found[file] = content
    if len(found) > 1:
        raise UsageError(f"{folder} has several files with names: {', '.join(map(str, found))}")
    return next(iter(found.values()), {})


def has_yolo_names(folder: Path) -> bool:
    """Return True if a folder has class names in YOLO's format: a YAML file or a list."""
    lists = (folder / "classes.txt", folder / "obj.names")
    return any(path.is_file() for path in lists) or bool(_settings(folder))


def _class_names(folder: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    names = settings.get("names")
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise UsageError(f"{folder}: keys of names; allowed: 0, 1, ..., {len(names) - 1}")
        names = [names.get(number, names.get(str(number))) for number in range(len(names))]
    for file in (folder / "classes.txt", folder / "obj.names") if names is None else ():
        if file.is_file():
            names = [line.strip() for line in _lines(file) if line.strip()]
            break
    if not isinstance(names, list) or not names:
        raise UsageError(f"{folder} has no class names: no data.yaml with names, no classes.txt")
    if not all(isinstance(name, str | int) for name in names):
        raise UsageError(f"{folder}: names; allowed: a list of texts")
    return tuple(map(str, names))


def _split_images(folder: Path, settings: dict[str, Any], split: str) -> Iterator[Path]:
    entries = settings[split] if isinstance(settings[split], list) else [settings[split]]
    for entry in entries:
        path = _find(folder, settings.get("path"), entry)
        if path is None:
            shown = f"'{entry[:80]}'" if isinstance(entry, str) else f"a {type(entry).__name__}"
            raise UsageError(f"{folder}: {split} is {shown}, which does not exist")
        if path.is_dir():
            yield from _images(path)
        else:  # a text file with one image a line
            for line in _lines(path):
                image = _find(folder, settings.get("path"), line.strip())
                if image is None:
                    raise UsageError(f"{path}: there is no image '{line.strip()[:80]}'")
                yield image


def _find(folder: Path, root: Any, entry: Any) -> Path | None:
    """Find a path of a data.yaml, which may be relative to several folders."""
    if not isinstance(entry, str) or not entry:
        return None
    # Exports often begin with "../", although the folder is next to the file.
    short = entry
    while short.startswith("../"):
        short = short[3:]
    bases = [folder / root] if isinstance(root, str) else []
    paths = [base / name for base in (*bases, folder) for name in (entry, short)]
    return next((Path(os.path.normpath(p)) for p in paths if p.is_file() or p.is_dir()), None)


def _lines(file: Path) -> list[str]:
    if not file.is_file():  # reading a named pipe would wait forever
        raise UsageError(f"{file} is not a regular file")
    try:
        return file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: {error.reason}") from error


def _images(folder: Path) -> list[Path]:
    """List the images below a folder, without the pictures in the output folders of trainings."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    runs = {path.parent for path in folder.rglob("run.json")} - {folder}
    return [file for file in files if runs.isdisjoint(file.parents)] if runs else files


def _label_file(image: Path) -> Path:
    """Return the text file of an image, which may not exist."""
    parts = list(image.with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            labels = Path(*parts[:place], "labels", *parts[place + 1 :])
            if labels.exists():
                return labels
    return image.with_suffix(".txt")


def _read_labels(image: Path, names: tuple[str, ...]) -> LabelledImage:
    size = _size(image)
    file = _label_file(image)
    if not file.exists():
        return LabelledImage(file=image, size=size, objects=[])
    lines = _lines(file)
    objects = []
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                objects.append(_yolo_object(line.split(), size, names, f"line {number}"))
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error
    return LabelledImage(file=image, size=size, objects=objects)


def _yolo_object(
    words: list[str], size: tuple[int, int], names: tuple[str, ...], place: str
) -> dict[str, Any]:
    label = int(words[0]) if words[0].isdecimal() and len(words[0]) < 9 else -1
    if not 0 <= label < len(names):
        raise ValueError(f"{place}: class is '{words[0][:20]}'; allowed: 0 to {len(names) - 1}")
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(
            f"{place}: {len(words)} values; allowed: class and x, y, width, height, or class and "
            "x, y of three points or more"
        )
    values = [float(word) for word in words[1:]]
    if not all(math.isfinite(v) and -0.01 <= v <= 1.01 for v in values):
        raise ValueError(f"{place}: coordinates; allowed: numbers from 0 to 1")
    scaled = [v * size[i % 2] for i, v in enumerate(values)]
    if len(words) == 5:
        x, y, width, height = scaled
        return {"name": names[label], "bbox": [x - width / 2, y - height / 2, width, height]}
    xs, ys = scaled[::2], scaled[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"name": names[label], "bbox": box, "segmentation": [scaled]}


def _size(image: Path) -> tuple[int, int]:
    try:
        return read_header(str(image)).upright_size
    except Exception as error:  # Pillow's decoders can raise any exception
        raise UsageError(f"{image} cannot be read as an image: {error}") from error
