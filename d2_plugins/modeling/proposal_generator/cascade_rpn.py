"""Cascade RPN as a proposal generator of detectron2 (Vu et al., NeurIPS 2019, arXiv 1909.06720).

One anchor per cell is refined in stages. The first stage is a dilated convolution, matched without
anchors, by regions. Every later stage is an adaptive convolution that samples at the boxes of the
previous stage, and is matched by IoU. The last stage predicts the objectness. All numbers follow
mmdetection 3.

Shape shorthand:

    N: number of images
    L: number of levels
    Hi, Wi: height and width of level i
"""

import itertools
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
from .matching import CellGrid, valid_cells

__all__ = ["CascadeRPN"]

_MAX_STAGES = 3


@PROPOSAL_GENERATOR_REGISTRY.register()
class CascadeRPN(nn.Module):
    """Proposals from a cascade of stages, for any meta-architecture that takes detectron2's RPN.

    Use it as ``MODEL.PROPOSAL_GENERATOR.NAME: "CascadeRPN"``. Besides ``MODEL.CASCADE_RPN`` it
    reads the keys of ``MODEL.RPN`` that have the same meaning here: IN_FEATURES, PRE_NMS_TOPK_TRAIN
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
        """Initialize; the defaults are those of the paper's Faster R-CNN.

        Args:
            in_features: names of the feature maps, in order of increasing stride.
            anchor_generator: a module with the interface of detectron2's DefaultAnchorGenerator.
            stages: one to three stages. The first is not adaptive, the others are; the last one
                predicts objectness.
            criterion: matches cells with ground truth and computes the losses.
            pre_nms_topk: numbers of proposals kept per level before NMS, in training and in
                testing.
            post_nms_topk: numbers of proposals kept of all levels together after NMS, likewise.
            nms_thresh: IoU threshold of NMS, which runs per level.
            min_box_size: proposals need sides above this, in pixels.
            size_divisibility: the cells of an image are those within its size rounded up to this.

        Raises:
            ValueError: the anchors or the stages do not fit; the message names the config key.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.anchor_generator = anchor_generator
        self.anchor_scale = _anchor_scale(anchor_generator)
        _check_stages(stages)
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]
        self.criterion = criterion
        self.pre_nms_topk = {True: pre_nms_topk[0], False: pre_nms_topk[1]}
        self.post_nms_topk = {True: post_nms_topk[0], False: post_nms_topk[1]}
        self.nms_thresh = nms_thresh
        self.min_box_size = float(min_box_size)
        if size_divisibility < 1:
            raise ValueError(
                f"MODEL.CASCADE_RPN.SIZE_DIVISIBILITY is {size_divisibility}; allowed: 1 or more"
            )
        self.size_divisibility = size_divisibility

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Return the arguments of ``__init__`` that the config gives."""
        rpn, own = cfg.MODEL.RPN, cfg.MODEL.CASCADE_RPN
        shapes = _input_shapes(rpn.IN_FEATURES, input_shape)
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
        """Compute proposals and, in training, losses.

        Args:
            images: N images.
            features: feature maps (N, C, Hi, Wi) by name.
            gt_instances: ground truth of each image with ``gt_boxes``; needed in training only.

        Returns:
            The proposals of each image, best first, with ``proposal_boxes`` and
            ``objectness_logits``; and the losses ``loss_rpn_stage{i}_loc`` of every stage i,
            counted from 1, and ``loss_rpn_stage{i}_cls`` of the last one. No losses in inference.

        Raises:
            ValueError: training without ``gt_instances``.
            FloatingPointError: a prediction is not finite in training; the message says where.
        """
        outputs = self.run_stages(images, features)
        losses = {}
        if self.training:
            if gt_instances is None:
                raise ValueError("CascadeRPN needs gt_instances in training")
            _check_finite([features[f] for f in self.in_features], outputs, self.in_features)
            grid = self.grid(images, features)
            gt_boxes = [x.gt_boxes for x in gt_instances]
            losses = self.criterion(self.stages, outputs, gt_boxes, grid)
        return self.predict_proposals(outputs, images.image_sizes), losses

    def run_stages(self, images: ImageList, features: Mapping[str, Tensor]) -> list[StageOutput]:
        """Return the predictions of every stage, first to last, without NMS.

        Args:
            images: N images.
            features: as in :meth:`forward`.
        """
        maps = [features[f] for f in self.in_features]
        anchors = [a.tensor for a in self.anchor_generator(maps)]
        boxes = [a.expand(x.shape[0], -1, -1) for a, x in zip(anchors, maps, strict=True)]
        outputs = []
        for i, stage in enumerate(self.stages):
            # The next stage works on the hidden feature of this one, so its losses train both.
            maps, output = stage(maps, boxes, self.anchor_generator.strides)
            outputs.append(output)
            if i + 1 < len(self.stages):
                boxes = stage.refine(output, images.image_sizes)
        return outputs

    @torch.no_grad()
    def predict_proposals(
        self, outputs: Sequence[StageOutput], image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """Select the best boxes of the last stage: top-k and NMS per level, then top-k of all.

        Args:
            outputs: predictions of all stages.
            image_sizes: (height, width) of the N images.

        Returns:
            Proposals as from :meth:`forward`, without gradient.
        """
        return self._select(self.stages[-1].decode_all(outputs[-1]), outputs, image_sizes)

    @torch.no_grad()
    def stage_proposals(
        self, images: ImageList, features: Mapping[str, Tensor]
    ) -> dict[str, list[Instances]]:
        """Return the proposals of every stage, to compare their recall.

        The boxes of every stage get the final objectness of their cell and the usual selection.

        Args:
            images: N images.
            features: as in :meth:`forward`.

        Returns:
            "anchors", "stage1", "stage2", ...: N Instances each, best first, with
            ``proposal_boxes`` and ``objectness_logits``. The last entry is what :meth:`forward`
            returns.
        """
        outputs = self.run_stages(images, features)
        boxes = [output.boxes for output in outputs]
        boxes.append(self.stages[-1].decode_all(outputs[-1]))
        names = ["anchors"] + [f"stage{i}" for i in range(1, len(boxes))]
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
            outputs[-1].pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[self.training],
            self.post_nms_topk[self.training],
            self.min_box_size,
            self.training,
        )

    def grid(self, images: ImageList, features: Mapping[str, Tensor]) -> CellGrid:
        """Return the positions of the cells of a batch, and which of them belong to an image."""
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


def _input_shapes(names: Sequence[str], input_shape: Mapping[str, ShapeSpec]) -> list[ShapeSpec]:
    """Return the shapes of the named features.

    Raises:
        ValueError: no names, an unknown one, or different numbers of channels.
    """
    if not names or any(name not in input_shape for name in names):
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES is {list(names)}; allowed: one or more of "
            f"{', '.join(input_shape)}"
        )
    shapes = [input_shape[name] for name in names]
    if len({s.channels for s in shapes}) > 1:
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES is {list(names)}, with {[s.channels for s in shapes]} "
            "channels; allowed: features with the same number of channels"
        )
    return shapes


def _build_stages(node: CfgNode, channels: int) -> list[CascadeRPNStage]:
    """Build the stages that ``MODEL.CASCADE_RPN`` describes."""
    number, weights = node.NUM_STAGES, node.BBOX_REG_WEIGHTS
    if not 1 <= number <= _MAX_STAGES:
        raise ValueError(f"MODEL.CASCADE_RPN.NUM_STAGES is {number}; allowed: 1 to {_MAX_STAGES}")
    if not weights:
        raise ValueError(
            "MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS is empty; allowed: one entry or more, of four "
            "positive numbers each"
        )
    return [
        CascadeRPNStage(
            in_channels=channels,
            adaptive=i > 1,
            with_objectness=i == number,
            bbox_reg_weights=tuple(weights[min(i, len(weights)) - 1]),
            dilation=node.DILATION,
        )
        for i in range(1, number + 1)
    ]


def _check_stages(stages: Sequence[CascadeRPNStage]) -> None:
    """Raise ValueError unless the stages make a cascade."""
    if not stages:
        raise ValueError("CascadeRPN needs at least one stage")
    if [stage.adaptive for stage in stages] != [i > 0 for i in range(len(stages))]:
        raise ValueError("the first stage of CascadeRPN must not be adaptive, all others must be")
    if stages[-1].objectness is None:
        raise ValueError("the last stage of CascadeRPN needs with_objectness=True")


def _anchor_scale(generator: Any) -> float:
    """Return the side of the anchors in cells, the same on all levels.

    Raises:
        ValueError: there is not exactly one anchor per cell, the anchors are not centred on the
            cells' corners, their sides do not grow with the strides, or the strides do not double
            from level to level.
    """
    key = "MODEL.ANCHOR_GENERATOR."
    if generator.box_dim != 4 or set(generator.num_anchors) != {1}:
        raise ValueError(
            f"{key}SIZES and {key}ASPECT_RATIOS give {generator.num_anchors} anchors of "
            f"{generator.box_dim} numbers per cell; allowed for CascadeRPN: one upright anchor per "
            "cell, e.g. SIZES [[32], [64], [128], [256], [512]] and ASPECT_RATIOS [[1.0]]"
        )
    if getattr(generator, "offset", 0.0) != 0.0:
        raise ValueError(f"{key}OFFSET is {generator.offset}; allowed for CascadeRPN: 0.0")
    strides = list(generator.strides)
    # Objects are assigned to levels by powers of two of their size.
    if any(after != 2 * before for before, after in itertools.pairwise(strides)):
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES has the strides {strides}; allowed for CascadeRPN: ascending "
            "strides, each twice the one before"
        )
    areas = [(a[0, 2:] - a[0, :2]).prod().item() for a in generator.cell_anchors]
    scales = [area**0.5 / stride for area, stride in zip(areas, generator.strides, strict=True)]
    if max(scales) > 1.001 * min(scales):
        raise ValueError(
            f"{key}SIZES are {scales} times the strides of MODEL.RPN.IN_FEATURES, "
            f"{list(generator.strides)}; allowed for CascadeRPN: the same multiple on all levels"
        )
    return scales[0]


def _check_finite(
    maps: Sequence[Tensor], outputs: Sequence[StageOutput], names: Sequence[str]
) -> None:
    """Raise FloatingPointError unless all predictions are finite, naming where it began.

    Args:
        maps: features of the L levels.
        outputs: predictions of all stages.
        names: names of the levels.
    """
    predicted = [t for o in outputs for t in (*o.pred_deltas, *o.pred_objectness_logits)]
    # One sum per map finds most cases at the least cost; a sum of finite numbers may overflow, in
    # which case the search below finds nothing.
    if torch.stack([t.sum() for t in predicted]).isfinite().all():
        return
    groups = [("features", maps)]
    for number, output in enumerate(outputs, start=1):
        groups += [
            (f"deltas of stage {number}", output.pred_deltas),
            (f"logits of stage {number}", output.pred_objectness_logits),
        ]
    for what, tensors in groups:
        levels = [n for n, t in zip(names, tensors, strict=False) if not t.isfinite().all()]
        if levels:
            raise FloatingPointError(
                f"Cascade RPN: the {what} on {', '.join(levels)} are not finite: training has "
                "diverged. A lower SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS may help."
            )
