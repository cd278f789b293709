"""Parameters, multiply-adds, activations and latency of a detector, by part."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tabulate import tabulate
from torch import nn

from .complexity import count_costs, parts_of
from .timing import median_seconds

__all__ = ["ModelReport", "PartReport", "analyze", "format_report"]

_NOT_COUNTED = (
    "Not counted: norms, activation functions, arithmetic on single elements, pooling, resizing, "
    "sorting, NMS."
)


@dataclass(frozen=True)
class PartReport:
    """Costs of one part of a detector, or of the whole detector.

    Attributes:
        parameters: number of parameters; the buffers of frozen norms are not parameters.
        trainable: number of parameters that training updates.
        flops: number of multiply-adds for one image.
        activations: number of outputs of convolutions, linear layers and matrix products.
    """

    parameters: int
    trainable: int
    flops: int
    activations: int


@dataclass(frozen=True)
class ModelReport:
    """Costs of a detector.

    Attributes:
        parts: costs of each part by name, in the order in which the parts run.
        total: sum over all parts.
        operators: number of multiply-adds by operator.
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
        run: a function that runs the detector on one image.
        repeats: number of timings after a warm-up call; 0 skips the timing.
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


def format_report(report: ModelReport) -> str:
    """Return the report as text: a table of the parts, and multiply-adds by operator."""
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
        lines.append(f"Latency: {report.latency_ms:.1f} ms (median).")
    return "\n".join(lines)
