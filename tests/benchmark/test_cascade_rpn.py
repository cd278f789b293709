import math

import pytest

from d2_plugins.benchmark.cascade_rpn import cascade_rpn, region_matching


def test_cascade_rpn_is_timed_beside_detectron2s() -> None:
    results = cascade_rpn(channels=4, repeats=1)
    assert results.keys() == {"inference_vs_rpn", "train_vs_rpn", "parameters_vs_rpn"}
    assert all(math.isfinite(ratio) and ratio > 0 for ratio in results.values())
    # Both convolutions of one with the 1x1 convolutions, over the one convolution of the other.
    ours = (9 * 16 + 4) + (4 * 4 + 4) + 9 * 16 + (4 + 1) + (4 * 4 + 4)
    theirs = (9 * 16 + 4) + 3 * (4 + 1) + 12 * (4 + 1)
    assert results["parameters_vs_rpn"] == pytest.approx(ours / theirs)


def test_region_matching_is_timed() -> None:
    assert region_matching(num_boxes=10, repeats=1)["milliseconds"] > 0
