"""Costs of Double-Head at inference and of Inverted Attention in training.

On a shared machine only ratios are meaningful, so each pair is timed in turn.
"""

from collections.abc import Callable
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROIHeads, build_roi_heads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .. import model_zoo
from ..config import get_cfg
from ..modeling import inference_form
from .complexity import count_costs
from .timing import median_ratio
from .training_step import training_step

__all__ = ["double_head", "flagship_step", "inverted_attention", "whole_step"]

_CHANNELS = 256
_STRIDES = (4, 8, 16, 32)
_EXT = {"LAMBDA_FC": 0.7, "LAMBDA_CONV": 0.8, "NUM_CONV": 2, "CONV_BLOCKS": "nonlocal"}


class _Selective(nn.Module):
    """The two heads of a Double-Head at inference; the conv head sees some of the RoIs."""

    def __init__(self, heads: ROIHeads, share: float) -> None:
        super().__init__()
        self.head, self.predictor, self.share = heads.box_head, heads.box_predictor, share

    def forward(self, regions: Tensor) -> tuple[Tensor, ...]:
        fc = self.head.fc_head(regions[0])
        chosen = torch.arange(round(self.share * len(fc)), device=fc.device)
        return self.predictor((fc, self.head.conv_head(regions[-1][chosen])), chosen)


