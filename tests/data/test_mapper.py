"""Unusual images train or are refused with file and id; boxes are clipped or dropped."""

from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from PIL import Image

from d2_plugins import get_cfg
from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.errors import UsageError
from tests.support.odd_images import ODD_KINDS, SIZE, ramp, write_odd_image
from tests.support.toy import toy_cfg


def plain_cfg() -> CfgNode:
    """No augmentation and no resizing."""
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    cfg.INPUT.RANDOM_FLIP = "none"
    return cfg


def item(path: Path, size: tuple[int, int] = SIZE, **annotation: Any) -> dict[str, Any]:
    annotations = []
    if annotation:
        defaults = {"category_id": 0, "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0}
        annotations = [{**defaults, **annotation}]
    width, height = size
    return {
        "file_name": str(path),
        "image_id": 17,
        "width": width,
        "height": height,
        "annotations": annotations,
    }


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("kind", ODD_KINDS)
def test_odd_images_give_the_pixels_that_were_meant(
    kind: str, is_train: bool, tmp_path: Path
) -> None:
    path = write_odd_image(tmp_path, kind)
    is_turned = "turned" in kind
    mapper = PluginDatasetMapper(plain_cfg(), is_train=is_train)
    # EXIF's orientation 6: the stored rows, top to bottom, are shown right to left.
    upright = np.rot90(ramp(), -1) if is_turned else ramp()
    mapped = mapper(item(path, SIZE[::-1] if is_turned else SIZE))
    assert mapped["file_name"] == str(path)
    tolerance = 3 if path.suffix == ".jpg" else 0
    difference = mapped["image"][0].numpy().astype(int) - upright.astype(int)
    assert mapped["image"].dtype == torch.uint8
    assert np.abs(difference).max() <= tolerance
    if is_turned and path.suffix != ".tif":  # annotations made on the stored pixels
        mapped = mapper(item(path, SIZE))
        difference = mapped["image"][0].numpy().astype(int) - ramp().astype(int)
        assert np.abs(difference).max() <= tolerance


def test_stock_mapper_cuts_16_bit_values_off(tmp_path: Path) -> None:
    # If this fails, detectron2 or Pillow reads 16-bit images and the mapper need not.
    stock = DatasetMapper(plain_cfg(), is_train=True)(item(write_odd_image(tmp_path, "deep")))
    assert stock["image"].min() > 90


def test_unusable_images_are_named(tmp_path: Path) -> None:
    mapper = PluginDatasetMapper(plain_cfg(), is_train=True)
    good = write_odd_image(tmp_path, "rgb")
    text = tmp_path / "text.png"
    text.write_text("not an image")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:60])
    real = tmp_path / "real.tif"
    Image.fromarray(ramp().astype(np.float32)).save(real)
    cases = {
        text: "cannot identify",
        cut: "cut.png",
        real: "8 or 16 bits",
        tmp_path / "missing.png": "No such file",
    }
    for path, said in cases.items():
        with pytest.raises(UsageError, match=said) as error:
            mapper(item(path))
        assert str(path) in str(error.value)
        assert "image id 17" in str(error.value)
    with pytest.raises(UsageError, match=r"rgb\.png.*image id 17.*\(48, 32\).*\(50, 32\)"):
        mapper(item(good, (50, 32)))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([10, 5, 20, 10], [10, 5, 30, 15]),
        ([40, 20, 100, 100], [40, 20, 48, 32]),  # over the border
        ([-5, -5, 10, 10], [0, 0, 5, 5]),
        ([60, 5, 10, 10], None),  # outside
        ([10, 5, 0, 10], None),  # no area
        ([10, 5, -4, 10], None),  # negative: a flip would make it a box of 4 x 10
        ([10, 5, float("nan"), 10], None),
        ([10, 5, float("inf"), 10], None),
    ],
)
@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_boxes_are_clipped_or_left_out(
    box: list[float], expected: list[float] | None, flip: str, tmp_path: Path
) -> None:
    cfg = plain_cfg()
    cfg.INPUT.RANDOM_FLIP = flip
    mapper = PluginDatasetMapper(cfg, is_train=True)
    path = write_odd_image(tmp_path, "rgb")
    for seed in range(4):  # some flipped, some not
        np.random.seed(seed)
        boxes = mapper(item(path, bbox=box))["instances"].gt_boxes.tensor.tolist()
        if expected is None:
            assert boxes == []
            continue
        x0, y0, x1, y1 = expected
        allowed = [[x0, y0, x1, y1]]
        if flip == "horizontal":
            allowed.append([48 - x1, y0, 48 - x0, y1])
        assert boxes[0] in allowed


