"""Corrupted images: what is covered, filters against scipy, repeatability, the way to AP."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_plugins.evaluation import CorruptionMapper, build_corruptions, evaluate_corruptions
from d2_plugins.evaluation.corruptions import blur, noise, occlude
from tests.support.random_coco import Registered
from tests.support.tiny_model import evaluate, random_images, tiny_cfg

NO_BOXES = np.zeros((0, 4))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=60, deadline=None)
@given(
    share=st.floats(0, 1),
    x=st.integers(-30, 80),
    y=st.integers(-30, 80),
    w=st.integers(1, 90),
    h=st.integers(1, 90),
    seed=st.integers(0, 9),
)
def test_occlusion_covers_its_share_inside_the_box(
    share: float, x: int, y: int, w: int, h: int, seed: int
) -> None:
    image = np.zeros((70, 60, 3), np.uint8)
    out = occlude(image, np.array([[x, y, x + w, y + h]]), rng(seed), share=share)
    rows, columns = np.nonzero(out[..., 0])
    inside = np.zeros((70, 60), bool)
    inside[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = True
    assert inside[rows, columns].all()
    if not len(rows):
        return
    patch = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert patch[0] * patch[1] == len(rows), "a full rectangle"
    box_h, box_w = (np.ptp(axis) + 1 for axis in np.nonzero(inside))
    exact = share * box_h * box_w  # each side is at most half a pixel off
    assert abs(len(rows) - exact) <= 0.5 * (patch[0] + patch[1]) + 0.25


def test_occlusion_positions_and_shapes_vary() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    patches = [
        np.nonzero(occlude(image, np.array([[0, 0, 100, 100]]), rng(s), share=0.25)[..., 0])
        for s in range(200)
    ]
    ratios = np.array([(np.ptp(c) + 1) / (np.ptp(r) + 1) for r, c in patches])
    assert 0.49 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.05
    centres = np.array([(r.mean(), c.mean()) for r, c in patches])
    assert abs(centres.mean(axis=0) - 49.5).max() < 4
    assert centres.min() < 30


def test_fills() -> None:
    image = rng().integers(0, 256, (40, 40, 3), dtype=np.uint8)
    box = np.array([[10, 10, 30, 30]])
    cover = partial(occlude, image, box, share=1.0)
    inside = np.s_[10:30, 10:30]
    assert (cover(rng(), fill="grey")[inside] == 128).all()
    mean = np.rint(image.reshape(-1, 3).mean(axis=0))
    np.testing.assert_array_equal(
        cover(rng(), fill="mean")[inside].reshape(-1, 3).T, mean[:, None].repeat(400, 1)
    )
    noisy = cover(rng(), fill="noise")[inside].astype(float)
    assert abs(noisy.mean() - 127.5) < 8
    assert abs(noisy.std() - 255 / np.sqrt(12)) < 5
    assert (occlude(image, box, rng(), share=0.0) == image).all()
    boxes = np.array([[0, 0, 20, 20], [20, 20, 40, 40]])
    places = [
        (occlude(image, boxes, rng(), share=0.3, fill=fill) != image).any(axis=-1)
        for fill in ("grey", "noise")
    ]
    assert (places[0] != places[1]).mean() < 0.02, "the same places for every fill"
    assert cover(rng()).dtype == np.uint8
    assert (image == rng().integers(0, 256, (40, 40, 3), dtype=np.uint8)).all(), "in place"


@pytest.mark.parametrize(("sigma", "shape"), [(0.7, (31, 20, 3)), (3.0, (64, 50, 1))])
def test_blur_equals_scipy(sigma: float, shape: tuple[int, ...]) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = rng().uniform(0, 255, shape).astype(np.float32)
    expected = ndimage.gaussian_filter(
        image, (sigma, sigma, 0), mode="mirror", radius=(*(int(np.ceil(4 * sigma)),) * 2, 0)
    )
    np.testing.assert_allclose(blur(image, NO_BOXES, rng(), sigma=sigma), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 9, 3), (5, 5, 1)])
def test_blur_of_tiny_images(shape: tuple[int, ...]) -> None:
    image = np.full(shape, 77, np.uint8)
    assert (blur(image, NO_BOXES, rng(), sigma=3.0) == image).all()


def test_noise_has_its_deviation_and_stays_in_range() -> None:
    grey = np.full((100, 100, 3), 128, np.uint8)
    values = noise(grey, NO_BOXES, rng(), std=20).astype(float)
    assert abs(values.mean() - 128) < 1
    assert abs(values.std() - 20) < 0.5
    white = noise(np.full((50, 50, 3), 255, np.uint8), NO_BOXES, rng(), std=50)
    assert white.max() == 255
    assert white.min() > 20, "no wrap-around"


@pytest.fixture
def cfg(tmp_path: Path) -> Any:
    names = ["occlusion", "blur", "noise"]
    return tiny_cfg(
        tmp_path, "corrupted", "TEST.CORRUPTIONS", names, "TEST.OCCLUSION_FILL", "noise"
    )


def test_an_image_id_repeats_its_corruption(cfg: Any) -> None:
    image = rng().integers(0, 256, (40, 40, 3), dtype=np.uint8)
    boxes = np.array([[5, 5, 35, 35]])
    again, cfg.TEST.CORRUPTION_SEED = build_corruptions(cfg), 1
    other_seed = build_corruptions(cfg)
    assert [c.name for c in again] == cfg.TEST.CORRUPTIONS
    for first, other in zip(again, other_seed, strict=True):
        out = first(image, boxes, 17)
        assert (out != image).any()
        assert (first(image, boxes, 17) == out).all()
        assert (first(image, boxes, "17") == out).all()
        if first.name != "blur":
            assert (first(image, boxes, 18) != out).any()
            assert (other(image, boxes, 17) != out).any()


def test_mapper_corrupts_the_stored_image(tmp_path: Path, cfg: Any) -> None:
    image = rng().integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    xywh, xyxy = BoxMode.XYWH_ABS, BoxMode.XYXY_ABS
    dataset_dict = {
        "file_name": str(tmp_path / "image.png"),
        "image_id": 3,
        "height": 60,
        "width": 90,
        "annotations": [
            {"bbox": [10, 10, 20, 30], "bbox_mode": xywh, "category_id": 0},
            {
                "bbox": [60, 10, 80, 50],
                "bbox_mode": xyxy,
                "category_id": 0,
                "iscrowd": 1,
            },
        ],
    }
    mapper = DatasetMapper(cfg, is_train=False)
    clean = mapper(dataset_dict)["image"]
    for corruption in build_corruptions(cfg):
        mapped = CorruptionMapper(mapper, corruption)(dataset_dict)
        # As if the corrupted pixels had been stored; the crowd region is not an object.
        corrupted = corruption(image[..., ::-1], np.array([[10, 10, 30, 40]]), 3)
        Image.fromarray(corrupted[..., ::-1]).save(tmp_path / "corrupted.png")
        expected = mapper(dataset_dict | {"file_name": str(tmp_path / "corrupted.png")})
        assert (mapped["image"] == expected["image"]).all()
        assert (mapped["image"] != clean).any()
        assert "annotations" not in mapped
    assert (mapper(dataset_dict)["image"] == clean).all(), "the mapper itself is as before"
    with pytest.raises(TypeError, match="got function"):
        CorruptionMapper(rng, corruption)


def test_ap_per_corruption(tmp_path: Path, cfg: Any) -> None:
    data = random_images(tmp_path, 2)
    cfg.TEST.NOISE_STD = 0.0  # a corruption that does nothing
    cfg.TEST.PROPOSAL_RECALL = False
    model = build_model(cfg).eval()
    mapper = DatasetMapper(cfg, is_train=False)
    with Registered(tmp_path, data, "corrupted") as name:
        before = DatasetCatalog.get(name)
        clean = evaluate(cfg, model)
        results = evaluate_corruptions(cfg, model, mapper, clean)
        assert list(results) == ["bbox", "bbox_occlusion", "bbox_blur", "bbox_noise"]
        assert "bbox_noise" not in clean
        again = evaluate_corruptions(cfg, model, mapper)
        assert DatasetCatalog.get(name) == before
        cfg.DATASETS.TEST = (name, name)
        nested = evaluate_corruptions(cfg, model, mapper, {name: clean})
    np.testing.assert_array_equal(values(results["bbox_noise"]), values(clean["bbox"]))
    for task in ("bbox_occlusion", "bbox_blur"):
        np.testing.assert_array_equal(values(again[task]), values(results[task]))
        assert values(results[task]) != values(clean["bbox"]), task
    assert list(nested[name]) == list(results)
    folder = tmp_path / "inference" / name
    assert {p.name for p in folder.iterdir()} == {"occlusion", "blur", "noise"}


def values(metrics: dict[str, float]) -> list[float]:
    return list(metrics.values())
