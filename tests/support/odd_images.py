"""Images as cameras, scanners and editors write them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 32)  # width and height as stored
ORIENTATION = 274


def write_odd_image(folder: Path, kind: str) -> Path:
    """Write an image of a kind; its red channel, or its only one, holds :func:`ramp`.

    Args:
        folder: gets ``<kind>.png`` (or .jpg, .tif).
        kind: one of ``ODD_KINDS``.
    """
    gray = Image.fromarray(ramp())
    colour = Image.merge("RGB", (gray, gray.point(lambda v: v // 2), gray.point(lambda v: v // 3)))
    alpha = Image.new("L", SIZE, 7)
    deep = Image.fromarray((ramp().astype(np.uint16) << 8) + 99)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    made = {
        "rgb": ("png", colour),
        "gray": ("png", gray),
        "gray_alpha": ("png", Image.merge("LA", (gray, alpha))),
        "rgba": ("png", Image.merge("RGBA", (*colour.split(), alpha))),
        "palette": ("png", gray.convert("P")),
        "deep": ("png", deep),
        "deep_tiff": ("tif", deep),
        "deep_turned": ("tif", deep),
        "cmyk": ("jpg", colour.convert("CMYK")),
        "turned": ("jpg", gray),
        "turned_png": ("png", gray),
    }
    extension, image = made[kind]
    path = folder / f"{kind}.{extension}"
    options = {"exif": exif} if "turned" in kind else {}
    image.save(path, quality=100, **options)
    return path


ODD_KINDS = (
    *("rgb", "gray", "gray_alpha", "rgba", "palette", "deep", "deep_tiff", "deep_turned"),
    *("cmyk", "turned", "turned_png"),
)


def ramp() -> np.ndarray:
    """(H, W) uint8: brighter to the right and to the bottom."""
    width, height = SIZE
    return (np.arange(width) * 3 + np.arange(height)[:, None] * 3).astype(np.uint8)
