"""Figures of a run: losses, AP over the iterations, precision against recall."""

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation import evaluate_detections
from .run import MissingError, Predictions, Run

__all__ = [
    "COLOURS",
    "ap_curve",
    "distinct_limits",
    "draw_aps",
    "draw_losses",
    "limit_losses",
    "loss_curve",
    "loss_names",
    "pr_curve",
    "precision_recall",
    "style_axes",
]

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B3294", "#8C6D31")

_MAX_CLASS_CURVES = 6
# Curves of fewer points have markers.
_FEW_POINTS = 10


def loss_curve(run: Run) -> bytes:
    """Draw the total loss and its parts over the iterations, as a PNG.

    Raises:
        MissingError: ``metrics.json`` has no losses.
    """
    return _png(draw_losses(run))


def draw_losses(run: Run) -> Figure:
    """Draw the figure of :func:`loss_curve`.

    Raises:
        MissingError: ``metrics.json`` has no losses.
    """
    keys = loss_names(run)
    iterations, values = run.series("total_loss")
    if not values:
        raise MissingError("metrics.json has no losses")
    figure, axes = _figure("iteration", "loss")
    marker = "." if len(values) < _FEW_POINTS else ""
    axes.plot(iterations, values, color="#222222", linewidth=2, marker=marker, label="total")
    for key, colour, style in zip(keys, _cycle(len(keys)), _styles(len(keys)), strict=True):
        axes.plot(*run.series(key), color=colour, linestyle=style, marker=marker,
                  label=key.removeprefix("loss_"))  # fmt: skip
    axes.set_xlim(left=0)
    limit_losses(axes, values)
    return figure


def loss_names(run: Run) -> list[str]:
    """Return the names of the losses of a run without the total, e.g. "loss_cls"."""
    return sorted({key for row in run.metrics for key in row if key.startswith("loss_")})


def ap_curve(run: Run) -> bytes:
    """Draw the AP of every task and dataset over the iterations, as a PNG.

    Raises:
        MissingError: no evaluation was written to ``metrics.json``.
    """
    return _png(draw_aps(run))


def draw_aps(run: Run) -> Figure:
    """Draw the figure of :func:`ap_curve`; the last value of each curve stands next to it.

    Raises:
        MissingError: no evaluation was written to ``metrics.json``.
    """
    curves = [
        (label + (f", {name}" if len(run.dataset_names) > 1 else ""), iterations, values)
        for label, task, metric in (
            ("box AP", "bbox", "AP"),
            ("box AP50", "bbox", "AP50"),
            ("box AP75", "bbox", "AP75"),
            ("mask AP", "segm", "AP"),
            ("keypoint AP", "keypoints", "AP"),
            ("proposal AR@100", "box_proposals", "AR@100"),
            ("proposal AR@1000", "box_proposals", "AR@1000"),
        )
        if metric in distinct_limits(run, [metric])
        for name, iterations, values in run.evaluated_series(task, metric)
    ]
    if not curves:
        raise MissingError("metrics.json has no evaluation")
    figure, axes = _figure("iteration", "percent")
    for (label, iterations, values), colour, style in zip(
        curves, _cycle(len(curves)), _styles(len(curves)), strict=True
    ):
        axes.plot(iterations, values, marker="o", markersize=4, color=colour, linestyle=style,
                  label=label)  # fmt: skip
        axes.annotate(f"{values[-1]:.1f}", (iterations[-1], values[-1]), (4, 3), fontsize=7,
                      textcoords="offset points", color=colour)  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.08 * max(iterations[-1] for _, iterations, _ in curves) + 1)
    return figure


def distinct_limits(run: Run, metrics: Sequence[str]) -> list[str]:
    """Leave out recalls of more proposals than the detector makes.

    With 100 proposals per image, for example, AR@300 and AR@1000 equal AR@100.

    Args:
        run: its config says how many proposals there are.
        metrics: names such as "AR@100" and "ARs@1000"; other names are kept.
    """
    limits = [100, 300, 1000]
    number = run.cfg.MODEL.RPN.POST_NMS_TOPK_TEST if run.cfg is not None else limits[-1]
    useful = [limit for limit in limits if not any(number <= other < limit for other in limits)]
    return [
        metric
        for metric in metrics
        if "@" not in metric or int(metric.rpartition("@")[2]) in useful
    ]


def pr_curve(predictions: Predictions) -> bytes:
    """Draw precision against recall of the boxes, as a PNG.

    Shows the mean over classes at IoU 0.5, 0.75 and 0.5 to 0.95, and the six classes with the most
    objects at IoU 0.5.

    Raises:
        MissingError: the ground truth has no objects.
    """
    recall, precision = precision_recall(predictions)
    has_object = ~np.isnan(precision[0, 0])
    figure, axes = _figure("recall", "precision")
    mean = precision[..., has_object].mean(axis=-1)
    for label, curve, style in (
        ("mean, IoU 0.5", mean[0], "-"),
        ("mean, IoU 0.75", mean[5], "--"),
        ("mean, IoU 0.5 to 0.95", mean.mean(axis=0), ":"),
    ):
        axes.plot(recall, curve, color="#222222", linestyle=style, linewidth=2, label=label)
    if has_object.sum() > 1:
        for k, colour in zip(_largest_classes(predictions, has_object), COLOURS, strict=False):
            axes.plot(recall, precision[0, :, k], color=colour, label=predictions.class_names[k])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    return _png(figure)


def precision_recall(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return COCO's interpolated precision of the boxes, of all areas, 100 detections per image.

    Returns:
        The 101 recalls, and the precisions (10 IoU thresholds, 101, classes); NaN for a class
        without objects.

    Raises:
        MissingError: the ground truth has no objects.
    """
    evaluated = evaluate_detections(predictions.ground_truth, predictions.detections, "bbox")
    precision = np.asarray(evaluated.eval["precision"])[..., 0, -1]
    if not (precision > -1).any():
        raise MissingError("the ground truth has no objects")
    return np.asarray(evaluated.params.recThrs), np.where(precision > -1, precision, np.nan)


def _largest_classes(predictions: Predictions, has_object: np.ndarray) -> Sequence[int]:
    classes = [
        predictions.to_class[a["category_id"]] for a in predictions.ground_truth.anns.values()
    ]
    counts = np.bincount(classes, minlength=len(has_object)) * has_object
    largest = np.argsort(-counts, kind="stable")[:_MAX_CLASS_CURVES]
    return [int(k) for k in largest if counts[k]]


def style_axes(axes: Axes) -> None:
    """Draw a pale grid, and no frame at the top and on the right."""
    axes.grid(color="#e3e3e3", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def limit_losses(axes: Axes, values: Sequence[float]) -> None:
    """Show losses from 0 to a little above all but the highest 2 %.

    The few high losses of a diverging start would flatten the rest.
    """
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        axes.set_ylim(0, 1.1 * float(np.quantile(finite, 0.98)) or 1)


def _figure(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    # matplotlib's object interface: pyplot would change the caller's backend and current figure.
    figure = Figure(figsize=(5.6, 3.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    style_axes(axes)
    return figure, axes


def _png(figure: Figure) -> bytes:
    (axes,) = figure.axes
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _cycle(number: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(number)]


def _styles(number: int) -> list[str]:
    """Return line styles; the style changes each time the colours are used up."""
    return [("-", "--", ":", "-.")[i // len(COLOURS) % 4] for i in range(number)]
