"""The gain of each part of the demo's detector, as measured for docs/benchmarks.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .html import Block, Note, Section, Table
from .run import Run

__all__ = ["FILE", "gains_section"]

# Written by dev/reproduce_tables.py; missing until its table has been trained.
FILE = Path(__file__).with_name("part_gains.json")
_DEMO = ("Demo", "csp_cascade.yaml")


def gains_section(run: Run, file: Path = FILE) -> Iterator[Section]:
    """Yield the section if the run is one of the demo's config and there are measurements."""
    if not file.is_file():
        return
    gains: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if Path(run.config_file).parts[-2:] != _DEMO:
        return
    base = gains["base"]
    blocks: list[Block] = [
        Note(
            f"Measured for the documentation, not in this run: mean box AP of {gains['runs']} runs "
            f"each on {', '.join(gains['datasets'])}, and its difference from {base['label']}. "
            f"Source: {gains['source']}."
        ),
        Table(
            ["detector", *gains["datasets"]],
            [
                [base["label"], *(f"{ap:.1f}" for ap in base["AP"])],
                *([row["label"], *_changes(row["AP"], base["AP"])] for row in gains["parts"]),
            ],
        ),
    ]
    yield Section("What each part adds", blocks)


def _changes(values: list[float], base: list[float]) -> list[str]:
    return [f"{ap:.1f} ({ap - before:+.1f})" for ap, before in zip(values, base, strict=True)]
