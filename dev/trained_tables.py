"""The trained comparisons of docs/benchmarks.md: what is trained, and the tables of the results."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from d2_plugins import get_cfg, model_zoo
from d2_plugins.config import config_values
from d2_plugins.files import atomic_open, atomic_write_json

__all__ = [
    "TABLES",
    "Results",
    "Row",
    "Table",
    "finished_runs",
    "format_table",
    "missing_runs",
    "part_gains",
    "replace_table",
    "train_table",
]

Results = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        label: name in the table.
        config: path relative to ``configs/``.
        opts: KEY VALUE pairs of this row alone.
        weights_of: label of another row whose trained weights this row evaluates with its own
            ``opts``; None trains.
    """

    label: str
    config: str
    opts: tuple[str, ...] = ()
    weights_of: str | None = None


@dataclass(frozen=True)
class Table:
    """Models that are trained with the same data and schedule, and the metrics to compare.

    Attributes:
        title: what the table shows.
        rows: the models; a row with ``weights_of`` follows the row it names.
        metrics: column titles and the names of the metrics in ``metrics.json``.
        opts: KEY VALUE pairs of every row.
        seeds: each row is trained once with each of them.
    """

    title: str
    rows: tuple[Row, ...]
    metrics: Mapping[str, str]
    opts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)

    def options(self, row: Row) -> tuple[str, ...]:
        """Return the KEY VALUE pairs of ``row``, except for the seed and the output folder."""
        return (*self.opts, *row.opts)

    def named(self, label: str) -> Row:
        """Return the row called ``label``."""
        return next(row for row in self.rows if row.label == label)


_AR = "box_proposals/AR@100"
_METRICS = {
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "AP75": "bbox/AP75",
    "AR@100": _AR,
    "AP under occlusion": "bbox_occlusion/AP",
}
_FINAL_EVALUATION_ONLY = ("TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", "")
_EVERYTHING = (
    *("TEST.PROPOSAL_RECALL", "True", "TEST.CORRUPTIONS", "['occlusion']", "TEST.REPORT", "False"),
    *_FINAL_EVALUATION_ONLY,
)
# Trained with about half of the pixels, half of the channels and more frozen stages than
# configs/PennFudan, since each of these tables has 21 trainings. Evaluated with its pixels.
_SMALL = (
    *("INPUT.MIN_SIZE_TRAIN", "(160, 192, 224)", "INPUT.MAX_SIZE_TRAIN", "360"),
    *("MODEL.BACKBONE.FREEZE_AT", "4", "MODEL.FPN.OUT_CHANNELS", "64"),
    *("MODEL.DOUBLE_HEAD.CONV_DIM", "128"),
    *("SOLVER.MAX_ITER", "800", "SOLVER.STEPS", "(600, 740)"),
)


# The demo's config leaves Inverted Attention out and samples fewer RoIs, to save time.
_DEMO_WITH_ALL_PARTS = (
    *("MODEL.INVERTED_ATTENTION.ENABLED", "True", "MODEL.INVERTED_ATTENTION.START_ITER", "500"),
    *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64"),
)


def _parts(pattern: str, all_opts: tuple[str, ...] = ()) -> tuple[Row, ...]:
    """The same detector with each of the parts, and with all of them.

    Args:
        pattern: path of the configs with ``{}`` for the name of the model.
        all_opts: KEY VALUE pairs of the row with all parts.
    """
    ext = "+ Double-Head-Ext"
    everything = "Cascade RPN + Double-Head-Ext"
    return (
        Row("Faster R-CNN", pattern.format("faster_rcnn")),
        Row("+ Cascade RPN", pattern.format("faster_rcnn_crpn")),
        Row("+ Inverted Attention", pattern.format("faster_rcnn_IA")),
        Row("+ Double-Head", pattern.format("double_head")),
        Row(ext, pattern.format("double_head_ext")),
        Row(
            f"{ext}, boxes of the conv head (the paper)",
            pattern.format("double_head_ext"),
            ("MODEL.DOUBLE_HEAD.BOX_FUSION", "conv"),
            weights_of=ext,
        ),
        Row(everything, pattern.format("crpn_double_head_ext")),
        Row(
            f"{everything}, boxes of the conv head",
            pattern.format("crpn_double_head_ext"),
            ("MODEL.DOUBLE_HEAD.BOX_FUSION", "conv"),
            weights_of=everything,
        ),
        Row("all parts", pattern.format("csp_cascade"), all_opts),
    )


