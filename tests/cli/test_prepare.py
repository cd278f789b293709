"""``d2-plugins prepare`` and ``d2-plugins check``: exit status and messages."""

import json
from pathlib import Path

import pytest
from PIL import Image

from d2_plugins.cli import check
from d2_plugins.cli import prepare as cli
from d2_plugins.data import dataset_root, register_all
from d2_plugins.data.datasets.shapes import ShapesRecipe, ensure_shapes, shapes_datasets
from tests.support.helpers import shared_path
from tests.support.toy import write_toy_coco


@pytest.fixture(autouse=True)
def _no_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its handler would keep writing to this test's captured output.
    monkeypatch.setattr(cli, "setup_logger", lambda name: None)


def test_prepares_under_the_environments_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    assert dataset_root() == tmp_path / "root"
    source = str(shared_path("data/voc_small"))
    assert cli.main(["voc", "--from", source, "--link"]) == 0
    assert "voc_2012_val_coco: 33 images, 92 objects (a part" in capsys.readouterr().out
    assert (tmp_path / "root" / "VOC2012").is_symlink()


def test_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shapes_datasets(tmp_path)[0].json_file.parent
    ensure_shapes(folder, ShapesRecipe(num_images=(("train", 2), ("val", 1))))
    assert cli.main(["shapes", "--root", str(tmp_path)]) == 0
    assert "shapes_val: " in capsys.readouterr().out


def test_check_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, images = write_toy_coco(tmp_path)
    arguments = ["--json", str(json_file), "--images", str(images), "--decode"]
    assert check.main(arguments) == 0
    assert "8 images" in capsys.readouterr().out
    content = json.loads(json_file.read_text())
    content["annotations"][3]["category_id"] = 77
    json_file.write_text(json.dumps(content))
    assert check.main(arguments) == 1
    out = capsys.readouterr().out
    assert cli.main(["check", *arguments]) == 1
    assert capsys.readouterr().out == out
    assert "category id not in the list" in out
    assert "annotation 4: category 77" in out


def test_check_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([str(shared_path("data/bccd"))]) == 0
    out = capsys.readouterr().out.splitlines()
    assert ": VOC XML with ImageSets/Main, 205 training and 87 validation images" in out[0]
    assert sum(line.startswith("Pre-flight check of ") for line in out) == 2
    (tmp_path / "a.xml").write_text("<annotation></annotation>")
    json_file, _ = write_toy_coco(tmp_path)
    for name, said in (
        ("a.xml", "is VOC XML: convert it with: "),
        (json_file.name, f"is a file: give --json {json_file} and --images DIR"),
    ):
        assert check.main([str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_convert_checks_and_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shared_path("data/bccd")
    arguments = ["convert", str(source), "--output", str(tmp_path / "coco")]
    assert cli.main([*arguments, "--split", "0.8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    train, val = (tmp_path / "coco" / f"{split}.json" for split in ("train", "val"))
    assert lines[0].startswith(f"{train}: 2")
    assert f"Pre-flight check of {val}: no problems" in lines
    assert lines[-1] == (
        f"Train with: d2-plugins train --train-json {train} --train-images "
        f"{source} --val-json {val} --val-images {source}"
    )
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {train} exists already")


def test_convert_without_splits_and_with_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 -0.001\n")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert cli.main(["convert", str(tmp_path), "--output", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "No validation set was made; --split 0.8 makes one." in out
    assert "a.png (image id 1), annotation 1: area is -" in out


@pytest.mark.usefixtures("empty_catalogs")
def test_check_of_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "VOC2012").symlink_to(shared_path("data/voc_small/VOCdevkit/VOC2012"))
    register_all(tmp_path)
    assert check.main(["voc_2012_val_coco"]) == 0
    assert "33 images" in capsys.readouterr().out


@pytest.mark.usefixtures("empty_catalogs")
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["penn_fudan", "--link"], "--link needs --from"),
        (["penn_fudan", "--from", "nowhere"], "no folder nowhere"),
        (["check"], "--json and --images"),
        (["check", "shapes_trian"], "no dataset or folder 'shapes_trian'. Nearest: shapes_train"),
        (["check", "voc_2007_test_coco"], "d2-plugins prepare voc"),
    ],
)
def test_mistakes(
    argv: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_all(tmp_path)
    assert cli.main(argv) == 2
    assert said in capsys.readouterr().err
