"""From command line to config: mistakes are named, with what is near or allowed."""

import json
from pathlib import Path

import pytest

from d2_plugins.cli.parsers import parse_train_args
from d2_plugins.engine import build_cfg, launch
from d2_plugins.engine.trainer import scale_to_world_size
from d2_plugins.errors import UsageError
from tests.support.toy import toy_cfg, write_toy_coco

DEMO = "Demo/Base-shapes.yaml"


def build(*argv: str) -> object:
    return build_cfg(parse_train_args(list(argv)))


@pytest.fixture
def own_data(tmp_path: Path) -> list[str]:
    json_file, images = write_toy_coco(tmp_path)
    return [
        *("--train-json", str(json_file), "--train-images", str(images)),
        *("--val-json", str(json_file), "--val-images", str(images)),
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config-file", "csp_casade.yaml"], "csp_cascade.yaml"),
        (["SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["BASE_LR", "1"], "SOLVER.BASE_LR"),
        (["SOLVER.MAX_ITER", "many"], "MAX_ITER"),
        (["--config-file", DEMO, "DATASETS.TRAIN", "('shapes_tran',)"], "shapes_train"),
        (["--config-file", DEMO, "DATASETS.TRAIN", "()"], r"DATASETS.TRAIN is \(\); allowed"),
        (["--config-file", DEMO, "MODEL.ROI_HEADS.NUM_CLASSES", "1"], "NUM_CLASSES is 1"),
        (["--config-file", "csp_cascade.yaml"], "d2-plugins prepare coco2017"),
        (["--config-file", DEMO, "MODEL.INVERTED_ATTENTION.ENABLED", "True"], "PluginROIHeads"),
        (["--config-file", DEMO, "MODEL.ROI_HEADS.NAME", "DoubleHead"], "DoubleHeadROIHeads"),
        (["--config-file", DEMO, "SOLVER.IMS_PER_BATCH", "0"], "SOLVER.IMS_PER_BATCH is 0"),
        (["--config-file", DEMO, "OUTPUT_DIR", "file"], "OUTPUT_DIR is file; .*writable folder"),
        (["--config-file", DEMO, "OUTPUT_DIR", "file/run"], "OUTPUT_DIR is file/run"),
        (["--config-file", DEMO, "OUTPUT_DIR", "/proc/run"], "OUTPUT_DIR is /proc/run"),
        (["--config-file", DEMO, "OUTPUT_DIR", "a\0b"], "OUTPUT_DIR is"),
        (["--config-file", DEMO, "OUTPUT_DIR", ""], "OUTPUT_DIR is ''"),
        (
            ["--config-file", DEMO, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16"],
            "SOLVER.AMP.DTYPE is float16; allowed on the CPU",
        ),
    ],
)
def test_mistakes_are_named(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # no ./datasets here
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=said):
        build(*argv)


@pytest.mark.parametrize(
    "url",
    ["tcp://host", "tcp://host:", "tcp://host:port", "tcp://host:70000", "tcp://:1", "h:1", ""],
)
def test_bad_dist_urls_are_named(url: str) -> None:
    with pytest.raises(UsageError, match=r"--dist-url is .*; allowed: auto, tcp://HOST:PORT"):
        launch(print, 2, dist_url=url)


def test_unknown_key_in_a_file_names_file_and_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("MODEL:\n  CSPNET:\n    ARHC: x\n")
    with pytest.raises(UsageError, match=r"typo\.yaml: .*MODEL\.CSPNET\.ARHC.*MODEL\.CSPNET\.ARCH"):
        build("--config-file", str(path))


def test_yaml_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "evil.yaml", tmp_path / "trace"
    path.write_text(f"MODEL: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(UsageError, match="could run code"):
        build("--config-file", str(path))
    assert not trace.exists()


def test_own_data_sets_the_class_counts(own_data: list[str]) -> None:
    cfg = build("--config-file", DEMO, *own_data)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 2  # type: ignore[attr-defined]
    assert cfg.MODEL.RETINANET.NUM_CLASSES == 2  # type: ignore[attr-defined]
    assert len(cfg.DATASETS.TRAIN) == len(cfg.DATASETS.TEST) == 1  # type: ignore[attr-defined]


def test_findings_that_are_no_errors_are_shown(
    own_data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    json_file = tmp_path / "annotations.json"
    content = json.loads(json_file.read_text())
    content["annotations"][0]["bbox"][2] += 500
    json_file.write_text(json.dumps(content))
    build("--config-file", DEMO, *own_data)
    assert "warning" in capsys.readouterr().out


def test_broken_own_data_is_refused_with_the_finding(own_data: list[str], tmp_path: Path) -> None:
    (tmp_path / "images" / "003.png").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"003\.png"):
        build("--config-file", DEMO, *own_data)


def test_schedule_is_scaled_by_the_number_of_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = toy_cfg(tmp_path, ["SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16])
    with caplog.at_level("INFO", logger="d2_plugins"):
        scaled = scale_to_world_size(cfg, 2)
    assert scaled.SOLVER.IMS_PER_BATCH == 4
    assert scaled.SOLVER.BASE_LR * 4 == pytest.approx(cfg.SOLVER.BASE_LR)
    assert scaled.SOLVER.MAX_ITER == cfg.SOLVER.MAX_ITER * 4
    lines = [r for r in caplog.records if r.name.startswith("d2_plugins")]
    assert len(lines) == 1
    assert "BASE_LR 0.02 -> 0.005" in lines[0].getMessage()
    assert scale_to_world_size(toy_cfg(tmp_path), 2).SOLVER.IMS_PER_BATCH == 2
