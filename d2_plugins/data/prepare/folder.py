"""Your own data in a folder: recognition of its layout, as COCO JSON files to train on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import UsageError
from ...files import atomic_write_json
from ..coco_json import Json, read_coco
from ..own_files import OwnFiles
from .convert import split_coco, split_source, write_splits
from .sources import SPLIT_NAMES, Source, has_yolo_names, read_voc, read_yolo

__all__ = ["FoundData", "find_data"]

_FRACTION = 0.8
_SEED = 0
_LOOKED_FOR = (
    "COCO JSON (train/_annotations.coco.json, annotations/*.json, *.json), VOC XML (*.xml), YOLO "
    "(data.yaml or classes.txt, with labels next to the images or in labels/)"
)
_SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])", re.IGNORECASE)
_OTHER_JSON = re.compile(r"(captions|person_keypoints|image_info|panoptic|stuff)_", re.IGNORECASE)
_KEYS = (b'"images"', b'"annotations"', b'"categories"')


@dataclass(frozen=True, kw_only=True)
class FoundData:
    """The data of a folder.

    Attributes:
        files: COCO JSON files and image folders.
        description: the layout and the numbers of images, in one line.
        output: folder of the JSON files that had to be written; None if there are none.
    """

    files: OwnFiles
    description: str
    output: Path | None


def find_data(folder: Path, output: Path) -> FoundData:
    """Recognize the layout of a dataset, and convert it to COCO JSON if it is in another format.

    If there is no validation set, 20 % of the training images become one, stratified by class; the
    split is the same each time. A test set is not used.

    Args:
        folder: folder of the dataset, or one around it.
        output: folder for ``train.json`` and ``val.json``, if they have to be written; existing
            files are replaced.

    Raises:
        UsageError: the layout is unknown or ambiguous, or a file cannot be read.
    """
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise UsageError(f"--data is {folder}, which {kind}; allowed: the folder of a dataset")
    folder = _inner(folder)
    json_files = list(_json_files(folder))
    coco = [file for file in json_files if _is_coco(file)]
    if coco:
        return _from_coco(folder, coco, output)
    if any(folder.rglob("*.xml")):
        lists = " with ImageSets/Main" if any(folder.rglob("ImageSets/Main/*.txt")) else ""
        return _from_source(f"VOC XML{lists}", read_voc(folder), folder, output)
    if has_yolo_names(folder) or any(folder.rglob("labels/*.txt")):
        return _from_source("YOLO text files", read_yolo(folder), folder, output)
    for file in json_files[:1]:
        read_coco(file)  # raises an error that names what is wrong with it
    raise UsageError(f"{folder} is not a dataset of a known layout; looked for: {_LOOKED_FOR}")


def _inner(folder: Path) -> Path:
    """Return the first folder below that holds more than one other folder."""
    entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
    is_wrapper = len(entries) == 1 and entries[0].is_dir()
    return _inner(entries[0]) if is_wrapper else folder


def _json_files(folder: Path) -> Iterator[Path]:
    for file in sorted([*folder.glob("*.json"), *folder.glob("*/*.json")]):
        if file.is_file() and not _OTHER_JSON.match(file.name):
            yield file


def _is_coco(file: Path) -> bool:
    data = file.read_bytes()
    return all(key in data for key in _KEYS)


def _from_coco(folder: Path, files: list[Path], output: Path) -> FoundData:
    chosen = _choose(files, folder)
    contents = {split: read_coco(file) for split, file in chosen.items()}
    images = {s: _image_folder(file, contents[s], folder) for s, file in chosen.items()}
    layout = f"COCO JSON ({', '.join(str(f.relative_to(folder)) for f in chosen.values())})"
    is_split = "train" in chosen and "val" not in chosen
    if is_split:
        parts = split_coco(contents["train"], _FRACTION, _SEED)
        is_split = all(part["images"] and part["annotations"] for part in parts.values())
        if is_split:
            contents, images = parts, dict.fromkeys(parts, images["train"])
            chosen = {split: output / f"{split}.json" for split in parts}
            for split, part in parts.items():
                atomic_write_json(chosen[split], part)
    counts = {split: len(content["images"]) for split, content in contents.items()}
    return FoundData(
        files=_files(chosen, images),
        description=_describe(folder, layout, counts, is_split=is_split),
        output=output if is_split else None,
    )


def _choose(files: list[Path], folder: Path) -> dict[str, Path]:
    """Return the JSON file to train on and the one to evaluate on, as far as there are such."""
    by_split: dict[str, list[Path]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, folder), []).append(file)
    # A file whose name has no word for a split is all there is to train on, or a copy of it.
    found = {"train": by_split.get("train") or by_split.get("", []), "val": by_split.get("val", [])}
    return {split: _only(paths, folder) for split, paths in found.items() if paths}


def _split_of(file: Path, folder: Path) -> str:
    """Return "train", "val" or "test" by the name of a file or of its folder; "" for neither."""
    for name in (file.stem, "" if file.parent == folder else file.parent.name):
        if word := _SPLIT_WORD.search(name):
            return SPLIT_NAMES[word[0].lower()]
    return ""


def _only(files: list[Path], folder: Path) -> Path:
    instances = [file for file in files if file.name.startswith("instances")]
    files = instances or files
    if len(files) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files)
        raise UsageError(
            f"{folder} has several JSON files for the same split: {names}; name those to use with "
            "--train-json, --train-images, --val-json and --val-images"
        )
    return files[0]


def _image_folder(json_file: Path, content: Json, folder: Path) -> Path:
    """Return the folder in which the first image of a JSON is."""
    name = content["images"][0].get("file_name")
    word = _SPLIT_WORD.search(json_file.stem)
    splits = [json_file.stem.rpartition("_")[2], *([word[0]] if word else [])]
    places = [json_file.parent, json_file.parent / "images"]
    for split in dict.fromkeys(splits):
        places += [folder / "images" / split, folder / split, folder / split / "images"]
    places += [folder / "images", folder]
    for place in dict.fromkeys(places):
        if isinstance(name, str) and (place / name).is_file():
            return place
    shown = ", ".join(map(str, dict.fromkeys(places)))
    raise UsageError(f"{json_file}: its first image, {name!r}, is in none of the folders {shown}")


def _from_source(layout: str, dataset: Source, folder: Path, output: Path) -> FoundData:
    splits = {split: images for split, images in dataset.splits.items() if images}
    splits.pop("test", None)
    if "annotations" in splits:
        splits = {"train": splits["annotations"]}
    is_split = "train" in splits and "val" not in splits
    if is_split:
        parts = split_source(replace(dataset, splits=splits), _FRACTION, _SEED).splits
        is_split = all(parts.values())
        splits = parts if is_split else splits
    written = write_splits(replace(dataset, splits=splits), folder, output)
    counts = {split: file.images for split, file in written.items()}
    return FoundData(
        files=_files({s: f.json_file for s, f in written.items()}, dict.fromkeys(splits, folder)),
        description=_describe(folder, layout, counts, is_split=is_split),
        output=output,
    )


def _files(json_files: dict[str, Path], images: dict[str, Path]) -> OwnFiles:
    paths = {f"{split}_json": str(file) for split, file in json_files.items()}
    return OwnFiles(**paths, **{f"{split}_images": str(root) for split, root in images.items()})


def _describe(folder: Path, layout: str, counts: dict[str, int], *, is_split: bool) -> str:
    names = {"train": "training", "val": "validation"}
    numbers = " and ".join(f"{counts[s]} {name}" for s, name in names.items() if s in counts)
    text = f"{folder}: {layout}, {numbers or 'no training or validation'} images"
    if is_split:
        share = f"{1 - _FRACTION:.0%}".replace("%", " %")
        text += f" (it has no validation set: {share} of the images were chosen, seed {_SEED})"
    return text
