"""Reading images as detectron2 does, and those that it reads wrongly or not at all.

detectron2 turns an image upright by its EXIF tag and converts it to three channels. Three kinds
need more: 16-bit images, whose values Pillow would cut off at 255; turned TIFFs, which Pillow and
detectron2 would both turn; and turned images whose annotations were made without the turn.
"""

import io
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from PIL import Image, ImageOps

__all__ = ["ImageHeader", "read_header", "readable_name"]

_EXIF_ORIENTATION = 274
_UPRIGHT = "d2_plugins-upright://"
_STORED = "d2_plugins-stored://"


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What an image file says of itself.

    Attributes:
        size: width and height as Pillow decodes it.
        mode: Pillow's, e.g. "RGB", "L", "P", "RGBA", "I;16".
        orientation: the turn that EXIF asks for after decoding, 1 to 8; 1 is none.
        is_plain: detectron2 reads it right.
    """

    size: tuple[int, int]
    mode: str
    orientation: int
    is_plain: bool

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the turn."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def read_header(file_name: str, *, decode: bool = False) -> ImageHeader:
    """Read the header of an image file.

    Args:
        file_name: any path of detectron2's PathManager.
        decode: read all pixels too, which finds files that are cut off or damaged inside.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: the file is no image or is damaged; Pillow's decoders raise what they please.
    """
    with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
        orientation = _orientation(image)
        is_plain = not _is_deep(image)
        if image.format == "TIFF" and orientation != 1:
            # Pillow turns a TIFF while decoding it, and detectron2 would turn it once more.
            image.load()
            orientation, is_plain = _orientation(image), False
        if decode:
            image.load()
        return ImageHeader(
            size=image.size, mode=image.mode, orientation=orientation, is_plain=is_plain
        )


def _orientation(image: Image.Image) -> int:
    # A PNG may have its EXIF after the pixels; asking for it would decode them.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def _is_deep(image: Image.Image) -> bool:
    """Whether its one channel has more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def readable_name(file_name: str, size: tuple[int, int] | None = None) -> str:
    """The name under which detectron2's ``read_image`` reads the right pixels.

    Args:
        file_name: the image file.
        size: width and height that its annotations refer to, if known.

    Returns:
        ``file_name`` itself for most; with a prefix, behind which an 8-bit image is served, for
        16-bit images and for those turned by EXIF whose annotations refer to the stored pixels.

    Raises:
        FileNotFoundError: there is no such file.
        Exception: as :func:`read_header`.
    """
    header = read_header(file_name)
    if size == header.size != header.upright_size:
        return _STORED + file_name
    return file_name if header.is_plain else _UPRIGHT + file_name


class _PlainImages(PathHandler):
    """Serves images in 8 bits a channel and without EXIF behind a prefix.

    detectron2's mapper reads by name only; a path handler is its way to read something else.
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
    """The high byte of a 16-bit image, as OpenCV reads it; other images unchanged."""
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
