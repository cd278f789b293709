"""From the files of a run to ``report.html`` and the pictures beside it."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode

from .. import __version__
from ..config import get_cfg
from ..evaluation import CORRUPTIONS
from ..files import atomic_open
from . import html
from .curves import ap_curve, loss_curve, pr_curve
from .pictures import SCORE_THRESHOLD, choose_examples, contact_sheet, draw, encode
from .run import MissingError, Predictions, Results, Run, load_predictions, load_run

__all__ = ["write_report"]

_AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_AR_COLUMNS = ("AR@100", "AR@300", "AR@1000", "ARs@1000", "ARm@1000", "ARl@1000")
_TASK_NAMES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints", "box_proposals": "final"}


def write_report(
    output_dir: str | Path, cfg: CfgNode | None = None, results: Mapping[str, Any] | None = None
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Also writes ``loss_curve.png``, ``ap_curve.png`` and ``predictions.png`` (of the first data
    set). What cannot be made, because the run stopped early or the data is not at hand, is left
    out, with a line that says so.

    Args:
        output_dir: holds some of ``metrics.json``, ``config.yaml``, ``results.json`` and
            ``inference/<data set>/coco_instances_results.json``.
        cfg: config of the run; None reads ``config.yaml``.
        results: as ``Trainer.test`` returns them; None reads ``results.json``, or else takes the
            last evaluation of ``metrics.json``.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    run = load_run(output_dir, cfg, results)
    sections = [_summary(run), _curves(run), *_results(run), *_all_predictions(run), _config(run)]
    name = run.folder.resolve().name
    versions = f"d2_plugins {__version__}, detectron2 {detectron2.__version__}"
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = f"Written {now} with {versions}, torch {torch.__version__}"
    path = run.folder / "report.html"
    with atomic_open(path) as file:
        file.write(html.page(f"Run report: {name}", subtitle, sections))
    return path


def _summary(run: Run) -> str:
    parts = []
    for name, tasks in run.results.items():
        values = [
            (f"{label} {metric}", html.number(tasks[task][metric]))
            for task, label in (("bbox", "box"), ("segm", "mask"), ("keypoints", "keypoint"))
            for metric in ("AP", "AP50", "AP75")
            if metric in tasks.get(task, {})
        ] or [
            (f"proposals {metric}", html.number(value))
            for metric, value in tasks.get("box_proposals", {}).items()
            if metric in ("AR@100", "AR@1000")
        ]
        if len(run.results) > 1 and values:
            parts.append(html.note(name))
        if values:
            parts.append(html.tiles(values))
    parts.append(html.tiles(list(_facts(run)), kind="facts"))
    return html.section("Summary", *parts)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    if run.metrics:
        done = run.metrics[-1]["iteration"] + 1
        if run.cfg is None:
            yield "iterations", str(done)
        else:  # the evaluation after the last iteration is written as one more
            last = run.cfg.SOLVER.MAX_ITER
            yield "iterations", f"{min(done, last)} of {last}"
    _, times = run.series("time")
    if times:
        yield "seconds per iteration (median)", f"{statistics.median(times):.3g}"
    if run.cfg is not None:
        model = run.cfg.MODEL
        yield "meta-architecture", model.META_ARCHITECTURE
        yield "backbone", model.BACKBONE.NAME
        if model.META_ARCHITECTURE in ("GeneralizedRCNN", "ProposalNetwork", "PanopticFPN"):
            yield "proposals", model.PROPOSAL_GENERATOR.NAME
        if model.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN"):
            yield "RoI heads", model.ROI_HEADS.NAME
    else:
        yield "config", "config.yaml is missing"


def _curves(run: Run) -> str:
    parts = []
    for file, make, text in (
        ("loss_curve.png", loss_curve, "Losses over the iterations"),
        ("ap_curve.png", ap_curve, "AP over the iterations"),
    ):
        try:
            png = make(run)
        except MissingError as missing:
            parts.append(html.note(f"{text}: left out, {missing}."))
            continue
        with atomic_open(run.folder / file, "wb") as out:
            out.write(png)
        parts.append(html.figure([(png, "png", text)], text))
    return html.section("Training", html.grid(*parts))


def _results(run: Run) -> Iterator[str]:
    for name, tasks in run.results.items():
        where = f" on {name}" if name else ""
        recall = {t: m for t, m in tasks.items() if t.startswith("box_proposals")}
        detection = {t: m for t, m in tasks.items() if t not in recall}
        if detection:
            tables = [_metric_table("task", detection, _AP_COLUMNS), *_per_class(detection)]
            yield html.section(f"Average precision{where}", *tables)
        if recall:
            text = "Average recall of box proposals over IoU 0.5 to 0.95, for the best of an image."
            rows = _metric_table("proposals", recall, _AR_COLUMNS)
            yield html.section(f"Proposal recall{where}", html.note(text), rows)
    if not any(run.results.values()):
        yield html.section("Results", html.note("Left out: no evaluation has been written."))


def _metric_table(corner: str, tasks: Results, columns: tuple[str, ...]) -> str:
    used = [c for c in columns if any(c in metrics for metrics in tasks.values())]
    rows = []
    for task in sorted(tasks, key=_split):
        _, name, corruption = _split(task)
        label = f"{name}, {corruption}" if corruption else name
        rows.append([label, *(html.number(tasks[task].get(column)) for column in used)])
    return html.table([corner, *used], rows)


def _split(task: str) -> tuple[int, str, str]:
    """A task's rank, what it evaluates and on which corruption ("" for none).

    The rank puts stages before the final proposals, and corrupted images after the others.
    """
    base, _, corruption = task.rpartition("_")
    if corruption not in CORRUPTIONS:
        base, corruption = task, ""
    stage = base.removeprefix("box_proposals_")
    rank = 2 * (CORRUPTIONS.index(corruption) + 1) if corruption else 0
    return rank + (stage == "box_proposals"), _TASK_NAMES.get(stage, stage), corruption


def _per_class(tasks: Results) -> Iterator[str]:
    for task in ("bbox", "segm", "keypoints"):
        aps = [(m[3:], v) for m, v in tasks.get(task, {}).items() if m.startswith("AP-")]
        if aps:
            ranked = sorted(aps, key=lambda pair: -1 if math.isnan(pair[1]) else pair[1])[::-1]
            yield html.note(f"AP of the {_TASK_NAMES[task]}, per class:")
            yield html.bars(ranked)


def _all_predictions(run: Run) -> Iterator[str]:
    for index, name in enumerate(run.dataset_names):
        sheet = run.folder / "predictions.png" if index == 0 else None
        try:
            predictions = load_predictions(run, name)
        except MissingError as missing:
            parts = [html.note(f"Left out: {missing}.")]
        else:
            parts = [_or_note(_pr, predictions), _or_note(_examples, predictions, sheet)]
        yield html.section(f"Predictions on {name}", *parts)


def _or_note(make: Callable[..., str], *args: Any) -> str:
    try:
        return make(*args)
    except MissingError as missing:
        return html.note(f"Left out: {missing}.")


def _pr(predictions: Predictions) -> str:
    text = "Precision against recall of the boxes: mean over the classes, and classes at IoU 0.5"
    return html.grid(html.figure([(pr_curve(predictions), "png", text)], text))


def _examples(predictions: Predictions, sheet: Path | None) -> str:
    best, worst = choose_examples(predictions)
    panels = []
    for title, examples in (("Best", best), ("Worst", worst)):
        for example in examples:
            left, right = draw(example, predictions)
            panels.append((f"{title}: {example.caption}", left, right))
    if sheet is not None:
        with atomic_open(sheet, "wb") as file:
            file.write(encode(contact_sheet(panels), "PNG"))
    figures = [
        html.note(
            "Every image twice: ground truth, then detections with a score of at least "
            f"{SCORE_THRESHOLD}. Images are ranked by the panoptic quality of their boxes "
            "(0 to 100)."
        )
    ]
    for caption, left, right in panels:
        images = [
            (encode(left, "JPEG"), "jpeg", "ground truth"),
            (encode(right, "JPEG"), "jpeg", "detections"),
        ]
        figures.append(html.figure(images, caption))
    return "".join(figures)


def _config(run: Run) -> str:
    title = "Config: what differs from the defaults"
    if run.cfg is None:
        return html.section(title, html.note("Left out: config.yaml is missing."))
    default, used = dict(_flatten(get_cfg())), dict(_flatten(run.cfg))
    rows = [
        [key, str(default.get(key, "–")), str(used.get(key, "–"))]
        for key in sorted(default.keys() | used.keys())
        if default.get(key) != used.get(key)
    ]
    return html.section(title, html.table(["key", "default", "this run"], rows, kind="text"))


def _flatten(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
