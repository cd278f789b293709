"""FastCOCOEvaluator against detectron2's COCOEvaluator on pycocotools."""

import contextlib
import copy
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from pycocotools.coco import COCO

from d2_plugins.evaluation import FastCOCOEvaluator, evaluate_detections
from d2_plugins.evaluation.coco import ENGINES
from tests.support.helpers import shared_path
from tests.support.random_coco import (
    SIGMAS,
    Registered,
    assert_same,
    perfect_instances,
    random_annotations,
    random_instances,
)


def run(evaluator: COCOEvaluator, predictions: dict[int, Instances], **kwargs: Any) -> Any:
    evaluator.reset()
    for image_id, instances in predictions.items():
        # A copy: detectron2 shifts keypoints in place.
        evaluator.process([{"image_id": image_id}], [{"instances": copy.deepcopy(instances)}])
    return evaluator.evaluate(**kwargs)


def load_coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("seed", "masks", "keypoints", "max_dets", "img_ids"),
    [
        (0, True, True, None, None),
        (1, True, False, None, [1, 21, 31, 91]),
        (2, False, False, 300, None),
        (3, False, True, 12, None),
    ],
)
def test_equals_detectron2(
    tmp_path: Path,
    engine: str,
    seed: int,
    masks: bool,
    keypoints: bool,
    max_dets: int | None,
    img_ids: list[int] | None,
) -> None:
    data = random_annotations(seed)
    predictions = random_instances(data, seed, masks=masks, keypoints=keypoints)
    options: dict[str, Any] = {"kpt_oks_sigmas": SIGMAS, "max_dets_per_image": max_dets}
    with Registered(tmp_path, data, f"random_{engine}_{seed}") as name:
        stock = COCOEvaluator(
            name, output_dir=str(tmp_path / "stock"), use_fast_impl=False, **options
        )
        ours = FastCOCOEvaluator(name, output_dir=str(tmp_path / "ours"), engine=engine, **options)
        expected = run(stock, predictions, img_ids=img_ids)
        results = run(ours, predictions, img_ids=img_ids)
    tasks = ["bbox"] + ["keypoints"] * keypoints + ["segm"] * masks
    assert list(results) == tasks
    assert 5 < expected["bbox"]["AP"] < 95, "the case is too easy to tell engines apart"
    assert_same(results, expected)
    written = [
        json.loads((tmp_path / d / "coco_instances_results.json").read_text())
        for d in ("ours", "stock")
    ]
    fields = written[1][0].keys() & {"image_id", "category_id", "bbox", "score", "segmentation"}
    for key in fields:
        assert [r[key] for r in written[0]] == [r[key] for r in written[1]]
    saved = torch.load(tmp_path / "ours" / "instances_predictions.pth", weights_only=False)
    assert [p["image_id"] for p in saved] == list(predictions)
    assert not list((tmp_path / "ours").glob(".*"))


@pytest.mark.parametrize("engine", ENGINES)
def test_official_fake_results(engine: str) -> None:
    folder = shared_path("data/coco_eval_fixture")
    truth = load_coco(folder / "gt_val2014_100.json")
    detections = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    stats = evaluate_detections(truth, detections, "bbox", engine=engine).stats
    np.testing.assert_allclose(stats[:3], [0.503647, 0.696973, 0.571667], atol=1e-6)


def test_engines_agree_on_real_detections() -> None:
    folder = shared_path("data/coco_small")
    truth = load_coco(folder / "instances_val2017.json")
    detections = json.loads((folder / "detections_yolox_nano_val2017.json").read_text())
    fast, slow = (evaluate_detections(truth, detections, "bbox", engine=e) for e in ENGINES)
    assert slow.stats[0] == pytest.approx(0.340306, abs=1e-6)
    np.testing.assert_allclose(fast.stats[:12], slow.stats[:12], atol=1e-6)
    for key in ("precision", "recall"):
        np.testing.assert_allclose(fast.eval[key], slow.eval[key], atol=1e-6)


