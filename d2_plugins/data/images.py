"""Image reading as in detectron2, extended to images that it reads wrongly or not at all.

detectron2 rotates an image upright by its EXIF tag and converts it to three channels. Three kinds
need more: 16-bit images, whose values Pillow would clip at 255; rotated TIFFs, which Pillow and
detectron2 would both rotate; and rotated images whose annotations ignore the rotation.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["ImageHeader", "load_photo", "read_header", "read_photo", "readable_name"]

_EXIF_ORIENTATION = 274
_UPRIGHT = "d2_plugins-upright://"
_STORED = "d2_plugins-stored://"


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """Size, mode and orientation from the header of an image file.

    Attributes:
        size: width and height as Pillow decodes the image.
        mode: Pillow's mode, e.g. "RGB", "L", "P", "RGBA", "I;16".
        orientation: EXIF orientation to apply after decoding, 1 to 8; 1 means upright.
        is_plain: True if detectron2 reads the image correctly.
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    is_plain: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_header(file_name: str, *, decode: bool = False) -> ImageHeader:
    """Read the header of an image file.

    Args:
        file_name: local path, or URL of detectron2's PathManager.
        decode: read all pixels too, which finds truncated and damaged files.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: the file is not an image or is damaged; Pillow can raise any exception.
    """
    if os.path.exists(file_name) and not os.path.isfile(file_name):
        # Opening a named pipe would wait forever.
        raise OSError(f"{file_name} is a folder, a pipe or a device, not an image file")
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        orientation = _orientation(image)
        is_plain = not _is_deep(image)
        if image.format == "TIFF" and orientation != 1:
            # Pillow rotates a TIFF while decoding it, and detectron2 would rotate it again.
            image.load()
            orientation, is_plain = _orientation(image), False
        if decode:
            image.load()
            if image.mode == "I":
                _to_8_bit(image)
        return ImageHeader(
            size=image.size, mode=image.mode, orientation=orientation, is_plain=is_plain
        )


def _orientation(image: Image.Image) -> int:
    # A PNG may have its EXIF data after the pixels; reading it would decode them.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _is_deep(image: Image.Image) -> bool:
    """Return True if the only channel has more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def readable_name(file_name: str, size: tuple[int, int] | None = None) -> str:
    """Return the name under which detectron2's ``read_image`` reads the right pixels.

    Args:
        file_name: path of the image file.
        size: width and height that the annotations refer to, if known.

    Returns:
        ``file_name`` itself for most images. 16-bit images, and images rotated by EXIF whose
        annotations refer to the stored pixels, get a prefix under which an 8-bit image is served.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: as :func:`read_header`.
    """
    header = read_header(file_name)
    if size == header.size != header.upright_size:
        return _STORED + file_name
    return file_name if header.is_plain else _UPRIGHT + file_name


class _PlainImages(PathHandler):
    """Serves 8-bit images without EXIF data under a prefix.

    detectron2's mapper reads by name only, so converted pixels reach it through a path handler.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [_UPRIGHT, _STORED]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[bytes]:
        upright = path.startswith(_UPRIGHT)
        name = path.removeprefix(_UPRIGHT).removeprefix(_STORED)
        with PathManager.open(name, "rb") as file, Image.open(file) as image:
            image.load()
            plain = _to_8_bit(ImageOps.exif_transpose(image) if upright else image).convert("RGB")
        served = io.BytesIO()
        plain.save(served, "BMP")
        served.seek(0)
        return served


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Return the high byte of a 16-bit image, as OpenCV does; other images unchanged."""
    if not _is_deep(image):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(
            f"pixels of Pillow's mode '{image.mode}' have no known range: save the image with "
            "8 or 16 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))


PathManager.register_handler(_PlainImages(), allow_override=True)


def read_photo(
    path: str | Path, image_format: str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read a photo, upright and in its own size.

    Args:
        path: path of the image file; of 16-bit images the high bytes are read.
        image_format: channel order, as in ``INPUT.FORMAT``.
        size: width and height that its annotations refer to, if it has annotations.

    Returns:
        (H, W, 3) array of pixels.

    Raises:
        OSError: the file cannot be read as an image; the message names it.
    """
    try:
        return read_image(readable_name(str(path), size), format=image_format)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders can raise any exception
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def load_photo(cfg: CfgNode, path: str | Path) -> tuple[Tensor, np.ndarray]:
    """Read a photo and resize it as in testing.

    Args:
        cfg: config with the ``INPUT`` settings.
        path: path of the image file.

    Returns:
        (3, H, W) in ``INPUT.FORMAT`` for the model, and (H, W, 3) RGB, uint8, to draw on.

    Raises:
        OSError: as :func:`read_photo`.
    """
    pixels = read_photo(path, cfg.INPUT.FORMAT)
    resize = transforms.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    pixels = resize.get_transform(pixels).apply_image(pixels)
    image = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
    return image, convert_image_to_rgb(pixels, cfg.INPUT.FORMAT)
