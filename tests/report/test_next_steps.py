"""The report's last sections: commands that use the run, and what the parts of the demo add."""

import json
import shlex
from pathlib import Path

import pytest

from d2_plugins.cli.main import COMMANDS
from d2_plugins.report import write_report
from d2_plugins.report.next_steps import next_commands
from d2_plugins.report.part_gains import gains_section
from d2_plugins.report.run import Run
from dev.trained_tables import TABLES, part_gains
from tests.support.toy import toy_cfg


def run_with(config_file: str, folder: Path) -> Run:
    return Run(folder, None, [], {}, [{"config_file": config_file}])


def test_commands_name_the_files_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    cfg = toy_cfg(folder, ["SOLVER.MAX_ITER", 30, "DATASETS.TEST", ("not_here",)])
    folder.mkdir()
    assert next_commands(cfg) == {}
    for name in ("model_0000009.pth", "model_0000019.pth", "model_final.pth", "model_best.pth"):
        (folder / name).touch()
        words = {key: shlex.split(text) for key, text in next_commands(cfg, num_gpus=4).items()}
        assert words["detect"][-2:] == ["MODEL.WEIGHTS", str(folder / name)]
    assert {line[0] for line in words.values()} == {"d2-plugins"}
    assert {line[1] for line in words.values()} <= COMMANDS.keys()
    assert words["detect"][2:6] == [
        "--config-file", str(folder / "config.yaml"), "--input", "photo.jpg",
    ]  # fmt: skip
    assert words["publish"][2] == str(folder)
    assert words["train longer"][4:] == ["--num-gpus", "4", "--resume", "SOLVER.MAX_ITER", "60"]


def test_the_report_ends_with_them(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path / "elsewhere", ["DATASETS.TEST", (), "DATASETS.TRAIN", ()])
    assert "What to run next" not in write_report(tmp_path, cfg).read_text()
    (tmp_path / "model_final.pth").touch()
    page = write_report(tmp_path, cfg).read_text()
    assert "What to run next" in page
    assert f"MODEL.WEIGHTS {tmp_path / 'model_final.pth'}" in page, "where the run is now"
    assert "What each part adds" not in page


def test_gains_are_those_of_the_table(tmp_path: Path) -> None:
    table = TABLES["shapes"]
    results = {
        row.label: [{"bbox/AP": 40.0 + i + seed} for seed in (0, 1, 2)]
        for i, row in enumerate(table.rows)
    }
    file = tmp_path / "gains.json"
    file.write_text(json.dumps(part_gains(table, results)))
    for config in ("Demo/csp_cascade.yaml", "configs/Demo/csp_cascade.yaml"):
        (section,) = gains_section(run_with(config, tmp_path), file)
        note, rows = section.blocks
        assert "docs/benchmarks.md" in note.text
        assert "3 runs each" in note.text
        assert rows.rows[0] == ["Faster R-CNN", "41.0", ""]
        assert rows.rows[1] == ["+ Cascade RPN", "42.0", "+1.0"]
        assert [row[0] for row in rows.rows] == [
            row.label for row in table.rows if row.weights_of is None
        ]
        assert rows.rows[-1] == ["all parts", "49.0", "+8.0"]


@pytest.mark.parametrize("config", ["", "csp_cascade.yaml", "PennFudan/csp_cascade.yaml"])
def test_gains_are_for_the_demo_only(config: str, tmp_path: Path) -> None:
    file = tmp_path / "gains.json"
    assert not list(gains_section(run_with("Demo/csp_cascade.yaml", tmp_path), file))
    base = {"label": "a", "AP": 1.0}
    gains = {"config": "Demo/csp_cascade.yaml", "title": "", "runs": 1, "source": "", "base": base}
    file.write_text(json.dumps(gains | {"parts": []}))
    assert len(list(gains_section(run_with("Demo/csp_cascade.yaml", tmp_path), file))) == 1
    assert not list(gains_section(run_with(config, tmp_path), file))
