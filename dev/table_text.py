"""The Markdown of a trained comparison, and what the report of the demo shows of it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from d2_plugins.files import atomic_open

from .row_costs import TITLES
from .table_runs import runs_of
from .trained_tables import Results, Table

__all__ = ["format_table", "part_gains", "replace_table"]


def format_table(
    table: Table,
    results: Mapping[str, Sequence[Mapping[str, float]]],
    costs: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Return the table in Markdown: mean and standard deviation over the seeds.

    Args:
        table: what was trained.
        results: as :func:`train_table` or :func:`finished_runs` returns them. Rows without a result
            are left out, and a sentence says how many runs are still to be trained.
        costs: as :func:`row_costs` returns them; None leaves the columns out.
    """
    cost_titles = TITLES if costs else {}
    titles = ["model", *table.metrics, *cost_titles, "config"]
    lines = [
        f"{table.title}:",
        "",
        "| " + " | ".join(titles) + " |",
        "|---" * len(titles) + "|",
    ]
    rows = [row for row in table.rows if results[row.label]]
    for row in rows:
        cells = [
            _cell([run[name] for run in results[row.label]]) for name in table.metrics.values()
        ]
        cells += [_cost((costs or {}).get(row.label, {}), name) for name in cost_titles.values()]
        config = f"`{row.config}`" + (f" `{' '.join(row.opts)}`" if row.opts else "")
        lines.append("| " + " | ".join([row.label, *cells, config]) + " |")
    seeds = ", ".join(map(str, table.seeds))
    opts = " ".join(f'"{o}"' if re.search(r"[^\w.@/-]", o) or not o else o for o in table.opts)
    lines += ["", f"Options of every run: `{opts} SEED n`, n = {seeds}."]
    number, finished = len(runs_of(table)), sum(map(len, results.values()))
    if finished < number:
        one = "A value without a deviation is that of one run."
        lines += ["", f"Unfinished: {finished} of {number} runs. {one}"]
    return "\n".join(lines)


def part_gains(comparisons: Sequence[tuple[Table, Results]]) -> dict[str, object]:
    """Return what the report of the demo shows: mean box AP of the base, and with the parts.

    Args:
        comparisons: tables with the same rows, of which the first is the base, and their results as
            :func:`train_table` returns them.
    """
    rows = [row for row in comparisons[0][0].rows if row.weights_of is None]
    base, *parts = (
        {
            "label": row.label,
            "AP": [
                mean(run["bbox/AP"] for run in results[row.label]) for _, results in comparisons
            ],
        }
        for row in rows
    )
    return {
        "source": "docs/benchmarks.md",
        "datasets": [table.dataset for table, _ in comparisons],
        "runs": len(comparisons[0][0].seeds),
        "base": base,
        "parts": parts,
    }


def _cell(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def _cost(costs: Mapping[str, float], name: str) -> str:
    return f"{costs[name]:.2f}" if name in costs else "-"


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
