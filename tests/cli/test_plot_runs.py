"""tools/plot_runs.py: every series of every run is in the picture, under its name."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_plugins.cli.plot_runs import main
from d2_plugins.report.comparison import choose_metrics, draw_runs, run_names, smooth
from d2_plugins.report.run import Run, load_run


def write_run(folder: Path, *, slope: float, with_mask: bool = False) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for i in range(19, 200, 20):
        row = {"iteration": i, "total_loss": 3 - slope * i, "loss_cls": 1.5 - slope * i, "lr": 0.1}
        if with_mask:
            row["loss_mask"] = 1.0
        if i in (99, 199):
            row["bbox/AP"] = slope * 1000 * i / 100
            row["bbox/AP50"] = 50.0
        rows.append(json.dumps(row))
    (folder / "metrics.json").write_text("\n".join(rows) + '\n{"iteration": 2')
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    plain = write_run(tmp_path / "plain", slope=0.005)
    return [plain, write_run(tmp_path / "flagship", slope=0.01, with_mask=True)]


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


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_command(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    picture = tmp_path / "new" / f"runs{suffix}"
    argv = [*map(str, folders), str(folders[0]), "--metrics", "bbox/AP*", "lr", "loss_cls"]
    assert main([*argv, "--smooth", "0.5", "--output", str(picture)]) == 0
    out = capsys.readouterr().out
    assert f"wrote {picture}: bbox/AP, bbox/AP50, lr, loss_cls of plain, flagship" in out
    if suffix == ".png":
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape[1] > pixels.shape[0] > 500
        colours = {tuple(c) for c in pixels.reshape(-1, 3)}
        assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0)} <= colours
    else:
        assert "flagship" in picture.read_text()


def test_mistakes(folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    good = str(folders[0])
    for words, message in (
        ([good, "no_such_folder"], "no_such_folder"),
        ([good, str(tmp_path / "empty")], "empty has no metrics.json"),
        ([good, "--metrics", "bbox/APx"], "no run has 'bbox/APx'. Nearest: bbox/AP"),
        ([good, "--output", str(tmp_path / "runs.xyz")], "can be saved as"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
    with pytest.raises(SystemExit, match="2"):
        main([good, "--smooth", "1"])
    assert "--smooth is 1.0; allowed: 0 to below 1" in capsys.readouterr().err
    (tmp_path / "empty" / "metrics.json").write_text('{"iteration": 3, "lr": 1}')
    assert main([str(tmp_path / "empty")]) == 2
    assert "no losses and no APs; --metrics of lr" in capsys.readouterr().err
