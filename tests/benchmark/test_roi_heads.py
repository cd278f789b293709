import pytest
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Instances

from d2_plugins.benchmark.roi_heads import double_head, inverted_attention, whole_step
from tests.support.roi_heads import make_detector_cfg
from tests.support.work_clock import WorkClock

PREDICTORS = 1024 * (81 + 4 * 80)
FC = 256 * 49 * 1024 + 1024 * 1024


def test_double_head_counts_what_the_formulas_say(work_clock: WorkClock) -> None:
    results = double_head(num_rois=2, conv_head_share=0.5, repeats=1)
    conv = 9 * 256 * 256 * 49
    expected = {
        "2 fc": (14_306_705, FC + PREDICTORS),
        "4 conv, 1 fc": (15_617_425, 4 * conv + 256 * 49 * 1024 + PREDICTORS),
        "Double-Head": (19_894_161, 286_851_072 + PREDICTORS),
    }
    for name, (parameters, macs) in expected.items():
        assert results[name]["parameters_m"] == pytest.approx(parameters / 1e6)
        assert results[name]["gmacs"] == pytest.approx(2 * macs / 1e9)
    assert results["Double-Head-Ext"]["parameters_m"] == pytest.approx(22.274338)
    # One of the two RoIs goes through the conv head.
    every, some = (results[f"Double-Head-Ext{name}"]["gmacs"] for name in ("", ", selective"))
    fc = 2 * (FC + 1024 * (81 + 320)) / 1e9
    assert some - fc == pytest.approx((every - fc) / 2)
    baseline = results["2 fc"]["gmacs"]
    for result in results.values():
        assert result["time_ratio"] == pytest.approx(result["gmacs"] / baseline)


@pytest.mark.slow
def test_inverted_attention_is_measured_with_and_without(work_clock: WorkClock) -> None:
    rois = 16
    results = inverted_attention(num_rois=rois, repeats=1)
    assert results.keys() == {"PluginROIHeads", "DoubleHeadROIHeads"}
    # Per turn: with, without. "head": forward and two products of the backward pass.
    with_attention, without = work_clock.work[4:6]
    assert without == 3 * rois * (FC + PREDICTORS)
    assert with_attention > 1.3 * without
    for ratios in results.values():
        # RoIAlign costs the same in both, and only "part" contains it.
        assert ratios["head"] > ratios["part"] > 1
    assert results["PluginROIHeads"]["head"] == with_attention / without
    # The conv head is not evaluated again.
    assert results["DoubleHeadROIHeads"]["head"] < 1.1


def test_whole_step_is_measured_with_and_without_inverted_attention(
    work_clock: WorkClock,
) -> None:
    cfg = make_detector_cfg("DoubleHeadROIHeads")
    cfg.MODEL.INVERTED_ATTENTION.START_ITER = 500
    ratio = whole_step(cfg, image_size=64, repeats=1)
    assert ratio == work_clock.work[2] / work_clock.work[3]
    assert ratio > 1


def test_whole_step_trains_on_eight_objects(
    work_clock: WorkClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Instances] = []

    def label_and_sample_proposals(self: object, proposals: list, targets: list) -> list:
        seen.extend(targets)
        return original(self, proposals, targets)

    cfg = make_detector_cfg("PluginROIHeads")
    original = ROIHeads.label_and_sample_proposals
    monkeypatch.setattr(ROIHeads, "label_and_sample_proposals", label_and_sample_proposals)
    whole_step(cfg, image_size=64, repeats=1)
    assert {len(target) for target in seen} == {8}
