"""From the files of a run to ``report.html`` and the pictures next to it."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode

from .. import __version__
from ..config import config_values, get_cfg
from ..errors import UsageError
from ..evaluation import CORRUPTIONS
from ..files import atomic_open
from ..model_zoo import read_config
from .curves import ap_curve, distinct_limits, loss_curve, loss_names, pr_curve
from .facts import data_facts, describe_model, explain_losses, training_facts
from .html import (
    Bars,
    Block,
    Details,
    Facts,
    Figures,
    Matrix,
    Note,
    Picture,
    Section,
    Table,
    Tiles,
    number,
    page,
)
from .next_steps import next_commands
from .part_gains import gains_section
from .pictures import (
    SCORE_THRESHOLD,
    choose_examples,
    contact_sheet,
    draw,
    encode,
    score_threshold,
)
from .run import MissingError, Predictions, Results, Run, load_predictions, load_run
from .thresholds import Matches, confusion_matrix, match_detections

__all__ = ["write_report"]

_AP_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "mAP_07", "mAP_10", "mIoU", "PQ")
# VOC's metrics and what they are called.
_VOC_METRICS = {"mAP_07": "VOC mAP, 11 points", "mAP_10": "VOC mAP, area"}
_AR_COLUMNS = ("AR@100", "AR@300", "AR@1000")
_TASK_NAMES = {
    "bbox": "boxes",
    "bbox_voc": "boxes, VOC",
    "segm": "masks",
    "keypoints": "keypoints",
    "sem_seg": "stuff",
    "panoptic_seg": "things and stuff",
    "box_proposals": "final",
}
# Longer tables of classes are folded away; larger confusion matrices become a list.
_MANY_CLASSES = 20
_MAX_CONFUSIONS = 15


def write_report(
    output_dir: str | Path, cfg: CfgNode | None = None, results: Mapping[str, Any] | None = None
) -> Path:
    """Write ``report.html`` into the folder of a run.

    Also writes ``loss_curve.png``, ``ap_curve.png`` and ``predictions.png`` (of the first dataset).
    What cannot be made, because the run stopped early or the data is not available, is left out,
    with a line that says so.

    Args:
        output_dir: folder with some of ``metrics.json``, ``config.yaml``, ``results.json``,
            ``run.json``, ``log.txt`` and ``inference/<dataset>/coco_instances_results.json``.
        cfg: config of the run; None reads ``config.yaml``.
        results: as ``Trainer.test`` returns them; None reads ``results.json``, or else the last
            evaluation of ``metrics.json``.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    run = load_run(output_dir, cfg, results)
    sections = [
        _summary(run),
        *_curves(run),
        *_results(run),
        *_all_predictions(run),
        *_data(run),
        *gains_section(run),
        _config(run),
        *_next(run),
    ]
    name = run.folder.resolve().name
    versions = f"d2_plugins {__version__}, detectron2 {detectron2.__version__}"
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    subtitle = f"Written {now} with {versions}, torch {torch.__version__}"
    path = run.folder / "report.html"
    with atomic_open(path) as file:
        file.write(page(f"Run report: {name}", subtitle, sections))
    return path


def _summary(run: Run) -> Section:
    blocks: list[Block] = []
    for name, tasks in run.results.items():
        values = [
            (f"{label} {metric}", number(tasks[task][metric]))
            for task, label in (("bbox", "box"), ("segm", "mask"), ("keypoints", "keypoint"))
            for metric in ("AP", "AP50", "AP75")
            if metric in tasks.get(task, {})
        ] or [
            (f"proposals {metric}", number(value))
            for metric, value in tasks.get("box_proposals", {}).items()
            if metric in distinct_limits(run, ("AR@100", "AR@1000"))
        ]
        of_voc = tasks.get("bbox_voc", tasks.get("bbox", {}))
        values += [
            (label, number(of_voc[metric]))
            for metric, label in _VOC_METRICS.items()
            if metric in of_voc
        ]
        if len(run.results) > 1 and values:
            blocks.append(Note(name))
        if values:
            blocks.append(Tiles(values))
    if any(run.results.values()):
        blocks.append(Note("These figures are of the last evaluation, in percent."))
    if run.cfg is None:
        blocks.append(Note("Left out: config.yaml is missing."))
    facts = [*training_facts(run), *(describe_model(run.cfg) if run.cfg is not None else ())]
    if facts:
        blocks.append(Facts(facts))
    return Section("Summary", blocks)


