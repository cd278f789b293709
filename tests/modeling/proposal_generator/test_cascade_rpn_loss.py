"""Losses by hand, targets and diagnostics."""

import pytest
import torch
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from d2_plugins.modeling.proposal_generator import CascadeRPNLoss
from d2_plugins.modeling.proposal_generator.cascade_rpn_loss import (
    REGRESSION_LOSSES,
    aligned_iou,
    without_unusable,
)
from tests.support.cascade_rpn import (
    crpn,
    crpn_cfg,
    image_list,
    instances,
    random_boxes,
    random_features,
)


def test_iou_loss_by_hand() -> None:
    gt = torch.tensor([[0.0, 0, 10, 10]]).repeat(5, 1)
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # equal: 1
            [0, 0, 10, 5],  # half of it: 1/2
            [5, 5, 15, 15],  # 25 of 175: 1/7
            [20, 20, 30, 30],  # apart: 0
            [3, 3, 3, 3],  # empty: 0
        ]
    )
    torch.testing.assert_close(aligned_iou(boxes, gt), torch.tensor([1, 1 / 2, 1 / 7, 0, 0]))
    loss = REGRESSION_LOSSES["iou"](boxes, gt)
    assert loss.item() == pytest.approx(5 - 1 - 1 / 2 - 1 / 7, abs=1e-5)
    # Two empty boxes at one place: the union is floored, not divided by.
    assert aligned_iou(boxes[4:], boxes[4:]).item() == 0.0


def test_iou_loss_gradient() -> None:
    boxes, gt = random_boxes(20, (60, 60)).double(), random_boxes(20, (60, 60)).double()
    assert (aligned_iou(boxes, gt) > 0).sum() > 3
    boxes.requires_grad_()
    assert torch.autograd.gradcheck(lambda b: REGRESSION_LOSSES["iou"](b, gt), boxes)


def test_giou_loss() -> None:
    boxes, gt = random_boxes(50, (60, 60)), random_boxes(50, (60, 60))
    expected = generalized_box_iou_loss(boxes, gt, reduction="sum")
    torch.testing.assert_close(REGRESSION_LOSSES["giou"](boxes, gt), expected)


@pytest.mark.parametrize(
    ("own", "loss_weight", "regression", "score"),
    [({}, 1.0, 10.0, 1.0), ({"BBOX_REG_LOSS_WEIGHT": 4.0, "CLS_LOSS_WEIGHT": 3.0}, 0.5, 2.0, 1.5)],
)
def test_weights(
    own: dict[str, float], loss_weight: float, regression: float, score: float
) -> None:
    cfg = crpn_cfg(**own)
    cfg.MODEL.RPN.LOSS_WEIGHT = loss_weight
    criterion = crpn(cfg=cfg).criterion
    assert criterion.regression_weight == pytest.approx(regression)
    assert criterion.score_weight == pytest.approx(score)


def test_normalizers() -> None:
    """As in the reference: cells / 200, then the number of sampled cells, at least 1 of each."""
    criterion = CascadeRPNLoss()
    gt = [Boxes(torch.tensor([[0.0, 0, 8, 8]])), Boxes(torch.zeros(0, 4))]
    matches = torch.full((2, 1000), -1)
    matches[0, :200] = 0
    first = criterion.targets(1).targets(matches, gt, with_scores=False)
    assert first.normalizer == 2 * 1000 / 200
    assert len(first.positives) == 200  # all of them
    assert len(first.sampled) == 0
    second = criterion.targets(2).targets(matches, gt, with_scores=True)
    assert second.normalizer == second.score_normalizer == 256 + (1 + 256)
    assert len(second.positives) == 128
    assert second.gt_labels.sum() == 128
    assert (second.sampled[second.gt_labels == 0] >= 200).all()
    # With scores, the first stage samples for them and still regresses all.
    alone = criterion.targets(1).targets(matches, gt, with_scores=True)
    assert (len(alone.positives), len(alone.sampled)) == (200, 512)


def test_unusable_ground_truth_matches_nothing() -> None:
    """Empty, inverted and infinite boxes, in both metrics; a good box keeps its number."""
    size = (64, 64)
    nan, inf = float("nan"), float("inf")
    bad = [[8, 8, 8, 8], [30, 30, 20, 20], [0, 0, inf, 30], [nan, 0, 9, 9], [0, 0, 10, 0]]
    good = [10, 10, 42, 42]
    model = crpn()
    images, features = image_list(size), random_features(size)
    outputs = model.run_stages(images, features)
    grid = model.grid(images, features)
    for number, output in enumerate(outputs, start=1):

        def match(boxes: list[list[float]]) -> Tensor:
            gt_boxes = without_unusable([instances(size, boxes).gt_boxes])
            return model.criterion.targets(number).match(output, gt_boxes, grid)  # noqa: B023

        mixed, alone = match([*bad, good]), match([good])
        assert (alone >= 0).any()
        assert torch.equal(mixed, torch.where(alone >= 0, alone + len(bad), alone))
        assert (match(bad) < 0).all()
    # The losses leave them out as well.
    torch.manual_seed(0)
    mixed = model.criterion(model.stages, outputs, [instances(size, [*bad, good]).gt_boxes], grid)
    torch.manual_seed(0)
    alone = model.criterion(model.stages, outputs, [instances(size, [good]).gt_boxes], grid)
    assert mixed == alone


def test_diagnostics() -> None:
    size = (128, 128)
    torch.manual_seed(1)
    model = crpn().train()
    gt = [instances(size, [[16, 16, 60, 56]]), instances(size, [])]
    with EventStorage() as storage:
        model(image_list(size, size), random_features(size, images=2), gt)
    found = storage.latest()
    for stage in (1, 2):
        assert found[f"rpn_stage{stage}/num_positives"][0] > 0
        for when in ("before", "after"):
            assert 0 < found[f"rpn_stage{stage}/mean_iou_{when}"][0] <= 1
    # Without positives there is not a mean to log.
    with EventStorage() as storage:
        model(image_list(size), random_features(size), [instances(size, [])])
    assert storage.latest()["rpn_stage2/num_positives"][0] == 0
    assert "rpn_stage2/mean_iou_before" not in storage.latest()


def test_diagnostics_only_every_20_iterations() -> None:
    """Reading them waits for the device."""
    model, gt = crpn().train(), [instances((64, 64), [[16, 16, 48, 48]])]
    for iteration in (19, 21, 40):
        with EventStorage(iteration) as storage:
            model(image_list((64, 64)), random_features((64, 64)), gt)
        assert ("rpn_stage1/num_positives" in storage.latest()) == (iteration == 40)


def test_matched_boxes_are_those_of_their_own_image() -> None:
    gt = [Boxes(random_boxes(n, (60, 60))) for n in (3, 0, 2)]
    matches = torch.tensor([[2, -1, 0, 1], [-1, -2, -1, -1], [1, 0, -1, 1]])
    for number in (1, 2):
        found = CascadeRPNLoss().targets(number).targets(matches, gt, with_scores=False)
        for cell, box in zip(found.positives.tolist(), found.gt_boxes, strict=True):
            image, index = cell // 4, matches.flatten()[cell]
            assert torch.equal(box, gt[image].tensor[index])
        assert sorted(found.positives.tolist()) == [0, 2, 3, 8, 9, 11]
