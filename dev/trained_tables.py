"""The trained comparisons of docs/benchmarks.md: what to train, and the tables that come of it."""

import hashlib
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from d2_plugins import model_zoo
from d2_plugins.files import atomic_open, atomic_write_json

__all__ = ["TABLES", "Row", "Table", "format_table", "replace_table", "train_table"]


@dataclass(frozen=True)
class Row:
    """One model of a comparison.

    Attributes:
        label: how the table names it.
        config: path below ``configs/``.
        opts: KEY VALUE pairs of this row alone.
    """

    label: str
    config: str
    opts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Models trained alike, and what is compared.

    Attributes:
        title: what the table shows.
        rows: the models.
        metrics: column titles and the names that ``metrics.json`` has for them.
        opts: KEY VALUE pairs of every row.
        seeds: each row is trained once with each.
    """

    title: str
    rows: tuple[Row, ...]
    metrics: Mapping[str, str]
    opts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)

    def options(self, row: Row) -> tuple[str, ...]:
        """KEY VALUE pairs of ``row``, all but the seed and the output folder."""
        return (*self.opts, *row.opts)


_AP = {"AP": "bbox/AP", "AP50": "bbox/AP50", "AP75": "bbox/AP75"}
_AR = "box_proposals/AR@100"
_NO_EVALUATION_BEFORE_THE_END = ("TEST.EVAL_PERIOD", "0", "TEST.BEST_METRIC", "")
_PENN_FUDAN = "PennFudan/{}_efficientnet_lite0.yaml"

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
            *_NO_EVALUATION_BEFORE_THE_END,
        ),
    ),
    "shapes-heads": Table(
        title="RoI heads on the embedded shapes, 1000 iterations",
        rows=(
            Row("2-fc head", "Demo/faster_rcnn.yaml"),
            Row("2-fc head + Inverted Attention", "Demo/faster_rcnn_IA.yaml"),
            Row("Double-Head", "Demo/double_head.yaml"),
        ),
        metrics={**_AP, "AP under occlusion": "bbox_occlusion/AP"},
        opts=(
            *("TEST.CORRUPTIONS", "['occlusion']"),
            *_NO_EVALUATION_BEFORE_THE_END,
        ),
    ),
    "penn-fudan": Table(
        title="Penn-Fudan, EfficientNet-Lite0 with ImageNet weights, 400 iterations of 4 images",
        rows=(
            Row("Faster R-CNN", _PENN_FUDAN.format("faster_rcnn")),
            Row("+ Cascade RPN", _PENN_FUDAN.format("faster_rcnn_crpn")),
            Row("+ Double-Head-Ext", _PENN_FUDAN.format("double_head_ext")),
            Row("+ Inverted Attention", _PENN_FUDAN.format("faster_rcnn_IA")),
            Row("all three", _PENN_FUDAN.format("csp_cascade")),
        ),
        metrics={**_AP, "AR@100 of the proposals": _AR},
        opts=("TEST.PROPOSAL_RECALL", "True", *_NO_EVALUATION_BEFORE_THE_END),
        seeds=(1,),
    ),
}


@dataclass(frozen=True)
class _Job:
    folder: Path
    config: str
    opts: tuple[str, ...]

    def command(self, train_command: Sequence[str]) -> list[str]:
        files = ["--config-file", self.config, "--num-gpus", "0"]
        return [*train_command, *files, "OUTPUT_DIR", str(self.folder), *self.opts]


def train_table(
    table: Table, folder: Path, train_command: Sequence[str], *, jobs: int = 1
) -> dict[str, list[dict[str, float]]]:
    """Train every row with every seed; what an earlier call has finished is not trained again.

    Args:
        table: what to train.
        folder: every run gets a folder below.
        train_command: the training tool, to which arguments are added.
        jobs: runs at a time; the machine's cores are shared among them.

    Returns:
        By row, for each seed the metrics of its last evaluation, and "minutes" (wall clock).

    Raises:
        RuntimeError: a run failed; the message names its log.
    """
    runs = {
        row.label: [
            _Job(
                folder / f"{_slug(row.label)}_seed{seed}",
                row.config,
                (*table.options(row), "SEED", str(seed)),
            )
            for seed in table.seeds
        ]
        for row in table.rows
    }
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            label: [pool.submit(_train, job, train_command, threads) for job in row_jobs]
            for label, row_jobs in runs.items()
        }
        return {label: [future.result() for future in row] for label, row in futures.items()}


def _train(job: _Job, train_command: Sequence[str], threads: int) -> dict[str, float]:
    """Train, or read what a finished run of the same config and options wrote."""
    record_file = job.folder / "table_entry.json"
    identity = {"config": job.config, "opts": list(job.opts), "settings": _digest(job)}
    if record_file.exists():
        record = json.loads(record_file.read_text(encoding="utf-8"))
        if {key: record.get(key) for key in identity} == identity:
            return record["metrics"]
    job.folder.mkdir(parents=True, exist_ok=True)
    output = job.folder / "output.txt"
    start = time.perf_counter()
    with output.open("w", encoding="utf-8") as file:
        status = subprocess.run(
            job.command(train_command),
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            check=False,
        ).returncode
    if status:
        raise RuntimeError(f"training ended with status {status}: see {output}")
    metrics = _last_metrics(job.folder / "metrics.json")
    metrics["minutes"] = (time.perf_counter() - start) / 60
    atomic_write_json(record_file, {**identity, "metrics": metrics})
    return metrics


def _digest(job: _Job) -> str:
    """Of all settings of a run: a config that was edited is another."""
    cfg = model_zoo.get_config(job.config)
    cfg.merge_from_list(list(job.opts))
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def _last_metrics(path: Path) -> dict[str, float]:
    """The last line of ``metrics.json``, which is the final evaluation."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: value for name, value in json.loads(lines[-1]).items() if "/" in name}


def format_table(table: Table, results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The table in Markdown: the mean of the seeds, and each in brackets.

    Args:
        table: what was trained.
        results: as :func:`train_table` returns them.
    """
    lines = [
        f"{table.title}:",
        "",
        "| " + " | ".join(["model", *table.metrics, "minutes", "config"]) + " |",
        "|---" * (len(table.metrics) + 3) + "|",
    ]
    for row in table.rows:
        runs = results[row.label]
        cells = [_cell([run[name] for run in runs]) for name in table.metrics.values()]
        minutes = f"{mean(run['minutes'] for run in runs):.1f}"
        lines.append("| " + " | ".join([row.label, *cells, minutes, f"`{row.config}`"]) + " |")
    seeds = ", ".join(map(str, table.seeds))
    opts = " ".join(f'"{o}"' if re.search(r"[^\w.@/-]", o) or not o else o for o in table.opts)
    return "\n".join([*lines, "", f"Options of every run: `{opts} SEED n`, n = {seeds}."])


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


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