def _curves(run: Run) -> Iterator[Section]:
    blocks: list[Block] = []
    figures = []
    for file, make, text in (
        ("loss_curve.png", loss_curve, "Losses over the iterations"),
        ("ap_curve.png", ap_curve, "AP over the iterations"),
    ):
        try:
            png = make(run)
        except MissingError as missing:
            blocks.append(Note(f"{text}: left out, {missing}."))
            continue
        with atomic_open(run.folder / file, "wb") as out:
            out.write(png)
        figures.append((text, [Picture(file.removesuffix(".png"), png, "png", text)]))
    if figures:
        blocks.append(Figures(figures))
    if explained := explain_losses(loss_names(run)):
        blocks.append(Details("What the losses measure", [Facts(explained)]))
    yield Section("Training", blocks)


def _results(run: Run) -> Iterator[Section]:
    for name, tasks in run.results.items():
        where = f" on {name}" if name else ""
        recall = {t: m for t, m in tasks.items() if t.startswith("box_proposals")}
        detection = {t: m for t, m in tasks.items() if t not in recall}
        if detection:
            blocks = [_metric_table("task", detection, _AP_COLUMNS), *_per_class(detection)]
            if any("mAP_07" in metrics for metrics in detection.values()):
                text = "mAP_07 and mAP_10 are VOC's metrics at IoU 0.5: the mean of the precision "
                blocks += [Note(f"{text}at 11 recalls (until VOC 2009), and the area under it.")]
            yield Section(f"Average precision{where}", blocks)
        if recall:
            yield Section(f"Proposal recall{where}", _recall(run, recall))
    if not any(run.results.values()):
        yield Section("Results", [Note("Left out: no evaluation has been written.")])


def _recall(run: Run, tasks: Results) -> list[Block]:
    columns = distinct_limits(run, _AR_COLUMNS)
    limit = columns[-1].removeprefix("AR@")
    text = (
        "Average recall (IoU 0.5 to 0.95) of the top-scoring proposals of each image: "
        f"AR@{limit} counts the best {limit}; s, m and l are small, medium and large objects."
    )
    # The last stage's boxes are the final proposals.
    stages = [task for task in tasks if _split(task)[1].startswith("stage")]
    repeated = {
        stage
        for stage in stages
        if tasks[stage] == tasks.get(stage.replace(f"_{_split(stage)[1]}", ""))
    }
    shown = {task: metrics for task, metrics in tasks.items() if task not in repeated}
    sizes = [f"AR{size}@{limit}" for size in "sml"]
    return [Note(text), _metric_table("proposals", shown, (*columns, *sizes))]


def _metric_table(corner: str, tasks: Results, columns: tuple[str, ...]) -> Table:
    used = [c for c in columns if any(c in metrics for metrics in tasks.values())]
    rows = []
    for task in sorted(tasks, key=_split):
        _, name, corruption = _split(task)
        name = re.sub(r"^stage(\d+)$", r"stage \1", name)
        label = f"{name}, {corruption}" if corruption else name
        rows.append([label, *(number(tasks[task].get(column)) for column in used)])
    return Table([corner, *used], rows)


def _split(task: str) -> tuple[int, str, str]:
    """Return the rank of a task, what it evaluates and the corruption ("" for none).

    The rank puts stages before the final proposals, and corrupted images after the others.
    """
    base, _, corruption = task.rpartition("_")
    if corruption not in CORRUPTIONS:
        base, corruption = task, ""
    stage = base.removeprefix("box_proposals_")
    rank = 2 * (CORRUPTIONS.index(corruption) + 1) if corruption else 0
    return rank + (stage == "box_proposals"), _TASK_NAMES.get(stage, stage), corruption


def _per_class(tasks: Results) -> Iterator[Block]:
    for task in ("bbox", "segm", "keypoints"):
        aps = [(m[3:], v) for m, v in tasks.get(task, {}).items() if m.startswith("AP-")]
        if aps:
            ranked = sorted(aps, key=lambda pair: -1 if math.isnan(pair[1]) else pair[1])[::-1]
            yield Note(f"AP of the {_TASK_NAMES[task]}, per class:")
            yield Bars(ranked)


