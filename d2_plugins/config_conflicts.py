"""Combinations of config values that do not work together.

What a value alone may be is in the table of :mod:`.config_schema`.
"""

from collections.abc import Iterator

from detectron2.config import CfgNode

from .errors import UsageError, shown

__all__ = ["check_combinations"]

# Models without RoI heads; MODEL.ROI_HEADS.NAME has no effect on them.
_WITHOUT_ROI_HEADS = ("RetinaNet", "FCOS", "ProposalNetwork", "SemanticSegmentor")


def check_combinations(cfg: CfgNode) -> None:
    """Refuse values that do not work together, or of which one would silently be ignored.

    Args:
        cfg: a config with the keys of this package.

    Raises:
        UsageError: a combination is not allowed; the message names the keys.
    """
    for problem in _conflicts(cfg):
        raise UsageError(problem)


def _conflicts(cfg: CfgNode) -> Iterator[str]:
    """Yield a message for each combination of values that does not work."""
    yield from _proposal_conflicts(cfg)
    yield from _roi_head_conflicts(cfg)
    yield from _matcher_conflicts(cfg)
    yield from _input_conflicts(cfg)
    yield from _early_stop_conflicts(cfg)
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and cfg.SOLVER.IMS_PER_BATCH % reference:
        yield (
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; allowed with "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}: its multiples"
        )
    elif reference and cfg.SOLVER.IMS_PER_BATCH // reference % cfg.SOLVER.ACCUMULATE:
        yield (
            f"SOLVER.ACCUMULATE is {cfg.SOLVER.ACCUMULATE}; allowed with SOLVER.IMS_PER_BATCH "
            f"{cfg.SOLVER.IMS_PER_BATCH} and SOLVER.REFERENCE_WORLD_SIZE {reference}: divisors of "
            f"{cfg.SOLVER.IMS_PER_BATCH // reference}, the number of images per process"
        )


def _early_stop_conflicts(cfg: CfgNode) -> Iterator[str]:
    test = cfg.TEST
    for key, needed in (("BEST_METRIC", "a metric such as bbox/AP"), ("EVAL_PERIOD", "at least 1")):
        if test.EARLY_STOP_PATIENCE and not test[key]:
            yield (
                f"TEST.{key} is {shown(test[key])}; allowed with TEST.EARLY_STOP_PATIENCE "
                f"{test.EARLY_STOP_PATIENCE}: {needed}"
            )


def _proposal_conflicts(cfg: CfgNode) -> Iterator[str]:
    model, generator = cfg.MODEL, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    precomputed = generator == "PrecomputedProposals"
    has_generator = model.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN", "ProposalNetwork")
    if model.LOAD_PROPOSALS != precomputed and has_generator:
        yield (
            f"MODEL.LOAD_PROPOSALS is {model.LOAD_PROPOSALS}; allowed with "
            f"MODEL.PROPOSAL_GENERATOR.NAME {generator}, which "
            f"{'proposes no boxes itself' if precomputed else 'does not read them'}: {precomputed}"
        )
    for split in ("TRAIN", "TEST") if model.LOAD_PROPOSALS else ():
        files, names = cfg.DATASETS[f"PROPOSAL_FILES_{split}"], cfg.DATASETS[split]
        if len(files) != len(names):
            yield (
                f"DATASETS.PROPOSAL_FILES_{split} is {shown(files)}; allowed: one file for each "
                f"of DATASETS.{split} {shown(names)}"
            )


def _roi_head_conflicts(cfg: CfgNode) -> Iterator[str]:
    """Report keys that only the heads of this package read; detectron2's silently ignore them."""
    from detectron2.modeling import ROI_HEADS_REGISTRY

    from .modeling.roi_heads import InvertedAttentionMixin

    keys = {
        "MODEL.INVERTED_ATTENTION.ENABLED": cfg.MODEL.INVERTED_ATTENTION.ENABLED,
        "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT": cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT != 1,
    }
    name, meta = cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.META_ARCHITECTURE
    ours = [o for o, heads in ROI_HEADS_REGISTRY if issubclass(heads, InvertedAttentionMixin)]
    for key, is_set in keys.items():
        if is_set and meta in _WITHOUT_ROI_HEADS:
            yield f"MODEL.META_ARCHITECTURE is {meta}, which does not read {key}; allowed: " + (
                "GeneralizedRCNN, PanopticFPN"
            )
        elif is_set and name not in ours:
            yield (
                f"MODEL.ROI_HEADS.NAME is {name}, which does not read {key}; allowed: "
                f"{', '.join(sorted(ours))}"
            )
    ious, weights = (cfg.MODEL.ROI_BOX_CASCADE_HEAD[k] for k in ("IOUS", "BBOX_REG_WEIGHTS"))
    if "Cascade" in name and len(ious) != len(weights):
        yield (
            f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {shown(ious)}; allowed: as many entries as "
            f"BBOX_REG_WEIGHTS has ({len(weights)})"
        )


def _matcher_conflicts(cfg: CfgNode) -> Iterator[str]:
    for name in ("RPN", "ROI_HEADS", "RETINANET"):
        node = cfg.MODEL[name]
        if len(node.IOU_LABELS) != len(node.IOU_THRESHOLDS) + 1:
            yield (
                f"MODEL.{name}.IOU_LABELS is {shown(node.IOU_LABELS)}; allowed: one entry more "
                f"than IOU_THRESHOLDS has ({len(node.IOU_THRESHOLDS)})"
            )
    is_retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    features = (cfg.MODEL.RETINANET if is_retinanet else cfg.MODEL.RPN).IN_FEATURES
    for name in ("SIZES", "ASPECT_RATIOS"):
        values = cfg.MODEL.ANCHOR_GENERATOR[name]
        if len(values) not in (1, len(features)):
            yield (
                f"MODEL.ANCHOR_GENERATOR.{name} is {shown(values)}; allowed: one list, or one for "
                f"each feature of {shown(list(features))}"
            )


def _input_conflicts(cfg: CfgNode) -> Iterator[str]:
    data = cfg.INPUT
    if data.MIN_SIZE_TRAIN_SAMPLING == "range" and len(data.MIN_SIZE_TRAIN) != 2:
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {shown(data.MIN_SIZE_TRAIN)}; allowed with "
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range: the lowest and the highest size"
        )
    if data.CROP.ENABLED and data.CROP.TYPE.startswith("relative") and max(data.CROP.SIZE) > 1:
        yield (
            f"INPUT.CROP.SIZE is {shown(data.CROP.SIZE)}; allowed with INPUT.CROP.TYPE "
            f"{data.CROP.TYPE}: numbers up to 1"
        )
    channels = 1 if data.FORMAT == "L" else 3
    for name in ("PIXEL_MEAN", "PIXEL_STD"):
        if len(cfg.MODEL[name]) != channels:
            yield (
                f"MODEL.{name} is {shown(cfg.MODEL[name])}; allowed with INPUT.FORMAT "
                f"{data.FORMAT}: {channels} entries"
            )
