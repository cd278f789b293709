"""Average recall against detectron2's function, pycocotools, and a loop over all pairs."""

import contextlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2_plugins.evaluation import FastCOCOEvaluator, ProposalRecall, ProposalRecallEvaluator
from d2_plugins.evaluation.proposal_recall import recall_counts, save_proposals
from tests.support.random_coco import SIZE, Registered, assert_same, random_annotations


def as_coco(data: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def random_proposals(data: dict[str, Any], seed: int, number: int) -> dict[int, Instances]:
    """Crowded: many proposals per object, many objects per proposal, in random order."""
    rng = np.random.default_rng(seed)
    out = {}
    for image in data["images"]:
        truth = [a["bbox"] for a in data["annotations"] if a["image_id"] == image["id"]]
        xywh = rng.uniform(5, 40, (number, 4))
        for i in range(number if truth else 0):
            x, y, w, h = truth[rng.integers(len(truth))]
            noise = rng.normal(0, 0.15, 4)
            xywh[i] = x + noise[0] * w, y + noise[1] * h, w * (1 + noise[2]), h * (1 + noise[3])
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        out[image["id"]] = proposals_of(torch.tensor(boxes).float(), torch.randn(number))
    return out


def proposals_of(boxes: torch.Tensor, logits: torch.Tensor) -> Instances:
    return Instances((SIZE, SIZE), proposal_boxes=Boxes(boxes), objectness_logits=logits)


@pytest.mark.parametrize("seed", range(3))
def test_equals_detectron2(seed: int) -> None:
    torch.manual_seed(seed)
    data = random_annotations(seed, num_images=20)
    coco = as_coco(data)
    proposals = random_proposals(data, seed, 40)
    recall = ProposalRecall(coco, limits=(5, 15, 40))
    for image_id, instances in proposals.items():
        recall.add(image_id, instances)
    results = recall.results()
    areas = {"all": "", "small": "s", "medium": "m", "large": "l"}
    values = []
    for limit in (5, 15, 40):
        for area, suffix in areas.items():
            expected = _evaluate_box_proposals(
                [{"image_id": i, "proposals": p} for i, p in proposals.items()],
                coco,
                area=area,
                limit=limit,
            )
            value = results[f"AR{suffix}@{limit}"]
            np.testing.assert_allclose(value, 100 * expected["ar"].item(), atol=1e-4)
            values.append(value)
    assert len(values) == len(results)
    assert min(values) < 45 < max(values), "too easy to tell matchings apart"


def test_equals_pycocotools_where_objects_are_apart() -> None:
    """No proposal is near two objects, so the two ways of matching agree."""
    boxes = [[30 * i, 30 * j, 20, 20] for i in range(3) for j in range(3)]
    rng = np.random.default_rng(0)
    data = {"images": [{"id": i, "height": SIZE, "width": SIZE} for i in (1, 2)]}
    data["annotations"] = [
        {"id": 9 * (i - 1) + k + 1, "image_id": i, "category_id": 1 + k % 2, "bbox": box,
         "area": 400 if k % 3 else 2000, "iscrowd": 0}
        for i in (1, 2)
        for k, box in enumerate(boxes)
    ]  # fmt: skip
    data["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    coco = as_coco(data)
    recall, detections = ProposalRecall(coco, limits=(12,)), []
    for image_id in (1, 2):
        xywh = np.array([box for box in boxes for _ in range(2)]) + rng.normal(0, 2, (18, 4))
        scores = torch.tensor(rng.random(18))
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        recall.add(image_id, proposals_of(torch.tensor(xyxy).float(), scores))
        detections += [
            {"image_id": image_id, "category_id": 1, "bbox": box.tolist(), "score": float(score)}
            for box, score in zip(xywh, scores, strict=True)
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCOeval(coco, coco.loadRes(detections), "bbox")
        reference.params.useCats = 0
        reference.params.maxDets = [1, 10, 12]
        reference.evaluate()
        reference.accumulate()
    # Recall of pycocotools: (threshold, category, area, limit); areas are all, s, m, l.
    expected = 100 * reference.eval["recall"][:, 0, :, -1].mean(axis=0)
    results = recall.results()
    assert 20 < results["AR@12"] < 80
    for suffix, value in zip(("", "s", "m"), expected, strict=False):
        assert results[f"AR{suffix}@12"] == pytest.approx(value, abs=1e-4)
    assert np.isnan(results["ARl@12"])


def test_takes_the_best_pair_first() -> None:
    # The first proposal covers both objects, the second only the first object.
    gt = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12]])
    proposals = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    covered, total = recall_counts(proposals, gt, torch.tensor([100.0, 120.0]), (1, 2))
    # IoU 1 for (0, 0); what is left is (1, 1) with IoU 8 / 12.
    assert covered[0, 0].tolist() == [1] * 10
    assert covered[1, 0].tolist() == [2, 2, 2, 2] + [1] * 6
    assert total.tolist() == [2, 2, 0, 0]


