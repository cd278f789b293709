"""One picture of several training runs: a panel per metric, a curve per run."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..errors import UsageError, nearest
from .curves import COLOURS, limit_losses, style_axes
from .run import Run

__all__ = ["choose_metrics", "draw_runs", "run_names", "smooth"]

_DEFAULT_METRICS = ("total_loss", "loss_*", "*bbox/AP", "*segm/AP", "*box_proposals/AR@100")
_EVALUATIONS = ("bbox", "segm", "keypoints", "box_proposals")
_MAX_COLUMNS = 3
_LINE_STYLES = ("-", "--", ":", "-.")


def run_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of different paths that tell them apart, e.g. ["a/run", "b/run"]."""
    longest = max(len(folder.parts) for folder in folders)
    for length in range(1, longest):
        names = [str(Path(*folder.parts[-length:])) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def choose_metrics(runs: Sequence[Run], patterns: Sequence[str] | None = None) -> list[str]:
    """Choose the metrics to draw.

    Args:
        runs: runs, of which at least one must have a metric.
        patterns: shell patterns of metrics; None chooses losses and APs.

    Returns:
        Keys of ``metrics.json``, in the order of the patterns and then the alphabet.

    Raises:
        UsageError: no metric matches a pattern, or the runs have no default metric.
    """
    rows = [row for run in runs for row in run.metrics]
    keys = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    known = sorted(keys - {"iteration"})
    chosen: dict[str, None] = {}
    for pattern in patterns or _DEFAULT_METRICS:
        matches = [key for key in known if fnmatchcase(key, pattern)]
        if not matches and patterns:
            near = nearest(pattern, known)
            raise UsageError(f"--metrics: no run has '{pattern}'. Nearest: {near}")
        chosen.update(dict.fromkeys(matches))
    if not chosen:
        raise UsageError(f"the runs have no losses and no APs; --metrics of {', '.join(known)}")
    return list(chosen)


def draw_runs(runs: Mapping[str, Run], metrics: Sequence[str], *, weight: float = 0.0) -> Figure:
    """Draw a panel per metric with a curve per run, and one legend.

    Args:
        runs: runs by name.
        metrics: keys of ``metrics.json``, at least one.
        weight: see :func:`smooth`; the unsmoothed values are then drawn pale in the background.
    """
    columns = min(_MAX_COLUMNS, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * lines + 0.5), dpi=120, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    looks = {
        name: (COLOURS[i % len(COLOURS)], _LINE_STYLES[i // len(COLOURS) % len(_LINE_STYLES)])
        for i, name in enumerate(runs)
    }
    last = max(row["iteration"] for run in runs.values() for row in run.metrics)
    for axes, metric in zip(panels, metrics, strict=False):
        _draw_metric(axes, metric, runs, looks, weight)
        axes.set_xlim(0, 1.02 * last + 1)
    for axes in panels[len(metrics) :]:
        axes.remove()
    handles = [
        Line2D([], [], color=colour, linestyle=style, label=name)
        for name, (colour, style) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(runs)))
    return figure


def _draw_metric(
    axes: Axes,
    metric: str,
    runs: Mapping[str, Run],
    looks: Mapping[str, tuple[str, str]],
    weight: float,
) -> None:
    is_evaluation = any(part in _EVALUATIONS for part in metric.split("/"))
    for name, run in runs.items():
        colour, style = looks[name]
        iterations, values = run.series(metric)
        if not values:
            continue
        if is_evaluation:
            axes.plot(iterations, values, style, color=colour, marker="o", markersize=4, label=name)
            continue
        if weight:
            axes.plot(iterations, values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(iterations, smooth(values, weight), style, color=colour, label=name)
    axes.set(title=metric, xlabel="iteration")
    style_axes(axes)
    if is_evaluation:
        axes.set_ylim(bottom=0)
    elif "loss" in metric:
        limit_losses(axes, [value for run in runs.values() for value in run.series(metric)[1]])


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential mean of the values so far, without a bias towards zero at the start.

    The mean after value t weights the values i = 0..t by ``weight ** (t - i)``; this is Adam's
    bias correction (Kingma and Ba, arXiv 1412.6980, section 3).

    Args:
        values: values in their order; a NaN or infinity is skipped and stands in the result.
        weight: weight of the past, in [0, 1).
    """
    smoothed = []
    total = norm = 0.0
    for value in values:
        if not math.isfinite(value):
            smoothed.append(value)
            continue
        total = weight * total + value
        norm = weight * norm + 1
        smoothed.append(total / norm)
    return smoothed
