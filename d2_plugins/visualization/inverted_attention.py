"""Pictures of what Inverted Attention hides of the objects in a photo.

For each detected object: the region, the attention map M of its class over it, the region with
the places that Inverted Attention switches off, and the class probability before and after.
Detections stand in for the annotations of training: an object's class is the detected one.

Shape shorthand: R regions, P pooled resolution, H and W of the image as the network sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["RegionAttention", "attention_config", "draw_regions", "explain_regions", "shade"]

# Heads of ours with the same weights.
_STOCK_HEADS = {
    "StandardROIHeads": "PluginROIHeads",
    "CascadeROIHeads": "PluginCascadeROIHeads",
}


@dataclass
class RegionAttention:
    """One region and what Inverted Attention does to it."""

    box: Tensor
    """(4,) XYXY in pixels of the image as the network sees it."""
    label: int
    """The class whose score is explained."""
    attention: Tensor
    """(P, P) attention map M."""
    hidden: Tensor
    """(P, P) share of the channels that are switched off at each place, in [0, 1]."""
    prob_before: float
    """The detector's probability of the class."""
    prob_after: float
    """The same with the masked features."""


@torch.no_grad()
def explain_regions(model: Any, image: Tensor, *, num_regions: int = 6) -> list[RegionAttention]:
    """Detect objects and find what Inverted Attention would hide of them.

    Args:
        model: a GeneralizedRCNN in eval mode, built with Inverted Attention on and its
            ``ROI_CHOICE`` "all", see :func:`attention_config`.
        image: (3, H, W) in the model's ``INPUT.FORMAT``.
        num_regions: largest number of detections to explain, best first.

    Returns:
        One entry per region; none if nothing is detected.
    """
    heads = model.roi_heads
    images = model.preprocess_image([{"image": image}])
    features = model.backbone(images.tensor)
    proposals, _ = model.proposal_generator(images, features)
    detections = heads(images, features, proposals)[0][0][:num_regions]

    head, predictor = heads.box_head, heads.box_predictor
    if isinstance(head, nn.ModuleList):  # a cascade: its last stage decides
        head, predictor = head[-1], predictor[-1]
    regions = heads.box_pooler(
        [features[f] for f in heads.box_in_features], [detections.pred_boxes]
    )
    masked, inversion = heads.invert_regions(regions, detections.pred_classes, head, predictor)

    def probability(x: Tensor) -> list[float]:
        (probs,) = predictor.predict_probs(predictor(head(x)), [detections])
        return probs.gather(1, detections.pred_classes[:, None])[:, 0].tolist()

    hidden = (1 - inversion.mask.mean(dim=1)).expand_as(inversion.attention)
    return [
        RegionAttention(*values)
        for values in zip(
            detections.pred_boxes.tensor.cpu(),
            detections.pred_classes.tolist(),
            inversion.attention.cpu(),
            hidden.cpu(),
            probability(regions),
            probability(masked),
            strict=True,
        )
    ]


def shade(pixels: np.ndarray, hidden: Tensor) -> np.ndarray:
    """Grey out the places of a region that are switched off.

    Args:
        pixels: (h, w, 3) uint8, the region's part of the image.
        hidden: (P, P) in [0, 1].

    Returns:
        (h, w, 3) uint8.
    """
    # Grey, not black, to stand out of dark places too; a trace of the picture is left.
    veil = 0.85 * _stretch(hidden, pixels, "nearest-exact")[:, :, None]
    return (pixels * (1 - veil) + 128 * veil).round().astype(np.uint8)


def draw_regions(
    photo: np.ndarray,
    regions: Sequence[RegionAttention],
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draw a row per region: the region, its attention, and what is left of it.

    Args:
        photo: (H, W, 3), RGB, uint8.
        regions: regions of this photo, at least one.
        class_names: names to show in place of class numbers.
    """
    figure = Figure(figsize=(7.5, 2.6 * len(regions)), layout="constrained")
    axes = figure.subplots(len(regions), 3, squeeze=False)
    for row, region in zip(axes, regions, strict=True):
        pixels = _crop(photo, region.box)
        name = class_names[region.label] if class_names else f"class {region.label}"
        row[0].imshow(pixels)
        row[0].set_title(name)
        row[1].imshow(pixels)
        row[1].imshow(_stretch(region.attention, pixels, "bilinear"), "inferno", alpha=0.6)
        row[1].set_title("attention M")
        row[2].imshow(shade(pixels, region.hidden))
        row[2].set_title(f"p {region.prob_before:.2f} \N{RIGHTWARDS ARROW} {region.prob_after:.2f}")
        for axis in row:
            axis.set_axis_off()
    return figure


def attention_config(cfg: CfgNode) -> CfgNode:
    """Return a copy of a config whose model explains every region; the weights still fit."""
    cfg = cfg.clone()
    cfg.defrost()
    name = cfg.MODEL.ROI_HEADS.NAME
    cfg.MODEL.ROI_HEADS.NAME = _STOCK_HEADS.get(name, name)
    cfg.MODEL.INVERTED_ATTENTION.ENABLED = True
    cfg.MODEL.INVERTED_ATTENTION.ROI_CHOICE = "all"
    return cfg


def _crop(image: np.ndarray, box: Tensor) -> np.ndarray:
    """Return the pixels that a box touches; at least one."""
    height, width = image.shape[:2]
    x0, y0 = (int(v) for v in box[:2].floor())
    x1, y1 = (int(v) for v in box[2:].ceil())
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _stretch(values: Tensor, pixels: np.ndarray, mode: str) -> np.ndarray:
    """Resize (P, P) to (h, w), the size of ``pixels`` (h, w, 3)."""
    return F.interpolate(values[None, None], pixels.shape[:2], mode=mode)[0, 0].numpy()
