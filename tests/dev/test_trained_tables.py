import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from d2_plugins import model_zoo
from dev import table_runs
from dev.table_runs import finished_runs, missing_runs, train_table
from dev.table_text import format_table, replace_table
from dev.trained_tables import TABLES, Results, Row, Table

# Stands in for the training tool: scores the seed, fails where it is told to, and counts its runs.
TRAINER = """
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
pairs = dict(zip(arguments[4::2], arguments[5::2]))
folder, seed = Path(pairs["OUTPUT_DIR"]), int(pairs["SEED"])
with open(folder / "calls", "a") as file:
    file.write(os.environ["OMP_NUM_THREADS"])
if arguments[1] == "Demo/faster_rcnn_IA.yaml":
    sys.exit("no such luck")
lines = [{"iteration": 9, "total_loss": 1.0}, {"iteration": 10, "bbox/AP": 10.0 * seed}]
(folder / "metrics.json").write_text("".join(json.dumps(line) + chr(10) for line in lines))
"""


@pytest.fixture
def train_command(tmp_path: Path) -> list[str]:
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    return [sys.executable, str(script)]


def example(**changes: object) -> Table:
    values = {
        "title": "An example",
        "rows": (
            Row("one", "Demo/faster_rcnn.yaml"),
            Row("+ two", "Demo/double_head.yaml", ("SOLVER.MAX_ITER", "5")),
        ),
        "metrics": {"AP": "bbox/AP"},
        "opts": ("SOLVER.STEPS", "(3, 4)", "MODEL.WEIGHTS", ""),
    }
    return Table(**{**values, **changes})


def train(table: Table, tmp_path: Path, command: list[str], **options: int) -> Results:
    return train_table(table, tmp_path / "runs", tmp_path / "records", command, **options)


def calls(tmp_path: Path) -> list[str]:
    return [path.read_text() for path in tmp_path.glob("runs/*/calls")]


def test_rows_are_trained_once_with_every_seed(tmp_path: Path, train_command: list[str]) -> None:
    table = example()
    assert len(missing_runs(table, tmp_path / "records")) == 6
    for _ in range(2):
        results = train(table, tmp_path, train_command, jobs=2)
        assert [run["bbox/AP"] for run in results["+ two"]] == [10.0, 20.0, 30.0]
    assert [len(text) for text in calls(tmp_path)] == [1] * 6
    assert missing_runs(table, tmp_path / "records") == []
    record = json.loads((tmp_path / "records" / "two_seed3.json").read_text())
    assert record["config"] == "Demo/double_head.yaml"
    assert record["opts"] == [*table.opts, "SOLVER.MAX_ITER", "5", "SEED", "3"]


def test_records_alone_are_enough(tmp_path: Path, train_command: list[str]) -> None:
    before = train(example(), tmp_path, train_command)
    shutil.rmtree(tmp_path / "runs")
    assert train(example(), tmp_path, train_command) == before
    assert calls(tmp_path) == []


def test_changed_options_train_again(tmp_path: Path, train_command: list[str]) -> None:
    train(example(), tmp_path, train_command)
    train(example(opts=("SOLVER.STEPS", "(5,)")), tmp_path, train_command)
    assert [len(text) for text in calls(tmp_path)] == [2] * 6


def edit_configs(monkeypatch: pytest.MonkeyPatch, edit: Callable[[CfgNode], None]) -> None:
    get_config = model_zoo.get_config

    def get_edited_config(name: str) -> CfgNode:
        cfg = get_config(name)
        edit(cfg)
        return cfg

    monkeypatch.setattr(model_zoo, "get_config", get_edited_config)