def rle() -> dict[str, Any]:
    mask = np.zeros(SIZE[::-1], dtype=np.uint8, order="F")
    mask[5:15, 10:30] = 1
    mask[8:10, 15:20] = 0  # a hole, which polygons cannot hold
    return mask_util.encode(mask)


def mask_cfg(mask_format: str) -> CfgNode:
    cfg = plain_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    return cfg


def test_masks_as_rle_need_bitmask_and_survive_it(tmp_path: Path) -> None:
    path = write_odd_image(tmp_path, "rgb")
    data = item(path, bbox=[10, 5, 20, 10], segmentation=rle())
    masks = PluginDatasetMapper(mask_cfg("bitmask"), is_train=True)(data)["instances"].gt_masks
    np.testing.assert_array_equal(masks.tensor[0].numpy(), mask_util.decode(rle()))
    with pytest.raises(UsageError, match=r"INPUT\.MASK_FORMAT is 'polygon'.*'bitmask'"):
        PluginDatasetMapper(mask_cfg("polygon"), is_train=True)(data)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_polygons_work_in_either_format_and_their_lack_is_named(
    mask_format: str, tmp_path: Path
) -> None:
    path = write_odd_image(tmp_path, "rgb")
    mapper = PluginDatasetMapper(mask_cfg(mask_format), is_train=True)
    polygon = [[10.0, 5.0, 30.0, 5.0, 30.0, 15.0, 10.0, 15.0]]
    masks = mapper(item(path, bbox=[10, 5, 20, 10], segmentation=polygon))["instances"].gt_masks
    assert masks.get_bounding_boxes().tensor.tolist() == [[10, 5, 30, 15]]
    with pytest.raises(UsageError, match=r"MODEL\.MASK_ON .* no mask"):
        mapper(item(path, bbox=[10, 5, 20, 10]))


def test_crowds_alone_survive_cropping_with_masks(tmp_path: Path) -> None:
    cfg = mask_cfg("bitmask")
    cfg.INPUT.CROP.ENABLED = True  # boxes are then made from masks, of which there are none
    data = item(write_odd_image(tmp_path, "rgb"), bbox=[1, 1, 9, 9], segmentation=rle(), iscrowd=1)
    with pytest.raises(AttributeError):
        DatasetMapper(cfg, is_train=True)(data)
    assert len(PluginDatasetMapper(cfg, is_train=True)(data)["instances"]) == 0


def test_equal_to_the_stock_mapper_where_that_works(tmp_path: Path) -> None:
    cfg = mask_cfg("bitmask")
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 60)
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    data = item(write_odd_image(tmp_path, "rgb"), bbox=[10, 5, 20, 10], segmentation=rle())
    mapped = []
    for cls in (DatasetMapper, PluginDatasetMapper):
        mapper = cls(cfg, is_train=True)
        np.random.seed(3)
        mapped.append(mapper(data))
    stock, ours = mapped
    assert stock.keys() == ours.keys()
    assert torch.equal(stock["image"], ours["image"])
    assert torch.equal(stock["instances"].gt_boxes.tensor, ours["instances"].gt_boxes.tensor)
    assert torch.equal(stock["instances"].gt_masks.tensor, ours["instances"].gt_masks.tensor)


def test_a_model_trains_on_all_of_them(tmp_path: Path) -> None:
    cfg = toy_cfg(tmp_path)
    mapper = PluginDatasetMapper(cfg, is_train=True)
    model = build_model(cfg)
    boxes = ([10, 5, 20, 10], [40, 20, 100, 100], [60, 5, 10, 10], [10, 5, 0, 10], [5, 5, -4, 9])
    batch = []
    for i, kind in enumerate(ODD_KINDS):
        size = SIZE[::-1] if "turned" in kind else SIZE
        path = write_odd_image(tmp_path, kind)
        batch.append(mapper(item(path, size, bbox=boxes[i % len(boxes)])))
    with EventStorage():
        loss = sum(model(batch).values())
    loss.backward()
    assert torch.isfinite(loss)
