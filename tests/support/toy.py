"""A toy detection set and a toy detector, small enough for a training step in a test."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from d2_plugins import get_cfg, model_zoo

CLASSES = ("dark", "bright")


def write_toy_coco(
    folder: Path, num_images: int = 8, size: tuple[int, int] = (64, 80), seed: int = 0
) -> tuple[Path, Path]:
    """Render rectangles on noise, darker and brighter ones being the classes.

    Returns:
        The COCO json and the folder of images.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    image_root = folder / "images"
    image_root.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for image_id in range(num_images):
        pixels = rng.integers(100, 156, (height, width, 3), dtype=np.uint8)
        for _ in range(2):
            w, h = rng.integers(16, 40, 2)
            x, y = rng.integers(0, width - w), rng.integers(0, height - h)
            category = int(rng.integers(2))
            pixels[y : y + h, x : x + w] = (20, 235)[category]
            x, y, w, h = (int(value) for value in (x, y, w, h))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        name = f"{image_id:03d}.png"
        Image.fromarray(pixels).save(image_root / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    json_file = folder / "annotations.json"
    json_file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return json_file, image_root


# KEY VALUE pairs of a detector of 20 thousand parameters on 64-pixel images.
TOY_OPTS: tuple[str, ...] = (
    *("MODEL.CSPNET.ARCH", "cspresnext50"),
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", "0.125"),
    *("MODEL.CSPNET.DEPTH_MULTIPLIER", "0.2"),
    *("MODEL.FPN.OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "32"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", "2"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16"),
    *("MODEL.RPN.PRE_NMS_TOPK_TRAIN", "50"),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)"),
    *("INPUT.MAX_SIZE_TRAIN", "80"),
    *("INPUT.MIN_SIZE_TEST", "64"),
    *("INPUT.MAX_SIZE_TEST", "80"),
    *("DATALOADER.NUM_WORKERS", "0"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("SOLVER.WARMUP_ITERS", "0"),
    *("TEST.BEST_METRIC", "", "TEST.REPORT", "False"),
)


# key=value pairs that shrink configs/lazy/csp_cascade.py to a detector and a run of a second.
TOY_LAZY_OPTS: tuple[str, ...] = (
    "model.backbone.out_channels=16",
    "model.backbone.bottom_up.width_multiplier=0.125",
    "model.backbone.bottom_up.depth_multiplier=0.2",
    "model.backbone.bottom_up.norm=BN",
    "model.backbone.bottom_up.freeze_at=0",
    "model.proposal_generator.pre_nms_topk=[50,50]",
    "model.proposal_generator.post_nms_topk=[20,20]",
    "model.roi_heads.box_head.fc_dim=32",
    "model.roi_heads.box_head.conv_dim=32",
    "model.roi_heads.box_head.num_conv=1",
    "dataloader.train.mapper.augmentations.0.short_edge_length=[64]",
    "dataloader.test.mapper.augmentations.0.short_edge_length=64",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.init_checkpoint=''",
    "train.seed=0",
)


def toy_cfg(output_dir: Path, opts: Sequence[object] = ()) -> CfgNode:
    """The demo's config, shrunken to the toy detector."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("Demo/Base-shapes.yaml"), allow_unsafe=False)
    cfg.merge_from_list([*TOY_OPTS, *opts])
    cfg.OUTPUT_DIR = str(output_dir)
    return cfg


def lively_model(cfg: CfgNode) -> nn.Module:
    """A random detector with scores and boxes that depend on the image."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith((".bbox_pred.weight", ".cls_score.weight", "objectness_logits.weight")):
            nn.init.normal_(parameter, std=0.05)
    return model
