"""A trained detector and one photograph, as the tools that draw pictures need them."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.modeling import build_model
from torch import Tensor, nn

from ..checkpoint import PluginCheckpointer
from ..data.images import readable_name
from .errors import usage_errors

__all__ = ["load_model", "load_photo", "read_photo"]


def load_model(cfg: CfgNode) -> nn.Module:
    """The model in eval mode with ``MODEL.WEIGHTS``.

    Raises:
        UsageError: there are no such weights, or they are not this model's.
    """
    model = build_model(cfg).eval()
    checkpointer = PluginCheckpointer(model, allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING)
    with usage_errors("MODEL.WEIGHTS"):
        checkpointer.load(cfg.MODEL.WEIGHTS)
    return model


def read_photo(
    path: str | Path, image_format: str, size: tuple[int, int] | None = None
) -> np.ndarray:
    """The pixels of a photograph, upright, in its own size; of 16-bit images the high bytes.

    Args:
        path: the image file.
        image_format: as ``INPUT.FORMAT``.
        size: width and height that annotations of it refer to, if there are any.

    Returns:
        (H, W, 3).

    Raises:
        OSError: it cannot be read as an image; the message names it.
    """
    try:
        return read_image(readable_name(str(path), size), format=image_format)
    except FileNotFoundError:
        raise
    except Exception as error:  # Pillow's decoders raise what they please
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def load_photo(cfg: CfgNode, path: str | Path) -> tuple[Tensor, np.ndarray]:
    """A photograph, resized as in testing.

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
