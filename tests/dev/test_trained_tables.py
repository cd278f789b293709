import json
import shutil
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode

from d2_plugins import model_zoo
from dev.trained_tables import TABLES, Row, Table, format_table, replace_table, train_table

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


def test_rows_are_trained_once_with_every_seed(tmp_path: Path, train_command: list[str]) -> None:
    table = example()
    for _ in range(2):
        results = train_table(table, tmp_path / "runs", train_command, jobs=2)
        assert [run["bbox/AP"] for run in results["+ two"]] == [10.0, 20.0, 30.0]
    assert len(list(tmp_path.glob("runs/*/calls"))) == 6
    assert all(len(path.read_text()) == 1 for path in tmp_path.glob("runs/*/calls"))
    entry = json.loads((tmp_path / "runs" / "two_seed3" / "table_entry.json").read_text())
    assert entry["config"] == "Demo/double_head.yaml"
    assert entry["opts"] == [
        "SOLVER.STEPS",
        "(3, 4)",
        "MODEL.WEIGHTS",
        "",
        "SOLVER.MAX_ITER",
        "5",
        "SEED",
        "3",
    ]


def test_changed_options_train_again(tmp_path: Path, train_command: list[str]) -> None:
    train_table(example(), tmp_path / "runs", train_command)
    train_table(example(opts=("SOLVER.STEPS", "(5,)")), tmp_path / "runs", train_command)
    assert all(len(path.read_text()) == 2 for path in tmp_path.glob("runs/*/calls"))


def test_a_changed_config_trains_again(
    tmp_path: Path, train_command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_table(example(), tmp_path / "runs", train_command)
    get_config = model_zoo.get_config

    def get_edited_config(name: str) -> CfgNode:
        cfg = get_config(name)
        cfg.SOLVER.BASE_LR *= 2
        return cfg

    monkeypatch.setattr(model_zoo, "get_config", get_edited_config)
    train_table(example(), tmp_path / "runs", train_command)
    assert all(len(path.read_text()) == 2 for path in tmp_path.glob("runs/*/calls"))


def test_failed_run_names_its_log(tmp_path: Path, train_command: list[str]) -> None:
    table = example(rows=(Row("bad", "Demo/faster_rcnn_IA.yaml"),))
    with pytest.raises(RuntimeError, match=r"status 1: see .*bad_seed1.output\.txt"):
        train_table(table, tmp_path / "runs", train_command)
    assert "no such luck" in (tmp_path / "runs" / "bad_seed1" / "output.txt").read_text()
    assert not (tmp_path / "runs" / "bad_seed1" / "table_entry.json").exists()


def test_table_has_means_seeds_and_options() -> None:
    runs = {
        "one": [{"bbox/AP": ap, "minutes": 2.0} for ap in (1.0, 2.0, 4.5)],
        "+ two": [{"bbox/AP": 7.0, "minutes": 3.0}] * 3,
    }
    lines = format_table(example(), runs).splitlines()
    assert lines[2:6] == [
        "| model | AP | minutes | config |",
        "|---|---|---|---|",
        "| one | 2.5 (1.0, 2.0, 4.5) | 2.0 | `Demo/faster_rcnn.yaml` |",
        "| + two | 7.0 (7.0, 7.0, 7.0) | 3.0 | `Demo/double_head.yaml` |",
    ]
    assert (
        lines[-1]
        == 'Options of every run: `SOLVER.STEPS "(3, 4)" MODEL.WEIGHTS "" SEED n`, n = 1, 2, 3.'
    )


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
