"""Detectors on the simulated device: they train and detect without mixing devices."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from d2_plugins import model_zoo
from d2_plugins.engine.train_step import StepTrainer
from tests.support.combinations import COMBINATIONS, combined_cfg
from tests.support.simulated_device import SimulatedCuda
from tests.support.stock import small_batch
from tests.support.tiny_flagship import SHRINK

pytestmark = pytest.mark.slow

FLAGSHIP = ("cspnet", "cascade_rpn", "double_head", True, False)
# Every RoI whose score falls is masked, so that an untrained head has RoIs to mask.
EAGER = (
    *("MODEL.INVERTED_ATTENTION.MIN_CHANGE", 0.0, "MODEL.INVERTED_ATTENTION.FG_FRACTION", 0.5),
    *("MODEL.INVERTED_ATTENTION.BG_FRACTION", 0.5),
)


def build(cfg: CfgNode, *opts: object) -> nn.Module:
    cfg.merge_from_list(["MODEL.DEVICE", "cuda", *opts])
    torch.manual_seed(0)
    return build_model(cfg)


def check_training(model: nn.Module, objects: tuple[int, int] = (3, 2)) -> None:
    """One step: finite losses on the device, and a gradient of each parameter there."""
    with EventStorage():  # iteration 0, which writes the statistics
        losses = model.train()(small_batch(0, objects))
    assert all(loss.is_cuda and loss.isfinite() for loss in losses.values()), losses
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.is_cuda, name


@torch.no_grad()
def check_detections(model: nn.Module, mask: bool = False) -> None:
    for output in model.eval()(small_batch()):
        instances = output["instances"]
        assert instances.pred_boxes.tensor.is_cuda
        assert instances.has("pred_masks") == mask


@pytest.mark.parametrize(("backbone", "proposals", "heads", "inverted", "mask"), COMBINATIONS)
def test_combination(
    gpu: SimulatedCuda,
    tmp_path: Path,
    backbone: str,
    proposals: str,
    heads: str,
    inverted: bool,
    mask: bool,
) -> None:
    model = build(combined_cfg(tmp_path, backbone, proposals, heads, inverted, mask))
    with gpu.count() as counts:
        check_training(model, (3, 0))
    assert counts.by("launches", 1)["triton_forward"] == 5 * (proposals == "cascade_rpn")
    check_detections(model, mask)


@pytest.mark.parametrize("config", ["csp_cascade.yaml", "csp_cascade_mask.yaml"])
@pytest.mark.parametrize("objects", [(3, 2), (0, 0)])
def test_flagship(gpu: SimulatedCuda, config: str, objects: tuple[int, int]) -> None:
    model = build(model_zoo.get_config(config), *SHRINK)
    check_training(model, objects)
    check_detections(model, "mask" in config)


@pytest.mark.parametrize("mode", ["spatial", "channel", "both", "random"])
@pytest.mark.parametrize("choice", ["hard", "random", "all"])
@pytest.mark.parametrize("apply_to", ["both", "cls"])
def test_inverted_attention(
    gpu: SimulatedCuda, tmp_path: Path, mode: str, choice: str, apply_to: str
) -> None:
    model = build(
        combined_cfg(tmp_path, "cspnet", "rpn", "double_head", True, False),
        *("MODEL.INVERTED_ATTENTION.MODE", mode, "MODEL.INVERTED_ATTENTION.ROI_CHOICE", choice),
        *("MODEL.INVERTED_ATTENTION.APPLY_TO", apply_to, *EAGER),
    )
    check_training(model)


@pytest.mark.parametrize("fusion", ["complementary", "fc", "conv", "max", "mean"])
def test_score_fusion(gpu: SimulatedCuda, tmp_path: Path, fusion: str) -> None:
    cfg = combined_cfg(tmp_path, "cspnet", "rpn", "double_head", False, False)
    check_detections(build(cfg, "MODEL.DOUBLE_HEAD.FUSION", fusion))


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_mixed_precision_with_clipping(
    gpu: SimulatedCuda, tmp_path: Path, dtype: torch.dtype | None, checkpointing: bool
) -> None:
    model = build(
        combined_cfg(tmp_path, *FLAGSHIP),
        *("MODEL.CSPNET.GRADIENT_CHECKPOINTING", checkpointing),
    )
    before = {name: p.detach().cpu() for name, p in model.named_parameters()}
    trainer = StepTrainer(
        model.train(),
        [small_batch(0, (3, 2)), small_batch(1, (3, 0))],
        torch.optim.SGD(model.parameters(), 0.1),
        amp_dtype=dtype,
        clip_norm=1.0,
    )
    trainer.grad_scaler._init_scale = 128.0  # small enough for the first step not to overflow
    with EventStorage() as storage:
        trainer.run_step()
        trainer.run_step()
        assert torch.isfinite(torch.tensor(storage.latest()["grad_norm"][0]))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    moved = [name for name in trained if not model.get_parameter(name).cpu().equal(before[name])]
    assert len(moved) > 0.9 * len(trained)  # updates of single biases are lost in rounding


def test_checkpointing_gives_the_same_gradients(gpu: SimulatedCuda, tmp_path: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        cfg = combined_cfg(tmp_path, "cspnet", "cascade_rpn", "standard", False, False)
        model = build(cfg, "MODEL.CSPNET.GRADIENT_CHECKPOINTING", checkpointing)
        torch.manual_seed(1)
        check_training(model)
        gradients.append({name: p.grad.cpu() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, rtol=1e-4, atol=1e-6), name