TABLES: dict[str, Table] = {
    "shapes-recall": Table(
        title="Recall of 100 proposals on the embedded shapes, proposals alone, 300 iterations",
        rows=(
            Row("RPN", "Demo/faster_rcnn.yaml"),
            Row("Cascade RPN", "Demo/faster_rcnn_crpn.yaml"),
        ),
        metrics={"AR@100": _AR},
        opts=(
            *("MODEL.META_ARCHITECTURE", "ProposalNetwork"),
            *("MODEL.RPN.PRE_NMS_TOPK_TEST", "1000", "MODEL.RPN.POST_NMS_TOPK_TEST", "1000"),
            *("MODEL.RPN.LOSS_WEIGHT", "1.0", "SOLVER.BASE_LR", "0.02"),
            *("SOLVER.MAX_ITER", "300", "SOLVER.STEPS", "(240,)"),
            *_FINAL_EVALUATION_ONLY,
        ),
    ),
    "shapes": Table(
        title="Embedded shapes, a narrow CSPResNeXt-50 from scratch, 1000 iterations of 8 images",
        rows=_parts("Demo/{}.yaml", _DEMO_WITH_ALL_PARTS),
        metrics=_METRICS,
        opts=("SOLVER.MAX_ITER", "1000", "SOLVER.STEPS", "(720, 920)", *_EVERYTHING),
    ),
    "penn-fudan": Table(
        title="Penn-Fudan, EfficientNet-Lite0 with ImageNet weights, 800 iterations of 4 images",
        rows=_parts("PennFudan/{}_efficientnet_lite0.yaml"),
        metrics=_METRICS,
        opts=(*_SMALL, *_EVERYTHING),
    ),
    "bccd": Table(
        title="BCCD, EfficientNet-Lite0 with ImageNet weights, 800 iterations of 4 images",
        rows=_parts("BCCD/{}_efficientnet_lite0.yaml"),
        metrics=_METRICS,
        opts=(*_SMALL, *_EVERYTHING),
    ),
}


@dataclass(frozen=True)
class _Run:
    """One row with one seed."""

    table: Table
    row: Row
    seed: int

    @property
    def name(self) -> str:
        return f"{_slug(self.row.label)}_seed{self.seed}"

    @property
    def opts(self) -> tuple[str, ...]:
        return (*self.table.options(self.row), "SEED", str(self.seed))

    @property
    def source(self) -> "_Run":
        """The run whose weights are evaluated."""
        assert self.row.weights_of is not None
        return _Run(self.table, self.table.named(self.row.weights_of), self.seed)

    def identity(self) -> dict[str, object]:
        """Return everything that the results depend on, including the content of the config."""
        source = self.source.identity() if self.row.weights_of else None
        config = {"config": self.row.config, "opts": list(self.opts), "settings": _digest(self)}
        return config | ({"weights": source["settings"]} if source else {})


def _runs(table: Table) -> list[_Run]:
    return [_Run(table, row, seed) for row in table.rows for seed in table.seeds]


def missing_runs(table: Table, records: Path) -> list[str]:
    """Return the names of the runs of ``table`` that have no record yet."""
    return [run.name for run in _runs(table) if _read_record(run, records) is None]


