import json

import pytest

from d2_plugins.cli import benchmark as module
from d2_plugins.cli.benchmark import BENCHMARKS, main


def example(size: tuple[int, int] = (3, 4), scale: float = 1.5, name: str = "a") -> dict:
    """A benchmark.

    Returns:
        What it was given.
    """
    return {"area": size[0] * size[1] * scale, name: {"inner": 2.0}}


def test_options_come_from_the_signature(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "BENCHMARKS", {"example": example})
    main(["example", "--size", "5", "6", "--name", "b", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"area": 45.0, "b": {"inner": 2.0}}
    assert "torch" in captured.err  # the machine, out of the way of the JSON

    main(["example", "--scale", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "torch" in lines[0]
    assert lines[1:] == ["area: 24", "a:", "  inner: 2"]


def several(first: bool = True) -> dict:
    """A benchmark of several things.

    Returns:
        The same number for both.
    """
    return {"a": {"x": 1.0, "y": 0.25}, "b": {"x": float(first), "y": 2.0}}


def test_the_same_numbers_of_several_things_are_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "BENCHMARKS", {"several": several})
    main(["several", "--no-first"])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()[1:]
    ]
    assert rows[0] == ["", "x", "y"]
    assert rows[2:] == [["a", "1", "0.25"], ["b", "0", "2"]]


def test_headline_numbers_have_fixed_names(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--size 5 6 --channels 4 --repeats 1 --slow-repeats 1 --threads 1 --json"
    main(["adaptive-conv", *options.split()])
    assert list(json.loads(capsys.readouterr().out)) == [
        "forward_vs_conv2d",
        "forward_vs_torchvision",
        "train_vs_conv2d",
        "train_vs_torchvision",
        "extra_memory_mb",
    ]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_unknown_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["no-such"])
    assert "adaptive-conv" in capsys.readouterr().err
