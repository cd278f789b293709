"""Config keys of d2_plugins: one node per method, each key under a comment.

Every default is "off" or the paper's value: a detectron2 config with these keys added builds the
same model as before.
"""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as _detectron2_get_cfg

__all__ = ["add_d2_plugins_config", "get_cfg"]


def get_cfg() -> CN:
    """detectron2's default config with the keys of d2_plugins added."""
    cfg = _detectron2_get_cfg()
    add_d2_plugins_config(cfg)
    return cfg


def add_d2_plugins_config(cfg: CN) -> None:
    """Add the keys of d2_plugins to ``cfg``, in place.

    Calling it twice is harmless: a node that is already there, with whatever values, is kept.
    """
    for name, node in (
        ("CSPNET", _cspnet()),
        ("ATTENTION", _attention()),
        ("TIMM", _timm()),
        ("CASCADE_RPN", _cascade_rpn()),
        ("DOUBLE_HEAD", _double_head()),
        ("INVERTED_ATTENTION", _inverted_attention()),
    ):
        if name not in cfg.MODEL:
            cfg.MODEL[name] = node
    for parent, keys in (
        (cfg.MODEL, _model()),
        (cfg.MODEL.ROI_BOX_HEAD, _roi_box_head()),
        (cfg.SOLVER, _solver()),
        (cfg.SOLVER.AMP, _amp()),
        (cfg.TEST, _test()),
        (cfg.INPUT, _input()),
    ):
        for name, value in keys.items():
            if name not in parent:
                parent[name] = value


def _cspnet() -> CN:
    node = CN()
    # Architecture: cspresnet50, cspresnet50d, cspresnet50w, cspresnext50, cspdarknet53, darknet53,
    # cs3darknet_{s,m,l,x}, cs3darknet_focus_{s,m,l,x}. MODEL.BACKBONE.FREEZE_AT: 1 is the stem (and
    # a DarkNet's first stage, at stride 2), 2 also res2, and so on.
    node.ARCH = "cspresnext50"
    # FrozenBN, BN, SyncBN or GN. FrozenBN is for pretrained weights only.
    node.NORM = "FrozenBN"
    # Multiplies every width (rounded to a multiple of 8) and every depth (at least 1). Groups of
    # ResNeXt shrink where they no longer divide a width.
    node.WIDTH_MULTIPLIER = 1.0
    node.DEPTH_MULTIPLIER = 1.0
    node.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Negative slope of the leaky ReLU of the leaky architectures: 0.01 in timm's weights, 0.1 in
    # darknet's.
    node.LEAKY_SLOPE = 0.01
    # Recompute the stages in the backward pass instead of storing their activations.
    node.GRADIENT_CHECKPOINTING = False
    return node


def _attention() -> CN:
    node = CN()
    # "" (none), "eca", "cbam" or "se".
    node.NAME = ""
    # Where, in CSPNet: block_mid, block_out, branch, concat or stage_out. A ResNet has block_out.
    node.POSITION = "block_out"
    # On or off, for res2..res5; a DarkNet also takes five entries, for res1..res5.
    node.STAGES = [True, True, True, True]
    # Channel reduction of CBAM and SE.
    node.REDUCTION = 16
    # ECA's kernel sizes (odd), as many as STAGES; [] takes the paper's formula.
    node.KERNEL_SIZES = []
    # Global pooling leaves out the padding of each image of a batch.
    node.IGNORE_PADDING = True
    # Also on every output of the FPN.
    node.ON_FPN = False
    return node


def _timm() -> CN:
    node = CN()
    # Any timm model that supports features_only.
    node.NAME = ""
    # Weights: from timm's hub, or from a local file (.pth, .safetensors), which wins.
    node.PRETRAINED = False
    node.CHECKPOINT = ""
    # timm's feature indices; [] takes those at strides 4, 8, 16 and 32.
    node.OUT_INDICES = []
    # FrozenBN, BN (the model's own) or SyncBN.
    node.NORM = "FrozenBN"
    node.GRADIENT_CHECKPOINTING = False
    return node


def _cascade_rpn() -> CN:
    # Read when MODEL.PROPOSAL_GENERATOR.NAME is "CascadeRPN", beside MODEL.RPN.{IN_FEATURES,
    # PRE_NMS_TOPK_*, POST_NMS_TOPK_*, NMS_THRESH, BATCH_SIZE_PER_IMAGE, POSITIVE_FRACTION,
    # LOSS_WEIGHT}. MODEL.ANCHOR_GENERATOR must give one anchor per cell, with OFFSET 0.
    node = CN()
    # 1 to 3. The first stage is a dilated convolution, the others are adaptive.
    node.NUM_STAGES = 2
    # Dilation of the first stage's convolution.
    node.DILATION = 3
    # Weights of (dx, dy, dw, dh) of each stage; stages beyond the list take its last entry.
    node.BBOX_REG_WEIGHTS = ((10.0, 10.0, 2.0, 2.0), (20.0, 20.0, 10.0, 10.0))
    # "iou" (1 - IoU) or "giou".
    node.BBOX_REG_LOSS_TYPE = "iou"
    # Loss weights; MODEL.RPN.LOSS_WEIGHT multiplies both.
    node.BBOX_REG_LOSS_WEIGHT = 10.0
    node.CLS_LOSS_WEIGHT = 1.0
    # First stage: cells within the box shrunk to CENTER_RATIO of its sides are positive, others
    # within IGNORE_RATIO are ignored.
    node.CENTER_RATIO = 0.2
    node.IGNORE_RATIO = 0.5
    # First stage: its loss is divided by the number of cells of the batch over this.
    node.CELLS_PER_POSITIVE = 200.0
    # Later stages: IoU of a positive, and the least IoU at which a ground truth takes its best
    # boxes all the same.
    node.IOU_THRESHOLD = 0.7
    node.LOW_QUALITY_IOU = 0.3
    # Cells within an image's size rounded up to this can match; it is the backbone's.
    node.SIZE_DIVISIBILITY = 32
    return node


