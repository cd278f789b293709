"""A detector given a fixed amount of work, so that its cost says something without its weights.

An untrained detector proposes and detects next to nothing, or far too much. Here the backbone and
the proposal generator run as they do, and the RoI heads get a stated number of random proposals and
detections.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

__all__ = ["FixedWork", "build_fixed_work", "random_boxes", "typical_size"]

_MULTIPLE = 32
_ROI_TASKS = ("mask_on", "keypoint_on")


class FixedWork(nn.Module):
    """One image through a detector, with as many proposals and detections as one asks for.

    Meta-architectures other than GeneralizedRCNN run as they are: what follows their proposals or
    boxes costs nothing, and both numbers are without effect.
    """

    boxes: Tensor

    def __init__(
        self,
        model: nn.Module,
        size: tuple[int, int],
        *,
        num_proposals: int,
        num_detections: int,
        seed: int = 0,
    ) -> None:
        """Draw the boxes and take the model to eval mode.

        Args:
            model: the detector.
            size: (H, W) of the image.
            num_proposals: RoIs of the box head.
            num_detections: RoIs of the mask and keypoint heads.
            seed: of the boxes.
        """
        super().__init__()
        self.model = model.eval()
        self.size = size
        self.num_proposals = num_proposals
        self.num_detections = num_detections
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            boxes = random_boxes(max(num_proposals, num_detections), size)
        self.register_buffer("boxes", boxes, persistent=False)

    def forward(self, image: Tensor) -> object:
        """What the parts return for ``image``, (3, H, W) as the model takes it."""
        model = self.model
        inputs = [{"image": image}]
        if not isinstance(model, GeneralizedRCNN):
            return model(inputs)
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        outputs: list[object] = []
        if model.proposal_generator is not None:
            outputs += model.proposal_generator(images, features, None)[0]
        with _boxes_alone(model.roi_heads):
            outputs += model.roi_heads(images, features, [self._proposals()], None)[0]
        return outputs + model.roi_heads.forward_with_given_boxes(features, [self._detections()])

    def _proposals(self) -> Instances:
        boxes = self.boxes[: self.num_proposals]
        return Instances(
            self.size,
            proposal_boxes=Boxes(boxes),
            objectness_logits=boxes.new_zeros(len(boxes)),
        )

    def _detections(self) -> Instances:
        boxes = self.boxes[: self.num_detections]
        return Instances(
            self.size,
            pred_boxes=Boxes(boxes),
            pred_classes=torch.zeros(len(boxes), dtype=torch.long, device=boxes.device),
            scores=boxes.new_ones(len(boxes)),
        )


@contextmanager
def _boxes_alone(heads: nn.Module) -> Iterator[None]:
    """RoI heads without masks and keypoints, whose RoIs would be their own detections."""
    tasks = {name: True for name in _ROI_TASKS if getattr(heads, name, False)}
    for name in tasks:
        setattr(heads, name, False)
    try:
        yield
    finally:
        for name in tasks:
            setattr(heads, name, True)


def random_boxes(number: int, size: tuple[int, int]) -> Tensor:
    """Boxes clipped to the image, with sides log-uniform from 1/100 to 1/2 of its shorter one.

    Args:
        number: R.
        size: (H, W) of the image in pixels.

    Returns:
        (R, 4), XYXY.
    """
    height, width = size
    centre = torch.rand(number, 2) * torch.tensor([width, height])
    sides = min(size) / 100 * 50 ** torch.rand(number, 2)
    boxes = Boxes(torch.cat([centre - sides / 2, centre + sides / 2], dim=1))
    boxes.clip(size)
    return boxes.tensor


def typical_size(cfg: CfgNode) -> tuple[int, int]:
    """(H, W) of a photograph of 2 by 3 as the config resizes it in testing, in multiples of 32."""
    height = cfg.INPUT.MIN_SIZE_TEST
    width = min(height * 3 // 2, cfg.INPUT.MAX_SIZE_TEST)
    return _round_up(height), _round_up(width)


def _round_up(side: int) -> int:
    return -(-side // _MULTIPLE) * _MULTIPLE


def build_fixed_work(cfg: CfgNode, size: tuple[int, int] | None = None) -> FixedWork:
    """The detector of a config with random weights, and the most work that it takes on in testing.

    Args:
        cfg: ``MODEL.RPN.POST_NMS_TOPK_TEST`` (or, of given proposals,
            ``DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST``) and ``TEST.DETECTIONS_PER_IMAGE`` say how
            much.
        size: (H, W) of the image; None takes :func:`typical_size`.
    """
    work = FixedWork(
        build_model(cfg),
        size or typical_size(cfg),
        num_proposals=cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        if cfg.MODEL.LOAD_PROPOSALS
        else cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        num_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    return work.to(cfg.MODEL.DEVICE)
