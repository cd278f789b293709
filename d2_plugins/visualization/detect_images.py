"""Detection in image files for ``d2-plugins predict``."""

import glob
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..files import atomic_open
from .detector import Detector
from .tracking import Tracker
from .window import Window

__all__ = ["detect_images", "find_images", "picture_paths"]

# Images that are found in a folder, and formats of drawn pictures.
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_images(patterns: Sequence[str]) -> list[Path]:
    """Return the images that the user names, each once.

    Args:
        patterns: files, folders (all images directly in them) and glob patterns.

    Returns:
        The images in the given order; those of a folder or pattern are sorted.

    Raises:
        UsageError: there is no file for one of the patterns.
    """
    found = [path for pattern in patterns for path in _matches(pattern)]
    return list(dict.fromkeys(found))


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        images = [p for p in path.iterdir() if not p.is_dir() and p.suffix.lower() in _SUFFIXES]
        if not images:
            raise UsageError(f"--input: no image ({', '.join(_SUFFIXES)}) in folder '{pattern}'")
        return sorted(images)
    if path.exists():  # its name may hold brackets
        return [path]
    files = [p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()]
    if not files:
        hint = ""
        if pattern.isupper():  # --input takes all words up to the next option
            hint = "; KEY VALUE pairs go behind another option, or behind '--'"
        raise UsageError(f"--input: '{pattern}' is not a file or folder, and matches none{hint}")
    return sorted(files)


def picture_paths(images: Sequence[Path], folder: Path) -> list[Path]:
    """Return the path of the picture of each image.

    Raises:
        UsageError: a picture would replace an image or another picture.
    """
    drawn: dict[Path, Path] = {}
    for image in images:
        has_suffix = image.suffix.lower() in _SUFFIXES
        picture = folder / (image.name if has_suffix else f"{image.name}.png")
        if picture.resolve() == image.resolve():
            raise UsageError(f"--output: the picture of {image} would replace it")
        if picture in drawn:
            raise UsageError(f"{drawn[picture]} and {image} would both be drawn as {picture}")
        drawn[picture] = image
    return list(drawn)


def detect_images(
    images: Mapping[Path, Path | None],
    detector: Detector,
    window: Window | None = None,
    tracker: Tracker | None = None,
) -> tuple[list[dict[str, Any]], int]:
    """Detect objects in images, one after the other.

    Args:
        images: image files, each with the path of its picture or None.
        detector: the detector.
        window: window to show the pictures in.
        tracker: gives the objects ids, where the images are the frames of a video.

    Returns:
        The detections, see :meth:`Detections.to_coco`, and the number of images that could not be
        read or drawn; these are reported on stderr.
    """
    rows: list[dict[str, Any]] = []
    num_unreadable = 0
    for number, (path, picture_path) in enumerate(images.items()):
        start = time.perf_counter()
        try:
            if not path.is_file():  # a pipe would block
                raise OSError(f"{path} cannot be read as an image: it is not a regular file")
            detections = detector.predict(path)
        except UsageError:
            raise
        except (OSError, ValueError) as error:  # ValueError: too narrow to be resized
            said = str(error)
            print(f"error: {said if str(path) in said else f'{path}: {said}'}", file=sys.stderr)
            num_unreadable += 1
            continue
        if tracker is not None:
            detections = tracker.update(detections)
        seconds = time.perf_counter() - start
        rows += detections.to_coco(number)
        print(f"{path}: {len(detections)} objects in {seconds:.2f} s")
        if picture_path is None and window is None:
            continue
        try:
            picture = detections.draw()
        except ValueError as error:
            print(f"error: {path} cannot be drawn: {error}", file=sys.stderr)
            num_unreadable += 1
            continue
        if picture_path is not None:
            _save(picture, picture_path)
        if window is not None and not window.show(np.asarray(picture), 0):
            break
    return rows, num_unreadable


def _save(picture: Image.Image, path: Path) -> None:
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_open(path, "wb") as file:
        picture.save(file, kind, quality=92)
