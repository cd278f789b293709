"""Your own data on a training's command line: found, recorded, and found again."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from d2_plugins.cli.parsers import parse_train_args
from d2_plugins.data.own_files import OwnFiles
from d2_plugins.engine.own_data import complete_args, own_files
from d2_plugins.errors import UsageError
from d2_plugins.model_zoo import get_config_file
from tests.support.toy import write_toy_coco

DEMO = ("--config-file", "Demo/Base-shapes.yaml")


def complete(*argv: object) -> Namespace:
    return complete_args(parse_train_args([str(word) for word in argv]))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run on own data: its config, and the record of its data."""
    json_file, images = map(str, write_toy_coco(tmp_path / "data"))
    folder = tmp_path / "run"
    folder.mkdir()
    names = "DATASETS:\n  TRAIN: ('custom_train',)\n  TEST: ('custom_val',)\n"
    (folder / "config.yaml").write_text(f"{names}OUTPUT_DIR: {folder}\n")
    OwnFiles(
        train_json=json_file, train_images=images, val_json=json_file, val_images=images
    ).write(folder)
    return folder


def test_own_data_without_a_config_takes_the_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy_coco(tmp_path / "data")
    args = complete("--data", "data", "SOLVER.MAX_ITER", "9")
    assert get_config_file(args.config_file)
    assert args.opts == ["OUTPUT_DIR", "output/own", "SOLVER.MAX_ITER", "9"]
    assert own_files(args) == OwnFiles(
        train_json="output/own/data/train.json",
        train_images="data/images",
        val_json="output/own/data/val.json",
        val_images="data/images",
    )
    config, data = capsys.readouterr().out.splitlines()
    assert config == f"Config: {args.config_file}, because --config-file is not given"
    assert data.startswith("Data in data: COCO JSON (annotations.json), ")
    json_file, images = "data/annotations.json", "data/images"
    args = complete("--train-json", json_file, "--train-images", images, "OUTPUT_DIR", "mine")
    assert args.opts[-2:] == ["OUTPUT_DIR", "mine"]
    assert own_files(args) == OwnFiles(train_json=json_file, train_images=images)


def test_a_config_that_is_given_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy_coco(tmp_path / "data")
    args = complete(*DEMO, "--data", tmp_path / "data", "OUTPUT_DIR", tmp_path / "out")
    assert args.config_file == DEMO[1]
    assert "Config:" not in capsys.readouterr().out
    assert complete(*DEMO) == parse_train_args([*DEMO])


def test_an_evaluation_does_not_change_the_converted_files_of_its_run(run: Path) -> None:
    folder = run.parent / "data"
    config = ("--config-file", run / "config.yaml")
    trained = complete(*config, "--data", folder)
    assert trained.train_json == str(run / "data" / "train.json")
    before = (run / "data" / "val.json").stat()
    evaluated = complete(*config, "--data", folder, "--eval-only")
    assert own_files(evaluated) == OwnFiles(
        val_json=str(run / "data_eval" / "val.json"), val_images=str(folder / "images")
    )
    assert (run / "data" / "val.json").stat() == before


@pytest.mark.parametrize("option", ["--eval-only", "--resume"])
def test_a_run_finds_its_data_again(option: str, run: Path) -> None:
    data = run.parent / "data"
    files = OwnFiles(val_json=str(data / "annotations.json"), val_images=str(data / "images"))
    if option == "--resume":
        files = OwnFiles(
            train_json=files.val_json,
            train_images=files.val_images,
            val_json=files.val_json,
            val_images=files.val_images,
        )
    assert own_files(complete("--config-file", run / "config.yaml", option)) == files
    # In another folder, the record is that next to the config or to the weights.
    other = ("OUTPUT_DIR", run.parent / "other")
    assert own_files(complete("--config-file", run / "config.yaml", option, *other)) == files
    config = shutil.copy(run / "config.yaml", run.parent)
    weights = ("MODEL.WEIGHTS", run / "model_final.pth")
    assert own_files(complete("--config-file", config, option, *other, *weights)) == files
    # Files of the command line come first.
    given = ("--val-json", data / "annotations.json", "--val-images", data)
    args = complete("--config-file", run / "config.yaml", option, *given)
    assert (args.train_json, args.val_images) == (None, str(data))


def test_files_inside_the_run_are_found_after_it_has_moved(run: Path) -> None:
    complete("--config-file", run / "config.yaml", "--data", run.parent / "data")
    images = str(run.parent / "data" / "images")
    inside = {f"{s}_json": str(run / "data" / f"{s}.json") for s in ("train", "val")}
    OwnFiles(**inside, train_images=images, val_images=images).write(run)
    moved = run.rename(run.parent / "moved")
    files = OwnFiles.read(moved)
    assert files == OwnFiles(
        train_json=str(moved / "data" / "train.json"),
        val_json=str(moved / "data" / "val.json"),
        train_images=images,
        val_images=images,
    )
    files.check("data.json")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--eval-only", "give --val-json FILE and --val-images DIR, or --data DIR"),
        ("--resume", "give --train-json FILE and --train-images DIR, or --data DIR"),
    ],
)
def test_moved_data_are_named_with_what_to_give(option: str, said: str, run: Path) -> None:
    (run.parent / "data" / "annotations.json").unlink()
    with pytest.raises(UsageError, match=rf"^.*data\.json says .*annotations\.json.*{said}$"):
        complete("--config-file", run / "config.yaml", option)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--eval-only", r"give --val-json FILE --val-images DIR, or --data DIR"),
        ("--resume", r"give --train-json FILE --train-images DIR --val-json FILE --val-images DIR"),
    ],
)
@pytest.mark.parametrize("content", [None, "{", "[]", '{"train_json": 1}', json.dumps(
    {"train_json": 1, "train_images": "", "val_json": None, "val_images": None})])  # fmt: skip
def test_a_run_without_its_record_says_what_to_give(
    content: str | None, option: str, said: str, run: Path
) -> None:
    (run / "data.json").unlink()
    if content is not None:
        (run / "data.json").write_text(content)
    with pytest.raises(UsageError, match=rf"^the config names your own data, but .*{said}.*$"):
        complete("--config-file", run / "config.yaml", option)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], r"give --config-file FILE \(.*\), or your own data: --data DIR, or --train-json"),
        (["--resume"], "--resume needs --config-file"),
        (["--eval-only", "--data", "x"], "--eval-only needs --config-file"),
        (["--data", "gone"], "--data is gone, which does not exist"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=rf"^{said}.*$"):
        complete(*argv)


def test_a_folder_without_training_images(tmp_path: Path) -> None:
    json_file, _ = write_toy_coco(tmp_path / "data")
    json_file.rename(json_file.with_name("val.json"))
    output = ("OUTPUT_DIR", tmp_path / "out")
    with pytest.raises(UsageError, match=r"which has no training images$"):
        complete(*DEMO, "--data", tmp_path / "data", *output)
    args = complete(*DEMO, "--data", tmp_path / "data", "--eval-only", *output)
    assert args.val_json == str(tmp_path / "data" / "val.json")