def test_missed_and_crowd_objects() -> None:
    box = {"bbox": [0, 0, 10, 10], "area": 100, "category_id": 1}
    data = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "annotations": [
            box | {"id": 1, "image_id": 1, "iscrowd": 0},
            box | {"id": 2, "image_id": 1, "iscrowd": 1},
            box | {"id": 3, "image_id": 2, "iscrowd": 0},
        ],
        "categories": [{"id": 1}],
    }
    recall = ProposalRecall(as_coco(data), limits=(10,))
    recall.add(1, proposals_of(torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(1)))
    recall.add(2, proposals_of(torch.zeros(0, 4), torch.zeros(0)))
    recall.add(3, proposals_of(torch.tensor([[0.0, 0, 10, 10]]), torch.zeros(1)))
    # One of two objects: a crowd region is none, an image without proposals misses its own.
    assert recall.results()["AR@10"] == 50


def test_sum_over_processes(tmp_path: Path) -> None:
    data = random_annotations(1)
    with Registered(tmp_path, data, "two_processes") as name:
        coco = FastCOCOEvaluator(name).ground_truth
    proposals = list(random_proposals(data, 1, 30).items())
    whole, parts = ProposalRecall(coco), [ProposalRecall(coco) for _ in range(2)]
    for k, (image_id, instances) in enumerate(proposals):
        whole.add(image_id, instances)
        parts[k % 2].add(image_id, instances)
    sent = pickle.dumps(parts[1])
    assert len(sent) < 5000, "the ground truth must not travel"
    parts[0].merge(pickle.loads(sent))  # noqa: S301
    np.testing.assert_array_equal(list(parts[0].results().values()), list(whole.results().values()))


def test_evaluator_on_outputs_of_a_proposal_network(tmp_path: Path) -> None:
    data = random_annotations(3)
    coco = as_coco(data)
    proposals = random_proposals(data, 3, 30)
    evaluator = ProposalRecallEvaluator(coco, output_dir=str(tmp_path))
    for _ in range(2):  # a second round starts from zero
        evaluator.reset()
        for image_id, instances in proposals.items():
            evaluator.process([{"image_id": image_id}], [{"proposals": instances}])
        results = evaluator.evaluate()
    recall = ProposalRecall(coco)
    for image_id, instances in proposals.items():
        recall.add(image_id, instances)
    assert_same(results, {"box_proposals": recall.results()})
    assert list(results["box_proposals"])[:5] == [
        "AR@100",
        "ARs@100",
        "ARm@100",
        "ARl@100",
        "AR@300",
    ]
    saved = pickle.loads((tmp_path / "box_proposals.pkl").read_bytes())  # noqa: S301
    assert saved["ids"] == list(proposals)
    with pytest.raises(ValueError, match="ProposalRecorder"):
        evaluator.process([{"image_id": 1}], [{"instances": None}])


def test_saved_proposals_are_read_by_detectron2(tmp_path: Path) -> None:
    from detectron2.data.build import load_proposals_into_dataset

    boxes = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    save_proposals(tmp_path / "p.pkl", [(7, proposals_of(boxes, torch.tensor([0.5, 1.5])))])
    (loaded,) = load_proposals_into_dataset([{"image_id": 7}], str(tmp_path / "p.pkl"))
    np.testing.assert_array_equal(loaded["proposal_objectness_logits"], [1.5, 0.5])
    np.testing.assert_array_equal(loaded["proposal_boxes"], boxes.flip(0))


def test_detectron2s_interface_has_them_too(tmp_path: Path) -> None:
    data = random_annotations(3)
    proposals = random_proposals(data, 3, 30)
    with Registered(tmp_path, data, "interface") as name:
        evaluator = FastCOCOEvaluator(name, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for image_id, instances in proposals.items():
        evaluator.process([{"image_id": image_id}], [{"proposals": instances}])
    results = evaluator.evaluate()
    recall = ProposalRecall(evaluator.ground_truth)
    for image_id, instances in proposals.items():
        recall.add(image_id, instances)
    assert_same(results, {"box_proposals": recall.results()})
    assert (tmp_path / "out" / "box_proposals.pkl").exists()
