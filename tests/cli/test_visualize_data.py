"""d2-plugins visualize-data: the pictures of the command, and its messages."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_plugins.cli.visualize_data import main, training_samples
from d2_plugins.data import register_coco_json
from d2_plugins.data.own_files import OwnFiles
from tests.support.toy import toy_cfg, write_toy_coco


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    name = "visualize_data_test"
    register_coco_json(name, *write_toy_coco(tmp_path / "data", num_images=3, size=(80, 100)))
    return name


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_command(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    cfg = toy_cfg(tmp_path, ["MODEL.MASK_ON", True, "INPUT.FORMAT", "BGR"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    argv = ["--config-file", str(tmp_path / "config.yaml"), "--dataset", dataset]
    output = tmp_path / "pictures"
    argv += ["--source", source, "--limit", "5", "--scale", "2", "--output", str(output)]
    assert main([*argv, "SEED", "3"]) == 0
    paths = sorted(output.iterdir())
    if source == "annotation":
        expected = [f"000{i}_00{i}.jpg" for i in range(3)]
        images = [np.asarray(Image.open(tmp_path / "data" / "images" / f"00{i}.png").convert("RGB"))
                  for i in range(3)]  # fmt: skip
    else:
        cfg.SEED = 3
        cfg.DATASETS.TRAIN = (dataset,)
        samples = [sample for sample, _ in zip(training_samples(cfg), range(5), strict=False)]
        names = [Path(sample["file_name"]).stem for sample, _ in samples]
        expected = [f"000{i}_{name}.jpg" for i, name in enumerate(names)]
        images = [sample["image"].flip(0).permute(1, 2, 0).numpy() for sample, _ in samples]
    assert [path.name for path in paths] == expected
    assert f"{len(paths)} pictures of {dataset}" in capsys.readouterr().out
    for path, image in zip(paths, images, strict=True):
        picture = Image.open(path)
        height, width = image.shape[:2]
        assert picture.size == (2 * width, 2 * height)
        # Below boxes, masks and labels there is the image: closer than its mirror image.
        small = np.asarray(picture.resize((width, height))).astype(int)
        error = [np.abs(small - image[:, ::step]).mean() for step in (1, -1)]
        assert error[0] < error[1]


def test_your_own_data(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path / "data", num_images=2)
    (images / "000.png").write_bytes(b"no image")
    argv = ["--train-json", str(json_file), "--train-images", str(images)]
    argv += ["--output", str(tmp_path / "pictures")]
    assert main(argv) == 1
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["0001_001.jpg"]
    # The training loader stops at it, as the training would.
    assert main([*argv, "--source", "dataloader", "--limit", "9"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "shapes_trainn"], "no dataset 'shapes_trainn'. Nearest: shapes_train"),
        (["--config-file", "none.yaml"], "none.yaml"),
        (["--dataset", "shapes_val", "NO.KEY", "1"], "NO.KEY"),
        (["--train-json", "none.json", "--train-images", "."], "none.json"),
        (
            ["--config-file", "Demo/faster_rcnn.yaml", "DATASETS.TRAIN", "()"],
            "DATASETS.TRAIN is (); allowed: ",
        ),
    ],
)
def test_mistakes(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "pictures"), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "pictures").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --config-file, --data, --dataset, or --train-json"),
        (["--train-json", "x"], "go together"),
        (["--dataset", "x", "--train-json", "x", "--train-images", "x"], "exclude each other"),
        (["--dataset", "x", "--limit", "0"], "--limit is at least 1"),
    ],
)
def test_command_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err


def test_a_dataset_with_more_classes_than_the_default_model_can_be_drawn(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path / "data", num_images=1)
    content = json.loads(json_file.read_text())
    content["categories"] += [{"id": i, "name": str(i)} for i in range(3, 203)]
    json_file.write_text(json.dumps(content))
    register_coco_json("many_classes_test", json_file, images)
    argv = ["--dataset", "many_classes_test", "--output", str(tmp_path / "pictures")]
    assert main(argv) == 0


@pytest.mark.usefixtures("catalogs")
def test_a_folder_and_the_config_of_a_run_on_own_data(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path / "data", num_images=3)
    argv = ["--limit", "1", "--output"]
    assert main(["--data", str(tmp_path / "data"), *argv, str(tmp_path / "a")]) == 0
    assert len(list((tmp_path / "a").glob("*.jpg"))) == 1
    OwnFiles(train_json=str(json_file), train_images=str(images)).write(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text("DATASETS:\n  TRAIN: ('custom_train',)\n  TEST: ()\n")
    assert main(["--config-file", str(config), *argv, str(tmp_path / "b")]) == 0
    (picture,) = (tmp_path / "b").glob("*.jpg")
    assert picture.name == "0000_000.jpg"
