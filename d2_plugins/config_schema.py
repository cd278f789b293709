"""Allowed values of the config keys in one table, and the check of a whole config against it.

A mistake in the config is reported before anything is built, in one line that names the key. The
components check their arguments themselves too, for use from Python without a config.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode

from .config import get_cfg
from .config_conflicts import check_combinations
from .errors import UsageError, nearest, shown

__all__ = ["RULES", "check_config"]


@dataclass(frozen=True)
class Rule:
    """The allowed values of a key.

    Attributes:
        allowed: phrase for the error message.
        holds: function from a value to True if it is allowed.
        names: function that returns the allowed names, if they are many; used for the message.
    """

    allowed: str
    holds: Callable[[Any], bool]
    names: Callable[[], Iterable[str]] | None = None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(low: int, high: int = 1_000_000_000) -> Rule:
    """Return the rule of an integer in [low, high]."""
    return Rule(
        f"a whole number from {low} to {high}",
        lambda v: _is_number(v) and isinstance(v, int) and low <= v <= high,
    )


def real(low: float = -math.inf, high: float = 1e9) -> Rule:
    """Return the rule of a finite number in [low, high]."""
    allowed = f"a number from {low:g} to {high:g}" if low > -math.inf else f"at most {high:g}"
    return Rule(allowed, lambda v: _is_number(v) and low <= v <= high)


def positive(high: float = 1e9) -> Rule:
    """Return the rule of a number in (0, high]."""
    return Rule(f"a number above 0, at most {high:g}", lambda v: _is_number(v) and 0 < v <= high)


def one_of(*values: Any) -> Rule:
    """Return the rule of a few names or numbers; an empty name is written as ''."""
    return Rule(
        ", ".join(str(v) or "''" for v in values),
        lambda v: any(type(v) is type(value) and v == value for value in values),
    )


def each(rule: Rule, *counts: int, least: int = 0) -> Rule:
    """Return the rule of a sequence.

    Args:
        rule: rule of each entry.
        counts: allowed numbers of entries; none allows any number.
        least: minimum number of entries.
    """
    many = " or ".join(map(str, counts)) or (f"at least {least}" if least else "any number of")
    entries = "entry" if many == "at least 1" else "entries"
    return Rule(
        f"{many} {entries}, each {rule.allowed}",
        lambda v: (
            isinstance(v, list | tuple)
            and len(v) >= least
            and (not counts or len(v) in counts)
            and all(map(rule.holds, v))
        ),
    )


def ascending(rule: Rule) -> Rule:
    """Return ``rule``, a rule of a sequence, for sequences in strictly ascending order."""
    return Rule(
        f"{rule.allowed}, in ascending order",
        lambda v: rule.holds(v) and all(a < b for a, b in itertools.pairwise(v)),
    )


def either(first: Rule, second: Rule) -> Rule:
    """Return the rule of values that one of two rules allows."""
    return Rule(
        f"{first.allowed}; or {second.allowed}", lambda v: first.holds(v) or second.holds(v)
    )


def named(kind: str, names: Callable[[], Iterable[str]]) -> Rule:
    """Return the rule of one of many names; the message gives the nearest."""
    return Rule(f"the name of a {kind}", lambda v: v in set(names()), names)


def _registry(name: str, *also: str, without: tuple[str, ...] = ()) -> Rule:
    """Return the rule of a name in a registry of detectron2."""

    def names() -> list[str]:
        from detectron2 import modeling
        from detectron2.modeling import proposal_generator, roi_heads

        from . import modeling as _ours  # noqa: F401  (registers the components)

        places = (modeling, proposal_generator, roi_heads)
        attribute = f"{name}_REGISTRY"
        registry = next(getattr(p, attribute) for p in places if hasattr(p, attribute))
        return [*also, *(key for key, _ in registry if key not in without)]

    return named(f"registered {name}", names)


def _architectures() -> Iterable[str]:
    from .modeling.backbone.cspnet_archs import ARCHS

    return ARCHS


def _is_device(value: Any) -> bool:
    try:
        return torch.device(value).type in ("cpu", "cuda")
    except (RuntimeError, TypeError):
        return False


def _is_expected_result(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(name, str) for name in value[:2])
        and all(map(_is_number, value[2:]))
    )


_TEXT = Rule("text", lambda v: isinstance(v, str))
_FLAG = Rule("True or False", lambda v: isinstance(v, bool))
_SHARE = real(0, 1)
_WEIGHT = real(0)
_WIDTH = whole(1, 65536)
_COUNT = whole(0, 100)
_ODD = Rule("an odd number from 1 to 99", lambda v: type(v) is int and v in range(1, 100, 2))
_TOPK = whole(1, 1_000_000)
_PIXELS = whole(1, 100_000)
_CLASSES = whole(1, 100_000)
_NORM = one_of(
    "", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN"
)
_BOX_WEIGHTS = each(positive(), 4)
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_POOLER = one_of("ROIAlign", "ROIAlignV2", "ROIPool")
_SIZES = each(each(positive(100_000), least=1), least=1)
_THRESHOLDS = ascending(each(_SHARE, least=1))
_LABELS = each(one_of(-1, 0, 1), least=2)
_FEATURES = each(_TEXT)

# Keys that are not here must have the type of their default value, and finite numbers.
RULES: dict[str, Rule] = {
    "VERSION": one_of(2),
    "MODEL.META_ARCHITECTURE": _registry("META_ARCH"),
    "MODEL.DEVICE": Rule("cpu, cuda or cuda:N", _is_device),
    "MODEL.WEIGHTS_ALLOW_MISSING": _FEATURES,
    "MODEL.PIXEL_MEAN": each(real(-1e6, 1e6), 1, 3),
    "MODEL.PIXEL_STD": each(positive(), 1, 3),
    "MODEL.BACKBONE.NAME": _registry("BACKBONE"),
    "MODEL.BACKBONE.FREEZE_AT": whole(0, 6),
    "MODEL.FPN.IN_FEATURES": _FEATURES,
    "MODEL.FPN.OUT_CHANNELS": _WIDTH,
    "MODEL.FPN.NORM": _NORM,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": each(_TEXT, least=1),
    "MODEL.RESNETS.NUM_GROUPS": _WIDTH,
    "MODEL.RESNETS.NORM": _NORM,
    "MODEL.RESNETS.WIDTH_PER_GROUP": _WIDTH,
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": _WIDTH,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": _WIDTH,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": each(_FLAG, 4),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": _WIDTH,
    "MODEL.CSPNET.ARCH": named("CSPNet architecture", _architectures),
    "MODEL.CSPNET.NORM": one_of("FrozenBN", "BN", "SyncBN", "GN"),
    "MODEL.CSPNET.WIDTH_MULTIPLIER": positive(64),
    "MODEL.CSPNET.DEPTH_MULTIPLIER": positive(64),
    "MODEL.CSPNET.OUT_FEATURES": each(_TEXT, least=1),
    "MODEL.CSPNET.LEAKY_SLOPE": real(0, 1),
    "MODEL.ATTENTION.NAME": one_of("", "eca", "cbam", "se", "local"),
    "MODEL.ATTENTION.POSITION": one_of(
        "block_mid", "block_out", "branch", "concat", "stage_out", "cross"
    ),
    "MODEL.ATTENTION.STAGES": each(_FLAG, 4, 5),
    "MODEL.ATTENTION.REDUCTION": _WIDTH,
    "MODEL.ATTENTION.KERNEL_SIZES": each(_ODD),
    "MODEL.ATTENTION.WINDOW": one_of(*range(3, 32, 2)),
    "MODEL.ATTENTION.HEADS": _WIDTH,
    "MODEL.TIMM.OUT_INDICES": each(whole(-100, 100)),
    "MODEL.TIMM.NORM": one_of("FrozenBN", "BN", "SyncBN"),
    "MODEL.PROPOSAL_GENERATOR.NAME": _registry(
        "PROPOSAL_GENERATOR", "PrecomputedProposals", without=("RRPN",)
    ),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": whole(0, 100_000),
    "MODEL.ANCHOR_GENERATOR.NAME": _registry(
        "ANCHOR_GENERATOR", without=("RotatedAnchorGenerator",)
    ),
    "MODEL.ANCHOR_GENERATOR.SIZES": _SIZES,
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _SIZES,
    "MODEL.ANCHOR_GENERATOR.OFFSET": Rule(
        "a number from 0 to below 1", lambda v: _is_number(v) and 0 <= v < 1
    ),
    "MODEL.RPN.HEAD_NAME": _registry("RPN_HEAD"),
    "MODEL.RPN.IN_FEATURES": each(_TEXT, least=1),
    "MODEL.RPN.BOUNDARY_THRESH": whole(-1, 100_000),
    "MODEL.RPN.IOU_THRESHOLDS": _THRESHOLDS,
    "MODEL.RPN.IOU_LABELS": _LABELS,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": _TOPK,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RPN.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.RPN.LOSS_WEIGHT": _WEIGHT,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": _TOPK,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": _TOPK,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": _TOPK,
    "MODEL.RPN.POST_NMS_TOPK_TEST": _TOPK,
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.CONV_DIMS": each(either(one_of(-1), _WIDTH), least=1),
    "MODEL.CASCADE_RPN.NUM_STAGES": whole(1, 3),
    "MODEL.CASCADE_RPN.DILATION": whole(1, 100),
    "MODEL.CASCADE_RPN.BBOX_REG_WEIGHTS": each(_BOX_WEIGHTS, least=1),
    "MODEL.CASCADE_RPN.BBOX_REG_LOSS_TYPE": one_of("iou", "giou"),
    "MODEL.CASCADE_RPN.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.CASCADE_RPN.CLS_LOSS_WEIGHT": _WEIGHT,
    "MODEL.CASCADE_RPN.CENTER_RATIO": _SHARE,
    "MODEL.CASCADE_RPN.IGNORE_RATIO": _SHARE,
    "MODEL.CASCADE_RPN.CELLS_PER_POSITIVE": positive(),
    "MODEL.CASCADE_RPN.IOU_THRESHOLD": positive(1),
    "MODEL.CASCADE_RPN.LOW_QUALITY_IOU": positive(1),
    "MODEL.CASCADE_RPN.SIZE_DIVISIBILITY": whole(1, 1024),
    "MODEL.ROI_HEADS.NAME": _registry("ROI_HEADS", without=("RROIHeads",)),
    "MODEL.ROI_HEADS.NUM_CLASSES": _CLASSES,
    "MODEL.ROI_HEADS.IN_FEATURES": each(_TEXT, least=1),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _THRESHOLDS,
    "MODEL.ROI_HEADS.IOU_LABELS": _LABELS,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": _TOPK,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_BOX_HEAD.NAME": _registry("ROI_BOX_HEAD", ""),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _WEIGHT,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": whole(1, 1000),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": _COUNT,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_BOX_HEAD.NUM_FC": _COUNT,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _WIDTH,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": _COUNT,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _WIDTH,
    "MODEL.ROI_BOX_HEAD.NORM": _NORM,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": each(_BOX_WEIGHTS, least=1),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": each(_SHARE, least=1),
    "MODEL.ROI_MASK_HEAD.NAME": _registry("ROI_MASK_HEAD"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": whole(1, 1000),
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": _COUNT,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": _COUNT,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": _WIDTH,
    "MODEL.ROI_MASK_HEAD.NORM": _NORM,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": _registry("ROI_KEYPOINT_HEAD"),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": whole(1, 1000),
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO": _COUNT,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": each(_WIDTH, least=1),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": _WIDTH,
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": whole(0, 65536),
    "MODEL.ROI_KEYPOINT_HEAD.LOSS_WEIGHT": _WEIGHT,
    "MODEL.DOUBLE_HEAD.NUM_FC": whole(1, 100),
    "MODEL.DOUBLE_HEAD.FC_DIM": _WIDTH,
    "MODEL.DOUBLE_HEAD.NUM_CONV": _COUNT,
    "MODEL.DOUBLE_HEAD.CONV_DIM": _WIDTH,
    "MODEL.DOUBLE_HEAD.CONV_BLOCKS": one_of("bottleneck", "nonlocal"),
    "MODEL.DOUBLE_HEAD.NL_GROUPS": _WIDTH,
    "MODEL.DOUBLE_HEAD.NORM": one_of(
        "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "GN", "LN"
    ),
    "MODEL.DOUBLE_HEAD.REG_ROI_SCALE": positive(100),
    "MODEL.DOUBLE_HEAD.LAMBDA_FC": positive(1),
    "MODEL.DOUBLE_HEAD.LAMBDA_CONV": positive(1),
    "MODEL.DOUBLE_HEAD.LOSS_WEIGHT_FC": _WEIGHT,
    "MODEL.DOUBLE_HEAD.LOSS_WEIGHT_CONV": _WEIGHT,
    "MODEL.DOUBLE_HEAD.FUSION": one_of("complementary", "fc", "conv", "max", "mean"),
    "MODEL.DOUBLE_HEAD.BOX_FUSION": one_of("conv", "fc", "mean"),
    "MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE": either(one_of(None), real(-1, 1)),
    "MODEL.DOUBLE_HEAD.CONV_HEAD_NMS_THRESH": _SHARE,
    "MODEL.DOUBLE_HEAD.CONV_HEAD_LR_FACTOR": _WEIGHT,
    "MODEL.INVERTED_ATTENTION.MODE": one_of("spatial", "channel", "both", "random"),
    "MODEL.INVERTED_ATTENTION.SPATIAL_DROP": _SHARE,
    "MODEL.INVERTED_ATTENTION.CHANNEL_DROP": _SHARE,
    "MODEL.INVERTED_ATTENTION.ROI_CHOICE": one_of("hard", "random", "all"),
    "MODEL.INVERTED_ATTENTION.FG_FRACTION": _SHARE,
    "MODEL.INVERTED_ATTENTION.BG_FRACTION": _SHARE,
    "MODEL.INVERTED_ATTENTION.MIN_CHANGE": _SHARE,
    "MODEL.INVERTED_ATTENTION.APPLY_TO": one_of("both", "cls"),
    "MODEL.INVERTED_ATTENTION.START_ITER": whole(0),
    "MODEL.RETINANET.NUM_CLASSES": _CLASSES,
    "MODEL.RETINANET.IN_FEATURES": each(_TEXT, least=1),
    "MODEL.RETINANET.NUM_CONVS": _COUNT,
    "MODEL.RETINANET.IOU_THRESHOLDS": _THRESHOLDS,
    "MODEL.RETINANET.IOU_LABELS": _LABELS,
    "MODEL.RETINANET.PRIOR_PROB": Rule(
        "a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1
    ),
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": _TOPK,
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": _WEIGHT,
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": _SHARE,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _WEIGHT,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSS,
    "MODEL.RETINANET.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.NAME": _registry("SEM_SEG_HEADS"),
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": each(_TEXT, least=1),
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": whole(0, 65535),
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": _CLASSES,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": _WIDTH,
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": one_of(4, 8, 16, 32),
    "MODEL.SEM_SEG_HEAD.NORM": _NORM,
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": _WEIGHT,
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": _WEIGHT,
    "INPUT.MIN_SIZE_TRAIN": each(_PIXELS, least=1),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": _PIXELS,
    "INPUT.MIN_SIZE_TEST": whole(0, 100_000),
    "INPUT.MAX_SIZE_TEST": _PIXELS,
    "INPUT.RANDOM_FLIP": one_of("none", "horizontal", "vertical"),
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": each(positive(100_000), 2),
    "INPUT.FORMAT": one_of("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "DATASETS.TRAIN": each(_TEXT),
    "DATASETS.TEST": each(_TEXT),
    "DATASETS.PROPOSAL_FILES_TRAIN": each(_TEXT),
    "DATASETS.PROPOSAL_FILES_TEST": each(_TEXT),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": _TOPK,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": _TOPK,
    "DATALOADER.NUM_WORKERS": whole(0, 1024),
    # detectron2's other samplers read keys that its own config lacks.
    "DATALOADER.SAMPLER_TRAIN": one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
    "DATALOADER.REPEAT_THRESHOLD": _WEIGHT,
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"
    ),
    "SOLVER.MAX_ITER": whole(1),
    "SOLVER.BASE_LR": _WEIGHT,
    "SOLVER.BASE_LR_END": _WEIGHT,
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.WEIGHT_DECAY": _WEIGHT,
    "SOLVER.WEIGHT_DECAY_NORM": _WEIGHT,
    "SOLVER.WEIGHT_DECAY_BIAS": either(one_of(None), _WEIGHT),
    "SOLVER.BIAS_LR_FACTOR": _WEIGHT,
    "SOLVER.GAMMA": _WEIGHT,
    "SOLVER.STEPS": ascending(each(whole(1))),
    "SOLVER.NUM_DECAYS": whole(1),
    "SOLVER.WARMUP_FACTOR": _WEIGHT,
    "SOLVER.WARMUP_ITERS": whole(0),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.CHECKPOINT_PERIOD": whole(1),
    "SOLVER.IMS_PER_BATCH": whole(1, 65536),
    "SOLVER.REFERENCE_WORLD_SIZE": whole(0, 65536),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": positive(),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": positive(),
    "SOLVER.ACCUMULATE": whole(1, 65536),
    "SOLVER.AMP.DTYPE": one_of("auto", "float16", "bfloat16"),
    "SOLVER.EMA.DECAY": Rule("at least 0 and below 1", lambda v: _is_number(v) and 0 <= v < 1),
    "TEST.EXPECTED_RESULTS": each(Rule("[task, metric, value, tolerance]", _is_expected_result)),
    "TEST.EVAL_PERIOD": whole(0),
    "TEST.KEYPOINT_OKS_SIGMAS": each(positive()),
    "TEST.DETECTIONS_PER_IMAGE": _TOPK,
    "TEST.AUG.MIN_SIZES": each(_PIXELS, least=1),
    "TEST.AUG.MAX_SIZE": _PIXELS,
    "TEST.PRECISE_BN.NUM_ITER": whole(1),
    "TEST.EARLY_STOP_PATIENCE": whole(0),
    "TEST.COCO_EVALUATOR": one_of("faster-coco-eval", "pycocotools"),
    "TEST.CORRUPTIONS": each(one_of("occlusion", "blur", "noise")),
    "TEST.CORRUPTION_SEED": whole(0, 2**32 - 1),
    "TEST.OCCLUSION_SHARE": _SHARE,
    "TEST.OCCLUSION_FILL": one_of("grey", "mean", "noise"),
    "TEST.BLUR_SIGMA": positive(1000),
    "TEST.NOISE_STD": real(0, 1e6),
    "OUTPUT_DIR": Rule("the name of a folder", lambda v: isinstance(v, str) and v.strip() != ""),
    "OUTPUT_WRITERS": each(one_of("wandb", "mlflow")),
    "SEED": whole(-1, 2**31 - 1),
    "VIS_PERIOD": whole(0),
}


def check_config(cfg: CfgNode) -> None:
    """Check every value of a config, and the combinations that do not work together.

    Args:
        cfg: a config with the keys of this package.

    Raises:
        UsageError: a value or a combination is not allowed; the message names the keys.
    """
    values = dict(_leaves(cfg, get_cfg()))
    for key, value in values.items():
        if key in RULES and not RULES[key].holds(value):
            raise UsageError(_refusal(key, value, RULES[key]))
    check_combinations(cfg)


def _leaves(node: CfgNode, defaults: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key and value of all leaves, which have the type of their default and are finite."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        # A key that the defaults lack was added in Python; only its numbers are checked.
        default = defaults.get(name, value) if isinstance(defaults, dict) else value
        if isinstance(default, dict) and not isinstance(value, dict):
            raise UsageError(f"{key} is {shown(value)}; allowed: a section of keys")
        if isinstance(value, dict) and not isinstance(default, dict):
            raise UsageError(f"{key} is {shown(dict(value))}; allowed: a value, not a section")
        if isinstance(value, dict):
            yield from _leaves(value, default, f"{key}.")
            continue
        sequence = isinstance(value, list | tuple) and isinstance(default, list | tuple)
        if default is not None and not sequence and type(value) is not type(default):
            kind = type(default).__name__
            raise UsageError(f"{key} is {shown(value)}; allowed: a value of type {kind}")
        if not _is_finite(value):
            raise UsageError(f"{key} is {shown(value)}; allowed: finite numbers")
        yield key, value


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _refusal(key: str, value: Any, rule: Rule) -> str:
    near = f". Nearest: {nearest(str(value), rule.names())}" if rule.names else ""
    return f"{key} is {shown(value)}; allowed: {rule.allowed}{near}"
