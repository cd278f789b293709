"""A detector with a fixed amount of work, so that its cost can be measured without its weights.

An untrained detector returns almost no proposals and detections, or far too many. Here the backbone
and the proposal generator run as usual, and the RoI heads receive a given number of random
proposals and detections.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

__all__ = ["FixedWork", "build_fixed_work", "random_boxes", "typical_size"]

_MULTIPLE = 32
_ROI_TASKS = ("mask_on", "keypoint_on")


class FixedWork(nn.Module):
    """Run a detector on one image with a given number of proposals and detections.

    Meta-architectures other than GeneralizedRCNN run unchanged and ignore both numbers: they have
    no RoI heads.
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
        """Draw the boxes and put the model into eval mode.

        Args:
            model: the detector.
            size: (H, W) of the image.
            num_proposals: number of RoIs of the box head.
            num_detections: number of RoIs of the mask and keypoint heads.
            seed: random seed of the boxes.
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
        """Return the outputs of all parts for ``image``, (3, H, W) in the model's input format."""
        model = self.model
        inputs = [{"image": image}]
        if not isinstance(model, GeneralizedRCNN):
            return model(inputs)
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        outputs: list[object] = []
        if isinstance(model, PanopticFPN):
            outputs.append(model.sem_seg_head(features, None)[0])
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
    """Switch masks and keypoints off: their RoIs would be the untrained detections."""
    tasks = {name: True for name in _ROI_TASKS if getattr(heads, name, False)}
    for name in tasks:
        setattr(heads, name, False)
    try:
        yield
    finally:
        for name in tasks:
            setattr(heads, name, True)


def random_boxes(number: int, size: tuple[int, int]) -> Tensor:
    """Return clipped boxes with log-uniform sides, 1/100 to 1/2 of the image's shorter side.

    Args:
        number: number of boxes, R.
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
    """Return (H, W) of a photo of aspect ratio 3:2 after test-time resizing, in multiples of 32."""
    height = cfg.INPUT.MIN_SIZE_TEST
    width = min(height * 3 // 2, cfg.INPUT.MAX_SIZE_TEST)
    return _round_up(height), _round_up(width)


def _round_up(side: int) -> int:
    return -(-side // _MULTIPLE) * _MULTIPLE


def build_fixed_work(cfg: CfgNode, size: tuple[int, int] | None = None) -> FixedWork:
    """Build a config's detector with random weights and the maximum of RoIs it has at test time.

    Args:
        cfg: config of the detector. ``MODEL.RPN.POST_NMS_TOPK_TEST`` (for precomputed proposals
            ``DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST``) and ``TEST.DETECTIONS_PER_IMAGE`` are the
            numbers of proposals and detections.
        size: (H, W) of the image; None is :func:`typical_size`.
    """
    cfg = cfg.clone()
    cfg.defrost()
    # All proposals: random weights score none of them high enough for a Double-Head's conv head.
    cfg.MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE = -1.0
    work = FixedWork(
        build_model(cfg),
        size or typical_size(cfg),
        num_proposals=cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST
        if cfg.MODEL.LOAD_PROPOSALS
        else cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        num_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    return work.to(cfg.MODEL.DEVICE)
