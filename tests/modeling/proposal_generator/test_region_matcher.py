"""Region matching against plain loops, and by hand."""

from collections.abc import Sequence

import pytest
import torch
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from d2_plugins.modeling.proposal_generator import region_match, region_matcher
from d2_plugins.modeling.proposal_generator.region_matcher import region_levels
from tests.support.cascade_rpn import random_boxes
from tests.support.matching_loops import region_match_loop

Size = tuple[int, int]
NAN, INF = float("nan"), float("inf")


def pyramid(size: Size, strides: Sequence[int]) -> list[Size]:
    return [(-(-size[0] // s), -(-size[1] // s)) for s in strides]


def assert_as_loop(boxes: Tensor, sizes: list[Size], strides: Sequence[int], **kw: float) -> None:
    ours = region_match(Boxes(boxes), sizes, strides, **kw)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, region_match_loop(boxes, sizes, strides, **kw))


@pytest.mark.parametrize("seed", range(3))
def test_random_boxes(seed: int) -> None:
    torch.manual_seed(seed)
    strides = (4, 8, 16, 32, 64)
    size = (160, 224)
    boxes = random_boxes(25, size)
    sizes = pyramid(size, strides)
    assert_as_loop(boxes, sizes, strides)
    matches = region_match(Boxes(boxes), sizes, strides)
    assert {-2, -1} < set(matches.tolist())  # neither rule is left untested
    assert_as_loop(boxes.flip(0), sizes, strides)
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
def test_any_boxes(
    boxes: list[tuple[float, ...]],
    strides: tuple[int, ...],
    size: Size,
    ratios: tuple[float, float],
    scale: float,
) -> None:
    """Also empty and inverted boxes, and those outside the image."""
    assert_as_loop(
        torch.tensor(boxes).view(-1, 4),
        pyramid(size, strides),
        strides,
        anchor_scale=scale,
        center_ratio=ratios[0],
        ignore_ratio=ratios[1],
    )


def test_no_boxes_and_boxes_that_are_no_numbers() -> None:
    sizes, strides = [(4, 4), (2, 2)], (4, 8)
    assert (region_match(Boxes(torch.zeros(0, 4)), sizes, strides) == -1).all()
    bad = torch.tensor([[NAN, 0, 8, 8], [0, 0, 8, NAN], [8, 0, 0, 8]])
    assert (region_match(Boxes(bad), sizes, strides) == -1).all()
    huge = torch.tensor([[-INF, -INF, INF, INF], [0, 0, INF, 8]])
    assert region_match(Boxes(huge), sizes, strides).shape == (20,)


def test_by_hand() -> None:
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


def test_levels() -> None:
    sides = torch.tensor([1.0, 45.2, 45.3, 90.4, 90.6, 181.0, 181.1, 362.0, 362.1, 4000.0, 0.0])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], dim=1)
    levels = region_levels(Boxes(boxes), 5, base_size=32)
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0]


def test_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    strides = (4, 8, 16)
    size = (96, 96)
    boxes, sizes = random_boxes(40, size), pyramid(size, strides)
    whole = region_match(Boxes(boxes), sizes, strides)
    for piece in (1, 7, 50):
        monkeypatch.setattr(region_matcher, "_MAX_CELLS", piece)
        assert torch.equal(region_match(Boxes(boxes), sizes, strides), whole)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 boxes over all of a large level are 4.6 M cells, painted a million at a time."""
    painted = []
    original = Tensor.repeat_interleave

    def watched(tensor: Tensor, *args: Tensor, output_size: int) -> Tensor:
        painted.append(output_size)
        return original(tensor, *args, output_size=output_size)

    monkeypatch.setattr(Tensor, "repeat_interleave", watched)
    boxes = torch.tensor([[0.0, 0, 1216, 800]]).repeat(300, 1)
    matches = region_match(Boxes(boxes), [(200, 304)], (4,))
    assert sum(painted) > 4_000_000
    assert max(painted) <= region_matcher._MAX_CELLS
    assert matches.max() == 299  # the last box wins
