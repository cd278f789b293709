"""Whole detectors next to stock Faster R-CNN: inference and a training step, timed in turn.

Weights are random. Random weights would send an unrealistic number of RoIs through a Double-Head's
conv head and find thousands of objects or none, so both numbers are fixed to those of trained
models; all other work is done as usual.
"""

import logging
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from .. import model_zoo
from ..export import ExportableDetector, load_exported, write
from ..modeling import inference_form
from ..modeling.roi_heads.double_head_predictor import DoubleHeadOutputLayers
from .fixed_work import random_boxes
from .timing import interleaved
from .training_step import training_step

__all__ = ["detectors"]

logger = logging.getLogger(__name__)

Run = Callable[[], object]

_STOCK = "detectron2 Faster R-CNN R-50-FPN"
_TORCHVISION = "torchvision fasterrcnn_resnet50_fpn_v2"
_FLAGSHIP = "flagship"
_CONFIGS = {
    _STOCK: "Base-RCNN-FPN.yaml",
    "CSPResNet-50, FPN": "COCO-Detection/faster_rcnn_CSPResNet_50_FPN_1x.yaml",
    "CSPResNet-50, FPN, Cascade RPN": "COCO-Detection/faster_rcnn_crpn_CSPResNet_50_FPN_1x.yaml",
    _FLAGSHIP: "csp_cascade.yaml",
    "flagship with masks": "csp_cascade_mask.yaml",
}
_ONNX = "flagship, ONNX Runtime"
# Smaller networks and fewer RoIs, to try the command.
_TOY = (
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", 0.125, "MODEL.CSPNET.DEPTH_MULTIPLIER", 0.2),
    *("MODEL.CSPNET.NORM", "BN", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
    *("MODEL.DOUBLE_HEAD.FC_DIM", 16, "MODEL.DOUBLE_HEAD.CONV_DIM", 16),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 10, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 10),
)
_TOY_PROPOSALS = 10
_NUM_OBJECTS = 8


def detectors(
    size: tuple[int, int] = (800, 1216),
    conv_head_share: float = 0.1,
    num_detections: int = 20,
    repeats: int = 5,
    toy: bool = False,
    device: str = "cpu",
) -> dict[str, dict[str, float]]:
    """Time whole detectors next to detectron2's Faster R-CNN R-50-FPN.

    The baseline has 1000 proposals at test time and 512 RoIs in training, the others what their
    configs say. On the CPU, time is the CPU time of all threads.

    Args:
        size: height and width of the only image of the batch.
        conv_head_share: share of the RoIs that the conv head of a Double-Head sees at inference.
            Trained detectors pass on 0.05 (Penn-Fudan) and 0.09 (the demo's shapes) with the
            flagship's ``MODEL.DOUBLE_HEAD.CONV_HEAD_NMS_THRESH`` of 0.5, and about 0.5 without it.
        num_detections: number of objects that each detector of detectron2 finds.
        repeats: number of measurements of each run, taken in turn with the others.
        toy: small networks, to try the command.
        device: "cpu" or "cuda".

    Returns:
        For each detector: median seconds of an image as the model is built; the median, the lowest
        and the highest ratio of its time to the baseline's; the median ratio of its inference form
        (see :func:`d2_plugins.modeling.inference_form`); and, for a training step without the
        optimizer, the median, the lowest and the highest ratio. NaN where there is no such form.
    """
    models = {
        name: _build(config, conv_head_share, num_detections, toy, device)
        for name, config in _CONFIGS.items()
    }
    image = torch.rand(3, *size) * 255
    with tempfile.TemporaryDirectory() as folder:
        inference, forms, steps = _runs(models, image, Path(folder), toy, device)
        with torch.no_grad():
            plain = interleaved(inference | forms, repeats, device)
        train = interleaved(steps, repeats, device)
    return {
        name: {
            "seconds": median(plain[name]),
            **_spread("inference", plain[name], plain[_STOCK]),
            "inference_form": _ratio(plain.get(_form_of(name)), plain[_STOCK]),
            **_spread("train", train.get(name), train[_STOCK]),
        }
        for name in inference
    }


def _form_of(name: str) -> str:
    return f"{name}, inference form"