def test_engines_agree_on_real_masks() -> None:
    """Masks of COCO, as detected by a detector that takes every mask for its neighbour in size."""
    folder = shared_path("data/coco_small")
    data = json.loads((folder / "instances_val2017.json").read_text())
    data["annotations"] = [a for a in data["annotations"] if "segmentation" in a]
    truth = COCO()
    truth.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    rng = np.random.default_rng(0)
    detections = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"] if rng.random() < 0.8 else 1,
            "segmentation": a["segmentation"],
            "bbox": a["bbox"],
            "score": float(rng.random()),
        }
        for a in data["annotations"]
        if rng.random() < 0.7
    ]
    fast, slow = (evaluate_detections(truth, detections, "segm", engine=e) for e in ENGINES)
    assert 0.2 < slow.stats[0] < 0.8
    np.testing.assert_allclose(fast.stats[:12], slow.stats[:12], atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_detection_is_ap_0(tmp_path: Path, engine: str) -> None:
    data = random_annotations(0)
    found = random_instances(data, 0)
    nothing = {image_id: instances[:0] for image_id, instances in found.items()}
    with Registered(tmp_path, data, f"nothing_{engine}") as name:
        tasks = ("bbox", "segm", "keypoints")
        evaluator = FastCOCOEvaluator(name, tasks, engine=engine, kpt_oks_sigmas=SIGMAS)
        results = run(evaluator, nothing)
        expected_keys = {task: metrics.keys() for task, metrics in run(evaluator, found).items()}
        assert run(evaluator, {}) == {}
    assert {task: metrics.keys() for task, metrics in results.items()} == expected_keys
    assert results["bbox"]["AP"] == results["segm"]["AP-cat"] == results["keypoints"]["AP"] == 0
    assert math.isnan(results["bbox"]["AP-yak"])  # no such object: nothing to be found


# Functions from a place in the rising order of the ids to another id, which keep that order.
ANNOTATION_IDS = {
    "from_zero": lambda i: i,
    "negative": lambda i: i - 1000,
    "one_negative": lambda i: i - 1,
    "signed_64_bit": lambda i: -(2**63) + i * 12345678901,
    "above_63_bits": lambda i: 2**63 + i,
}
OTHER_IDS = {
    "zero": lambda i: i,
    "negative": lambda i: i - 500,
    "above_53_bits": lambda i: 2**53 + i,
    "above_63_bits": lambda i: 2**63 + i,
    "text": lambda i: f"id_{i:03d}",
    "text_of_digits": lambda i: f"{i:03d}",
}
Renumber = Callable[[int], Any]


def with_ids(
    data: dict[str, Any],
    *,
    annotations: Renumber = lambda i: i + 1,
    images: Renumber = lambda i: i + 1,
    categories: Renumber = lambda i: i + 1,
) -> tuple[dict[str, Any], dict[int, Any]]:
    """Return ``data`` with other ids, and the new ids of the images by the old ones."""
    data = copy.deepcopy(data)
    new_image = {old["id"]: images(i) for i, old in enumerate(data["images"])}
    new_category = {old["id"]: categories(i) for i, old in enumerate(data["categories"])}
    for image in data["images"]:
        image["id"] = new_image[image["id"]]
    for category in data["categories"]:
        category["id"] = new_category[category["id"]]
    for i, annotation in enumerate(data["annotations"]):
        annotation["id"] = annotations(i)
        annotation["image_id"] = new_image[annotation["image_id"]]
        annotation["category_id"] = new_category[annotation["category_id"]]
    return data, new_image


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "renumber"),
    [("annotations", renumber) for renumber in ANNOTATION_IDS]
    + [(kind, renumber) for kind in ("images", "categories") for renumber in OTHER_IDS],
)
@pytest.mark.parametrize("perfect", [True, False])
def test_ids_do_not_change_the_result(
    tmp_path: Path, engine: str, kind: str, renumber: str, perfect: bool
) -> None:
    """As pycocotools evaluates the same objects and detections with ids from 1."""
    data = random_annotations(4)
    predictions = (
        perfect_instances(data)
        if perfect
        else random_instances(data, 4, masks=False, keypoints=False)
    )
    plain, image_ids = with_ids(data)
    with Registered(tmp_path, plain, "plain_ids") as name:
        stock = COCOEvaluator(name, ("bbox",), use_fast_impl=False)
        expected = run(stock, {image_ids[i]: found for i, found in predictions.items()})
    assert expected["bbox"]["AP"] == pytest.approx(100) or not perfect
    function = (ANNOTATION_IDS if kind == "annotations" else OTHER_IDS)[renumber]
    odd, image_ids = with_ids(data, **{kind: function})
    with Registered(tmp_path, odd, "odd_ids") as name:
        ours = FastCOCOEvaluator(name, ("bbox",), engine=engine, output_dir=str(tmp_path))
        results = run(ours, {image_ids[i]: found for i, found in predictions.items()})
    assert_same(results, expected)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {d["image_id"] for d in written} <= {image["id"] for image in odd["images"]}
    assert {d["category_id"] for d in written} <= {item["id"] for item in odd["categories"]}


