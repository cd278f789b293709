"""One detector's parameters, multiply-adds, activations and latency, part by part."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from tabulate import tabulate
from torch import nn

from .complexity import count_costs, parts_of

__all__ = ["ModelReport", "PartReport", "analyze", "format_report", "median_seconds"]

_NOT_COUNTED = (
    "Not counted: norms, activation functions, arithmetic on single elements, pooling, resizing, "
    "sorting, NMS."
)


@dataclass(frozen=True)
class PartReport:
    """One part of a detector, or all of it.

    Attributes:
        parameters: of all kinds; what frozen norms hold are not parameters.
        trainable: those that a training changes.
        flops: multiply-adds of one image.
        activations: numbers that convolutions, linear layers and products put out.
    """

    parameters: int
    trainable: int
    flops: int
    activations: int


@dataclass(frozen=True)
class ModelReport:
    """What a detector costs.

    Attributes:
        parts: by name, in the order in which they run.
        total: their sum.
        operators: multiply-adds by operator.
        latency_ms: median time of one image; None if not measured.
    """

    parts: Mapping[str, PartReport]
    total: PartReport
    operators: Mapping[str, int]
    latency_ms: float | None


def analyze(model: nn.Module, run: Callable[[], object], *, repeats: int = 5) -> ModelReport:
    """Measure one call of a detector.

    Args:
        model: the detector, in eval mode.
        run: calls it on one image.
        repeats: timings, after one that is not counted; 0 takes none.
    """
    run = torch.no_grad()(run)
    costs = count_costs(model, run)
    parameters = dict(model.named_parameters())
    columns = (
        {name: p.numel() for name, p in parameters.items()},
        {name: p.numel() for name, p in parameters.items() if p.requires_grad},
        _by_module(costs.flops),
        _by_module(costs.activations),
    )
    by_part = [parts_of(model, column) for column in columns]
    device = next(iter(parameters.values())).device
    return ModelReport(
        parts={
            name: PartReport(*(column.get(name, 0) for column in by_part))
            for name in parts_of(model, {name: 1 for column in columns for name in column})
        },
        total=PartReport(*(sum(column.values()) for column in columns)),
        operators=costs.by_operator(),
        latency_ms=1000 * median_seconds(run, repeats, device) if repeats else None,
    )


def _by_module(counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for (module, _), count in counts.items():
        sums[module] += count
    return dict(sums)


def median_seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Wall-clock time of a call, after one to warm up.

    Args:
        run: what is timed.
        repeats: how often.
        device: waited for, if it is a GPU.
    """
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return median(seconds[1:])


def format_report(report: ModelReport) -> str:
    """The report as a table of the parts, and the multiply-adds by operator."""
    rows = [
        [name, p.parameters / 1e6, p.trainable / 1e6, p.flops / 1e9, p.activations / 1e6]
        for name, p in [*report.parts.items(), ("total", report.total)]
    ]
    headers = ["part", "parameters (M)", "trainable (M)", "GFLOPs", "activations (M)"]
    operators = ", ".join(f"{name} {count / 1e9:.3f}" for name, count in report.operators.items())
    lines = [
        tabulate(rows, headers=headers, tablefmt="github", floatfmt=".3f"),
        "",
        f"GFLOPs by operator: {operators}.",
        f"One multiply-add is one FLOP. {_NOT_COUNTED}",
    ]
    if report.latency_ms is not None:
        lines.append(f"Latency: {report.latency_ms:.1f} ms, the median.")
    return "\n".join(lines)
