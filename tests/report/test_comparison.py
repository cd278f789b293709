"""The comparison of runs: every series of every run is in the picture, under its name."""

import math
from pathlib import Path

import numpy as np
import pytest

from d2_plugins.report.comparison import choose_metrics, draw_runs, run_names, smooth
from d2_plugins.report.run import Run, load_run
from tests.support.runs import two_runs


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return two_runs(tmp_path)


@pytest.fixture
def runs(folders: list[Path]) -> dict[str, Run]:
    return {folder.name: load_run(folder) for folder in folders}


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_panels_hold_the_series(runs: dict[str, Run], weight: float) -> None:
    metrics = choose_metrics(list(runs.values()))
    assert metrics == ["total_loss", "loss_cls", "loss_mask", "bbox/AP"]
    figure = draw_runs(runs, metrics, weight=weight)
    assert [axes.get_title() for axes in figure.axes] == metrics
    colours: dict[str, set[str]] = {"plain": set(), "flagship": set()}
    for axes, metric in zip(figure.axes, metrics, strict=True):
        curves = {line.get_label(): line for line in axes.lines}
        smoothed = weight and metric != "bbox/AP"
        for name in ["flagship"] if metric == "loss_mask" else ["plain", "flagship"]:
            iterations, values = runs[name].series(metric)
            assert curves[name].get_xdata().tolist() == iterations
            drawn = smooth(values, weight) if smoothed else values
            assert curves[name].get_ydata().tolist() == drawn
            colours[name].add(curves[name].get_color())
        own = [line for line in axes.lines if not line.get_label().startswith("_")]
        # The values themselves stay visible behind smoothed curves.
        assert len(axes.lines) == len(own) * (2 if smoothed else 1)
        assert axes.get_xlim()[1] > 199
    assert [len(c) for c in colours.values()] == [1, 1]
    assert colours["plain"] != colours["flagship"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "flagship"]


def test_smoothing_is_the_weighted_mean_of_the_past() -> None:
    values = np.random.default_rng(0).normal(size=30).tolist()
    for t, smoothed in enumerate(smooth(values, 0.7)):
        weights = 0.7 ** np.arange(t, -1, -1)
        assert smoothed == pytest.approx(np.average(values[: t + 1], weights=weights))
    assert smooth(values, 0.0) == values
    gaps = smooth([1.0, math.nan, 3.0], 0.5)
    assert math.isnan(gaps[1])
    assert [gaps[0], gaps[2]] == pytest.approx([1.0, (0.5 * 1 + 3) / 1.5])


def test_many_runs_look_different(runs: dict[str, Run]) -> None:
    many = {f"run {i}": runs["plain"] for i in range(20)}
    (axes,) = draw_runs(many, ["lr"]).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 20


def test_a_diverged_run_does_not_flatten_the_others(folders: list[Path]) -> None:
    text = (folders[0] / "metrics.json").read_text().replace("2.905", "Infinity")
    (folders[0] / "metrics.json").write_text(text.replace("2.805", "NaN"))
    (axes,) = draw_runs({"x": load_run(folders[0])}, ["total_loss"]).axes
    assert axes.get_ylim() == pytest.approx((0, 3), abs=0.3)


def test_run_names() -> None:
    assert run_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    folders = [Path("/a/x/run"), Path("/b/y/run"), Path("/b/z")]
    assert run_names(folders) == ["x/run", "y/run", "b/z"]
    assert run_names([Path("/run"), Path("/a/run")]) == ["/run", "a/run"]