def _all_predictions(run: Run) -> Iterator[Section]:
    for index, name in enumerate(run.dataset_names):
        sheet = run.folder / "predictions.png" if index == 0 else None
        blocks: list[Block]
        try:
            predictions = load_predictions(run, name)
        except MissingError as missing:
            blocks = [Note(f"Left out: {missing}.")]
        else:
            matches = match_detections(predictions)
            threshold = score_threshold(predictions, matches.best_thresholds()[1])
            blocks = [
                *_low_scores(predictions, threshold),
                *_or_note(_precision, predictions, matches, threshold, f"precision-{index}"),
                *_or_note(_examples, predictions, threshold, sheet, f"example-{index}"),
            ]
        yield Section(f"Predictions on {name}", blocks)


def _or_note(make: Callable[..., list[Block]], *args: Any) -> list[Block]:
    try:
        return make(*args)
    except MissingError as missing:
        return [Note(f"Left out: {missing}.")]


def _low_scores(predictions: Predictions, threshold: float) -> Iterator[Block]:
    """Yield a warning if no detection reaches the usual threshold."""
    if not predictions.detections:
        yield Note("The model detects nothing on this dataset.", is_warning=True)
        return
    highest = max(d["score"] for d in predictions.detections)
    if highest < SCORE_THRESHOLD:
        yield Note(
            f"No detection has a score of at least {SCORE_THRESHOLD}: the highest is "
            f"{highest:.2f}. Pictures and tables show scores of at least {threshold:.2g}; "
            "the model probably needs more training.",
            is_warning=True,
        )


def _precision(
    predictions: Predictions, matches: Matches, threshold: float, id_: str
) -> list[Block]:
    text = "Precision against recall of the boxes: mean over the classes, and classes at IoU 0.5"
    blocks: list[Block] = [
        Figures([(text, [Picture(id_, pr_curve(predictions), "png", text)])]),
        *_thresholds(matches, predictions.class_names, threshold),
    ]
    matrix = confusion_matrix(predictions, threshold)
    return [*blocks, *_confusions(matrix, predictions.class_names, threshold)]


def _thresholds(matches: Matches, names: list[str], threshold: float) -> Iterator[Block]:
    """Precision and recall per class, at one threshold and at the best one of the class."""
    each, overall = matches.best_thresholds()
    if not math.isnan(overall):
        yield Note(
            f"Recommended score threshold for all classes: {overall:.2f}. It has the highest F1 "
            "score, the balance of precision (correct share of the detections) and recall "
            "(detected share of the objects), for boxes with an IoU of at least 0.5."
        )
    head = ["class", "objects", f"precision at {threshold:.2g}", f"recall at {threshold:.2g}",
            "false positives", "best threshold", "precision there", "recall there"]  # fmt: skip
    correct, found = matches.counts(threshold)
    rows = []
    for k, name in enumerate(names):
        objects = int(matches.num_objects[k])
        row = [name, str(objects), _percent(correct[k], found[k]), _percent(correct[k], objects)]
        row.append(str(found[k] - correct[k]))
        if math.isnan(each[k]):
            row += ["–"] * 3
        else:
            best_correct, best_found = (counts[k] for counts in matches.counts(each[k]))
            row.append(f"{each[k]:.2f}")
            row += [_percent(best_correct, best_found), _percent(best_correct, objects)]
        rows.append(row)
    table = Table(head, rows)
    many = len(rows) > _MANY_CLASSES
    yield Details("Precision and recall of each class", [table]) if many else table


def _percent(part: int, whole: int) -> str:
    return number(100 * part / whole if whole else None)


def _confusions(matrix: np.ndarray, names: list[str], threshold: float) -> Iterator[Block]:
    yield Note(
        f"Confusion matrix at a score of at least {threshold:.2g}: which class an object of each "
        "class is detected as, for boxes with an IoU of at least 0.5."
    )
    if len(names) <= _MANY_CLASSES:
        rows: list[tuple[str, list[int | None]]] = [
            (name, [int(n) for n in row])
            for name, row in zip([*names, "no object"], matrix, strict=True)
        ]
        rows[-1][1][-1] = None
        yield Matrix("object → detected as", [*names, "not detected"], rows)
        return
    off = matrix[:-1, :-1] * ~np.eye(len(names), dtype=bool)
    pairs = np.argsort(-off, axis=None, kind="stable")[:_MAX_CONFUSIONS]
    wrong = [divmod(int(pair), len(names)) for pair in pairs]
    rows_ = [[names[i], names[j], str(off[i, j])] for i, j in wrong if off[i, j]]
    yield Table(["object", "detected as", "times"], rows_)


