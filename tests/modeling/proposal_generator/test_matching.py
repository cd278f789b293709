"""IoU matching against plain loops, valid cells, and sampling."""

import pytest
import torch
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_plugins.modeling.proposal_generator import iou_match, matching
from d2_plugins.modeling.proposal_generator.matching import sample_matches, valid_cells
from tests.support.cascade_rpn import random_boxes
from tests.support.matching_loops import iou_match_loop

# Few distinct integers: many ties, empty and inverted boxes; and IoUs exact in float32.
corner = st.integers(0, 6).map(float)
box_lists = st.lists(st.tuples(*[corner] * 4), max_size=9)


@settings(max_examples=100, deadline=None)
@given(
    box_lists,
    box_lists,
    st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.9, 0.1), (1.0, 1.0), (1 / 3, 1 / 3)]),
)
def test_as_loops(
    gt: list[tuple[float, ...]], boxes: list[tuple[float, ...]], thresholds: tuple[float, float]
) -> None:
    gt_boxes, others = (torch.tensor(b).view(-1, 4) for b in (gt, boxes))
    # Inverted ground truth has no meaning for an IoU; empty ground truth does.
    gt_boxes = gt_boxes[(gt_boxes[:, 2:] >= gt_boxes[:, :2]).all(dim=1)]
    others = others[(others[:, 2:] >= others[:, :2]).all(dim=1)]
    kwargs = {"iou_threshold": thresholds[0], "low_quality_iou": thresholds[1]}
    ours = iou_match(Boxes(gt_boxes), Boxes(others), **kwargs)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, iou_match_loop(gt_boxes, others, **kwargs))


def test_by_hand() -> None:
    gt = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [100, 100, 110, 110], [200, 200, 201, 201]])
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],  # IoU 1.0 with the first, its best; 0.8 with the second
            [0, 0, 10, 9],  # 0.9 and 0.889: the first's, then the second's best takes it
            [0, 0, 10, 5],  # 0.5 and 0.625: nobody's best
            [100, 100, 110, 104],  # 0.4: low, but the third's best
            [100, 100, 110, 104],  # equally good: both
            [200, 200, 200.5, 200.5],  # 0.25: the fourth's best, below the floor
            [5, 5, 5, 5],  # empty
        ]
    )
    assert iou_match(Boxes(gt), Boxes(boxes)).tolist() == [0, 1, -1, 2, 2, -1, -1]


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same matches, ties included, when few pairs fit into a piece."""
    gt = Boxes(random_boxes(30, (200, 200)).round())
    boxes = Boxes(torch.cat([random_boxes(400, (200, 200)).round(), gt.tensor, gt.tensor]))
    whole = iou_match(gt, boxes)
    assert (whole >= 0).sum() >= 60
    for piece in (1, 1500):
        monkeypatch.setattr(matching, "_MAX_PAIRS", piece)
        assert torch.equal(iou_match(gt, boxes), whole)


def test_not_finite_ground_truth_matches_nothing() -> None:
    nan = float("nan")
    boxes = Boxes(torch.tensor([[0.0, 0, 8, 8], [0, 0, 0, 0]]))
    gt = Boxes(torch.tensor([[nan, nan, nan, nan], [0, 0, 8, 8]]))
    assert iou_match(gt, boxes).tolist() == [1, -1]


def test_valid_cells() -> None:
    # 70 x 33 rounds up to 96 x 64, which a batch of 128 x 128 leaves partly invalid.
    valid = valid_cells([(70, 33), (128, 128)], [(32, 32), (2, 2)], (4, 64))
    first, second = valid[:, :1024].view(2, 32, 32), valid[:, 1024:].view(2, 2, 2)
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[:24, :16] = True
    assert torch.equal(first[0], expected)
    assert second[0].tolist() == [[True, False], [True, False]]
    assert valid[1].all()
    assert (
        not valid_cells([(70, 33)], [(32, 32)], (4,), size_divisibility=1).view(32, 32)[18:].any()
    )


def test_samples() -> None:
    matches = torch.tensor([-2] * 100 + [-1] * 1000 + [3] * 500)
    for num, fraction, expected in ((256, 0.5, (128, 128)), (256, 0.25, (64, 192))):
        positives, negatives = sample_matches(matches, num, fraction)
        assert (len(positives), len(negatives)) == expected
        assert (matches[positives] == 3).all()
        assert (matches[negatives] == -1).all()
        assert len(set(positives.tolist())) == len(positives)
    few = sample_matches(matches[:120], 256, 0.5)
    assert [len(x) for x in few] == [0, 20]