def double_head(
    num_rois: int = 300, conv_head_share: float = 0.5, repeats: int = 5, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Measure box heads at inference next to detectron2's head of two fc layers; 80 classes.

    Args:
        num_rois: number of RoIs of an image.
        conv_head_share: share of the RoIs that the conv head sees in "Double-Head-Ext, selective",
            see ``MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE``, also in its inference form (see
            :func:`d2_plugins.modeling.inference_form`); it sees all of them in the other heads.
        repeats: number of measured pairs.
        device: "cpu" or "cuda".

    Returns:
        For each head: parameters in millions, multiply-adds in billions, and time divided by the
        time of the head of two fc layers, without RoIAlign.
    """
    heads = {
        "2 fc": _build("StandardROIHeads"),
        "4 conv, 1 fc": _build("StandardROIHeads", box_head={"NUM_CONV": 4, "NUM_FC": 1}),
        "Double-Head": _build("DoubleHeadROIHeads"),
        "Double-Head-Ext": _build("DoubleHeadROIHeads", double_head=_EXT),
        "Double-Head-Ext, selective": _build("DoubleHeadROIHeads", double_head=_EXT),
        "Double-Head-Ext, selective, inference form": _build(
            "DoubleHeadROIHeads", double_head=_EXT
        ),
    }
    regions = torch.randn(2, num_rois, _CHANNELS, 7, 7).to(device)
    runs: dict[str, Callable[[], object]] = {}
    results = {}
    for name, head in heads.items():
        branch: nn.Module = nn.Sequential(head.box_head, head.box_predictor)
        if "selective" in name:
            branch = _Selective(head, conv_head_share)
        branch = branch.eval().to(device)
        if name.endswith("inference form"):
            branch = inference_form(branch)
        x = regions if name.startswith("Double") else regions[0]
        runs[name] = torch.no_grad()(partial(branch, x))
        results[name] = {
            "parameters_m": sum(p.numel() for p in branch.parameters()) / 1e6,
            "gmacs": count_costs(branch, runs[name]).flops.total() / 1e9,
            "time_ratio": median_ratio(runs[name], runs["2 fc"], repeats=repeats, device=device),
        }
    return results


def inverted_attention(
    num_rois: int = 512, repeats: int = 7, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Time a training step of the box head with and without Inverted Attention.

    Args:
        num_rois: number of sampled RoIs; a quarter of them is foreground.
        repeats: number of measured pairs.
        device: "cpu" or "cuda".

    Returns:
        For detectron2's head of two fc layers and for Double-Head-Ext the time with Inverted
        Attention divided by the time without: "part" is RoIAlign on the maps of a 512 x 512 image,
        head, losses and backward pass; "head" is the same without RoIAlign.
    """
    features, proposals = _batch(num_rois, device)
    kinds: dict[str, dict[str, object]] = {"PluginROIHeads": {}, "DoubleHeadROIHeads": _EXT}
    results = {}
    for name, settings in kinds.items():
        pair = [
            _build(name, double_head=settings, attention=on).to(device).train()
            for on in (True, False)
        ]
        steps = [
            partial(training_step, heads, heads._forward_box, features, proposals) for heads in pair
        ]
        part = median_ratio(*steps, repeats=repeats, device=device)
        for heads in pair:
            _pool_once(heads, features, proposals)
        head = median_ratio(*steps, repeats=repeats, device=device)
        results[name] = {"part": part, "head": head}
    return results


def _pool_once(heads: ROIHeads, features: dict[str, Tensor], proposals: list[Instances]) -> None:
    """Let the pooler of ``heads`` return the features that it finds now, as a leaf."""
    boxes = [p.proposal_boxes for p in proposals]
    pooled = heads.box_pooler([features[f] for f in heads.box_in_features], boxes)
    pooled = pooled.detach().requires_grad_()
    heads.box_pooler.forward = lambda x, box_lists: pooled


def flagship_step(image_size: int = 640, repeats: int = 3, device: str = "cpu") -> dict[str, float]:
    """Time a whole training step of csp_cascade.yaml with and without Inverted Attention.

    Args:
        image_size: height and width of the only image of the batch.
        repeats: number of measured pairs.
        device: "cpu" or "cuda".

    Returns:
        ``step``: time with Inverted Attention divided by the time without.
    """
    cfg = model_zoo.get_config("csp_cascade.yaml")
    cfg.MODEL.DEVICE = device
    return {"step": whole_step(cfg, image_size, repeats)}


def whole_step(cfg: CfgNode, image_size: int = 320, repeats: int = 3) -> float:
    """Return the time of a training step with Inverted Attention over the time without.

    Args:
        cfg: config of a detector with one of this package's ROI_HEADS; ``MODEL.DEVICE`` is the
            device.
        image_size: height and width of the only image of the batch.
        repeats: number of measured pairs.
    """
    target = Instances((image_size, image_size))
    target.gt_boxes = Boxes(_boxes(8, image_size))
    target.gt_classes = torch.randint(cfg.MODEL.ROI_HEADS.NUM_CLASSES, (8,))
    image = torch.rand(3, image_size, image_size) * 255
    steps = []
    for on in (True, False):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.INVERTED_ATTENTION.ENABLED = on
        cfg.MODEL.INVERTED_ATTENTION.START_ITER = 0
        # The batch has no masks, and Inverted Attention does not affect the mask head.
        cfg.MODEL.MASK_ON = False
        torch.manual_seed(0)
        model = build_model(cfg).train()
        steps.append(partial(training_step, model, model, [{"image": image, "instances": target}]))
    return median_ratio(*steps, repeats=repeats, device=cfg.MODEL.DEVICE)


def _build(
    name: str,
    *,
    box_head: dict[str, object] | None = None,
    double_head: dict[str, object] | None = None,
    attention: bool = False,
) -> ROIHeads:
    torch.manual_seed(0)
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.MODEL.ROI_HEADS.IN_FEATURES = [f"p{s}" for s in _STRIDES]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.update({"NUM_FC": 2, **(box_head or {})})
    cfg.MODEL.DOUBLE_HEAD.update(double_head or {})
    cfg.MODEL.INVERTED_ATTENTION.ENABLED = attention
    return build_roi_heads(
        cfg, {f"p{s}": ShapeSpec(channels=_CHANNELS, stride=s) for s in _STRIDES}
    )


def _boxes(count: int, image_size: int) -> Tensor:
    corners = torch.rand(count, 2) * image_size * 0.6
    sizes = (0.05 + 0.35 * torch.rand(count, 2)) * image_size
    return torch.cat([corners, corners + sizes], dim=1)


def _batch(
    num_rois: int, device: str, image_size: int = 512
) -> tuple[dict[str, Tensor], list[Instances]]:
    torch.manual_seed(0)
    features = {
        f"p{s}": torch.randn(1, _CHANNELS, image_size // s, image_size // s)
        .to(device)
        .requires_grad_()
        for s in _STRIDES
    }
    rois = Instances((image_size, image_size))
    rois.proposal_boxes = Boxes(_boxes(num_rois, image_size))
    rois.gt_boxes = Boxes(rois.proposal_boxes.tensor + 2)
    rois.gt_classes = torch.full((num_rois,), 80)
    rois.gt_classes[: num_rois // 4] = torch.randint(80, (num_rois // 4,))
    return features, [rois.to(device)]
