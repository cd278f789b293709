"""Publishing a run and using it by name, with huggingface_hub against a hub on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import CfgNode
from huggingface_hub import ModelCard

from d2_plugins import Detector
from d2_plugins.checkpoint import PluginCheckpointer, find_source
from d2_plugins.checkpoint.hub_files import HubName
from d2_plugins.cli import predict
from d2_plugins.cli.parsers import config_from, config_parser
from d2_plugins.cli.push import main
from d2_plugins.data.classes import Classes
from d2_plugins.errors import UsageError
from tests.support.hub_server import Hub, serve_hub
from tests.support.toy import lively_model, toy_cfg, write_toy_coco

NAME = "someone/toys"
CLASSES = Classes(("a | b", "dark"), (4, 9))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: best and last checkpoint with the state of the training, metrics."""
    folder = tmp_path_factory.mktemp("run")
    write_toy_coco(folder / "data", num_images=2)
    cfg = run_cfg(folder)
    (folder / "config.yaml").write_text(cfg.dump())
    state = lively_model(cfg).state_dict()
    momentum = {"state": {0: {"momentum_buffer": torch.ones(100_000)}}}
    whole = {"classes": CLASSES.state_dict(), "optimizer": momentum, "iteration": 4}
    torch.save({"model": state, **whole}, folder / "model_best.pth")
    torch.save({"model": {k: v + 1 for k, v in state.items()}, **whole}, folder / "model_final.pth")
    rows = [
        {"iteration": 2, "bbox/AP": 31.5, "bbox/AP50": 60.25, "bbox/APs": float("nan")},
        {"iteration": 5, "bbox/AP": 20.5, "bbox/AP50": 40.0},
    ]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    session = {
        "command": "train secret",
        "config_file": "/home/x/own.yaml",
        "weights": "/home/w.pth",
    }
    (folder / "run.json").write_text(json.dumps({"sessions": [session]}))
    return folder


