from statistics import median

import pytest
import torch
from detectron2.structures import Boxes

from d2_plugins.benchmark import cascade_rpn as module
from d2_plugins.benchmark.cascade_rpn import cascade_rpn, region_matching
from tests.support.work_clock import ADAPTIVE, WorkClock

SIZES = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
CELLS = sum(height * width for height, width in SIZES)


def test_cascade_rpn_is_measured_relative_to_detectron2s(work_clock: WorkClock) -> None:
    results = cascade_rpn(channels=4, repeats=1)
    conv, predictions = 9 * 4 * 4, (4 * 4) + 4 * (1 + 4)  # of both stages: 1x1 convolutions
    ours = CELLS * (conv + ADAPTIVE[0] * conv + predictions)
    theirs = CELLS * (conv + 4 * 3 * (1 + 4))
    # A backward pass takes two products, for the input and for the weight.
    ours_trained = CELLS * (3 * conv + sum(ADAPTIVE) * conv + 3 * predictions)
    assert work_clock.work == [ours, theirs] * 2 + [ours_trained, 3 * theirs] * 2
    assert results["inference_vs_rpn"] == pytest.approx(ours / theirs)
    assert results["train_vs_rpn"] == pytest.approx(ours_trained / (3 * theirs))
    # Stage 1 and stage 2 of Cascade RPN (the adaptive convolution has no bias) over the RPN.
    ours = (conv + 4) + (4 * 4 + 4) + conv + (4 + 1) + (4 * 4 + 4)
    theirs = (conv + 4) + 3 * (4 + 1) + 12 * (4 + 1)
    assert results["parameters_vs_rpn"] == pytest.approx(ours / theirs)

    (cascade,), (rpn,) = work_clock.results[:2]
    assert len(cascade) == 300
    assert len(rpn) == 1000


def test_region_matching_is_timed_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    matched = []

    def region_match(boxes: Boxes, sizes: list[tuple[int, int]], strides: tuple[int, ...]) -> None:
        matched.append((len(boxes), sizes, strides, torch.get_num_threads()))

    seconds = iter([0.5, 0.002, 0.001])

    def elapsed(run: object, device: str) -> float:
        run()
        return next(seconds)

    monkeypatch.setattr(module, "region_match", region_match)
    monkeypatch.setattr(module, "elapsed", elapsed)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result = region_matching(repeats=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert result == {"milliseconds": 1000 * median([0.5, 0.002, 0.001])}
    assert matched == [(1000, SIZES, (4, 8, 16, 32, 64), 1)] * 3
