"""Pure functions that draw the shapes dataset: outlines as signed distances, textures as arrays.

Shape shorthand: H, W image size; k cells of a noise grid. Images are (H, W, 3) float64 in [0, 1].
"""

import math

import numpy as np
import numpy.typing as npt

__all__ = [
    "SHAPES",
    "Outline",
    "signed_distance",
    "stripes",
    "unit_area",
    "value_noise",
]

Array = npt.NDArray[np.float64]

# Number of tips, inner radius and direction of the first tip (radians, right to down) of a star
# with outer radius 1 that stands upright; None is the circle. A regular polygon is the star whose
# inner radius is its apothem.
Outline = tuple[int, float, float] | None

SHAPES: dict[str, Outline] = {
    "circle": None,
    "square": (4, math.cos(math.pi / 4), math.pi / 4),
    "triangle": (3, math.cos(math.pi / 3), -math.pi / 2),
    "star": (5, 0.45, -math.pi / 2),
}


def unit_area(outline: Outline) -> float:
    """Return the area of the shape with circumradius 1."""
    if outline is None:
        return math.pi
    tips, inner, _ = outline
    return tips * inner * math.sin(math.pi / tips)


def signed_distance(outline: Outline, u: Array, v: Array) -> Array:
    """Compute the distance of points to the lines of the outline, negative inside.

    Exact at the edges, where it is used; near a tip it is the distance to the longer line.

    Args:
        outline: shape with circumradius 1 around the origin.
        u: first coordinates of the points, an array of any shape.
        v: second coordinates, same shape as ``u``.

    Returns:
        An array of the same shape as ``u``.
    """
    radius = np.hypot(u, v)
    if outline is None:
        return radius - 1.0
    tips, inner, direction = outline
    half = math.pi / tips
    # Fold the plane into the half sector between a tip, on the axis, and the notch next to it.
    angle = np.abs(np.mod(np.arctan2(v, u) - direction + half, 2 * half) - half)
    notch_x, notch_y = inner * math.cos(half), inner * math.sin(half)
    length = math.hypot(1.0 - notch_x, notch_y)
    normal_x, normal_y = notch_y / length, (1.0 - notch_x) / length
    return (radius * np.cos(angle) - 1.0) * normal_x + radius * np.sin(angle) * normal_y


def value_noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> Array:
    """Draw smooth noise: random values on a grid, interpolated bilinearly.

    Args:
        rng: random generator.
        size: H and W.
        cells: k, number of grid points along each side, at least 2.

    Returns:
        (H, W, 3) in [0, 1].
    """
    grid = rng.random((cells, cells, 3))
    rows, columns = (_interpolation(length, cells) for length in size)
    return np.einsum("hk,klc,wl->hwc", rows, grid, columns, optimize=True)


def _interpolation(length: int, cells: int) -> Array:
    """Return (length, k) weights of linear interpolation between k equally spaced values."""
    position = np.linspace(0.0, cells - 1.0, length)
    return np.maximum(0.0, 1.0 - np.abs(position[:, None] - np.arange(cells)))


def stripes(u: Array, v: Array, *, angle: float, period: float, phase: float) -> Array:
    """Compute parallel sine stripes in [-1, 1].

    Args:
        u: first coordinates of the points in pixels.
        v: second coordinates, same shape as ``u``.
        angle: direction across the stripes, in radians.
        period: length of a period in pixels.
        phase: phase at the origin in radians.
    """
    along = u * math.cos(angle) + v * math.sin(angle)
    return np.sin(2 * math.pi / period * along + phase)
