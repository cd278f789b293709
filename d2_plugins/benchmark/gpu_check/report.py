"""The result of the GPU check as a Markdown page and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ...files import atomic_open, atomic_write_json
from .checks import Step

__all__ = ["summary", "write_report"]


def write_report(steps: Sequence[Step], folder: Path) -> None:
    """Write ``gpu_check.md`` and ``gpu_check.json``.

    Args:
        steps: results of the steps.
        folder: target folder; created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_open(folder / "gpu_check.md") as file:
        file.write(_page(steps))
    content: dict[str, Any] = {
        "passed": all(step.passed for step in steps),
        "steps": [{**asdict(step), "passed": step.passed} for step in steps],
    }
    atomic_write_json(folder / "gpu_check.json", content)


def summary(step: Step) -> str:
    """Return one line about a step, and one for each failed check."""
    failed = [check for check in step.checks if not check.passed]
    verdict = "passed" if step.passed else "FAILED"
    lines = [f"{step.name}: {verdict}, {len(step.checks)} checks, {step.seconds:.1f} s"]
    lines += [f"  {check.name}: {check.value} (required: {check.limit})" for check in failed]
    return "\n".join(lines)


def _page(steps: Sequence[Step]) -> str:
    passed = all(step.passed for step in steps)
    parts = [f"# GPU check: {'passed' if passed else 'FAILED'}"]
    for step in steps:
        rows = [
            [check.name, check.value, check.limit, "yes" if check.passed else "**no**"]
            for check in step.checks
        ]
        table = tabulate(
            rows,
            headers=["check", "value", "required", "passed"],
            tablefmt="github",
            disable_numparse=True,
        )
        parts += [f"## {step.name} ({step.seconds:.1f} s)", table]
    return "\n\n".join(parts) + "\n"
