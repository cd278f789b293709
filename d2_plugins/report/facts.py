"""The model, the training and the data of a run in words."""

import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.datasets.missing import missing_dataset_hint
from .run import Run

__all__ = [
    "best_iteration",
    "data_facts",
    "describe_model",
    "duration",
    "explain_losses",
    "training_facts",
]

_ATTENTION = {"eca": "ECA", "cbam": "CBAM", "se": "SE"}
_HEADS = {
    "Res5ROIHeads": "C4 box head",
    "StandardROIHeads": "standard box head",
    "PluginROIHeads": "standard box head",
    "CascadeROIHeads": "Cascade R-CNN box heads",
    "PluginCascadeROIHeads": "Cascade R-CNN box heads",
    "DoubleHeadROIHeads": "Double-Head",
    "CascadeDoubleHeadROIHeads": "cascade of Double-Heads",
}
_WITH_PROPOSALS = ("GeneralizedRCNN", "ProposalNetwork", "PanopticFPN")

# Pattern of a loss without its "loss_", and what it measures.
_LOSSES = (
    (r"rpn_stage(\d+)_loc", "boxes of stage {} of Cascade RPN"),
    (r"rpn_stage(\d+)_cls", "objectness of stage {} of Cascade RPN"),
    # Runs of earlier versions, which number the stages from 0.
    (r"rpn_s(\d+)_(?:reg|cls)", "a stage of Cascade RPN, number {} from 0"),
    (r"rpn_cls", "objectness of the proposals"),
    (r"rpn_loc", "boxes of the proposals"),
    (r"cls", "classes of the detections"),
    (r"box_reg", "boxes of the detections"),
    (r"cls_conv", "classes predicted by the convolution head of the Double-Head"),
    (r"box_reg_fc", "boxes predicted by the fully connected head of the Double-Head"),
    (r"cls_stage(\d+)", "classes of cascade stage {}, from 0"),
    (r"box_reg_stage(\d+)", "boxes of cascade stage {}, from 0"),
    (r"mask", "masks"),
    (r"keypoint", "keypoints"),
)


def describe_model(cfg: CfgNode) -> Iterator[tuple[str, str]]:
    """Yield the parts of a model: name and description."""
    model = cfg.MODEL
    if model.META_ARCHITECTURE != "GeneralizedRCNN":
        yield "model", model.META_ARCHITECTURE
    yield "backbone", _backbone(model)
    if model.META_ARCHITECTURE in _WITH_PROPOSALS:
        yield "proposals", _proposals(model)
    if model.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN"):
        yield "heads", ", ".join(_head_parts(model))


def _backbone(model: CfgNode) -> str:
    name = model.BACKBONE.NAME
    if "cspnet" in name:
        words = _spell(model.CSPNET.ARCH)
        if (width := model.CSPNET.WIDTH_MULTIPLIER) != 1:
            words += f", {width:g} of the width"
    elif "timm" in name:
        words = f"timm's {model.TIMM.NAME}"
    elif "resnet" in name:
        is_resnext = model.RESNETS.NUM_GROUPS > 1
        words = f"{'ResNeXt' if is_resnext else 'ResNet'}-{model.RESNETS.DEPTH}"
    else:
        return name
    # detectron2's own ResNets do not read MODEL.ATTENTION.
    if ("cspnet" in name or "attention" in name) and model.ATTENTION.NAME:
        words += f" with {_ATTENTION.get(model.ATTENTION.NAME, model.ATTENTION.NAME)} attention"
    return words + (" and FPN" if "fpn" in name else "")


def _spell(arch: str) -> str:
    """Return e.g. "CSPResNeXt-50" for "cspresnext50"."""
    name, depth = re.fullmatch(r"(\D*)(.*)", arch).groups()  # type: ignore[union-attr]
    names = {"cspresnext": "CSPResNeXt", "cspresnet": "CSPResNet", "cspdarknet": "CSPDarkNet"}
    return f"{names.get(name, name)}-{depth}" if depth else names.get(name, name)


def _proposals(model: CfgNode) -> str:
    if model.PROPOSAL_GENERATOR.NAME == "CascadeRPN":
        return f"Cascade RPN, {model.CASCADE_RPN.NUM_STAGES} stages"
    return model.PROPOSAL_GENERATOR.NAME


def _head_parts(model: CfgNode) -> Iterator[str]:
    name = model.ROI_HEADS.NAME
    words = _HEADS.get(name, name)
    if "DoubleHead" in name and min(model.DOUBLE_HEAD.LAMBDA_FC, model.DOUBLE_HEAD.LAMBDA_CONV) < 1:
        words = words.replace("Double-Head", "Double-Head-Ext")
    yield words
    if model.INVERTED_ATTENTION.ENABLED:
        yield "Inverted Attention"
    if model.MASK_ON:
        yield "mask head"
    if model.KEYPOINT_ON:
        yield "keypoint head"


