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
    # Architecture: cspresnet50, cspresnext50, cspdarknet53, darknet53, cs3darknet_{s,m,l,x},
    # cs3darknet_focus_{s,m,l,x}.
    node.ARCH = "cspresnext50"
    # FrozenBN, BN, SyncBN or GN. FrozenBN is for pretrained weights only.
    node.NORM = "FrozenBN"
    # Multiplies every width (rounded to a multiple of 8) and every depth (at least 1).
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
    # On or off, for res2..res5.
    node.STAGES = [True, True, True, True]
    # Channel reduction of CBAM and SE.
    node.REDUCTION = 16
    # ECA's kernel size for res2..res5 (odd); [] takes the paper's formula.
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
    node = CN()
    return node


def _double_head() -> CN:
    node = CN()
    return node


def _inverted_attention() -> CN:
    node = CN()
    node.ENABLED = False
    return node


def _solver() -> dict[str, object]:
    return {}


def _amp() -> dict[str, object]:
    # "auto" is float16 on CUDA and bfloat16 on CPU.
    return {"DTYPE": "auto"}


def _test() -> dict[str, object]:
    return {
        # Keep the best checkpoint by this metric, e.g. "bbox/AP"; "" keeps none.
        "BEST_METRIC": "",
        # Engine of COCO evaluation: "faster-coco-eval" or "pycocotools", same numbers.
        "COCO_EVALUATOR": "faster-coco-eval",
    }


def _input() -> dict[str, object]:
    return {}
