import math

import pytest

from d2_plugins.benchmark.roi_heads import double_head, inverted_attention, whole_step
from tests.support.roi_heads import make_detector_cfg


def test_double_head_counts_what_the_formulas_say() -> None:
    results = double_head(num_rois=2, repeats=1)
    predictors = 1024 * 81 + 1024 * 320
    norms = 2 * 49 * ((256 + 2 * 1024) + 4 * (2 * 256 + 1024))  # fvcore: two per element
    expected = {
        "2 fc": (14_306_705, 13_893_632 + predictors),
        "Double-Head": (19_894_161, 286_851_072 + predictors + norms),
    }
    for name, (parameters, macs) in expected.items():
        assert results[name]["parameters_m"] == pytest.approx(parameters / 1e6)
        assert results[name]["gmacs"] == pytest.approx(2 * macs / 1e9)
    assert results["Double-Head-Ext"]["parameters_m"] == pytest.approx(22.274338)
    assert all(r["time_ratio"] > 0 for r in results.values())


def test_inverted_attention_is_timed_with_and_without() -> None:
    results = inverted_attention(num_rois=8, repeats=1)
    assert results.keys() == {"PluginROIHeads", "DoubleHeadROIHeads"}
    for ratios in results.values():
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values())


def test_whole_step() -> None:
    ratio = whole_step(make_detector_cfg("DoubleHeadROIHeads"), image_size=64, repeats=1)
    assert math.isfinite(ratio)
    assert ratio > 0
