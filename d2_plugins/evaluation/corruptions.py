"""Corruptions of test images, to evaluate a detector under occlusion, blur and noise.

Images are (H, W, C) arrays with values in 0..255; boxes are XYXY in their pixels. The generator of
a corruption is seeded by the id of the image, so the corruption is the same in every run, process
and order of the images.
"""

import copy
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from torchvision.transforms.v2 import functional as F

__all__ = [
    "CORRUPTIONS",
    "FILLS",
    "Corruption",
    "CorruptionMapper",
    "blur",
    "build_corruptions",
    "noise",
    "occlude",
]

CORRUPTIONS = ("occlusion", "blur", "noise")
FILLS = ("grey", "mean", "noise")

_GREY = 127.5
# Largest aspect ratio of a patch relative to that of its box.
_MAX_STRETCH = 2.0


def occlude(
    image: np.ndarray,
    boxes: np.ndarray,
    generator: np.random.Generator,
    *,
    share: float,
    fill: str = "grey",
) -> np.ndarray:
    """Cover a part of every box with a rectangular patch inside it.

    The position of a patch is uniform over the box. Its aspect ratio, relative to that of the box,
    is log-uniform between 1/2 and 2 as far as it fits. Sides are rounded to whole pixels. A patch
    can cover a part of another object whose box overlaps.

    Args:
        image: (H, W, C).
        boxes: (R, 4); parts outside the image are ignored.
        generator: source of the random numbers.
        share: share of the area of a box that is covered, in [0, 1].
        fill: "grey" (127.5), "mean" (the image's mean colour) or "noise" (uniform, per pixel).

    Returns:
        A copy of the image with the patches.
    """
    height, width, channels = image.shape
    inside = np.clip(boxes, 0, [width, height, width, height]).round().astype(int)
    # All patches are drawn first, so that their positions do not depend on the fill.
    patches = [_patch(box, generator, share) for box in inside] if share > 0 else []
    out = image.copy()
    for rows, columns in patches:
        shape = (rows.stop - rows.start, columns.stop - columns.start, channels)
        if fill == "noise":
            colours = generator.uniform(0, 255, shape)
        else:
            colour = image.mean(axis=(0, 1)) if fill == "mean" else _GREY
            colours = np.broadcast_to(colour, shape)
        out[rows, columns] = _to_dtype(colours, image.dtype)
    return out


def _patch(box: np.ndarray, generator: np.random.Generator, share: float) -> tuple[slice, slice]:
    """Return rows and columns of a patch inside ``box`` (XYXY, whole pixels)."""
    x0, y0, x1, y1 = box.tolist()
    width, height = x1 - x0, y1 - y0
    # Sides relative to those of the box: a and share / a, both at most 1.
    low = max(share, math.sqrt(share / _MAX_STRETCH))
    high = min(1.0, math.sqrt(share * _MAX_STRETCH))
    side = low * (high / low) ** generator.random()
    w, h = round(width * side), round(height * share / side)
    x = x0 + int(generator.integers(width - w + 1))
    y = y0 + int(generator.integers(height - h + 1))
    return slice(y, y + h), slice(x, x + w)


def blur(
    image: np.ndarray, boxes: np.ndarray, generator: np.random.Generator, *, sigma: float
) -> np.ndarray:
    """Apply torchvision's Gaussian blur to the whole image.

    Args:
        image: (H, W, C).
        boxes: not used.
        generator: not used.
        sigma: standard deviation in pixels, above 0.
    """
    height, width = image.shape[:2]
    radius = math.ceil(4 * sigma)
    # Reflected padding must be smaller than the image.
    kernel = [2 * min(radius, size - 1) + 1 for size in (width, height)]
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
    blurred = F.gaussian_blur(tensor, kernel, [sigma, sigma])
    return _to_dtype(blurred.permute(1, 2, 0).numpy(), image.dtype)


def noise(
    image: np.ndarray, boxes: np.ndarray, generator: np.random.Generator, *, std: float
) -> np.ndarray:
    """Add independent Gaussian noise to every value, clipped to 0..255.

    Args:
        image: (H, W, C).
        boxes: not used.
        generator: source of the random numbers.
        std: standard deviation, in grey levels.
    """
    return _to_dtype(image + generator.normal(0, std, image.shape), image.dtype)