def test_ids_that_the_ground_truth_lacks_are_named() -> None:
    truth = COCO()
    truth.dataset = random_annotations(4)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    detection = {"image_id": "x", "category_id": 3, "bbox": [0, 0, 1, 1], "score": 1.0}
    with pytest.raises(ValueError, match="image id 'x', which the ground truth lacks"):
        evaluate_detections(truth, [detection], "bbox")


def test_files_are_replaced_not_overwritten(tmp_path: Path) -> None:
    data = random_annotations(5)
    names = ("coco_instances_results.json", "instances_predictions.pth")
    for file in names:
        (tmp_path / file).write_text("old")
        os.link(tmp_path / file, tmp_path / f"{file}.link")  # writing in place would change it
    with Registered(tmp_path, data, "replaced") as name:
        predictions = random_instances(data, 5, keypoints=False)
        run(FastCOCOEvaluator(name, output_dir=str(tmp_path)), predictions)
    for file in names:
        assert (tmp_path / f"{file}.link").read_text() == "old"
        assert (tmp_path / file).read_bytes() != b"old"


def test_ground_truth_without_masks_or_annotations(tmp_path: Path) -> None:
    data = random_annotations(6)
    predictions = random_instances(data, 6, keypoints=False)
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    with Registered(tmp_path, data, "no_masks") as name:
        assert run(FastCOCOEvaluator(name, ("bbox", "segm")), predictions).keys() == {"bbox"}
    del data["annotations"]
    with Registered(tmp_path, data | {"annotations": []}, "test_set") as name:
        # A test set's json has no list of annotations at all; registering needs one.
        (tmp_path / "test_set.json").write_text(json.dumps(data))
        out = tmp_path / "out"
        assert run(FastCOCOEvaluator(name, output_dir=str(out)), predictions) == {}
    assert len(json.loads((out / "coco_instances_results.json").read_text())) > 10


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    data = random_annotations(7)
    predictions = random_instances(data, 7, masks=False)
    with Registered(tmp_path, data, "errors") as name:
        with pytest.raises(ValueError, match=r"COCO_EVALUATOR is 'fast'; allowed: faster-coco"):
            FastCOCOEvaluator(name, engine="fast")
        with pytest.raises(ValueError, match=r"KEYPOINT_OKS_SIGMAS has 17 values.* have \[4\]"):
            run(FastCOCOEvaluator(name), predictions)
        next(iter(predictions.values())).pred_classes += 4
        with pytest.raises(ValueError, match=r"predicted class 4, but errors has 4 classes"):
            run(FastCOCOEvaluator(name), predictions)
