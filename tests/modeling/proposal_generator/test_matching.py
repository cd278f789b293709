"""Matching by regions and by IoU against plain loops and by hand, valid cells, and sampling."""

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from d2_plugins.modeling.proposal_generator import iou_match, matching, region_match
from d2_plugins.modeling.proposal_generator.matching import (
    region_levels,
    region_match_images,
    sample_matches,
    valid_cells,
)
from tests.support.cascade_rpn import random_boxes
from tests.support.matching_loops import iou_match_loop, region_match_loop

Size = tuple[int, int]
NAN, INF = float("nan"), float("inf")


def pyramid(size: Size, strides: Sequence[int]) -> list[Size]:
    return [(-(-size[0] // s), -(-size[1] // s)) for s in strides]


def assert_regions_as_loop(
    boxes: Tensor, sizes: list[Size], strides: Sequence[int], **kw: float
) -> None:
    ours = region_match(Boxes(boxes), sizes, strides, **kw)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, region_match_loop(boxes, sizes, strides, **kw))


@pytest.mark.parametrize("seed", range(3))
def test_regions_of_random_boxes(seed: int) -> None:
    torch.manual_seed(seed)
    strides = (4, 8, 16, 32, 64)
    size = (160, 224)
    boxes = random_boxes(25, size)
    sizes = pyramid(size, strides)
    assert_regions_as_loop(boxes, sizes, strides)
    matches = region_match(Boxes(boxes), sizes, strides)
    assert {-2, -1} < set(matches.tolist())  # neither rule is left untested
    assert_regions_as_loop(boxes.flip(0), sizes, strides)
    assert not torch.equal(matches, region_match(Boxes(boxes.flip(0)), sizes, strides))


coordinates = st.one_of(
    st.integers(-40, 140).map(float),
    st.floats(-40, 140, width=32),
    # Halves of cells, where rounding half to even matters.
    st.integers(-20, 70).map(lambda i: 2.0 * i),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[coordinates] * 4), max_size=8),
    st.sampled_from([(4,), (4, 8), (8, 16, 32), (4, 8, 16, 32, 64)]),
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
    st.sampled_from([(0.2, 0.5), (0.0, 0.0), (0.3, 1.0), (0.5, 0.5)]),
    st.sampled_from([2, 8]),
)
def test_regions_of_any_boxes(
    boxes: list[tuple[float, ...]],
    strides: tuple[int, ...],
    size: Size,
    ratios: tuple[float, float],
    scale: float,
) -> None:
    """Also empty and inverted boxes, and those outside the image."""
    assert_regions_as_loop(
        torch.tensor(boxes).view(-1, 4),
        pyramid(size, strides),
        strides,
        anchor_scale=scale,
        center_ratio=ratios[0],
        ignore_ratio=ratios[1],
    )


def test_regions_of_no_boxes_and_boxes_that_are_not_numbers() -> None:
    sizes, strides = [(4, 4), (2, 2)], (4, 8)
    assert (region_match(Boxes(torch.zeros(0, 4)), sizes, strides) == -1).all()
    bad = torch.tensor([[NAN, 0, 8, 8], [0, 0, 8, NAN], [8, 0, 0, 8]])
    assert (region_match(Boxes(bad), sizes, strides) == -1).all()
    huge = torch.tensor([[-INF, -INF, INF, INF], [0, 0, INF, 8]])
    assert region_match(Boxes(huge), sizes, strides).shape == (20,)


def test_regions_by_hand() -> None:
    # 32 pixels: the first level. Centre region of 6.4 pixels around (32, 32): cells 7.2..8.8, so
    # 7..9; the ignored one of 16 pixels: cells 6..10.
    expected = torch.full((16, 16), -1)
    expected[6:11, 6:11] = -2
    expected[7:10, 7:10] = 0
    # On the next level the ignored region is 3..5 of 8 x 8 cells.
    neighbour = torch.full((8, 8), -1)
    neighbour[3:6, 3:6] = -2
    # None on the third.
    third = torch.full((4, 4), -1)
    ours = region_match(
        Boxes(torch.tensor([[16.0, 16, 48, 48]])), [(16, 16), (8, 8), (4, 4)], (4, 8, 16)
    )
    assert torch.equal(ours, torch.cat([x.flatten() for x in (expected, neighbour, third)]))


