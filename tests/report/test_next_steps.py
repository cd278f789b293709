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
from dev.table_text import part_gains
from dev.trained_tables import TABLES
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
        (folder / "last_checkpoint").write_text(name)
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


def test_gains_are_those_of_the_tables(tmp_path: Path) -> None:
    rows = TABLES["shapes"].rows
    comparisons = [
        (
            TABLES[name],
            {
                row.label: [{"bbox/AP": first + i * step + seed} for seed in (0, 1, 2)]
                for i, row in enumerate(rows)
            },
        )
        for name, first, step in (("shapes", 40.0, 1.0), ("bccd", 50.0, -0.5))
    ]
    file = tmp_path / "gains.json"
    file.write_text(json.dumps(part_gains(comparisons)))
    for config in ("Demo/csp_cascade.yaml", "configs/Demo/csp_cascade.yaml"):
        (section,) = gains_section(run_with(config, tmp_path), file)
        note, table = section.blocks
        assert "docs/benchmarks.md" in note.text
        assert "3 runs each on shapes, BCCD" in note.text
        assert table.head == ["detector", "shapes", "BCCD"]
        assert table.rows[0] == ["Faster R-CNN", "41.0", "51.0"]
        assert table.rows[1] == ["+ Cascade RPN", "42.0 (+1.0)", "50.5 (-0.5)"]
        assert [row[0] for row in table.rows] == [r.label for r in rows if r.weights_of is None]
        assert table.rows[-1] == ["all parts", "50.0 (+9.0)", "46.5 (-4.5)"]


@pytest.mark.parametrize("config", ["", "csp_cascade.yaml", "PennFudan/csp_cascade.yaml"])
def test_gains_are_for_the_demo_only(config: str, tmp_path: Path) -> None:
    file = tmp_path / "gains.json"
    assert not list(gains_section(run_with("Demo/csp_cascade.yaml", tmp_path), file))
    base = {"label": "a", "AP": [1.0]}
    gains = {"datasets": ["x"], "runs": 1, "source": "", "base": base, "parts": []}
    file.write_text(json.dumps(gains))
    assert len(list(gains_section(run_with("Demo/csp_cascade.yaml", tmp_path), file))) == 1
    assert not list(gains_section(run_with(config, tmp_path), file))
