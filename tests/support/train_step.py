"""One training step and one evaluation of a toy detector on data of one's own."""

import functools
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from d2_plugins.data import CustomData, register_custom
from d2_plugins.data.loader import build_train_loader
from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.evaluation import build_evaluator
from tests.support.toy import toy_cfg

_OPTS: tuple[object, ...] = (
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("TEST.DETECTIONS_PER_IMAGE", 10),
)


def train_and_evaluate(
    json_file: Path, image_root: Path, *, needs_masks: bool = False
) -> dict[str, dict[str, float]]:
    """Register data with the pre-flight check, train a step and evaluate.

    Raises:
        UsageError: the check refuses the data.
    """
    paths = (str(json_file), str(image_root))
    data = register_custom(*paths, *paths, needs_masks=needs_masks)
    cfg = _cfg(data, json_file.parent, needs_masks)
    model = _model(len(data.class_names), needs_masks)
    loader = build_train_loader(cfg, PluginDatasetMapper(cfg, is_train=True))
    with EventStorage():
        losses = model.train()(next(iter(loader)))
    total = sum(losses.values())
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert torch.isfinite(total)
    (name,) = data.test_names
    evaluator = build_evaluator(cfg, name, cfg.OUTPUT_DIR)
    test_loader = build_detection_test_loader(
        cfg, name, mapper=PluginDatasetMapper(cfg, is_train=False)
    )
    return inference_on_dataset(model.eval(), test_loader, evaluator)


def _cfg(data: CustomData, folder: Path, needs_masks: bool) -> CfgNode:
    cfg = toy_cfg(folder / "output", [*_OPTS, "MODEL.MASK_ON", needs_masks])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = data.train_names, data.test_names
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.class_names)
    cfg.INPUT.MASK_FORMAT = data.mask_format or "polygon"
    return cfg


@functools.lru_cache(maxsize=8)
def _model(num_classes: int, needs_masks: bool) -> nn.Module:
    cfg = toy_cfg(Path("unused"), [*_OPTS, "MODEL.MASK_ON", needs_masks])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    return build_model(cfg)
