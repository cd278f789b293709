"""The component benchmarks with ``--device cuda``."""

import math
import time
from collections.abc import Callable

import pytest
from detectron2.config import CfgNode

from d2_plugins.benchmark import cascade_rpn as cascade_rpn_module
from d2_plugins.benchmark import roi_heads
from d2_plugins.benchmark.adaptive_conv import adaptive_conv
from d2_plugins.benchmark.cascade_rpn import cascade_rpn, region_matching
from d2_plugins.benchmark.roi_heads import double_head, inverted_attention, whole_step
from d2_plugins.benchmark.timing import elapsed, median_ratio
from tests.support.roi_heads import make_detector_cfg
from tests.support.simulated_device import SimulatedCuda

pytestmark = pytest.mark.slow


def test_devices_are_timed_with_events(gpu: SimulatedCuda) -> None:
    # Sleeping takes no CPU time, which is what the CPU's clock would show.
    assert 0.02 <= elapsed(lambda: time.sleep(0.02), "cuda") < 1
    with gpu.count() as counts:
        ratio = median_ratio(
            lambda: time.sleep(0.03), lambda: time.sleep(0.01), repeats=3, device="cuda"
        )
    assert ratio == pytest.approx(3, rel=0.3)
    # The device is idle before each measurement and has finished after it.
    assert counts.by("waits", 1) == {"synchronize": 2 * 2 * 4}


def flagship_step() -> dict[str, float]:
    cfg = make_detector_cfg("DoubleHeadROIHeads")
    cfg.MODEL.DEVICE = "cuda"
    return {"step": whole_step(cfg, image_size=64, repeats=1)}


BENCHMARKS: dict[str, Callable[[], dict]] = {
    "adaptive-conv": lambda: adaptive_conv((9, 7), 8, device="cuda", repeats=1, slow_repeats=1),
    "cascade-rpn": lambda: cascade_rpn(4, 1, "cuda"),
    "region-matching": lambda: region_matching(10, 1, "cuda"),
    "double-head": lambda: double_head(2, repeats=1, device="cuda"),
    "inverted-attention": lambda: inverted_attention(4, 1, "cuda"),
    "flagship-step": flagship_step,
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_runs_on_the_device(
    name: str, gpu: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cascade_rpn_module, "_SIZE", (64, 96))
    with gpu.count() as counts:
        results = BENCHMARKS[name]()
    groups = [r if isinstance(r, dict) else {"": r} for r in results.values()]
    assert all(math.isfinite(number) for group in groups for number in group.values())
    assert counts.by("waits", 1)["synchronize"] >= 2
    assert counts.launches.total() > 0


def test_flagship_step_is_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cfgs: list[CfgNode] = []

    def record(cfg: CfgNode, image_size: int, repeats: int) -> float:
        cfgs.append(cfg)
        return float(image_size)

    monkeypatch.setattr(roi_heads, "whole_step", record)
    assert roi_heads.flagship_step(image_size=96, device="cuda") == {"step": 96}
    assert cfgs[0].MODEL.DEVICE == "cuda"
    assert cfgs[0].MODEL.PROPOSAL_GENERATOR.NAME == "CascadeRPN"