def _examples(
    predictions: Predictions, threshold: float, sheet: Path | None, id_: str
) -> list[Block]:
    best, worst = choose_examples(predictions, threshold=threshold)
    has_match = best[0].quality > 0
    best = [example for example in best if example.quality > 0 or not has_match]
    groups = (("Best", best), ("Worst", worst)) if has_match else (("Example", best + worst),)
    panels = []
    for title, examples in groups:
        for example in examples:
            left, right = draw(example, predictions)
            panels.append((f"{title}: {example.caption}", left, right))
    if sheet is not None:
        with atomic_open(sheet, "wb") as file:
            file.write(encode(contact_sheet(panels), "PNG"))
    text = f"Left: ground truth. Right: detections with a score of at least {threshold:.2g}. "
    text += (
        "Best and worst images by how well the boxes match, from 0 to 100: the mean IoU of the "
        "matched boxes, lowered by false and missing detections (panoptic quality)."
        if has_match
        else "No detection matches an object, so the images are not ranked."
    )
    figures = []
    for index, (caption, left, right) in enumerate(panels):
        pictures = [
            Picture(f"{id_}-{index}-truth", encode(left, "JPEG"), "jpeg", "ground truth"),
            Picture(f"{id_}-{index}-found", encode(right, "JPEG"), "jpeg", "detections"),
        ]
        figures.append((caption, pictures))
    return [Note(text), Figures(figures)]


def _data(run: Run) -> Iterator[Section]:
    if run.cfg is None:
        return
    head, rows = data_facts(run.cfg)
    if not rows:
        yield Section("Data", [Note("Left out: no dataset of this run is available here.")])
        return
    note = Note("Images and objects in the annotations, crowds excluded.")
    if len(rows) > _MANY_CLASSES:
        yield Section(
            "Data", [note, Table(head, rows[:2]), Details("Per class", [Table(head, rows[2:])])]
        )
    else:
        yield Section("Data", [note, Table(head, rows)])


def _next(run: Run) -> Iterator[Section]:
    if run.cfg is None:
        return
    on_gpu = bool(run.sessions) and not str(run.sessions[-1].get("device")).startswith("CPU")
    num_gpus = int(run.sessions[-1].get("processes", 1)) if on_gpu else 0
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(run.folder)
    if commands := next_commands(cfg, num_gpus=num_gpus):
        note = Note("Run in the folder that the training was started in:")
        rows = [list(pair) for pair in commands.items()]
        yield Section("What to run next", [note, Table(["", "command"], rows, is_text=True)])


def _config(run: Run) -> Section:
    if run.cfg is None:
        return Section("Config", [Note("Left out: config.yaml is missing.")])
    blocks: list[Block] = []
    if run.config_file:
        blocks += _changes_of_file(run.cfg, run.config_file)
    rows = _changes(get_cfg(), run.cfg)
    table = Table(["key", "default", "this run"], rows, is_text=True)
    blocks.append(Details(f"All {len(rows)} differences from the defaults", [table]))
    return Section("Config", blocks)


def _changes_of_file(cfg: CfgNode, file: str) -> list[Block]:
    """Compare a config with the file that it was made from."""
    try:
        rows = _changes(read_config(file), cfg)
    except UsageError:
        return [Note(f"The config file {file} is not here to compare with.")]
    if not rows:
        return [Note(f"The run used {file} without changes.")]
    return [Note(f"Changes to {file}:"), Table(["key", "file", "this run"], rows, is_text=True)]


def _changes(before: CfgNode, after: CfgNode) -> list[list[str]]:
    """Return key, old and new value wherever two configs differ."""
    # config.yaml keeps no tuples.
    old, new = (
        {key: _as_lists(value) for key, value in config_values(cfg)} for cfg in (before, after)
    )
    return [
        [key, str(old.get(key, "–")), str(new.get(key, "–"))]
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _as_lists(value: Any) -> Any:
    return [_as_lists(x) for x in value] if isinstance(value, list | tuple) else value
