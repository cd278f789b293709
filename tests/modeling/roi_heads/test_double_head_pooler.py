import pytest
import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align

from d2_plugins.modeling.roi_heads import DoubleHeadPooler, enlarge_boxes
from tests.support.roi_heads import random_boxes


def make_pooler(strides: tuple[int, ...] = (4, 8, 16, 32)) -> ROIPooler:
    return ROIPooler(7, [1 / s for s in strides], 0, "ROIAlignV2")


def make_features(strides: tuple[int, ...] = (4, 8, 16, 32)) -> list[torch.Tensor]:
    return [torch.randn(2, 3, 128 // s, 128 // s) for s in strides]


def test_enlarge_boxes_by_hand() -> None:
    boxes = torch.tensor([[10.0, 20.0, 110.0, 60.0]])
    torch.testing.assert_close(enlarge_boxes(boxes, 1.3), torch.tensor([[-5.0, 14.0, 125.0, 66.0]]))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 500), min_size=2, max_size=2),
    st.lists(st.floats(1, 300), min_size=2, max_size=2),
    st.floats(0.5, 3),
)
def test_enlarging_keeps_the_centre(corner: list[float], size: list[float], scale: float) -> None:
    x0, y0 = corner
    box = torch.tensor([[x0, y0, x0 + size[0], y0 + size[1]]], dtype=torch.float64)
    out = enlarge_boxes(box, scale)
    torch.testing.assert_close((out[:, :2] + out[:, 2:]) / 2, (box[:, :2] + box[:, 2:]) / 2)
    torch.testing.assert_close(out[:, 2:] - out[:, :2], (box[:, 2:] - box[:, :2]) * scale)
    torch.testing.assert_close(enlarge_boxes(out, 1 / scale), box)


def test_levels_are_those_of_the_original_boxes() -> None:
    # Sizes at which levels change (112, 224, 448) among them: a rescaled canonical size would be
    # at the mercy of rounding there.
    sizes = torch.cat([torch.exp(torch.rand(100_000, 2) * 5 + 2), torch.tensor([[112.0, 112.0]])])
    edges = torch.tensor([112.0, 224.0, 448.0])
    sizes = torch.cat([sizes, edges[:, None].repeat(1, 2)])
    boxes = Boxes(torch.cat([torch.zeros_like(sizes), sizes], dim=1))
    rois, levels = DoubleHeadPooler(make_pooler(), 1.3).locate([boxes])
    assert torch.equal(levels, assign_boxes_to_levels([boxes], 2, 5, 224, 4))
    assert torch.equal(rois[:, 1:], boxes.tensor)
    naive = assign_boxes_to_levels([Boxes(enlarge_boxes(boxes.tensor, 1.3))], 2, 5, 224, 4)
    assert not torch.equal(naive, levels)


@pytest.mark.parametrize("strides", [(8,), (4, 8)])
def test_both_views_equal_torchvision(strides: tuple[int, ...]) -> None:
    # A box over the edge: its enlargement must not be clipped.
    boxes = torch.tensor([[70.0, 2.0, 126.0, 40.0], [5.0, 5.0, 30.0, 30.0]])
    features = make_features(strides)
    regions = DoubleHeadPooler(make_pooler(strides), 1.3)(
        features, [Boxes(boxes[:1]), Boxes(boxes[1:])]
    )
    assert regions.shape == (2, 2, 3, 7, 7)
    rois = torch.tensor([[0.0], [1.0]])
    for view, scale in zip(regions, (1.0, 1.3), strict=True):
        pooled = roi_align(
            features[0],
            torch.cat([rois, enlarge_boxes(boxes, scale)], dim=1),
            7,
            1 / strides[0],
            aligned=True,
        )
        torch.testing.assert_close(view, pooled)


def test_scale_one_shares_the_ordinary_feature() -> None:
    features, boxes = make_features(), [Boxes(random_boxes(5)), Boxes(random_boxes(3))]
    regions = DoubleHeadPooler(make_pooler(), 1.0)(features, boxes)
    assert regions.shape[0] == 1
    assert torch.equal(regions[0], make_pooler()(features, boxes))
    assert torch.equal(regions[0], DoubleHeadPooler(make_pooler(), 1.3)(features, boxes)[0])


def test_enlarged_view_equals_detectron2s_pooler() -> None:
    # detectron2's pooler, made to keep the levels by a canonical size that grows with the boxes.
    features, boxes = make_features(), [Boxes(random_boxes(40)), Boxes(random_boxes(30))]
    regions = DoubleHeadPooler(make_pooler(), 1.25)(features, boxes)
    grown = ROIPooler(7, [1 / s for s in (4, 8, 16, 32)], 0, "ROIAlignV2", 224 * 1.25)
    enlarged = [Boxes(enlarge_boxes(b.tensor, 1.25)) for b in boxes]
    assert torch.equal(regions[1], grown(features, enlarged))
    assert torch.equal(regions[0], make_pooler()(features, boxes))


def test_parts_pool_a_subset() -> None:
    features, boxes = make_features(), [Boxes(random_boxes(5)), Boxes(random_boxes(3))]
    pooler = DoubleHeadPooler(make_pooler(), 1.3)
    both = pooler(features, boxes)
    rois, levels = pooler.locate(boxes)
    for rows in (torch.tensor([6, 0, 3]), torch.tensor([], dtype=torch.long)):
        assert torch.equal(pooler.pool(features, rois[rows], levels[rows]), both[0][rows])
        enlarged = pooler.enlarge(rois[rows])
        assert torch.equal(pooler.pool(features, enlarged, levels[rows]), both[1][rows])


def test_scale_is_checked() -> None:
    with pytest.raises(ValueError, match=r"MODEL.DOUBLE_HEAD.REG_ROI_SCALE is 0"):
        DoubleHeadPooler(make_pooler(), 0)


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("scale", [1.0, 1.3, 0.8])
def test_aligned_mask_hides_the_same_places_of_the_image(size: int, scale: float) -> None:
    mask = (torch.rand(4, 2, size, size) > 0.4).float()
    pooler = DoubleHeadPooler(ROIPooler(size, [1 / 4], 0, "ROIAlignV2"), scale)
    aligned = pooler.align_mask(mask)
    for i in range(size):
        for j in range(size):
            # Centre of the enlarged RoI's cell, in cells of the original RoI.
            y, x = (((k + 0.5) / size - 0.5) * scale * size + size / 2 for k in (i, j))
            inside = 0 <= y < size and 0 <= x < size
            expected = mask[..., int(y), int(x)] if inside else torch.ones(4, 2)
            assert torch.equal(aligned[..., i, j], expected)
    assert torch.equal(pooler.align_mask(mask[..., :1, :1]), mask[..., :1, :1])
