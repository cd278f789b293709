"""detectron2's own detector, small, and all that it gives: d2_plugins is not imported here.

Run as a program it says what detectron2 does in a process that has never seen d2_plugins.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from tests.support.helpers import REPO

STOCK_HEADS = ("StandardROIHeads", "CascadeROIHeads")
_SIZE = (64, 80)


def small_batch(seed: int = 0, objects: tuple[int, int] = (3, 0)) -> list[dict[str, Any]]:
    """Two images of 64 x 80, with as many objects (at most three) of two classes."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 75.0, 44.0], [8.0, 8.0, 24.0, 24.0]])
    masks = torch.zeros(3, *_SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return [
        {
            "image": torch.randint(0, 256, (3, *_SIZE), generator=generator, dtype=torch.uint8),
            "height": _SIZE[0],
            "width": _SIZE[1],
            "instances": Instances(
                _SIZE,
                gt_boxes=Boxes(boxes[:count]),
                gt_classes=torch.tensor([0, 1, 0])[:count],
                gt_masks=BitMasks(masks[:count]),
            ),
        }
        for count in objects
    ]


def make_stock(cfg: CfgNode, heads: str, mask: bool) -> CfgNode:
    """Make a default config that of a small Faster or Mask R-CNN of detectron2."""
    cfg.merge_from_file(str(REPO / "configs" / "Base-RCNN-FPN.yaml"), allow_unsafe=False)
    cfg.merge_from_list(
        [
            *("MODEL.DEVICE", "cpu", "MODEL.MASK_ON", mask, "MODEL.ROI_HEADS.NAME", heads),
            *("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
            *("MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 16),
            *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", heads == "CascadeROIHeads"),
            *("MODEL.ROI_MASK_HEAD.CONV_DIM", 8, "MODEL.ROI_HEADS.NUM_CLASSES", 2),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 10),
            *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TEST", 50),
        ]
    )
    return cfg


def behaviour(cfg: CfgNode) -> dict[str, Tensor]:
    """Initial weights, losses, gradients and detections of a config's model, by name."""
    return dict(_behaviour(cfg))


def _behaviour(cfg: CfgNode) -> Iterator[tuple[str, Tensor]]:
    torch.manual_seed(0)
    model = build_model(cfg).train()
    yield from ((name, value.clone()) for name, value in model.state_dict().items())
    torch.manual_seed(1)
    with EventStorage():
        losses = model(small_batch())
    sum(losses.values()).backward()
    yield from losses.items()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    yield from ((f"gradient of {name}", value) for name, value in gradients.items())
    model.eval()
    with torch.no_grad():
        outputs = model(small_batch())
    for i, output in enumerate(outputs):
        for name, value in output["instances"].get_fields().items():
            yield f"{name} of image {i}", value.tensor if isinstance(value, Boxes) else value


def main(path: str) -> None:
    """Write the behaviour of each stock detector to ``path``."""
    torch.set_num_threads(1)
    found = {
        (heads, mask): behaviour(make_stock(get_cfg(), heads, mask))
        for heads in STOCK_HEADS
        for mask in (False, True)
    }
    assert not any(name.startswith("d2_plugins") for name in sys.modules)
    torch.save(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
