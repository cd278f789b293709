"""Pictures of datasets: what is drawn lies where the annotations and the mapper say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from PIL import Image

from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.visualization.dataset import draw_annotations, draw_sample
from tests.support.toy import toy_cfg

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
    at = np.array([[60, 100], [140, 140]]) * int(scale)  # inside the triangle, and outside of it
    assert changed[at[0, 1], at[0, 0]]
    assert not changed[at[1, 1], at[1, 0]]
    # The picture is RGB: around the objects it shows the image.
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