def _runs(
    models: dict[str, nn.Module], image: Tensor, folder: Path, toy: bool, device: str
) -> tuple[dict[str, Run], dict[str, Run], dict[str, Run]]:
    """Return the calls to time: inference, inference of the inference form, training steps."""
    inputs = [{"image": image}]
    inference: dict[str, Run] = {
        name: partial(_infer, model, inputs) for name, model in models.items()
    }
    forms: dict[str, Run] = {
        _form_of(name): partial(_infer, inference_form(model.eval()), inputs)
        for name, model in models.items()
    }
    batch = [{"image": image, "instances": _target(image)}]
    steps: dict[str, Run] = {name: partial(_train, m, batch) for name, m in models.items()}

    theirs = _torchvision_model(image, toy).to(device)
    pixels = [image.to(device) / 255]
    inference[_TORCHVISION] = partial(_infer, theirs, pixels)
    steps[_TORCHVISION] = partial(_train, theirs, pixels, _torchvision_target(batch, device))
    if device != "cpu" or find_spec("onnxruntime") is None:
        logger.warning("ONNX Runtime is not timed: it needs the CPU and the extra 'export'")
    else:
        inference[_ONNX] = _onnx_run(models[_FLAGSHIP], image, folder / "flagship.onnx")
    return inference, forms, steps


def _build(
    config: str, conv_head_share: float, num_detections: int, toy: bool, device: str
) -> nn.Module:
    cfg: CfgNode = model_zoo.get_config(config)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", device
    cfg.merge_from_list(list(_TOY if toy else ()))
    torch.manual_seed(0)
    model = build_model(cfg)
    predictor = model.roi_heads.box_predictor
    predictor.predict_probs = partial(_fixed_scores, num_detections)
    if isinstance(predictor, DoubleHeadOutputLayers):
        predictor.choose = partial(_fixed_choice, conv_head_share)
    return model


def _fixed_scores(
    num_detections: int, predictions: tuple[Tensor, ...], proposals: list[Instances]
) -> list[Tensor]:
    """Replace ``predict_probs``: the first RoIs are objects of different classes."""
    logits = predictions[0]
    background = logits.shape[1] - 1
    rois = torch.arange(min(num_detections, len(logits)), device=logits.device)
    scores = torch.zeros_like(logits)
    scores[:, background] = 1
    scores[rois, rois % background] = 0.9
    return [scores]


def _fixed_choice(share: float, scores: Tensor, deltas: Tensor | None, rois: Tensor) -> Tensor:
    """Replace ``choose``: the conv head sees a share of the RoIs."""
    return torch.arange(round(share * len(rois)), device=rois.device)


def _infer(model: nn.Module, inputs: Any) -> object:
    return model.eval()(inputs)


def _train(model: nn.Module, *inputs: Any) -> None:
    training_step(model.train(), model, *inputs)


def _target(image: Tensor) -> Instances:
    size = (image.shape[1], image.shape[2])
    boxes = random_boxes(_NUM_OBJECTS, size)
    masks = torch.zeros(_NUM_OBJECTS, *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    classes = torch.arange(_NUM_OBJECTS)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=BitMasks(masks))


def _torchvision_model(image: Tensor, toy: bool) -> nn.Module:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    height, width = image.shape[1:]
    options: dict[str, int] = {"min_size": min(height, width), "max_size": max(height, width)}
    if toy:
        for mode in ("train", "test"):
            options[f"rpn_post_nms_top_n_{mode}"] = _TOY_PROPOSALS
    torch.manual_seed(0)
    return fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options)


def _torchvision_target(batch: list[dict[str, Any]], device: str) -> list[dict[str, Tensor]]:
    target = batch[0]["instances"].to(device)
    return [{"boxes": target.gt_boxes.tensor, "labels": target.gt_classes + 1}]


def _onnx_run(model: nn.Module, image: Tensor, path: Path) -> Run:
    """Export a detector for images of one size, and return its run on ONNX Runtime."""
    detector = ExportableDetector(inference_form(model.eval(), channels_last=False))
    write(detector, image, [path], fixed_size=True)
    return partial(load_exported(path), *detector.pad_input(image))


def _ratio(seconds: list[float] | None, baseline: list[float]) -> float:
    return _spread("", seconds, baseline)[""]


def _spread(name: str, seconds: list[float] | None, baseline: list[float]) -> dict[str, float]:
    """Return the median, the lowest and the highest ratio of times measured in the same turn."""
    nan = float("nan")
    ratios = [a / b for a, b in zip(seconds or [nan], baseline, strict=seconds is not None)]
    return {name: median(ratios), f"{name}_low": min(ratios), f"{name}_high": max(ratios)}
