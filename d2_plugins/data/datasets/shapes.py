"""Synthetic dataset: textured shapes on a textured background, rendered from a seed.

Colors are independent of the class, so a detector has to learn outlines. Shapes overlap: boxes
and masks cover the visible part, and ``visibility`` in the JSON is its fraction of the shape.
Every image has its own random generator: image i does not depend on the number of images.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
from PIL import Image

from ...errors import UsageError
from ...files import staging
from .derived_coco import CocoDataset, coco_content
from .shape_outlines import SHAPES, Array, signed_distance, stripes, value_noise

__all__ = ["ShapesRecipe", "ensure_shapes", "render_image", "shapes_datasets"]

logger = logging.getLogger(__name__)

CLASS_NAMES = tuple(SHAPES)

# Part of the folder's name. Raise it with any change that changes a pixel or a box.
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ShapesRecipe:
    """Parameters of the rendering.

    Attributes:
        num_images: number of images of each split.
        size: height and width of the images, in pixels.
        diameter: range of the circumscribed circles' diameters in pixels, drawn log-uniformly.
        max_objects: maximum number of shapes in an image; the minimum is 1.
        overlap: fraction of shapes that are placed so that they overlap an earlier shape.
        min_visibility: minimum visible fraction of each shape.
        max_turn: maximum rotation from upright in degrees, either way.
        texture: strength of all textures; 0 gives plain colors.
        seed: seed of all random draws.
    """

    num_images: tuple[tuple[str, int], ...] = (("train", 800), ("val", 200))
    size: int = 128
    diameter: tuple[float, float] = (24.0, 96.0)
    max_objects: int = 4
    overlap: float = 0.4
    min_visibility: float = 0.5
    max_turn: float = 20.0
    texture: float = 0.6
    seed: int = 20260101


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Shape placed on the image: lengths in pixels, angle in radians, aspect width / height."""

    category: int
    x: float
    y: float
    radius: float
    angle: float
    aspect: float


def shapes_datasets(root: Path) -> list[CocoDataset]:
    """List ``shapes_train`` and ``shapes_val``, which are rendered on first use."""
    folder = root / "d2_plugins" / f"shapes_v{_VERSION}"
    return [
        CocoDataset(
            name=f"shapes_{split}",
            class_names=CLASS_NAMES,
            json_file=folder / f"annotations_{split}.json",
            image_root=folder / split,
            requires=(),
            derive=lambda: ensure_shapes(folder),
        )
        for split, _ in ShapesRecipe().num_images
    ]


def ensure_shapes(folder: Path, recipe: ShapesRecipe | None = None) -> None:
    """Render the dataset into ``folder`` unless it exists.

    The folder appears completely or not at all. Several processes may render it at once: they
    all make the same content, and the first one to finish is kept.

    Args:
        folder: target folder of ``annotations_<split>.json`` and ``<split>/<id>.png``.
        recipe: parameters of the rendering; None takes the defaults.

    Raises:
        UsageError: the folder exists and is incomplete.
    """
    recipe = recipe or ShapesRecipe()
    files = [folder / f"annotations_{split}.json" for split, _ in recipe.num_images]
    if all(file.is_file() for file in files):
        return
    if folder.is_dir() and any(folder.iterdir()):
        missing = next(file.name for file in files if not file.is_file())
        raise UsageError(f"{folder} has no {missing}: remove the folder, and it is made again")
    logger.info("Rendering the shapes dataset into %s (once, some seconds)", folder)
    with staging(folder.parent) as whole:
        for index, (split, count) in enumerate(recipe.num_images):
            _write_split(whole, split, index, count, recipe)
        try:
            os.rename(whole, folder)
        except OSError:
            if not folder.is_dir():
                raise


def _write_split(folder: Path, split: str, index: int, count: int, recipe: ShapesRecipe) -> None:
    (folder / split).mkdir()
    images, annotations = [], []
    for image_id in range(1, count + 1):
        rng = np.random.default_rng((recipe.seed, index, image_id))
        pixels, objects = render_image(rng, recipe)
        name = f"{image_id:06d}.png"
        Image.fromarray(pixels).save(folder / split / name, compress_level=1)
        size = {"height": recipe.size, "width": recipe.size}
        images.append({"id": image_id, "file_name": name, **size})
        annotations.append(objects)
    content = coco_content(images, annotations, CLASS_NAMES)
    (folder / f"annotations_{split}.json").write_text(json.dumps(content))


