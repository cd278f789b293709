"""The synthetic shapes dataset: the same on every run, and labelled as drawn."""

import hashlib
import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog
from matplotlib.path import Path as Polygon
from PIL import Image

from d2_plugins.data import register_all
from d2_plugins.data.datasets.shape_outlines import (
    SHAPES,
    signed_distance,
    stripes,
    unit_area,
    value_noise,
)
from d2_plugins.data.datasets.shapes import (
    ShapesRecipe,
    ensure_shapes,
    render_image,
    shapes_datasets,
)
from d2_plugins.errors import UsageError

SMALL = ShapesRecipe(num_images=(("train", 40), ("val", 20)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "small"
    ensure_shapes(path, SMALL)
    return path


def read(folder: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((folder / f"annotations_{split}.json").read_text())


def masks_by_image(content: dict[str, Any]) -> dict[int, np.ndarray]:
    grouped: dict[int, list[np.ndarray]] = {}
    for annotation in content["annotations"]:
        mask = mask_util.decode(annotation["segmentation"]).astype(bool)
        grouped.setdefault(annotation["image_id"], []).append(mask)
    return {image_id: np.stack(masks) for image_id, masks in grouped.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_outline_is_the_polygon_through_its_tips_and_notches(name: str) -> None:
    outline = SHAPES[name]
    tips, inner, direction = outline or (720, math.cos(math.pi / 720), 0.0)
    angles = direction + np.arange(2 * tips) * math.pi / tips
    radii = np.where(np.arange(2 * tips) % 2 == 0, 1.0, inner)
    polygon = Polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))
    u, v = np.meshgrid(np.linspace(-1.2, 1.2, 301), np.linspace(-1.2, 1.2, 301))
    inside = polygon.contains_points(np.stack([u.ravel(), v.ravel()], axis=1)).reshape(u.shape)
    distance = signed_distance(outline, u, v)
    clear = np.abs(distance) > 1e-4
    np.testing.assert_array_equal((distance < 0)[clear], inside[clear])
    # At the middle of an edge the value is a distance.
    middle = (polygon.vertices[0] + polygon.vertices[1]) / 2
    assert signed_distance(outline, *(0.9 * middle)) == pytest.approx(
        -0.1 * _distance_to_line(polygon.vertices[0], polygon.vertices[1]), rel=0.01
    )
    assert inside.mean() * 2.4**2 == pytest.approx(unit_area(outline), rel=0.02)


def _distance_to_line(a: np.ndarray, b: np.ndarray) -> float:
    """Of the origin to the line through a and b."""
    return abs(a[0] * b[1] - a[1] * b[0]) / float(np.hypot(*(b - a)))


def test_noise_interpolates_its_grid() -> None:
    noise = value_noise(np.random.default_rng(0), (13, 9), 5)
    grid = np.random.default_rng(0).random((5, 5, 3))
    np.testing.assert_allclose(noise[::3, ::2], grid)
    np.testing.assert_allclose(noise[1], noise[0] * 2 / 3 + noise[3] / 3)


def test_stripes_have_their_period_and_direction() -> None:
    x = np.arange(0.0, 40.0)
    wave = stripes(x, np.zeros(40), angle=0.0, period=10.0, phase=0.3)
    np.testing.assert_allclose(wave, np.sin(2 * math.pi * x / 10 + 0.3))
    across = stripes(np.zeros(40), x, angle=math.pi / 2, period=10.0, phase=0.3)
    np.testing.assert_allclose(across, wave)


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    ensure_shapes(tmp_path / "again", SMALL)
    for path in folder.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()
    other = ShapesRecipe(num_images=(("train", 3),), seed=1)
    ensure_shapes(tmp_path / "other", other)
    assert read(tmp_path / "other")["annotations"] != read(folder)["annotations"][:3]


def test_an_image_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path) -> None:
    ensure_shapes(tmp_path / "few", ShapesRecipe(num_images=(("train", 3),)))
    name = "train/000003.png"
    assert (tmp_path / "few" / name).read_bytes() == (folder / name).read_bytes()


def test_recipe_of_this_version_is_unchanged(folder: Path) -> None:
    # Rendered folders are kept under the version's name: a change here needs a new _VERSION.
    boxes = [(a["image_id"], a["category_id"], *a["bbox"]) for a in read(folder)["annotations"]]
    digest = hashlib.sha256(repr(boxes).encode()).hexdigest()
    assert digest.startswith("addbe1afc20b7699"), (
        "raise _VERSION in d2_plugins/data/datasets/shapes.py"
    )
    # Not to the last bit: other processors may round a texture differently.
    means = [np.asarray(Image.open(path)).mean() for path in sorted(folder.rglob("*.png"))]
    assert [np.mean(means), np.std(means)] == pytest.approx([126.602, 18.959], abs=0.01)


def test_labels_describe_the_visible_part(folder: Path) -> None:
    content = read(folder)
    grouped = masks_by_image(content)
    assert list(grouped) == [image["id"] for image in content["images"]]
    for image_id, masks in grouped.items():
        assert masks.sum(axis=0).max() == 1, "visible parts are disjoint"
        annotations = [a for a in content["annotations"] if a["image_id"] == image_id]
        assert 1 <= len(annotations) <= SMALL.max_objects
        for mask, annotation in zip(masks, annotations, strict=True):
            rows, columns = np.nonzero(mask)
            x, y, w, h = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum()
            assert SMALL.min_visibility <= annotation["visibility"] <= 1


def test_whole_shapes_have_the_area_of_their_class(folder: Path) -> None:
    names = list(SHAPES)
    seen = set()
    for annotation in read(folder)["annotations"]:
        x, y, w, h = annotation["bbox"]
        if annotation["visibility"] < 1 or min(x, y) == 0 or max(x + w, y + h) == SMALL.size:
            continue
        # The circumradius is not in the labels, but follows from the area: a shape is within its
        # circle, and its extent is at least 1.4 radii (the square's side), aspect aside.
        outline = SHAPES[names[annotation["category_id"] - 1]]
        radius = math.sqrt(annotation["area"] / unit_area(outline))
        assert 1.35 * radius <= max(w, h) <= 2 * radius * 1.15 + 2
        low, high = SMALL.diameter
        assert 0.9 * low <= 2 * radius <= 1.05 * high
        seen.add(annotation["category_id"])
    assert seen == {1, 2, 3, 4}


def test_objects_are_varied_and_stand_out(folder: Path) -> None:
    annotations = read(folder)["annotations"] + read(folder, "val")["annotations"]
    extent = np.array([max(a["bbox"][2:]) for a in annotations])
    assert np.percentile(extent, 95) / np.percentile(extent, 5) > 2.5
    occluded = np.mean([a["visibility"] < 0.95 for a in annotations])
    assert 0.15 < occluded < 0.6
    contrasts = [c for i in range(1, 11) for c in _contrasts(folder, i)]
    assert np.mean(np.array(contrasts) > 0.1) > 0.9


def _contrasts(folder: Path, image_id: int) -> list[float]:
    """Difference of the mean colours of each mask and of the ground, of 1."""
    pixels = np.asarray(Image.open(folder / "train" / f"{image_id:06d}.png")) / 255
    masks = masks_by_image(read(folder))[image_id]
    ground = pixels[~masks.any(axis=0)].mean(axis=0)
    return [float(np.linalg.norm(pixels[mask].mean(axis=0) - ground)) for mask in masks]


def test_colour_does_not_tell_the_class() -> None:
    recipe = ShapesRecipe(max_objects=1)
    colours: dict[int, list[np.ndarray]] = {}
    for seed in range(120):
        pixels, objects = render_image(np.random.default_rng(seed), recipe)
        mask = mask_util.decode(objects[0]["segmentation"]).astype(bool)
        colours.setdefault(objects[0]["category_id"], []).append(pixels[mask].mean(axis=0) / 255)
    means = [np.mean(of_class, axis=0) for of_class in colours.values()]
    assert len(means) == 4
    # The mean of 30 uniform colours is 0.5 with a deviation of 0.05 in each channel.
    assert np.abs(np.array(means) - 0.5).max() < 0.2


def _ensure(folder: Path, barrier: Any) -> None:
    barrier.wait()
    ensure_shapes(folder, SMALL)


def test_two_processes_at_once_leave_one_whole_folder(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    target = tmp_path / "shared"
    workers = [context.Process(target=_ensure, args=(target, barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert os.listdir(tmp_path) == ["shared"]
    assert {p.relative_to(target) for p in target.rglob("*")} == {
        p.relative_to(folder) for p in folder.rglob("*")
    }


def test_an_interrupted_rendering_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_shapes(tmp_path / "shapes", SMALL)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("empty_catalogs")
def test_registered_names_load_what_was_rendered(tmp_path: Path) -> None:
    train, _ = shapes_datasets(tmp_path)
    ensure_shapes(train.json_file.parent, SMALL)  # in place of the default's 1000 images
    register_all(tmp_path)
    dicts = DatasetCatalog.get("shapes_train")
    assert [len(dicts), len(DatasetCatalog.get("shapes_val"))] == [40, 20]
    assert all(Path(item["file_name"]).is_file() for item in dicts)
    classes = {a["category_id"] for item in dicts for a in item["annotations"]}
    assert classes == {0, 1, 2, 3}


def test_a_folder_that_is_not_whole_is_named_and_an_empty_one_is_filled(tmp_path: Path) -> None:
    recipe = ShapesRecipe(num_images=(("train", 1), ("val", 1)))
    folder = tmp_path / "shapes"
    (folder / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"annotations_train\.json: remove the folder"):
        ensure_shapes(folder, recipe)
    (folder / "train").rmdir()
    ensure_shapes(folder, recipe)
    assert (folder / "val" / "000001.png").is_file()