def _to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    values = np.clip(values, 0, 255)
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


@dataclass(frozen=True)
class Corruption:
    """A corruption and its seed.

    Attributes:
        name: part of the keys of the results: ``bbox_<name>/AP``.
        function: function (image, boxes, generator) -> image.
        seed: seed of the random numbers, together with the id of an image.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
    seed: int = 0

    def __call__(self, image: np.ndarray, boxes: np.ndarray, image_id: int | str) -> np.ndarray:
        """Return the corrupted image.

        Args:
            image: (H, W, C), 0..255.
            boxes: (R, 4) XYXY of the objects, in pixels of ``image``.
            image_id: id of a type whose text is always the same.
        """
        entropy = (self.seed, zlib.crc32(str(image_id).encode()))
        return self.function(image, boxes, np.random.default_rng(entropy))


class CorruptionMapper:
    """A dataset mapper that corrupts images as they are read, before they are resized."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any], corruption: Corruption) -> None:
        """Wrap a mapper.

        Args:
            mapper: a detectron2 DatasetMapper, or another mapper with an ``augmentations`` list
                that it applies to the image as read.
            corruption: corruption of the images.

        Raises:
            TypeError: ``mapper`` has no ``augmentations``.
        """
        if not isinstance(getattr(mapper, "augmentations", None), T.AugmentationList):
            raise TypeError(
                "CorruptionMapper needs a mapper with `augmentations`, as detectron2's "
                f"DatasetMapper, got {type(mapper).__name__}"
            )
        self.mapper: Any = mapper
        self.corruption = corruption

    def __call__(self, dataset_dict: dict[str, Any]) -> Any:
        """Return the output of the mapper for the corrupted image.

        Args:
            dataset_dict: dict with ``image_id``, and with ``annotations`` for the boxes that are
                occluded (crowd regions are not).
        """
        boxes = [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in dataset_dict.get("annotations", ())
            if not a.get("iscrowd", 0)
        ]
        corrupt = _Corrupt(
            self.corruption,
            np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
            dataset_dict["image_id"],
        )
        mapper = copy.copy(self.mapper)  # shallow: only the list of augmentations is replaced
        mapper.augmentations = T.AugmentationList([corrupt, *mapper.augmentations.augs])
        return mapper(dataset_dict)


class _Corrupt(T.Augmentation):
    """The corruption of one image as its first augmentation; coordinates stay the same."""

    def __init__(self, corruption: Corruption, boxes: np.ndarray, image_id: int | str) -> None:
        super().__init__()
        self.corruption = corruption
        self.boxes = boxes
        self.image_id = image_id

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ColorTransform(lambda pixels: self.corruption(pixels, self.boxes, self.image_id))


def build_corruptions(cfg: CfgNode) -> list[Corruption]:
    """Return the corruptions of ``TEST.CORRUPTIONS`` with the strengths that ``TEST`` sets.

    Raises:
        ValueError: a name, a strength or a fill is not allowed.
    """
    test = cfg.TEST
    functions = {
        "occlusion": partial(occlude, share=test.OCCLUSION_SHARE, fill=test.OCCLUSION_FILL),
        "blur": partial(blur, sigma=test.BLUR_SIGMA),
        "noise": partial(noise, std=test.NOISE_STD),
    }
    _check(0 <= test.OCCLUSION_SHARE <= 1, "OCCLUSION_SHARE", test.OCCLUSION_SHARE, "0 to 1")
    _check(test.OCCLUSION_FILL in FILLS, "OCCLUSION_FILL", test.OCCLUSION_FILL, ", ".join(FILLS))
    _check(test.BLUR_SIGMA > 0, "BLUR_SIGMA", test.BLUR_SIGMA, "above 0")
    _check(test.NOISE_STD >= 0, "NOISE_STD", test.NOISE_STD, "at least 0")
    for name in test.CORRUPTIONS:
        _check(name in CORRUPTIONS, "CORRUPTIONS", name, ", ".join(CORRUPTIONS))
    return [Corruption(name, functions[name], test.CORRUPTION_SEED) for name in test.CORRUPTIONS]


def _check(ok: bool, key: str, value: Any, allowed: str) -> None:
    if not ok:
        raise ValueError(f"TEST.{key} is {value!r}; allowed: {allowed}")
