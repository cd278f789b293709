"""Cascade RPN as a proposal generator of detectron2 (Vu et al., NeurIPS 2019, arXiv 1909.06720).

One anchor per cell is refined in stages. The first is a dilated convolution, matched without
anchors, by regions; every later one an adaptive convolution that samples at the boxes of the stage
before, matched by IoU. The last stage scores. Follows mmdetection 3's numbers throughout.

Shapes: N images, L levels, Hi, Wi of level i.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .cascade_rpn_loss import CascadeRPNLoss
from .cascade_rpn_stage import CascadeRPNStage, StageOutput
from .checks import anchor_scale, check_finite, check_stages, input_shapes
from .matching import CellGrid, valid_cells

__all__ = ["CascadeRPN"]

_MAX_STAGES = 3


@PROPOSAL_GENERATOR_REGISTRY.register()
class CascadeRPN(nn.Module):
    """Proposals from a cascade of stages, for any meta-architecture that takes detectron2's RPN.

    Use it as ``MODEL.PROPOSAL_GENERATOR.NAME: "CascadeRPN"``. Besides ``MODEL.CASCADE_RPN`` it
    reads those keys of ``MODEL.RPN`` that mean the same for both: IN_FEATURES, PRE_NMS_TOPK_TRAIN
    and _TEST, POST_NMS_TOPK_TRAIN and _TEST, NMS_THRESH, BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION
    and LOSS_WEIGHT; and ``MODEL.PROPOSAL_GENERATOR.MIN_SIZE``. ``MODEL.ANCHOR_GENERATOR`` must give
    one anchor per cell, without a half-cell shift (OFFSET 0).
    """

    anchor_generator: Any
    stages: Sequence[CascadeRPNStage]

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        anchor_generator: Any,
        stages: Sequence[CascadeRPNStage],
        criterion: CascadeRPNLoss,
        pre_nms_topk: tuple[int, int] = (2000, 1000),
        post_nms_topk: tuple[int, int] = (300, 300),
        nms_thresh: float = 0.8,
        min_box_size: float = 0.0,
        size_divisibility: int = 32,
    ) -> None:
        """Args:
        in_features: names of the feature maps, of growing stride.
        anchor_generator: a module with the interface of detectron2's DefaultAnchorGenerator.
        stages: one to three; the first not adaptive, the others adaptive, the last one with
            objectness.
        criterion: matches cells with ground truth and computes the losses.
        pre_nms_topk: proposals kept before NMS, per level, in training and in testing.
        post_nms_topk: proposals kept after NMS, of all levels together, likewise.
        nms_thresh: IoU of NMS, per level.
        min_box_size: proposals with a side not above this are dropped, in pixels.
        size_divisibility: an image's cells are those within its size rounded up to this.

        Raises:
            ValueError: the anchors or the stages do not fit; the message names the config key.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.anchor_generator = anchor_generator
        self.anchor_scale = anchor_scale(anchor_generator)
        check_stages(stages)
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.criterion = criterion
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        if size_divisibility < 1:
            raise ValueError(
                f"MODEL.CASCADE_RPN.SIZE_DIVISIBILITY must be at least 1, not {size_divisibility}"
            )
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments of ``__init__``, by the config."""
        rpn, own = cfg.MODEL.RPN, cfg.MODEL.CASCADE_RPN
        shapes = input_shapes(rpn.IN_FEATURES, input_shape)
        return {
            "in_features": rpn.IN_FEATURES,
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "stages": _build_stages(own, shapes[0].channels),
            "criterion": CascadeRPNLoss(
                regression_loss=own.BBOX_REG_LOSS_TYPE,
                regression_weight=own.BBOX_REG_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
                score_weight=own.CLS_LOSS_WEIGHT * rpn.LOSS_WEIGHT,
                center_ratio=own.CENTER_RATIO,
                ignore_ratio=own.IGNORE_RATIO,
                cells_per_positive=own.CELLS_PER_POSITIVE,
                iou_threshold=own.IOU_THRESHOLD,
                low_quality_iou=own.LOW_QUALITY_IOU,
                batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
                positive_fraction=rpn.POSITIVE_FRACTION,
            ),
            "pre_nms_topk": (rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
            "post_nms_topk": (rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
            "nms_thresh": rpn.NMS_THRESH,
            "min_box_size": cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
            "size_divisibility": own.SIZE_DIVISIBILITY,
        }

    def forward(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        gt_instances: Sequence[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Proposals and, in training, losses.

        Args:
            images: the N images.
            features: (N, C, Hi, Wi) by name.
            gt_instances: of each image, with ``gt_boxes``; needed in training only.

        Returns:
            Per image the proposals, best first, with ``proposal_boxes`` and ``objectness_logits``;
            and the losses ``loss_rpn_s{i}_reg`` and ``loss_rpn_s{i}_cls``, empty in inference.

        Raises:
            ValueError: training without ``gt_instances``.
            FloatingPointError: a prediction is not finite in training; the message says where.
        """
        outputs = self.run_stages(images, features)
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("CascadeRPN needs gt_instances in training")
            check_finite([features[f] for f in self.in_features], outputs, self.in_features)
            grid = self.grid(images, features)
            gt_boxes = [x.gt_boxes for x in gt_instances]
            losses = self.criterion(self.stages, outputs, gt_boxes, grid)
        return self.predict_proposals(outputs, images.image_sizes), losses

    def run_stages(self, images: ImageList, features: Mapping[str, Tensor]) -> list[StageOutput]:
        """What every stage predicts, first to last; no NMS.

        Args:
            images: the N images.
            features: as in :meth:`forward`.
        """
        maps = [features[f] for f in self.in_features]
        anchors = [a.tensor for a in self.anchor_generator(maps)]
        boxes = [a.expand(x.shape[0], -1, -1) for a, x in zip(anchors, maps, strict=True)]
        outputs = []
        for i, stage in enumerate(self.stages):
            # The hidden feature of a stage is what the next one works on: its losses train both.
            maps, output = stage(maps, boxes, self.anchor_generator.strides)
            outputs.append(output)
            if i + 1 < len(self.stages):
                boxes = stage.refine(output, images.image_sizes)
        return outputs

    @torch.no_grad()
    def predict_proposals(
        self, outputs: Sequence[StageOutput], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The best boxes of the last stage: top-k per level, NMS per level, top-k of all.

        Args:
            outputs: of all stages.
            image_sizes: (height, width) of the N images.

        Returns:
            See :meth:`forward`. Treated as fixed: no gradient.
        """
        return self._select(self.stages[-1].decode_all(outputs[-1]), outputs, image_sizes)

    @torch.no_grad()
    def stage_proposals(
        self, images: ImageList, features: Mapping[str, Tensor]
    ) -> dict[str, list[Instances]]:
        """Proposals as they would be without the later stages, to see what each stage buys.

        The boxes of every stage get the final objectness of their cell and the usual selection.

        Args:
            images: the N images.
            features: as in :meth:`forward`.

        Returns:
            "anchors", "stage1", "stage2", ...: N Instances each, best first, with
            ``proposal_boxes`` and ``objectness_logits``. The last entry is what :meth:`forward`
            returns.
        """
        outputs = self.run_stages(images, features)
        boxes = [output.boxes for output in outputs]
        boxes.append(self.stages[-1].decode_all(outputs[-1]))
        names = ["anchors"] + [f"stage{i + 1}" for i in range(len(outputs))]
        return {
            name: self._select(b, outputs, images.image_sizes)
            for name, b in zip(names, boxes, strict=True)
        }

    def _select(
        self,
        boxes: Sequence[Tensor],
        outputs: Sequence[StageOutput],
        image_sizes: Sequence[tuple[int, int]],
    ) -> list[Instances]:
        return find_top_rpn_proposals(
            boxes,
            outputs[-1].logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    def grid(self, images: ImageList, features: Mapping[str, Tensor]) -> CellGrid:
        """Where the cells of a batch are, and which belong to an image."""
        sizes = [(features[f].shape[2], features[f].shape[3]) for f in self.in_features]
        strides = self.anchor_generator.strides
        valid = valid_cells(
            images.image_sizes,
            sizes,
            strides,
            size_divisibility=self.size_divisibility,
            device=images.tensor.device,
        )
        return CellGrid(sizes, strides, self.anchor_scale, valid)


def _build_stages(node: CfgNode, channels: int) -> list[CascadeRPNStage]:
    """The stages by ``MODEL.CASCADE_RPN``."""
    number, weights = node.NUM_STAGES, node.BBOX_REG_WEIGHTS
    if not 1 <= number <= _MAX_STAGES:
        raise ValueError(f"MODEL.CASCADE_RPN.NUM_STAGES must be in 1..{_MAX_STAGES}, not {number}")
    if not weights:
        raise ValueError("MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS must have at least one entry")
    return [
        CascadeRPNStage(
            in_channels=channels,
            adaptive=i > 0,
            with_objectness=i == number - 1,
            bbox_reg_weights=tuple(weights[min(i, len(weights) - 1)]),
            dilation=node.DILATION,
        )
        for i in range(number)
    ]
