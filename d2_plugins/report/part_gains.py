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


def gains_section(run: Run, file: Path = FILE) -> Iterator[Section]:
    """Yield the section if the run is one of the demo's config and there are measurements."""
    if not file.is_file():
        return
    gains: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if Path(run.config_file).parts[-2:] != Path(gains["config"]).parts:
        return
    base = gains["base"]
    blocks: list[Block] = [
        Note(
            f"Measured for the documentation, not in this run: {gains['title']}. Mean box AP of "
            f"{gains['runs']} runs each, and its difference from {base['label']}. "
            f"Source: {gains['source']}."
        ),
        Table(
            ["detector", "AP", "difference"],
            [
                [base["label"], f"{base['AP']:.1f}", ""],
                *(
                    [row["label"], f"{row['AP']:.1f}", f"{row['AP'] - base['AP']:+.1f}"]
                    for row in gains["parts"]
                ),
            ],
        ),
    ]
    yield Section("What each part adds", blocks)
