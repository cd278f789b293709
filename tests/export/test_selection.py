"""The same boxes as detectron2 chooses, in the same order."""

import pytest
import torch
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from torch import Tensor

from d2_plugins.export.selection import select_detections, select_proposals

SIZE = (100, 140)


def random_boxes(number: int, columns: int = 1) -> Tensor:
    """(number, columns * 4): crowded, some out of the image, some empty."""
    corners = torch.rand(number, columns, 2) * 150 - 10
    return torch.cat([corners, corners + torch.rand(number, columns, 2) * 60 - 3], 2).flatten(1)


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize(("cells", "post"), [((300, 60, 7), 40), ((30, 9, 1), 100), ((1, 1), 200)])
def test_proposals(cells: tuple[int, ...], post: int, broken: bool) -> None:
    torch.manual_seed(1)
    boxes = [random_boxes(number) for number in cells]
    logits = [torch.randn(number) for number in cells]
    if broken:
        for i, value in enumerate((torch.nan, torch.inf, -torch.inf)):
            boxes[0][i % cells[0], i] = value
            logits[1][i % cells[1]] = value
    pre, thresh, least = 80, 0.6, 2.0
    (expected,) = find_top_rpn_proposals(
        [b[None] for b in boxes],
        [x[None] for x in logits],
        [SIZE],
        nms_thresh=thresh,
        pre_nms_topk=pre,
        post_nms_topk=post,
        min_box_size=least,
        training=False,
    )
    chosen, valid = select_proposals(
        boxes,
        logits,
        torch.tensor(SIZE),
        pre_nms_topk=pre,
        post_nms_topk=post,
        nms_thresh=thresh,
        min_box_size=least,
    )
    assert len(chosen) == len(valid) == min(post, pre * len(cells))  # for every image
    assert torch.equal(chosen[valid], expected.proposal_boxes.tensor)
    assert valid.tolist() == sorted(valid.tolist(), reverse=True)
    assert not chosen[~valid].any()


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("thresh", [0.05, 0.5, 0.9999])
def test_detections(thresh: float, agnostic: bool, broken: bool) -> None:
    torch.manual_seed(2)
    number, classes, topk = 60, 7, 50
    boxes = random_boxes(number, 1 if agnostic else classes)
    scores = (torch.randn(number, classes + 1) * 2).softmax(dim=1)
    if broken:
        boxes[0, 0], scores[1, 0], scores[2, classes] = torch.inf, torch.nan, torch.nan
    valid = torch.arange(number) < 50
    expected, _ = fast_rcnn_inference_single_image(
        boxes[:50], scores[:50], SIZE, score_thresh=thresh, nms_thresh=0.5, topk_per_image=topk
    )
    found = select_detections(
        boxes,
        scores,
        valid,
        torch.tensor(SIZE),
        score_thresh=thresh,
        nms_thresh=0.5,
        topk=topk,
    )
    assert [len(x) for x in found] == [topk] * 3
    there = found[1].isfinite()
    assert (there.sum() == 0) == (thresh == 0.9999)
    assert there.all() == (thresh == 0.05)  # the best of more
    for ours, theirs in zip(
        found, (expected.pred_boxes.tensor, expected.scores, expected.pred_classes), strict=True
    ):
        assert torch.equal(ours[there], theirs)


def test_many_classes_stay_apart_without_losing_precision() -> None:
    """A second box 0.001 below the threshold of IoU stays, regardless of its class."""
    classes, thresh = 80, 0.5
    side = 1200.0
    # Of the same height, overlapping by two thirds of the width less a hair: IoU just below 0.5.
    pair = torch.tensor([[0.0, 0.0, 600.0, 900.0], [200.0 + 0.1, 0.0, 800.0 + 0.1, 900.0]])
    boxes = pair.repeat(1, classes)
    scores = torch.rand(2, classes + 1, generator=torch.Generator().manual_seed(0))
    keep = select_detections(
        boxes,
        scores,
        torch.ones(2, dtype=torch.bool),
        torch.tensor([side, side]).long(),
        score_thresh=0.0,
        nms_thresh=thresh,
        topk=2 * classes,
    )
    assert keep[1].isfinite().all()
    assert keep[2].bincount().tolist() == [2] * classes
    # And one hair closer, one of each two goes.
    boxes[1, 0::4] -= 0.2
    boxes[1, 2::4] -= 0.2
    keep = select_detections(
        boxes,
        scores,
        torch.ones(2, dtype=torch.bool),
        torch.tensor([side, side]).long(),
        score_thresh=0.0,
        nms_thresh=thresh,
        topk=2 * classes,
    )
    assert keep[1].isfinite().sum() == classes
