import math

import pytest
import torch

from d2_plugins.benchmark import detectors as module
from d2_plugins.benchmark.detectors import detectors
from tests.support.work_clock import WorkClock

SIZE = (64, 96)


@pytest.mark.slow
def test_all_detectors_are_measured_next_to_stock(
    work_clock: WorkClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    results = detectors(SIZE, conv_head_share=0.5, num_detections=3, repeats=1, toy=True)
    assert "ONNX Runtime is not timed" in caplog.text
    stock, *ours, torchvision = results.values()
    assert next(iter(results)) == "detectron2 Faster R-CNN R-50-FPN"
    assert list(results)[-1] == "torchvision fasterrcnn_resnet50_fpn_v2"
    assert stock["inference"] == stock["train"] == 1
    # Folding norms leaves the multiply-adds as they are, and backward passes add two products.
    for row in (stock, *ours):
        assert row["inference_form"] == pytest.approx(row["inference"])
        assert row["inference_low"] == row["inference"] == row["inference_high"]
        assert row["inference"] == row["seconds"] / stock["seconds"]
    assert math.isnan(torchvision["inference_form"])
    assert torchvision["inference"] > 1
    assert torchvision["train"] > 1
    cspnet, cascade_rpn, flagship, masks = ours
    assert cascade_rpn["inference"] != cspnet["inference"]
    assert masks["inference"] > flagship["inference"]
    assert masks["train"] > flagship["train"]
    inference, train = work_clock.work[0], work_clock.work[len(results) + len(ours) + 1]
    assert train > inference


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.5, 5), (1.0, 10)])
def test_numbers_of_rois_and_detections_are_given(share: float, expected: int) -> None:
    model = module._build("csp_cascade_mask.yaml", share, 3, True, "cpu").eval()
    counts: list[int] = []
    head = model.roi_heads.box_head.conv_head
    head.register_forward_hook(lambda _, args, __: counts.append(len(args[0])))
    with torch.no_grad():
        (found,) = model([{"image": torch.rand(3, *SIZE) * 255}])
    assert counts == [expected]
    assert len(found["instances"]) == 3
    assert found["instances"].has("pred_masks")