def render_image(
    rng: np.random.Generator, recipe: ShapesRecipe
) -> tuple[npt.NDArray[np.uint8], list[dict[str, Any]]]:
    """Render one image.

    Args:
        rng: random generator of the image.
        recipe: parameters of the rendering.

    Returns:
        The image (H, W, 3), and its objects as COCO annotations without ids.
    """
    canvas = _ground(rng, recipe)
    labels = np.full((recipe.size, recipe.size), -1, dtype=np.int64)
    shapes: list[_Shape] = []
    areas: list[int] = []
    for _ in range(int(rng.integers(1, recipe.max_objects + 1))):
        for candidate in _candidates(rng, recipe, shapes):
            distance, area = _distance_map(candidate, recipe.size)
            drawn = np.where(distance < 0, len(shapes), labels)
            visible = np.bincount(drawn[drawn >= 0], minlength=len(shapes) + 1)
            if np.all(visible >= recipe.min_visibility * np.array([*areas, area])):
                _paint(rng, canvas, distance, recipe.texture)
                labels = drawn
                shapes.append(candidate)
                areas.append(area)
                break
    canvas += rng.normal(0.0, 0.015, canvas.shape)
    pixels = (np.clip(canvas, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    objects = [_annotation(labels == i, shape.category, areas[i]) for i, shape in enumerate(shapes)]
    return pixels, objects


def _ground(rng: np.random.Generator, recipe: ShapesRecipe) -> Array:
    """Draw coarse and fine noise around a color, with stripes on half of the images."""
    size = recipe.size
    coarse = value_noise(rng, (size, size), int(rng.integers(2, 7))) - 0.5
    fine = value_noise(rng, (size, size), int(rng.integers(12, 40))) - 0.5
    texture = 0.7 * rng.random() * coarse + 0.3 * rng.random() * fine
    if rng.random() < 0.5:
        texture += _random_stripes(rng, size, 0.12)
    return 0.2 + 0.6 * rng.random(3) + recipe.texture * texture


def _random_stripes(rng: np.random.Generator, size: int, strength: float) -> Array:
    """Draw stripes (H, W, 1) with values within ``strength`` of 0."""
    centres = np.arange(size) + 0.5
    amplitude = strength * rng.random()
    wave = stripes(
        centres[None, :],
        centres[:, None],
        angle=rng.random() * math.pi,
        period=4.0 + 20.0 * rng.random(),
        phase=rng.random() * 2 * math.pi,
    )
    return amplitude * wave[..., None]


def _candidates(
    rng: np.random.Generator, recipe: ShapesRecipe, others: list[_Shape]
) -> Iterator[_Shape]:
    """Yield twenty placements of one shape, all of the same class and size."""
    low, high = recipe.diameter
    radius = 0.5 * low * (high / low) ** rng.random()
    category = int(rng.integers(len(CLASS_NAMES)))
    angle = math.radians(recipe.max_turn) * (2 * rng.random() - 1)
    aspect = 1.3 ** (2 * rng.random() - 1)
    overlaps = bool(others) and rng.random() < recipe.overlap
    for _ in range(20):
        margin = 0.8 * radius
        x, y = margin + (recipe.size - 2 * margin) * rng.random(2)
        if overlaps:
            other = others[int(rng.integers(len(others)))]
            reach = (radius + other.radius) * (0.4 + 0.5 * rng.random())
            direction = rng.random() * 2 * math.pi
            x = other.x + reach * math.cos(direction)
            y = other.y + reach * math.sin(direction)
        yield _Shape(
            category=category, x=float(x), y=float(y), radius=radius, angle=angle, aspect=aspect
        )


def _distance_map(shape: _Shape, size: int) -> tuple[Array, int]:
    """Return the signed distance over the image, and the area of the whole shape, in pixels.

    The area includes the part outside the image.
    """
    reach = math.ceil(shape.radius * 1.2) + 1  # 1.2 > sqrt of the largest aspect
    left, top = math.floor(shape.x) - reach, math.floor(shape.y) - reach
    side = 2 * reach + 1
    dx = (left + np.arange(side) + 0.5 - shape.x)[None, :]
    dy = (top + np.arange(side) + 0.5 - shape.y)[:, None]
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    stretch = math.sqrt(shape.aspect)
    u = (dx * cos + dy * sin) / (shape.radius * stretch)
    v = (dy * cos - dx * sin) / (shape.radius / stretch)
    window = signed_distance(SHAPES[CLASS_NAMES[shape.category]], u, v) * shape.radius
    distance = np.full((size, size), np.inf)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    if x0 < x1 and y0 < y1:
        distance[y0:y1, x0:x1] = window[y0 - top : y1 - top, x0 - left : x1 - left]
    return distance, int((window < 0).sum())


def _paint(rng: np.random.Generator, canvas: Array, distance: Array, strength: float) -> None:
    """Draw a shape with smoothed edges in a color that differs from the pixels under it."""
    size = len(canvas)
    under = canvas[distance < 0].mean(axis=0)
    colour = rng.random(3)
    for _ in range(20):
        if np.linalg.norm(colour - under) > 0.45:
            break
        colour = rng.random(3)
    texture = _random_stripes(rng, size, 0.25)
    texture = texture + 0.25 * (value_noise(rng, (size, size), 10) - 0.5)
    cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    canvas += cover * (colour + strength * texture - canvas)


def _annotation(mask: npt.NDArray[np.bool_], category: int, area: int) -> dict[str, Any]:
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    visible = int(mask.sum())
    return {
        "category_id": category + 1,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": visible,
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
        "visibility": round(visible / area, 4),
    }
