import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from d2_plugins.benchmark.model_costs import analyze, format_report
from d2_plugins.cli.analyze import main

CONFIG = ["--config-file", "Demo/csp_cascade.yaml"]


def tool(*arguments: str) -> int:
    return main(arguments)


def test_report_of_a_small_model_equals_closed_forms() -> None:
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 4, 3, padding=1)
    model.proposal_generator = nn.Conv2d(4, 2, 1)
    model.backbone.bias.requires_grad_(False)
    image = torch.rand(1, 3, 5, 6)
    report = analyze(model, lambda: model.proposal_generator(model.backbone(image)), repeats=1)
    backbone, generator = report.parts["backbone"], report.parts["proposal generator"]
    assert (backbone.parameters, backbone.trainable) == (3 * 4 * 9 + 4, 3 * 4 * 9)
    assert (backbone.flops, backbone.activations) == (30 * 3 * 4 * 9, 30 * 4)
    assert (generator.flops, generator.activations) == (30 * 4 * 2, 30 * 2)
    assert report.latency_ms > 0
    lines = format_report(report).splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("| ")] == [
        *("part", "backbone", "proposal generator", "total")
    ]


def test_parts_sum_to_the_total_and_json_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool(*CONFIG, "--size", "64", "96", "--repeats", "0", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    for column, total in result["total"].items():
        assert total == sum(part[column] for part in result["parts"].values())
    assert result["total"]["flops"] == sum(result["operators"].values())
    assert result["image"] == [64, 96]
    assert result["proposals"] == 100
    assert result["device"] == "cpu"
    assert "threads" in result["machine"]
    assert result["latency_ms"] is None
    assert {"fc head", "conv head", "FPN", "proposal generator"} <= set(result["parts"])


def test_photograph_gives_the_size(capsys: pytest.CaptureFixture[str], image_file: Path) -> None:
    assert tool(*CONFIG, "--input", str(image_file), "--repeats", "1") == 0
    out = capsys.readouterr().out
    assert "image: [64, 128]" in out
    assert "| fc head" in out
    assert "Latency" in out


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 100)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no-such.yaml"], "no-such.yaml"),
        ([*CONFIG, "--size", "0", "5"], "--size must be positive"),
        ([*CONFIG, "--input", "no-such.jpg"], "no-such.jpg"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool(*arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