def training_facts(run: Run) -> Iterator[tuple[str, str]]:
    """Yield what is known of a run's training: name and value."""
    if run.metrics:
        done = run.metrics[-1]["iteration"] + 1
        if run.cfg is None:
            yield "iterations", str(done)
        else:  # the evaluation after the last iteration is written as one more
            last = run.cfg.SOLVER.MAX_ITER
            batch = run.cfg.SOLVER.IMS_PER_BATCH
            yield "iterations", f"{min(done, last)} of {last}, {batch} images each"
    if best := best_iteration(run):
        metric, iteration, value = best
        yield "best", f"{metric} {value:.1f} after iteration {iteration + 1} (model_best.pth)"
    yield from _session_facts(run)
    _, times = run.series("time")
    if times:
        yield "time per iteration", f"{statistics.median(times):.3g} s (median)"
    if (seconds := seconds_per_image(run.folder)) is not None:
        yield "time per image", f"{1000 * seconds:.0f} ms of computation in the evaluation"
    _, rates = run.series("lr")
    if rates:
        yield "learning rate", f"{max(rates):.3g} at its highest"
    if run.cfg is not None:
        weights = run.sessions[0].get("weights") if run.sessions else run.cfg.MODEL.WEIGHTS
        yield "initial weights", weights or "random"


def _session_facts(run: Run) -> Iterator[tuple[str, str]]:
    if not run.sessions:
        return
    last = run.sessions[-1]
    started = str(run.sessions[0].get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    resumed = len(run.sessions) - 1
    yield "started", started + (f", resumed {resumed} x" if resumed else "")
    seconds = [s["seconds"] for s in run.sessions if isinstance(s.get("seconds"), int | float)]
    if seconds:
        yield "duration", duration(sum(seconds))
    processes = last.get("processes", 1)
    yield "device", f"{last.get('device')}" + (f", {processes} processes" * (processes > 1))
    yield "command", str(last.get("command"))


def best_iteration(run: Run) -> tuple[str, int, float] | None:
    """Return the metric, iteration and value of the best evaluation.

    Returns:
        None if ``TEST.BEST_METRIC`` is not set or was never evaluated.
    """
    metric = run.cfg.TEST.BEST_METRIC if run.cfg is not None else ""
    iterations, values = run.series(metric)
    finite = [(value, -iteration) for iteration, value in zip(iterations, values, strict=True)
              if value == value]  # fmt: skip
    if not finite:
        return None
    value, iteration = max(finite)
    last = run.cfg.SOLVER.MAX_ITER - 1 if run.cfg is not None else -iteration
    return metric, min(-iteration, last), value


def seconds_per_image(folder: Path) -> float | None:
    """Return the time of inference in the last evaluation, as detectron2 logged it."""
    path = folder / "log.txt"
    if not path.is_file():
        return None
    found = re.findall(
        r"Total inference pure compute time: .*\(([\d.]+) s / iter",
        path.read_text(encoding="utf-8", errors="replace"),
    )
    return float(found[-1]) if found else None


def duration(seconds: float) -> str:
    """Return e.g. "3 h 25 min", "4 min 10 s" or "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def data_facts(cfg: CfgNode) -> tuple[list[str], list[list[str]]]:
    """Count the images and the objects of the datasets of a config.

    Returns:
        The head of a table and its rows: dataset, images, objects, then the objects per class of
        each dataset that is registered and on disk.
    """
    counts: dict[str, tuple[int, Counter[str]]] = {}
    for name in dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]):
        if name in DatasetCatalog and not missing_dataset_hint(name):
            counts[name] = _count(name)
    classes = list(dict.fromkeys(name for _, objects in counts.values() for name in objects))
    rows = [["images", *(str(images) for images, _ in counts.values())]]
    rows.append(["objects", *(str(objects.total()) for _, objects in counts.values())])
    rows += [[name, *(str(objects[name]) for _, objects in counts.values())] for name in classes]
    return ["", *counts], rows if counts else []


def _count(name: str) -> tuple[int, "Counter[str]"]:
    items = DatasetCatalog.get(name)
    names = MetadataCatalog.get(name).get("thing_classes", ())
    objects: Counter[str] = Counter(dict.fromkeys(names, 0))
    for item in items:
        for annotation in item.get("annotations", ()):
            if not annotation.get("iscrowd", 0):
                k = annotation["category_id"]
                objects[names[k] if k < len(names) else f"class {k}"] += 1
    return len(items), objects


def explain_losses(keys: list[str]) -> list[tuple[str, str]]:
    """Return the losses that are known with an explanation of each.

    Args:
        keys: names such as "loss_rpn_cls".
    """
    explained = []
    for key in keys:
        for pattern, words in _LOSSES:
            if found := re.fullmatch(pattern, key.removeprefix("loss_")):
                explained.append((key.removeprefix("loss_"), words.format(*found.groups())))
    return explained
