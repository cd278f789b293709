"""Config keys of d2_plugins, each under a comment.

Every default is "off" or the value of the paper: a detectron2 config to which these keys are added
builds the same model as before.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as _detectron2_get_cfg

__all__ = ["add_d2_plugins_config", "config_values", "get_cfg"]

_C = CN()

_C.MODEL = CN()

# Parameters that MODEL.WEIGHTS may lack, as shell patterns of their names in the model, for example
# ["backbone.bottom_up.res5.*"]; ["*"] allows all. By default, initial weights must fill the
# backbone, and weights to evaluate must fill everything.
_C.MODEL.WEIGHTS_ALLOW_MISSING = []

# ---------------------------------------------------------------------------------------------
# CSPNet, read by build_cspnet_backbone, build_cspnet_fpn_backbone and
# build_retinanet_cspnet_fpn_backbone.
# ---------------------------------------------------------------------------------------------
_C.MODEL.CSPNET = CN()
# Architecture: cspresnet50, cspresnet50d, cspresnet50w, cspresnext50, cspdarknet53, darknet53,
# cs3darknet_{s,m,l,x}, cs3darknet_focus_{s,m,l,x}. MODEL.BACKBONE.FREEZE_AT 1 freezes the stem (and
# a DarkNet's first stage, at stride 2), 2 also res2, and so on.
_C.MODEL.CSPNET.ARCH = "cspresnext50"
# FrozenBN, BN, SyncBN or GN. FrozenBN is for pretrained weights only.
_C.MODEL.CSPNET.NORM = "FrozenBN"
# Factor of every width (rounded to a multiple of 8). The groups of a ResNeXt are reduced where they
# do not divide a width.
_C.MODEL.CSPNET.WIDTH_MULTIPLIER = 1.0
# Factor of every depth (at least 1).
_C.MODEL.CSPNET.DEPTH_MULTIPLIER = 1.0
# Stages whose features are returned.
_C.MODEL.CSPNET.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
# Negative slope of the leaky ReLU of the architectures that have one: 0.01 in timm's weights, 0.1
# in darknet's.
_C.MODEL.CSPNET.LEAKY_SLOPE = 0.01
# Recompute the stages in the backward pass instead of storing their activations.
_C.MODEL.CSPNET.GRADIENT_CHECKPOINTING = False

# ---------------------------------------------------------------------------------------------
# Attention in the blocks of a CSPNet or of an attention ResNet.
# ---------------------------------------------------------------------------------------------
_C.MODEL.ATTENTION = CN()
# "" (none), "eca", "cbam", "se" or "local" (CSPNet only, at the position "cross").
_C.MODEL.ATTENTION.NAME = ""
# Place in a CSPNet: block_mid, block_out, branch, concat or stage_out, or cross for "local". A
# ResNet has block_out only.
_C.MODEL.ATTENTION.POSITION = "block_out"
# On or off for res2 to res5; a DarkNet also takes five entries, for res1 to res5.
_C.MODEL.ATTENTION.STAGES = [True, True, True, True]
# Channel reduction of CBAM and SE.
_C.MODEL.ATTENTION.REDUCTION = 16
# ECA's kernel sizes (odd), one per entry of STAGES; [] takes the formula of the paper.
_C.MODEL.ATTENTION.KERNEL_SIZES = []
# Rows and columns around a cell that it attends to in local attention: an odd number.
_C.MODEL.ATTENTION.WINDOW = 7
# Number of heads of local attention.
_C.MODEL.ATTENTION.HEADS = 8
# Exclude the padding of each image of a batch from global pooling.
_C.MODEL.ATTENTION.IGNORE_PADDING = True
# Also add attention to every output of the FPN.
_C.MODEL.ATTENTION.ON_FPN = False

# ---------------------------------------------------------------------------------------------
# Backbones of timm, read by build_timm_backbone, build_timm_fpn_backbone and
# build_retinanet_timm_fpn_backbone.
# ---------------------------------------------------------------------------------------------
_C.MODEL.TIMM = CN()
# Any timm model that supports features_only.
_C.MODEL.TIMM.NAME = ""
# Load timm's pretrained weights while the backbone is built, if MODEL.WEIGHTS is empty.
_C.MODEL.TIMM.PRETRAINED = False
# The same from a local file (.pth, .safetensors), which has precedence.
_C.MODEL.TIMM.CHECKPOINT = ""
# Feature indices of timm; [] takes those at strides 4, 8, 16 and 32.
_C.MODEL.TIMM.OUT_INDICES = []
# FrozenBN, BN (the norm of the model itself) or SyncBN.
_C.MODEL.TIMM.NORM = "FrozenBN"
# Recompute the stages in the backward pass instead of storing their activations.
_C.MODEL.TIMM.GRADIENT_CHECKPOINTING = False

# ---------------------------------------------------------------------------------------------
# Cascade RPN, read if MODEL.PROPOSAL_GENERATOR.NAME is "CascadeRPN". It also reads
# MODEL.RPN.{IN_FEATURES, PRE_NMS_TOPK_*, POST_NMS_TOPK_*, NMS_THRESH, BATCH_SIZE_PER_IMAGE,
# POSITIVE_FRACTION, LOSS_WEIGHT}. MODEL.ANCHOR_GENERATOR must give one anchor per cell, with
# OFFSET 0.
# ---------------------------------------------------------------------------------------------
_C.MODEL.CASCADE_RPN = CN()
# 1 to 3. The first stage has a dilated convolution, the others an adaptive one.
_C.MODEL.CASCADE_RPN.NUM_STAGES = 2
# Dilation of the convolution of the first stage.
_C.MODEL.CASCADE_RPN.DILATION = 3
# Weights of (dx, dy, dw, dh) per stage; stages beyond the list take its last entry.
_C.MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS = ((10.0, 10.0, 2.0, 2.0), (20.0, 20.0, 10.0, 10.0))
# "iou" (1 - IoU) or "giou".
_C.MODEL.CASCADE_RPN.BBOX_REG_LOSS_TYPE = "iou"
# Weight of the box regression loss; it is multiplied by MODEL.RPN.LOSS_WEIGHT.
_C.MODEL.CASCADE_RPN.BBOX_REG_LOSS_WEIGHT = 10.0
# Weight of the objectness loss; it is multiplied by MODEL.RPN.LOSS_WEIGHT.
_C.MODEL.CASCADE_RPN.CLS_LOSS_WEIGHT = 1.0
# First stage: cells in the ground-truth box shrunk to this share of its sides are positive.
_C.MODEL.CASCADE_RPN.CENTER_RATIO = 0.2
# First stage: further cells in the ground-truth box shrunk to this share are ignored.
_C.MODEL.CASCADE_RPN.IGNORE_RATIO = 0.5
# First stage: the divisor of its loss is the number of cells of the batch over this.
_C.MODEL.CASCADE_RPN.CELLS_PER_POSITIVE = 200.0
# Later stages: lowest IoU of a positive.
_C.MODEL.CASCADE_RPN.IOU_THRESHOLD = 0.7
# Later stages: lowest IoU at which a ground truth without a positive takes its best boxes.
_C.MODEL.CASCADE_RPN.LOW_QUALITY_IOU = 0.3
# Cells outside an image, whose size is rounded up to a multiple of this, do not match. It is the
# size divisibility of the backbone.
_C.MODEL.CASCADE_RPN.SIZE_DIVISIBILITY = 32

# ---------------------------------------------------------------------------------------------
# Double-Head, read by DoubleHeadROIHeads and CascadeDoubleHeadROIHeads.
# ---------------------------------------------------------------------------------------------
_C.MODEL.DOUBLE_HEAD = CN()
# Fc head: number of fully connected layers.
_C.MODEL.DOUBLE_HEAD.NUM_FC = 2
# Fc head: width of its layers.
_C.MODEL.DOUBLE_HEAD.FC_DIM = 1024
# Conv head: number of blocks after the one that widens the feature.
_C.MODEL.DOUBLE_HEAD.NUM_CONV = 4
# Conv head: width of its blocks.
_C.MODEL.DOUBLE_HEAD.CONV_DIM = 1024
# Conv head: "bottleneck" (residual) or "nonlocal" (a non-local unit and a bottleneck; the best
# model of the paper has NUM_CONV 2 of these).
_C.MODEL.DOUBLE_HEAD.CONV_BLOCKS = "bottleneck"
# Channel groups of a non-local unit.
_C.MODEL.DOUBLE_HEAD.NL_GROUPS = 4
# Norm of the conv head.
_C.MODEL.DOUBLE_HEAD.NORM = "BN"
# Factor by which the RoI of the conv head is enlarged about its centre. With 1.0 both heads share
# one pooled feature.
_C.MODEL.DOUBLE_HEAD.REG_ROI_SCALE = 1.3
# Share of classification in the loss of the fc head; the rest is box regression. 1.0 here and in
# LAMBDA_CONV is Double-Head, 0.7 and 0.8 is Double-Head-Ext.
_C.MODEL.DOUBLE_HEAD.LAMBDA_FC = 1.0
# Share of box regression in the loss of the conv head; the rest is classification.
_C.MODEL.DOUBLE_HEAD.LAMBDA_CONV = 1.0
# Weight of the fc head's loss.
_C.MODEL.DOUBLE_HEAD.LOSS_WEIGHT_FC = 2.0
# Weight of the conv head's loss.
_C.MODEL.DOUBLE_HEAD.LOSS_WEIGHT_CONV = 2.5
# Class scores at inference if the conv head classifies too (LAMBDA_CONV < 1): complementary, fc,
# conv, max or mean. Otherwise they are those of the fc head.
_C.MODEL.DOUBLE_HEAD.FUSION = "complementary"
# Boxes, at inference and wherever training uses predicted boxes: conv (the paper's), or where the
# fc head has boxes too (LAMBDA_FC < 1) fc or mean (of the two heads' deltas).
_C.MODEL.DOUBLE_HEAD.BOX_FUSION = "conv"
# At inference, RoIs whose best foreground score of the fc head does not exceed this skip the conv
# head. -1.0: all RoIs go through it. None: the highest value known to cost nothing, which is
# ROI_HEADS.SCORE_THRESH_TEST where the scores are the fc head's (then exact), else 0.05, and -1.0
# in a cascade.
_C.MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE = None
# At inference, RoIs that overlap a RoI of the same class with a better score of the fc head by more
# than this IoU skip the conv head; the overlap is that of the fc head's boxes if it has any. 1.0:
# none.
_C.MODEL.DOUBLE_HEAD.CONV_HEAD_NMS_THRESH = 1.0
# Not in the paper: start the last norm of each residual block of the conv head at zero.
_C.MODEL.DOUBLE_HEAD.ZERO_INIT_RESIDUAL = False
# Not in the paper: give the place within the RoI to the conv head as two more channels.
_C.MODEL.DOUBLE_HEAD.COORDINATES = False
# Not in the paper: train the conv head on foreground RoIs only (with LAMBDA_CONV 1, where it has no
# other loss).
_C.MODEL.DOUBLE_HEAD.CONV_HEAD_FOREGROUND_ONLY = False
# Not in the paper: factor of the conv head's learning rate.
_C.MODEL.DOUBLE_HEAD.CONV_HEAD_LR_FACTOR = 1.0

# ---------------------------------------------------------------------------------------------
# Inverted Attention. It needs one of PluginROIHeads, PluginCascadeROIHeads, DoubleHeadROIHeads and
# CascadeDoubleHeadROIHeads.
# ---------------------------------------------------------------------------------------------
_C.MODEL.INVERTED_ATTENTION = CN()
# Train the box head on features in which the most important parts are set to zero.
_C.MODEL.INVERTED_ATTENTION.ENABLED = False
# spatial (the authors' code), channel, both (places in the strongest channels only) or random
# (spatial or channel, drawn in each iteration).
_C.MODEL.INVERTED_ATTENTION.MODE = "spatial"
# Share of the places of a RoI that are switched off.
_C.MODEL.INVERTED_ATTENTION.SPATIAL_DROP = 18 / 49
# Share of the channels of a RoI that are switched off.
_C.MODEL.INVERTED_ATTENTION.CHANNEL_DROP = 1 / 3
# RoIs to mask: hard (those whose true class loses most probability), random or all.
_C.MODEL.INVERTED_ATTENTION.ROI_CHOICE = "hard"
# Largest share of the foreground RoIs that is masked (hard and random).
_C.MODEL.INVERTED_ATTENTION.FG_FRACTION = 1 / 5
# Largest share of the background RoIs that is masked (hard and random).
_C.MODEL.INVERTED_ATTENTION.BG_FRACTION = 1 / 30
# hard: the probability of the true class must fall by more than this.
_C.MODEL.INVERTED_ATTENTION.MIN_CHANGE = 0.01
# Masked feature in a Double-Head: that of "both" heads, or "cls" for the fc head only.
_C.MODEL.INVERTED_ATTENTION.APPLY_TO = "both"
# First iteration with Inverted Attention.
_C.MODEL.INVERTED_ATTENTION.START_ITER = 0

_C.MODEL.ROI_BOX_HEAD = CN()
# Weight of the classification loss, the counterpart of detectron2's BBOX_REG_LOSS_WEIGHT. Only the
# ROI_HEADS of this package read it; detectron2's always use 1.
_C.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT = 1.0

# ---------------------------------------------------------------------------------------------
# Training and evaluation.
# ---------------------------------------------------------------------------------------------
_C.SOLVER = CN()
# Number of equal parts into which the batch of an iteration is split: the model runs on one after
# another, and the optimizer steps once with the mean of their gradients. It divides the number of
# images per process.
_C.SOLVER.ACCUMULATE = 1
_C.SOLVER.AMP = CN()
# "auto" is float16 on CUDA and bfloat16 on a CPU.
_C.SOLVER.AMP.DTYPE = "auto"
_C.SOLVER.EMA = CN()
# Evaluate and save an exponential moving average of the weights.
_C.SOLVER.EMA.ENABLED = False
# Decay of the average per iteration; 0.9998 is a half-life of about 3500 iterations.
_C.SOLVER.EMA.DECAY = 0.9998
# Begin with a small decay, which grows up to DECAY.
_C.SOLVER.EMA.WARMUP = True

_C.TEST = CN()
# Write report.html into OUTPUT_DIR at the end of a training.
_C.TEST.REPORT = True
# Convert the model for Detector, "d2-plugins predict" and "d2-plugins export": norms folded into
# convolutions, channels-last where that is faster. Detections are the same up to rounding.
_C.TEST.INFERENCE_FORM = True
# Metric by which the best checkpoint is kept, e.g. "bbox/AP"; "" keeps none.
_C.TEST.BEST_METRIC = ""
# Stop the training after this number of evaluations without a better TEST.BEST_METRIC; 0 never
# does. Evaluations are every TEST.EVAL_PERIOD iterations.
_C.TEST.EARLY_STOP_PATIENCE = 0
# Engine of COCO evaluation: "faster-coco-eval" or "pycocotools"; both give the same numbers.
_C.TEST.COCO_EVALUATOR = "faster-coco-eval"
# Evaluate the average recall of the proposals of a two-stage detector, and of each stage of a
# proposal generator that has stages. The recall of a ProposalNetwork is always evaluated.
_C.TEST.PROPOSAL_RECALL = False
# Also evaluate on corrupted images: any of "occlusion", "blur" and "noise".
_C.TEST.CORRUPTIONS = []
# Seed of the corruptions; the same seed gives the same images.
_C.TEST.CORRUPTION_SEED = 0
# Occlusion: share of every ground-truth box that is under a patch.
_C.TEST.OCCLUSION_SHARE = 0.3
# Occlusion: content of the patch; "mean" is the mean colour of the image.
_C.TEST.OCCLUSION_FILL = "grey"
# Standard deviation of the Gaussian blur, in pixels of the image as stored.
_C.TEST.BLUR_SIGMA = 2.0
# Standard deviation of the Gaussian noise, in grey levels of 255.
_C.TEST.NOISE_STD = 25.0

# Tracking services that metrics are written to, besides metrics.json and TensorBoard: "wandb" and
# "mlflow". They need the extra of the same name, and read their own environment variables.
_C.OUTPUT_WRITERS = []


def get_cfg() -> CN:
    """Return detectron2's default config with the keys of d2_plugins added."""
    cfg = _detectron2_get_cfg()
    add_d2_plugins_config(cfg)
    return cfg


def add_d2_plugins_config(cfg: CN) -> None:
    """Add the keys of d2_plugins to ``cfg``, in place.

    A key that ``cfg`` already has keeps its value, so that a second call changes nothing.
    """
    _add_missing(cfg, _C.clone())


def config_values(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name and the value of every key of a config.

    Args:
        node: a config, or the nested dictionaries of a dumped one.
        prefix: beginning of the names.
    """
    for name, value in node.items():
        if isinstance(value, dict):
            yield from config_values(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _add_missing(cfg: CN, defaults: CN) -> None:
    for name, value in defaults.items():
        if name not in cfg:
            cfg[name] = value
        elif isinstance(value, CN):
            _add_missing(cfg[name], value)