def test_a_changed_config_trains_again(
    tmp_path: Path, train_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(example(), tmp_path, train_command)
    edit_configs(monkeypatch, lambda cfg: cfg.SOLVER.merge_from_list(["BASE_LR", 0.5]))
    train(example(), tmp_path, train_command)
    assert [len(text) for text in calls(tmp_path)] == [2] * 6


def test_a_new_key_with_its_default_does_not_train_again(
    tmp_path: Path, train_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(example(), tmp_path, train_command)
    edit_configs(monkeypatch, lambda cfg: cfg.MODEL.__setitem__("LATER", 0))
    defaults = table_runs.get_cfg()
    defaults.MODEL.LATER = 0
    monkeypatch.setattr(table_runs, "get_cfg", lambda: defaults)
    train(example(), tmp_path, train_command)
    assert [len(text) for text in calls(tmp_path)] == [1] * 6


def test_rows_that_evaluate_another_rows_weights(
    tmp_path: Path, train_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not trained; the evaluation gets the other row's weights and the row's options."""
    commands = []

    def call(command: list[str], log: Path, threads: int) -> None:
        commands.append(command)
        if "evaluate_run.py" in command[1]:
            Path(command[3]).write_text('{"bbox/AP": 7.0}')
        else:
            (log.parent / "metrics.json").write_text('{"bbox/AP": 5.0}')

    monkeypatch.setattr(table_runs, "_call", call)
    (tmp_path / "runs" / "ext_seed1").mkdir(parents=True)
    option = ("MODEL.DOUBLE_HEAD.FUSION", "fc")
    rows = (
        Row("ext", "Demo/double_head.yaml"),
        Row("ext, fc", "Demo/double_head.yaml", option, weights_of="ext"),
    )
    table = example(rows=rows, seeds=(1,))
    results = train(table, tmp_path, train_command)
    assert (results["ext"][0]["bbox/AP"], results["ext, fc"][0]["bbox/AP"]) == (5.0, 7.0)
    trained, evaluated = commands
    assert option[0] not in trained
    weights = str(tmp_path / "runs" / "ext_seed1" / "model_final.pth")
    assert evaluated[-2:] == ["MODEL.WEIGHTS", weights]
    assert [*table.opts, *option] == evaluated[4 : 4 + len(table.opts) + 2]
    assert missing_runs(table, tmp_path / "records") == []
    other = example(rows=rows, seeds=(1,), opts=("SOLVER.MAX_ITER", "3"))
    assert missing_runs(other, tmp_path / "records") == ["ext_seed1", "ext_fc_seed1"]


def test_failed_run_names_its_log(tmp_path: Path, train_command: list[str]) -> None:
    table = example(rows=(Row("bad", "Demo/faster_rcnn_IA.yaml"),))
    with pytest.raises(RuntimeError, match=r"status 1: see .*bad_seed1.output\.txt"):
        train(table, tmp_path, train_command)
    assert "no such luck" in (tmp_path / "runs" / "bad_seed1" / "output.txt").read_text()
    assert missing_runs(table, tmp_path / "records")[0] == "bad_seed1"


def test_table_has_means_spreads_and_options() -> None:
    runs = {
        "one": [{"bbox/AP": ap, "minutes": 2.0} for ap in (1.0, 2.0, 4.5)],
        "+ two": [{"bbox/AP": 7.0, "minutes": 3.0}] * 3,
    }
    lines = format_table(example(), runs).splitlines()
    assert lines[2:6] == [
        "| model | AP | config |",
        "|---|---|---|",
        "| one | 2.5 ± 1.8 | `Demo/faster_rcnn.yaml` |",
        "| + two | 7.0 ± 0.0 | `Demo/double_head.yaml` `SOLVER.MAX_ITER 5` |",
    ]
    assert (
        lines[-1]
        == 'Options of every run: `SOLVER.STEPS "(3, 4)" MODEL.WEIGHTS "" SEED n`, n = 1, 2, 3.'
    )


def test_table_has_the_costs() -> None:
    runs = {"one": [{"bbox/AP": 1.0}], "+ two": [{"bbox/AP": 2.0}]}
    costs = {
        "one": {"train": 1.0, "inference": 1.0},
        "+ two": {"train": 2.345, "inference": 1.5, "conv_head_share": 0.25},
    }
    lines = format_table(example(), runs, costs).splitlines()
    assert lines[2:6] == [
        "| model | AP | training step | inference | RoIs through the conv head | config |",
        "|---|---|---|---|---|---|",
        "| one | 1.0 | 1.00 | 1.00 | - | `Demo/faster_rcnn.yaml` |",
        "| + two | 2.0 | 2.35 | 1.50 | 0.25 | `Demo/double_head.yaml` `SOLVER.MAX_ITER 5` |",
    ]


def test_unfinished_table_has_the_rows_that_have_ended(
    tmp_path: Path, train_command: list[str]
) -> None:
    train_table(example(), tmp_path / "runs", tmp_path / "records", train_command)
    for name in ("one_seed1", "one_seed3", "two_seed1", "two_seed2", "two_seed3"):
        (tmp_path / "records" / f"{name}.json").unlink()
    results = finished_runs(example(), tmp_path / "records")
    assert {label: len(runs) for label, runs in results.items()} == {"one": 1, "+ two": 0}
    lines = format_table(example(), results).splitlines()
    assert [line for line in lines if line.startswith("| one")]
    assert not [line for line in lines if line.startswith("| + two")]
    assert lines[-1] == "Unfinished: 1 of 6 runs. A value without a deviation is that of one run."


@pytest.mark.parametrize("script", ["make_zoo.py", "reproduce_tables.py"])
def test_scripts_run_from_any_folder(script: str, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "dev" / script
    result = subprocess.run([sys.executable, path, "--help"], cwd=tmp_path, check=False)
    assert result.returncode == 0


def test_table_replaces_the_one_in_the_document(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n")
    for text in ("new", "newer"):
        replace_table(document, "x", text)
    assert document.read_text() == "a\n<!-- begin x -->\nnewer\n<!-- end x -->\nb\n"
    with pytest.raises(ValueError, match="begin y"):
        replace_table(document, "y", "text")


@pytest.mark.parametrize("name", TABLES)
def test_documented_tables(name: str, tmp_path: Path) -> None:
    table = TABLES[name]
    labels = [row.label for row in table.rows]
    assert len(set(labels)) == len(labels)
    for row in table.rows:
        cfg = model_zoo.get_config(row.config)
        cfg.merge_from_list([*table.options(row)])  # raises where a key is unknown
    document = tmp_path / "benchmarks.md"
    shutil.copy(Path(__file__).parents[2] / "docs" / "benchmarks.md", document)
    replace_table(document, name, "")  # raises where the page has no place for it