def run_cfg(folder: Path) -> CfgNode:
    opts = ["TEST.BEST_METRIC", "bbox/AP", "DATASETS.TEST", ("own",), "DATASETS.TRAIN", ("own",)]
    cfg = toy_cfg(folder, [*opts, "SOLVER.MAX_ITER", 6, "MODEL.DEVICE", "cpu"])
    cfg.MODEL.WEIGHTS = "/home/w.pth"
    return cfg


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client uses instead of the real one, and an empty cache."""
    with serve_hub() as hub:
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template,
                            raising=False)  # fmt: skip
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


def test_what_is_pushed_is_used_by_its_name(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), NAME]) == 0
    assert f'Detector("hf://{NAME}")' in capsys.readouterr().out
    files = hub.files[NAME]
    assert sorted(files) == ["README.md", "classes.json", "config.yaml", "model_final.pth"]
    assert hub.private == {NAME: False}
    assert len(files["model_final.pth"]) < (run / "model_best.pth").stat().st_size - 390_000
    for name, content in files.items():
        assert b"/home" not in content, name
        assert str(run).encode() not in content, name

    photo = sorted((run / "data" / "images").iterdir())[0]
    expected = Detector(run, confidence=0.0).predict(photo)
    found = Detector(f"hf://{NAME}", confidence=0.0).predict(photo)
    assert len(found) == len(expected) > 0
    assert np.array_equal(found.boxes, expected.boxes)
    assert np.array_equal(found.scores, expected.scores)
    assert set(found.classes) == {"a | b", "dark"}
    assert {row["category_id"] for row in found.to_coco()} == {4, 9}
    assert sorted(hub.downloads) == ["config.yaml", "model_final.pth"], "nothing twice"

    argv = ["--config-file", f"hf://{NAME}", "--input", str(photo), "--confidence-threshold", "0"]
    assert predict.main([*argv, "--json", str(tmp_path / "rows.json")]) == 0
    assert len(json.loads((tmp_path / "rows.json").read_text())) == len(expected)
    assert len(hub.downloads) == 2


def test_weights_by_name(run: Path, hub: Hub) -> None:
    assert main([str(run), NAME, "--private"]) == 0
    assert hub.private == {NAME: True}
    cfg = run_cfg(run)
    model = lively_model(cfg)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    hub.files[NAME]["weights/other.pth"] = hub.files[NAME]["model_final.pth"]
    for name in (f"hf://{NAME}", f"hf://{NAME}@v1", f"hf://{NAME}/weights/other.pth"):
        PluginCheckpointer(model.eval()).load(name)
        state = torch.load(run / "model_best.pth", weights_only=True)["model"]
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for name in (f"hf://{NAME}/none.pth", "hf://someone/else", f"hf://{NAME}@v2"):
        with pytest.raises(OSError, match="cannot be downloaded"):
            find_source(name)
    with pytest.raises(UsageError, match=r"'hf://else/toys' |of huggingface\.co/else/toys"):
        Detector("hf://else/toys")


def test_names() -> None:
    assert HubName.parse("hf://a/b.c-d_1") == HubName("a/b.c-d_1")
    assert HubName.parse("hf://a/b@v1.2/x/y.pth") == HubName("a/b", "x/y.pth", "v1.2")
    for name in ("hf://a", "hf://a/", "hf:///b", "hf://a/b@", "hf://a/b/", "hf://a b/c", "a/b"):
        with pytest.raises(UsageError, match="allowed: hf://OWNER/NAME"):
            HubName.parse(name)


def test_key_value_pairs_change_the_config_of_a_repository(run: Path, hub: Hub) -> None:
    assert main([str(run), NAME]) == 0
    parser = config_parser("", "")
    args = parser.parse_args(["--config-file", f"hf://{NAME}", "MODEL.RPN.NMS_THRESH", "0.6"])
    cfg = config_from(args)
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.RPN.NMS_THRESH) == (f"hf://{NAME}", 0.6)
    args.opts = ["MODEL.WEIGHTS", "own.pth"]
    assert config_from(args).MODEL.WEIGHTS == "own.pth"


def test_card(run: Path, tmp_path: Path) -> None:
    argv = [str(run), NAME, "--output", str(tmp_path / "best"), "--license", "apache-2.0"]
    assert main(argv) == 0
    card = ModelCard.load(tmp_path / "best" / "README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "detectron2")
    assert card.data.pipeline_tag == "object-detection"
    figures = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert figures == {"AP": 31.5, "AP50": 60.25}, "of model_best.pth, not of the last evaluation"
    assert "| boxes, own | 31.5 | 60.2 | – | – | – | – |" in card.text
    assert r"| a \| b | 4 |" in card.text
    assert "| heads | standard box head |" in card.text
    assert 'Detector("hf://someone/toys"' in card.text
    assert "own.yaml" in card.text
    assert "| initial weights | w.pth |" in card.text
    assert "licensed under apache-2.0" in card.text

    assert main([str(run / "model_final.pth"), NAME, "--output", str(tmp_path / "last")]) == 0
    card = ModelCard.load(tmp_path / "last" / "README.md")
    assert {r.metric_value for r in card.data.eval_results} == {20.5, 40.0}
    assert card.data.license is None
    assert "TODO: the licence" in card.text
    config = yaml.safe_load((tmp_path / "last" / "config.yaml").read_text())
    assert (config["MODEL"]["WEIGHTS"], config["OUTPUT_DIR"]) == ("", "./output")
    pushed = torch.load(tmp_path / "last" / "model_final.pth", weights_only=True)
    assert sorted(pushed) == ["classes", "model"]


def test_a_checkpoint_that_was_not_evaluated(run: Path, tmp_path: Path) -> None:
    state = (run / "model_best.pth").read_bytes()
    (run / "model_0000002.pth").write_bytes(state)
    (run / "model_0000003.pth").write_bytes(state)
    for number, text in ((2, "| boxes, own | 31.5 |"), (3, "not evaluated")):
        assert main([str(run / f"model_000000{number}.pth"), NAME, "--output", str(tmp_path)]) == 0
        assert text in (tmp_path / "README.md").read_text()


def test_a_card_of_ones_own(run: Path, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Mine\n")
    assert main([str(run), NAME, "--card", str(tmp_path / "card.md")]) == 0
    assert hub.files[NAME]["README.md"] == b"# Mine\n"


def test_mistakes(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    for argv, message in (
        ([tmp_path, NAME], "has no config.yaml"),
        ([run, "toys"], "'toys' is not a repository of the hub; allowed: OWNER/NAME"),
        ([run, NAME, "--card", "none.md"], "--card: there is no file 'none.md'"),
    ):
        assert main([str(word) for word in argv]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main([str(run), NAME]) == 2
    error = capsys.readouterr().err
    assert f"{hub.url}/{NAME} cannot be written" in error
    assert "hf auth login" in error
    assert hub.files == {}
