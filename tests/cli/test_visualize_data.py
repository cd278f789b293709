"""tools/visualize_data.py: what is drawn lies where the annotations and the mapper say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from PIL import Image

from d2_plugins.cli.visualize_data import main, training_samples
from d2_plugins.data import register_coco_json
from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.visualization.dataset import draw_annotations, draw_sample
from tests.support.toy import toy_cfg, write_toy_coco

# BGR: 30 of blue, 60 of green, 200 of red.
RGB_GREY = (200, 60, 30)
BOX = [30.0, 40.0, 150.0, 170.0]
TRIANGLE = [30.0, 40.0, 150.0, 40.0, 30.0, 170.0]
NAMES = Metadata(thing_classes=["a", "b"])


def extent(changed: np.ndarray) -> list[int]:
    """XYXY of the pixels that are set."""
    rows, columns = changed.nonzero()
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def difference(picture: np.ndarray, pixels: np.ndarray | tuple[int, ...]) -> np.ndarray:
    # The Visualizer's random colours are far from these; YUV and back is off by 2 at most.
    return np.abs(picture.astype(int) - np.asarray(pixels)).max(axis=-1) > 5


@pytest.fixture(autouse=True)
def _colours() -> None:
    np.random.seed(0)


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    """A dataset dict of a plain image with one triangle."""
    pixels = np.full((200, 260, 3), RGB_GREY, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    return {
        "file_name": str(tmp_path / "plain.png"),
        "image_id": 1,
        "height": 200,
        "width": 260,
        "annotations": [{**annotation, "segmentation": [TRIANGLE], "iscrowd": 0}],
    }


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_annotations_are_drawn_in_their_place(item: dict[str, Any], scale: float) -> None:
    picture = draw_annotations(item, NAMES, scale=scale)
    assert picture.shape == (200 * scale, 260 * scale, 3)
    changed = difference(picture, RGB_GREY)
    assert extent(changed) == pytest.approx([scale * x for x in BOX], abs=4 * scale)
    at = np.array([[60, 100], [140, 140]]) * int(scale)  # inside the triangle, and beside it
    assert changed[at[0, 1], at[0, 0]]
    assert not changed[at[1, 1], at[1, 0]]
    # The picture is RGB: beside the objects it shows the image.
    assert np.abs(picture[-1, -1].astype(int) - RGB_GREY).max() <= 2


def test_objects_with_and_without_mask_in_one_image(item: dict[str, Any]) -> None:
    other = {"bbox": [180, 20, 60, 150], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    crowd = {**item["annotations"][0], "iscrowd": 1}
    item["annotations"] = [other, crowd]
    changed = difference(draw_annotations(item, NAMES), RGB_GREY)
    assert extent(changed) == pytest.approx([30, 20, 240, 170], abs=5)
    assert changed[100, 60]
    assert not changed[150, 210]
    del item["annotations"]
    assert not difference(draw_annotations(item, NAMES), RGB_GREY).any()


def data_cfg(folder: Path, image_format: str, mask_format: str = "polygon") -> CfgNode:
    cfg = toy_cfg(folder, ["MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", mask_format])
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (160,), 300
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    return cfg


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR", "YUV-BT.601"])
def test_samples_are_drawn_as_the_mapper_gives_them(
    item: dict[str, Any], tmp_path: Path, image_format: str, mask_format: str
) -> None:
    mapper = PluginDatasetMapper(data_cfg(tmp_path, image_format, mask_format), is_train=True)
    seen = set()
    while len(seen) < 2:  # both flipped and not
        sample = mapper(item)
        (box,) = sample["instances"].gt_boxes.tensor.tolist()
        seen.add(round(box[0]))
        picture = draw_sample(sample, image_format, NAMES)
        assert picture.shape[:2] == tuple(sample["image"].shape[1:]) == (160, 208)
        changed = difference(picture, RGB_GREY)
        assert extent(changed) == pytest.approx(box, abs=4)
        mask = sample["instances"].gt_masks
        if isinstance(mask, PolygonMasks):
            mask = BitMasks.from_polygon_masks(mask, *picture.shape[:2])
        # Away from outlines and the label the mask alone changes pixels.
        inside = np.zeros_like(changed)
        x0, y0, x1, y1 = (round(x) for x in box)
        inside[y0 + 30 : y1 - 6, x0 + 6 : x1 - 6] = True
        agree = changed[inside] == mask.tensor[0].numpy()[inside]
        assert agree.mean() > 0.95
    assert seen == {24, 88}


def test_samples_without_objects_and_without_names() -> None:
    sample: dict[str, Any] = {"image": torch.full((3, 140, 160), 7, dtype=torch.uint8)}
    empty = Instances(
        (140, 160), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).int()
    )
    sample["instances"] = empty
    assert not difference(draw_sample(sample, "RGB", NAMES), 7).any()
    one = Instances((140, 160), gt_boxes=Boxes(torch.tensor([[5.0, 5, 150, 130]])))
    sample["instances"] = one
    one.gt_classes = torch.tensor([3])
    changed = difference(draw_sample(sample, "RGB", Metadata()), 7)
    assert extent(changed) == pytest.approx([5, 5, 150, 130], abs=4)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    name = "visualize_data_test"
    register_coco_json(name, *write_toy_coco(tmp_path / "data", num_images=3, size=(80, 100)))
    return name


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_command(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    cfg = data_cfg(tmp_path, "BGR")
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
        (["--config-file", "Demo/faster_rcnn.yaml", "DATASETS.TRAIN", "()"], "is empty"),
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
        ([], "give --config-file, --dataset, or --train-json"),
        (["--train-json", "x"], "go together"),
        (["--dataset", "x", "--train-json", "x", "--train-images", "x"], "exclude each other"),
        (["--dataset", "x", "--limit", "0"], "--limit is at least 1"),
    ],
)
def test_command_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err


def test_a_data_set_with_more_classes_than_the_default_model_can_be_drawn(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path / "data", num_images=1)
    content = json.loads(json_file.read_text())
    content["categories"] += [{"id": i, "name": str(i)} for i in range(3, 203)]
    json_file.write_text(json.dumps(content))
    register_coco_json("many_classes_test", json_file, images)
    argv = ["--dataset", "many_classes_test", "--output", str(tmp_path / "pictures")]
    assert main(argv) == 0