def _double_head() -> CN:
    node = CN()
    # The fc head: number and width of its fully connected layers.
    node.NUM_FC = 2
    node.FC_DIM = 1024
    # The conv head: number of blocks after the widening one, and their width. A block is
    # "bottleneck" (residual) or "nonlocal" (a non-local unit followed by a bottleneck: the paper's
    # best model has NUM_CONV 2 of these).
    node.NUM_CONV = 4
    node.CONV_DIM = 1024
    node.CONV_BLOCKS = "bottleneck"
    # Channel groups of a non-local unit.
    node.NL_GROUPS = 4
    # Norm of the conv head: BN, SyncBN, nnSyncBN, naiveSyncBN, naiveSyncBN_N, GN or LN.
    node.NORM = "BN"
    # The conv head sees the RoI enlarged about its centre by this factor. 1.0: both heads share
    # one pooled feature.
    node.REG_ROI_SCALE = 1.3
    # Share of each head's loss that goes to its own task: classes for the fc head, boxes for the
    # conv head. In (0, 1]; 1.0 for both is the plain Double-Head, 0.7 and 0.8 Double-Head-Ext.
    node.LAMBDA_FC = 1.0
    node.LAMBDA_CONV = 1.0
    # Weight of each head's loss.
    node.LOSS_WEIGHT_FC = 2.0
    node.LOSS_WEIGHT_CONV = 2.5
    # Class scores at inference where the conv head classifies too (LAMBDA_CONV < 1):
    # complementary, fc, conv, max or mean. Without, they are the fc head's.
    node.FUSION = "complementary"
    return node


def _inverted_attention() -> CN:
    node = CN()
    # Needs one of our ROI_HEADS: PluginROIHeads, PluginCascadeROIHeads, DoubleHeadROIHeads,
    # CascadeDoubleHeadROIHeads.
    node.ENABLED = False
    # spatial (the authors' code), channel, both (places only in the strongest channels) or random
    # (spatial or channel, drawn in each iteration).
    node.MODE = "spatial"
    # Share of the places and of the channels of a RoI that are switched off, in [0, 1].
    node.SPATIAL_DROP = 18 / 49
    node.CHANNEL_DROP = 1 / 3
    # RoIs to mask: hard (those whose true class suffers most from it), random or all.
    node.ROI_CHOICE = "hard"
    # At most these shares of the foreground and of the background RoIs (hard and random).
    node.FG_FRACTION = 1 / 5
    node.BG_FRACTION = 1 / 30
    # hard: the probability of the true class must fall by more than this.
    node.MIN_CHANGE = 0.01
    # Whose feature is masked in a Double-Head: both heads', or "cls" (the fc head's only).
    node.APPLY_TO = "both"
    # First iteration with Inverted Attention.
    node.START_ITER = 0
    return node


def _model() -> dict[str, object]:
    return {
        # What MODEL.WEIGHTS need not fill, as shell patterns of names in the model, for example
        # ["backbone.bottom_up.res5.*"]; ["*"] is anything. Without, weights to start training from
        # must fill the backbone, and those to evaluate everything.
        "WEIGHTS_ALLOW_MISSING": [],
    }


def _roi_box_head() -> dict[str, object]:
    return {
        # Weight of the classification loss, beside detectron2's BBOX_REG_LOSS_WEIGHT. Heard by our
        # ROI_HEADS; detectron2's own know only 1.
        "CLS_LOSS_WEIGHT": 1.0,
    }


def _solver() -> dict[str, object]:
    return {"EMA": _ema()}


def _ema() -> CN:
    node = CN()
    # Evaluate and save an exponential moving average of the weights.
    node.ENABLED = False
    node.DECAY = 0.9998
    # Begin with a small decay, which grows up to DECAY.
    node.WARMUP = True
    return node


def _amp() -> dict[str, object]:
    # "auto" is float16 on CUDA and bfloat16 on CPU.
    return {"DTYPE": "auto"}


def _test() -> dict[str, object]:
    return {
        # Write report.html into OUTPUT_DIR at the end of a training.
        "REPORT": True,
        # Keep the best checkpoint by this metric, e.g. "bbox/AP"; "" keeps none.
        "BEST_METRIC": "",
        # Engine of COCO evaluation: "faster-coco-eval" or "pycocotools", same numbers.
        "COCO_EVALUATOR": "faster-coco-eval",
        # Average recall of the proposals inside a two-stage detector, of each stage too where the
        # proposal generator has stages. A ProposalNetwork has the recall of its output always.
        "PROPOSAL_RECALL": False,
        # Evaluate also on corrupted images: any of "occlusion", "blur" and "noise". They repeat
        # for the same CORRUPTION_SEED.
        "CORRUPTIONS": [],
        "CORRUPTION_SEED": 0,
        # Share of every ground-truth box under a patch, which is "grey", "mean" (the image's mean
        # colour) or "noise".
        "OCCLUSION_SHARE": 0.3,
        "OCCLUSION_FILL": "grey",
        # Standard deviation of the Gaussian blur, in pixels of the image as stored.
        "BLUR_SIGMA": 2.0,
        # Standard deviation of the Gaussian noise, in grey levels of 255.
        "NOISE_STD": 25.0,
    }


def _input() -> dict[str, object]:
    return {}
