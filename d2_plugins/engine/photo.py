"""A trained detector and one photograph, as the tools that draw pictures need them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.data.detection_utils import convert_image_to_rgb, read_image
from detectron2.modeling import build_model
from torch import Tensor, nn

from .. import model_zoo
from ..checkpoint import PluginCheckpointer
from ..config import get_cfg

__all__ = ["load_config", "load_model", "load_photo"]


def load_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """The config of a file or of a zoo name, for this machine.

    Args:
        config_file: a path, or a name such as "csp_cascade.yaml".
        opts: KEY VALUE pairs to change.

    Raises:
        FileNotFoundError: there is no such config.
    """
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.find_config(config_file), allow_unsafe=False)
    cfg.merge_from_list(list(opts))
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def load_model(cfg: CfgNode) -> nn.Module:
    """The model in eval mode with ``MODEL.WEIGHTS``."""
    model = build_model(cfg).eval()
    PluginCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def load_photo(cfg: CfgNode, path: str | Path) -> tuple[Tensor, np.ndarray]:
    """A photograph, resized as in testing.

    Returns:
        (3, H, W) in ``INPUT.FORMAT`` for the model, and (H, W, 3) RGB, uint8, to draw on.
    """
    pixels = read_image(str(path), format=cfg.INPUT.FORMAT)
    resize = transforms.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    pixels = resize.get_transform(pixels).apply_image(pixels)
    image = torch.as_tensor(pixels.astype("float32").transpose(2, 0, 1))
    return image, convert_image_to_rgb(pixels, cfg.INPUT.FORMAT)