def test_region_levels() -> None:
    sides = torch.tensor([1.0, 45.2, 45.3, 90.4, 90.6, 181.0, 181.1, 362.0, 362.1, 4000.0, 0.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    levels = region_levels(Boxes(boxes), 5, base_size=32)
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0]


@pytest.mark.parametrize("numbers", [(7, 0, 3), (0, 0), (4,)])
def test_regions_of_several_images(numbers: tuple[int, ...]) -> None:
    strides, size = (4, 8, 16), (96, 96)
    gt_boxes = [Boxes(random_boxes(number, size)) for number in numbers]
    sizes = pyramid(size, strides)
    found = region_match_images(gt_boxes, sizes, strides)
    assert torch.equal(found, torch.stack([region_match(b, sizes, strides) for b in gt_boxes]))


def test_regions_need_no_more_memory_than_their_result() -> None:
    """Of 5,000 boxes on all of a large level, which are 300 million cells to paint."""
    boxes = Boxes(torch.tensor([[0.0, 0, 1216, 800]]).repeat(5000, 1))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        matches = region_match(boxes, [(200, 304)], (4,))
    assert matches.max() == 4999  # the last box wins
    largest = max(event.self_cpu_memory_usage for event in profiled.key_averages())
    assert matches.nbytes <= largest < 4 * matches.nbytes


# Few distinct integers: many ties, empty and inverted boxes; and IoUs exact in float32.
corner = st.integers(0, 6).map(float)
box_lists = st.lists(st.tuples(*[corner] * 4), max_size=9)


@settings(max_examples=150, deadline=None)
@given(
    box_lists,
    box_lists,
    st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.9, 0.1), (1.0, 1.0), (1 / 3, 1 / 3)]),
    st.sampled_from([1, 12, 1000]),
)
def test_iou_matches_as_loops(
    gt: list[tuple[float, ...]],
    boxes: list[tuple[float, ...]],
    thresholds: tuple[float, float],
    max_pairs: int,
) -> None:
    """All pairs at once, and in groups."""
    gt_boxes, others = (torch.tensor(b).view(-1, 4) for b in (gt, boxes))
    # Inverted ground truth has no meaning for an IoU; empty ground truth does.
    gt_boxes = gt_boxes[(gt_boxes[:, 2:] >= gt_boxes[:, :2]).all(dim=1)]
    others = others[(others[:, 2:] >= others[:, :2]).all(dim=1)]
    kwargs = {"iou_threshold": thresholds[0], "low_quality_iou": thresholds[1]}
    with mock.patch.object(matching, "_MAX_PAIRS", max_pairs):
        ours = iou_match(Boxes(gt_boxes), Boxes(others), **kwargs)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, iou_match_loop(gt_boxes, others, **kwargs))


def test_iou_matches_by_hand() -> None:
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


@pytest.mark.parametrize("max_pairs", [1, 1500, 40_000])
def test_iou_matches_in_groups(max_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same matches, ties included, when not all pairs are compared."""
    gt = Boxes(random_boxes(90, (200, 200)).round())
    boxes = Boxes(torch.cat([random_boxes(400, (200, 200)).round(), gt.tensor, gt.tensor]))
    whole = iou_match(gt, boxes)
    assert (whole >= 0).sum() >= 180
    monkeypatch.setattr(matching, "_MAX_PAIRS", max_pairs)
    assert torch.equal(iou_match(gt, boxes), whole)


def test_thousands_of_objects_need_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 small objects in an image of 800 x 800: 200 million pairs, of which few are near."""
    compared = []

    def counted(gt_boxes: Boxes, boxes: Boxes) -> Tensor:
        compared.append(len(gt_boxes) * len(boxes))
        return pairwise_iou(gt_boxes, boxes)

    monkeypatch.setattr(matching, "pairwise_iou", counted)
    sides = 8 + 24 * torch.rand(45_000, 2)
    corners = torch.rand(45_000, 2) * 800
    boxes = torch.cat([corners, corners + sides], dim=1)
    matches = iou_match(Boxes(boxes[:5000]), Boxes(boxes[5000:]))
    assert (matches >= 0).sum() > 3000
    assert sum(compared) < 10_000_000
    assert max(compared) <= matching._MAX_PAIRS


def test_objects_that_are_all_alike_need_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst case: every box is near every ground truth."""
    compared = []

    def counted(gt_boxes: Boxes, boxes: Boxes) -> Tensor:
        compared.append(len(gt_boxes) * len(boxes))
        return pairwise_iou(gt_boxes, boxes)

    monkeypatch.setattr(matching, "pairwise_iou", counted)
    monkeypatch.setattr(matching, "_MAX_PAIRS", 10_000)
    boxes = Boxes(torch.tensor([[8.0, 8, 40, 40]]).repeat(1000, 1))
    assert (iou_match(boxes[:200], boxes) == 199).all()  # the last one wins
    assert sum(compared) == 200 * 1000
    assert max(compared) <= 10_000


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
