"""Preparation of a dataset: install its archives or folders, then count the result."""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from ...errors import UsageError
from ...files import staging
from ..datasets.derived_coco import CocoDataset
from ..datasets.registration import datasets
from .download import check_md5, download
from .recipes import RECIPES, Archive
from .stuff import derive_stuff
from .unpack import unpack

__all__ = ["Count", "prepare", "verify"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Count:
    """Size of a registered dataset on disk.

    Attributes:
        name: name in detectron2's catalogs.
        images: number of images; all have a file.
        annotations: number of boxes or segments, including crowds.
        official_images: number of images that the authors state.
    """

    name: str
    images: int
    annotations: int
    official_images: int

    def __str__(self) -> str:
        text = f"{self.name}: {self.images} images, {self.annotations} objects"
        if self.images != self.official_images:
            text += f" (a part: the full dataset has {self.official_images} images)"
        return text


def prepare(
    name: str,
    root: Path,
    *,
    splits: Sequence[str] | None = None,
    source: Path | None = None,
    link: bool = False,
    keep_archives: bool = False,
) -> list[Count]:
    """Install a dataset under the dataset root and count it; existing parts stay unchanged.

    Args:
        name: key of ``RECIPES``.
        root: dataset root.
        splits: splits to prepare; None takes the default ones or, with ``source``, all splits
            that are found there.
        source: folder with the archives, or with their content, to use instead of a download.
        link: link unpacked folders of ``source`` instead of copying them.
        keep_archives: keep downloaded archives after unpacking.

    Raises:
        UsageError: a file is damaged, incomplete or missing.
        OSError: a file cannot be written.
    """
    recipe = RECIPES[name]
    wanted = splits or (recipe.splits if source else recipe.default_splits)
    unknown = set(wanted) - set(recipe.splits)
    if unknown:
        raise UsageError(f"{name} has no split {unknown}; allowed: {', '.join(recipe.splits)}")
    home = root / recipe.home
    home.mkdir(parents=True, exist_ok=True)
    for archive in recipe.archives:
        for split, marker in archive.markers.items():
            if split not in wanted:
                continue
            if (home / marker).exists():
                logger.info("%s exists already", home / marker)
            elif source is None:
                _download_and_unpack(archive, marker, home, root / "downloads", keep_archives)
            else:
                _take(archive, marker, home, source, link)
    there = [s for s in wanted if all((home / marker).exists() for marker in recipe.markers(s))]
    if not there or (splits and len(there) < len(splits)):
        lacking = sorted({m for s in wanted for m in recipe.markers(s) if not (home / m).exists()})
        archives = ", ".join(archive.file_name for archive in recipe.archives)
        raise UsageError(
            f"{source} holds neither an archive of {name} ({archives}) nor a folder with "
            f"{' or '.join(lacking)}"
        )
    return verify(name, root, there)


def _download_and_unpack(
    archive: Archive, marker: str, home: Path, downloads: Path, keep: bool
) -> None:
    file = downloads / archive.file_name
    download(archive.url, file, md5=archive.md5)
    try:
        _unpack_into(file, marker, home)
    except UsageError:
        if archive.md5 is None:
            file.unlink()  # it may be another file, and would be used again
        raise
    if not keep:
        file.unlink()
        with contextlib.suppress(OSError):
            downloads.rmdir()


def _take(archive: Archive, marker: str, home: Path, source: Path, link: bool) -> None:
    """Install the archive's folder that holds ``marker`` from ``source``, if it is there."""
    file = source / archive.file_name
    base = _find_base(source, marker)
    if base is not None:
        _place(base, marker, home, link)
    elif file.is_file():
        check_md5(file, archive.md5)
        _unpack_into(file, marker, home)


def _find_base(folder: Path, marker: str) -> Path | None:
    """Find the folder below or just above ``folder`` in which ``marker`` exists."""
    bases = [folder, *(folder / name for name in ("coco", "VOCdevkit", "BCCD_Dataset-master"))]
    if folder.resolve().name == PurePosixPath(marker).parts[0]:
        bases.append(folder.resolve().parent)
    return next((base for base in bases if (base / marker).exists()), None)


def _unpack_into(archive: Path, marker: str, home: Path) -> None:
    with staging(home) as aside:
        unpack(archive, aside)
        base = _find_base(aside, marker)
        if base is None:
            raise UsageError(f"{archive} does not hold {marker}")
        _install(base, home, marker)


def _place(base: Path, marker: str, home: Path, link: bool) -> None:
    """Link or copy the folder of ``base`` that holds ``marker``."""
    folder = PurePosixPath(marker).parts[0]
    if link:
        target = home / folder
        if target.exists() or target.is_symlink():
            raise UsageError(f"{target} is in the way of a link to {base / folder}: remove it")
        os.symlink((base / folder).resolve(), target, target_is_directory=True)
        return
    with staging(home) as aside:
        _copy(base / folder, aside / folder)
        _install(aside, home, marker)


def _install(base: Path, home: Path, marker: str) -> None:
    """Move the folder of ``base`` that holds ``marker`` to ``home``."""
    folder, *rest = PurePosixPath(marker).parts
    target = home / folder
    if target.is_symlink():
        raise UsageError(f"{target} is a link, and {marker} is missing behind it: remove the link")
    _merge(base / folder, target, tuple(rest))


def _copy(source: Path, target: Path) -> None:
    """Copy contents without permissions, so that a read-only source gives a writable copy."""
    with tqdm(desc=f"copying {source.name}", unit=" files", disable=None) as bar:
        for folder, _, files in os.walk(source, followlinks=True):
            into = target / Path(folder).relative_to(source)
            into.mkdir(parents=True)
            for name in files:
                shutil.copyfile(Path(folder, name), into / name)
                bar.update()


def _merge(source: Path, target: Path, marker: tuple[str, ...]) -> None:
    """Move ``source`` to ``target``, merging existing folders, and the marker last.

    The marker therefore exists if and only if the move is complete.
    """
    if not (source.is_dir() and target.is_dir()):
        os.replace(source, target)
        return
    first = marker[0] if marker else ""
    for child in sorted(source.iterdir(), key=lambda path: (path.name == first, path.name)):
        _merge(child, target / child.name, marker[1:] if child.name == first else ())


def verify(name: str, root: Path, splits: Sequence[str] | None = None) -> list[Count]:
    """Count a dataset on disk and check that every listed image has a file.

    Args:
        name: key of ``RECIPES``.
        root: dataset root.
        splits: splits to count; None takes the default ones.

    Raises:
        FileNotFoundError: annotations are missing.
        UsageError: images are missing or annotations are damaged.
    """
    recipe = RECIPES[name]
    known = {dataset.name: dataset for dataset in [*datasets(root), *_coco2017(root)]}
    counts = []
    for split in splits or recipe.default_splits:
        for registered, official in recipe.registered[split].items():
            dataset = known[registered]
            dataset.ensure()
            counts.append(_count(dataset, official))
    return counts


def _count(dataset: CocoDataset, official: int) -> Count:
    try:
        content = json.loads(dataset.json_file.read_text(encoding="utf-8"))
        names = [image["file_name"] for image in content["images"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{dataset.json_file} is damaged: {error!r}") from error
    missing = sorted(set(names) - set(os.listdir(dataset.image_root)))
    if missing:
        raise UsageError(
            f"{dataset.name}: {len(missing)} of {len(names)} images are missing in "
            f"{dataset.image_root}, the first is {missing[0]}; remove the folder and run this again"
        )
    return Count(
        name=dataset.name,
        images=len(names),
        annotations=sum(
            len(a["segments_info"]) if "segments_info" in a else 1
            for a in content.get("annotations", ())
        ),
        official_images=official,
    )


def _coco2017(root: Path) -> list[CocoDataset]:
    """List the splits of COCO 2017 where detectron2 registers them, for counting."""
    home = root / "coco"
    return [
        _coco_split(home, "train", "instances"),
        _coco_split(home, "val", "instances"),
        _coco_split(home, "test", "image_info"),
        *(
            _coco_split(home, split, "panoptic", "_panoptic_separated", partial(derive_stuff, home))
            for split in ("train", "val")
        ),
    ]


def _coco_split(
    home: Path,
    split: str,
    annotations: str,
    suffix: str = "",
    derive: Callable[[str], None] = lambda split: None,
) -> CocoDataset:
    json_file = home / "annotations" / f"{annotations}_{split}2017.json"
    image_root = home / f"{split}2017"
    return CocoDataset(
        name=f"coco_2017_{split}{suffix}",
        class_names=(),
        json_file=json_file,
        image_root=image_root,
        requires=(json_file, image_root),
        derive=partial(derive, split),
    )
