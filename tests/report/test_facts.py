"""A run in words: model, training, data and the record of its sessions."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from d2_plugins import model_zoo
from d2_plugins.report.facts import (
    best_iteration,
    data_facts,
    describe_model,
    duration,
    explain_losses,
    training_facts,
)
from d2_plugins.report.record import read_sessions, record_session
from d2_plugins.report.run import load_run
from tests.support.toy import toy_cfg


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("csp_cascade.yaml", {
            "backbone": "CSPResNeXt-50 with ECA attention and FPN",
            "proposals": "Cascade RPN, 2 stages",
            "heads": "Double-Head-Ext, Inverted Attention",
        }),
        ("COCO-InstanceSegmentation/mask_rcnn_R_101_CBAM_FPN_1x.yaml", {
            "backbone": "ResNet-101 with CBAM attention and FPN",
            "proposals": "RPN",
            "heads": "standard box head, mask head",
        }),
        ("COCO-Detection/faster_rcnn_CSPDarknet_53_FPN_1x.yaml", {
            "backbone": "CSPDarkNet-53 and FPN",
            "proposals": "RPN",
            "heads": "standard box head",
        }),
        ("COCO-Proposals/crpn_R_50_FPN_1x.yaml", {
            "model": "ProposalNetwork",
            "backbone": "ResNet-50 and FPN",
            "proposals": "Cascade RPN, 2 stages",
        }),
        ("Demo/faster_rcnn.yaml", {
            "backbone": "CSPResNeXt-50, 0.25 of the width and FPN",
            "proposals": "RPN",
            "heads": "standard box head",
        }),
        ("PennFudan/faster_rcnn_efficientnet_lite0.yaml", {
            "backbone": "timm's tf_efficientnet_lite0 and FPN",
            "proposals": "RPN",
            "heads": "standard box head",
        }),
    ],
)  # fmt: skip
def test_models_in_words(config: str, words: dict[str, str]) -> None:
    assert dict(describe_model(model_zoo.get_config(config))) == words


@pytest.mark.parametrize("program", ["/bin/d2-plugins train", "/bin/d2-plugins", "train_net.py"])
def test_the_command_can_be_run_again(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program, "train", "--config-file", "a b.yaml"])
    with record_session(toy_cfg(tmp_path), "", resume=False):
        (session,) = read_sessions(tmp_path)
    name = Path(program.split()[0]).name
    assert session["command"] == f"{name} train --config-file 'a b.yaml'"


def test_sessions_are_recorded(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "start.pth"])
    with record_session(cfg, "own.yaml", resume=False):
        (session,) = read_sessions(tmp_path)
        assert "seconds" not in session  # a process that is killed leaves this record
    with record_session(cfg, "own.yaml", resume=True):
        pass
    first, second = read_sessions(tmp_path)
    assert first["weights"] == "start.pth"
    assert first["config_file"] == second["config_file"] == "own.yaml"
    assert first["seconds"] >= 0
    assert first["device"].startswith("CPU, ")
    assert first["processes"] == 1
    with record_session(cfg, "", resume=False):  # a run that starts again
        pass
    assert len(read_sessions(tmp_path)) == 1
    (tmp_path / "run.json").write_text("{broken")
    assert read_sessions(tmp_path) == []


def test_training_facts(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path, ["SOLVER.MAX_ITER", 40, "TEST.BEST_METRIC", "bbox/AP"])
    rows = [
        {"iteration": 9, "total_loss": 2.0, "time": 0.5, "lr": 0.001},
        {"iteration": 19, "total_loss": 1.0, "time": 0.7, "lr": 0.002, "bbox/AP": 31.26},
        {"iteration": 39, "total_loss": 1.5, "time": 0.9, "lr": 0.0002, "bbox/AP": float("nan")},
        {"iteration": 40, "bbox/AP": 30.0},
    ]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    sessions = [
        {"command": "train.py --a", "started": "2026-01-02T03:04:05+00:00", "seconds": 3000.0,
         "device": "CPU, 2 threads", "processes": 2, "weights": ""},
        {"command": "train.py --resume", "started": "2026-01-03T03:04:05+00:00", "seconds": 700.4,
         "device": "NVIDIA X", "processes": 2, "weights": ""},
    ]  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps({"sessions": sessions}))
    line = "Total inference pure compute time: 0:00:01 ({} s / iter per device, on 1 devices)\n"
    (tmp_path / "log.txt").write_text(line.format("0.500000") + line.format("0.062500"))
    run = load_run(tmp_path, cfg)
    assert best_iteration(run) == ("bbox/AP", 19, 31.26)
    assert dict(training_facts(run)) == {
        "iterations": "40 of 40, 2 images each",
        "best": "bbox/AP 31.3 after iteration 20 (model_best.pth)",
        "started": "2026-01-02 03:04:05 UTC, resumed 1 x",
        "duration": "1 h 1 min",
        "device": "NVIDIA X, 2 processes",
        "command": "train.py --resume",
        "time per iteration": "0.7 s (median)",
        "time per image": "62 ms of computation in the evaluation",
        "learning rate": "0.002 at its highest",
        "initial weights": "random",
    }
    cfg.TEST.BEST_METRIC = "segm/AP"
    assert best_iteration(load_run(tmp_path, cfg)) is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.4, "7 s"), (250, "4 min 10 s"), (3 * 3600 + 25 * 60, "3 h 25 min")]
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_data_is_counted(tmp_path: Path, toy_data: list) -> None:
    cfg = toy_cfg(tmp_path, toy_data)
    cfg.DATASETS.TRAIN = ("toy", "registered_nowhere")
    items = DatasetCatalog.get("toy")
    classes = [a["category_id"] for item in items for a in item["annotations"]]
    head, rows = data_facts(cfg)
    assert head == ["", "toy"]
    assert rows == [
        ["images", "8"],
        ["objects", "16"],
        ["dark", str(classes.count(0))],
        ["bright", str(classes.count(1))],
    ]
    assert 0 < classes.count(0) < 16
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    assert data_facts(cfg)[1] == []


def test_losses_are_explained() -> None:
    explained = dict(
        explain_losses(["loss_cls", "loss_rpn_stage2_loc", "loss_cls_stage1", "loss_xyz"])
    )
    assert explained == {
        "cls": "classes of the detections",
        "rpn_stage2_loc": "boxes of stage 2 of Cascade RPN",
        "cls_stage1": "classes of cascade stage 1, from 0",
    }
