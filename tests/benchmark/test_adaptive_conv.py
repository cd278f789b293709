import math

import pytest
import torch

from d2_plugins.benchmark import adaptive_conv as module
from d2_plugins.benchmark.adaptive_conv import adaptive_conv
from tests.support.work_clock import ADAPTIVE, DEFORMABLE, WorkClock

KEYS = {
    "forward_vs_conv2d",
    "forward_vs_torchvision",
    "train_vs_conv2d",
    "train_vs_torchvision",
    "extra_memory_mb",
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_is_timed_beside_both(dtype: str) -> None:
    results = adaptive_conv(size=(9, 7), channels=8, dtype=dtype, repeats=1, slow_repeats=1)
    assert results.keys() == KEYS
    assert all(math.isfinite(value) for value in results.values())
    assert all(value > 0 for name, value in results.items() if name != "extra_memory_mb")


def test_ratios_are_over_conv2d_and_under_torchvision(work_clock: WorkClock) -> None:
    results = adaptive_conv(size=(9, 7), channels=8, repeats=1, slow_repeats=1)
    assert results["forward_vs_conv2d"] == ADAPTIVE[0]
    assert results["train_vs_conv2d"] == sum(ADAPTIVE) / 3  # conv2d's backward pass is two products
    assert results["forward_vs_torchvision"] == DEFORMABLE[0] / ADAPTIVE[0]
    assert results["train_vs_torchvision"] == sum(DEFORMABLE) / sum(ADAPTIVE)


@pytest.mark.parametrize("wrong", ["result", "feature", "weight"])
def test_a_wrong_result_is_not_timed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = module.adaptive_conv2d

    def convolve(
        x: torch.Tensor, boxes: torch.Tensor, w: torch.Tensor, *, stride: int, backend: str
    ) -> torch.Tensor:
        out = right(x, boxes, w, stride=stride)
        if backend == "reference":
            return out
        added = {"result": out * 0 + 0.01, "feature": x * 0.01, "weight": w.sum() * 0.01}[wrong]
        return out + added - (0 if wrong == "result" else added.detach())

    monkeypatch.setattr(module, "adaptive_conv2d", convolve)
    with pytest.raises(RuntimeError, match=f"convolution's {wrong} deviates"):
        adaptive_conv(size=(9, 7), channels=8, repeats=1, slow_repeats=1)


def test_boxes_are_moved_anchors() -> None:
    boxes = module._refined_anchors(1, 30, 40)
    size = boxes[..., 2:] - boxes[..., :2]
    assert boxes.shape == (1, 1200, 4)
    assert size.log().mean().exp().item() == pytest.approx(32, rel=0.05)
    centre = ((boxes[..., 2:] + boxes[..., :2]) / 2).mean(dim=1)[0]
    assert centre.tolist() == pytest.approx([4 * 39 / 2, 4 * 29 / 2], abs=1)
