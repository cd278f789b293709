"""One stage: decoding, refining, and what feeds what."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from d2_plugins.modeling.proposal_generator import CascadeRPNStage, StageOutput
from tests.support.cascade_rpn import random_boxes

WEIGHTS = (20.0, 20.0, 10.0, 10.0)


def stage(**kwargs: object) -> CascadeRPNStage:
    arguments = {"in_channels": 4, "adaptive": True, "with_objectness": True}
    return CascadeRPNStage(**{**arguments, "bbox_reg_weights": WEIGHTS, **kwargs})


def test_decode_is_detectron2s_within_the_clamp() -> None:
    boxes = random_boxes(12, (100, 100))
    deltas = torch.randn(3, 4, 4) * 5
    expected = Box2BoxTransform(WEIGHTS).apply_deltas(deltas.view(-1, 4), boxes)
    assert torch.equal(stage().decode(deltas, boxes.view(3, 4, 4)), expected.view(3, 4, 4))


@pytest.mark.parametrize("sign", [1, -1])
def test_scale_is_clamped_both_ways(sign: int) -> None:
    limit = 1000 / 16
    # exp(500 / 10) is far beyond the limit on either side.
    deltas = torch.tensor([[0.0, 0.0, sign * 500.0, sign * 500.0]], requires_grad=True)
    box = torch.tensor([[0.0, 0.0, 64.0, 128.0]])
    moved = stage().decode(deltas, box)
    sides = moved[0, 2:] - moved[0, :2]
    torch.testing.assert_close(sides, torch.tensor([64.0, 128.0]) * limit**sign)
    assert (moved[0, :2] + moved[0, 2:]).allclose(torch.tensor([64.0, 128.0]), atol=1e-3)
    moved.sum().backward()
    assert deltas.grad[0, 2:].tolist() == [0, 0]


def test_refine_clips_and_removes_what_is_not_a_number() -> None:
    one = stage()
    # Moved by half its width: dx * 20 = 10.
    boxes = torch.tensor([[[0.0, 0, 20, 20], [50, 50, 90, 90], [0, 0, 8, 8], [200, 5, 240, 9]]])
    deltas = torch.tensor([[[-10.0, 0, 0, 0], [10, 10, 0, 0], [math.nan, 0, 0, 0], [0, 0, 0, 0]]])
    output = StageOutput([boxes], [deltas.requires_grad_()], [])
    (refined,) = one.refine(output, [(80, 100)])
    expected = [[0, 0, 10, 20], [70, 70, 100, 80], [0, 0, 0, 8], [100, 5, 100, 9]]
    assert refined.tolist() == [expected]
    assert not refined.requires_grad


def test_every_image_is_clipped_to_its_own_size() -> None:
    boxes = torch.tensor([[[0.0, 0, 500, 500]]]).repeat(2, 1, 1)
    output = StageOutput([boxes], [torch.zeros(2, 1, 4)], [])
    (refined,) = stage().refine(output, [(80, 100), (30, 40)])
    assert refined[:, 0].tolist() == [[0, 0, 100, 80], [0, 0, 40, 30]]


def test_first_stage_layers() -> None:
    first = stage(adaptive=False, with_objectness=False)
    assert (first.conv.dilation, first.conv.padding) == ((3, 3), (3, 3))
    assert first.conv.bias is not None
    assert first.objectness is None
    assert stage().conv.bias is None


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.CASCADE_RPN\.DILATION is 0"):
        stage(dilation=0)
    for weights in ((1.0, 1.0, 1.0), (1.0, 1.0, 0.0, 1.0)):
        with pytest.raises(ValueError, match=r"MODEL\.CASCADE_RPN\.BBOX_REG_WEIGHTS"):
            stage(bbox_reg_weights=weights)