def train_table(
    table: Table, folder: Path, records: Path, train_command: Sequence[str], *, jobs: int = 1
) -> Results:
    """Train every row with every seed; runs with a record are not repeated.

    Args:
        table: what to train.
        folder: parent of the runs' folders, which hold logs and checkpoints.
        records: folder of the results, one JSON file per run; small enough to be committed.
        train_command: the training command, to which arguments are appended.
        jobs: number of runs at a time; they share the cores this process may use.

    Returns:
        By label, for each seed the metrics of its last evaluation and "minutes" (wall clock).

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    threads = max(len(os.sched_getaffinity(0)) // jobs, 1)
    futures: dict[str, Future[dict[str, float]]] = {}

    def finish(run: _Run) -> dict[str, float]:
        if run.row.weights_of is not None:
            futures[run.source.name].result()
        return _finish(run, folder, records, train_command, threads)

    results: Results = {row.label: [] for row in table.rows}
    with ThreadPoolExecutor(jobs) as pool:
        # Seed by seed, so that an interrupted table has whole seeds of all rows. Runs start in this
        # order, so none waits for the weights of one that cannot start.
        for run in sorted(_runs(table), key=lambda run: (run.seed, run.row.weights_of is not None)):
            futures[run.name] = pool.submit(finish, run)
        for run in _runs(table):
            results[run.row.label].append(futures[run.name].result())
    return results


def finished_runs(table: Table, records: Path) -> Results:
    """Return the results that :func:`train_table` would not train again."""
    results: Results = {row.label: [] for row in table.rows}
    for run in _runs(table):
        metrics = _read_record(run, records)
        if metrics is not None:
            results[run.row.label].append(metrics)
    return results


def _finish(
    run: _Run, folder: Path, records: Path, train_command: Sequence[str], threads: int
) -> dict[str, float]:
    """Return the metrics of a run, from its record or from the run itself."""
    known = _read_record(run, records)
    if known is not None:
        return known
    start = time.perf_counter()
    if run.row.weights_of is None:
        metrics = _train(run, folder / run.name, train_command, threads)
    else:
        metrics = _evaluate(run, folder / run.source.name, threads)
    metrics["minutes"] = (time.perf_counter() - start) / 60
    atomic_write_json(records / f"{run.name}.json", {**run.identity(), "metrics": metrics})
    return metrics


def _read_record(run: _Run, records: Path) -> dict[str, float] | None:
    file = records / f"{run.name}.json"
    if not file.exists():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    metrics = record.pop("metrics")
    return metrics if record == run.identity() else None


def _train(run: _Run, folder: Path, train_command: Sequence[str], threads: int) -> dict[str, float]:
    words = ["--config-file", run.row.config, "--num-gpus", "0", "OUTPUT_DIR", str(folder)]
    _call([*train_command, *words, *run.opts], folder / "output.txt", threads)
    lines = (folder / "metrics.json").read_text(encoding="utf-8").splitlines()
    # The last line is the final evaluation.
    return {name: value for name, value in json.loads(lines[-1]).items() if "/" in name}


def _evaluate(run: _Run, folder: Path, threads: int) -> dict[str, float]:
    """Evaluate the weights in ``folder`` with the options of ``run``."""
    result = folder / f"{run.name}_metrics.json"
    script = Path(__file__).with_name("evaluate_run.py")
    weights = str(folder / "model_final.pth")
    words = [run.row.config, str(result), *run.opts, "MODEL.WEIGHTS", weights]
    _call([sys.executable, str(script), *words], folder / f"{run.name}.txt", threads)
    return json.loads(result.read_text(encoding="utf-8"))


def _call(command: Sequence[str], log: Path, threads: int) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        ).returncode
    if status:
        raise RuntimeError(f"the run ended with status {status}: see {log}")


def _digest(run: _Run) -> str:
    """Hash of all settings that differ from the defaults.

    A key that a later version adds, off by default, leaves it as it is.
    """
    cfg = model_zoo.get_config(run.row.config)
    cfg.merge_from_list(list(run.opts))
    defaults, values = (
        {name: repr(value) for name, value in config_values(node)} for node in (get_cfg(), cfg)
    )
    changed = {name: value for name, value in values.items() if defaults.get(name) != value}
    changed.pop("OUTPUT_DIR", None)
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:16]


def format_table(table: Table, results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Return the table in Markdown: mean and standard deviation over the seeds.

    Args:
        table: what was trained.
        results: as :func:`train_table` or :func:`finished_runs` returns them. Rows without a result
            are left out, and a sentence says how many runs are still to be trained.
    """
    lines = [
        f"{table.title}:",
        "",
        "| " + " | ".join(["model", *table.metrics, "config"]) + " |",
        "|---" * (len(table.metrics) + 2) + "|",
    ]
    rows = [row for row in table.rows if results[row.label]]
    for row in rows:
        cells = [
            _cell([run[name] for run in results[row.label]]) for name in table.metrics.values()
        ]
        config = f"`{row.config}`" + (f" `{' '.join(row.opts)}`" if row.opts else "")
        lines.append("| " + " | ".join([row.label, *cells, config]) + " |")
    seeds = ", ".join(map(str, table.seeds))
    opts = " ".join(f'"{o}"' if re.search(r"[^\w.@/-]", o) or not o else o for o in table.opts)
    lines += ["", f"Options of every run: `{opts} SEED n`, n = {seeds}."]
    number, finished = len(_runs(table)), sum(map(len, results.values()))
    if finished < number:
        one = "A value without a deviation is that of one run."
        lines += ["", f"Unfinished: {finished} of {number} runs. {one}"]
    return "\n".join(lines)


def part_gains(
    table: Table, results: Mapping[str, Sequence[Mapping[str, float]]]
) -> dict[str, object]:
    """Return what the report of a demo shows: mean box AP of the base, and with the parts.

    Args:
        table: a table whose first row is the base and whose last row has all parts.
        results: as :func:`train_table` returns them.
    """

    def entry(row: Row) -> dict[str, object]:
        return {"label": row.label, "AP": mean(run["bbox/AP"] for run in results[row.label])}

    base, *parts = [row for row in table.rows if row.weights_of is None]
    return {
        "config": parts[-1].config,
        "title": table.title,
        "runs": len(table.seeds),
        "source": "docs/benchmarks.md",
        "base": entry(base),
        "parts": [entry(row) for row in parts],
    }


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def replace_table(path: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in a Markdown file.

    Raises:
        ValueError: the file does not have the two lines once, in this order.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or begin in after or end in after:
        raise ValueError(f"{path} needs one '{begin}' and one '{end}' after it")
    with atomic_open(path) as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")
