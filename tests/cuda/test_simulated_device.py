"""The simulated device itself: it catches planted mistakes and computes what the CPU computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.ops import nms

from d2_plugins.modeling.proposal_generator.cascade_rpn_stage import CascadeRPNStage
from tests.support.combinations import combined_cfg
from tests.support.simulated_device import DeviceError, SimulatedCuda
from tests.support.stock import small_batch

FLAGSHIP = ("cspnet", "cascade_rpn", "double_head", True, False)


def make_detector(folder: Path, device: str) -> nn.Module:
    cfg = combined_cfg(folder, *FLAGSHIP)
    cfg.MODEL.DEVICE = device
    torch.manual_seed(0)
    return build_model(cfg).train()


def train_step(model: nn.Module) -> dict[str, Tensor]:
    """Return the losses and the gradients of a step, on the CPU."""
    torch.manual_seed(1)
    with EventStorage(1):
        losses = model(small_batch(0, (3, 2)))
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: value.detach().cpu() for name, value in (losses | gradients).items()}


def test_losses_and_gradients_are_those_of_the_cpu(gpu: SimulatedCuda, tmp_path: Path) -> None:
    expected = train_step(make_detector(tmp_path, "cpu"))
    with gpu.count("step") as counts:
        actual = train_step(make_detector(tmp_path, "cuda"))
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(actual[name], value, rtol=1e-4, atol=1e-6), name
    operators = counts.by("launches", 1)
    # One launch per level of the pyramid: the Triton path was taken.
    assert operators["triton_forward"] == operators["triton_weight_gradient"] == 5


def test_a_constant_left_on_the_host_is_caught(gpu: SimulatedCuda, tmp_path: Path) -> None:
    model = make_detector(tmp_path, "cuda")
    mean = model.pixel_mean.cpu()
    del model.pixel_mean
    model.pixel_mean = mean
    with pytest.raises(DeviceError, match="host tensors of shapes"):
        model(small_batch())


def test_a_wait_is_counted_at_its_line(
    gpu: SimulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waits() -> tuple[int, set[str]]:
        with gpu.count() as counts, EventStorage(1):
            model(small_batch())
        lines = counts.by("waits", 2)
        return sum(lines.values()), set(lines)

    model = make_detector(tmp_path, "cuda")
    before, lines = waits()
    forward = CascadeRPNStage.forward

    def forward_and_wait(self: CascadeRPNStage, *args: object, **kwargs: object) -> object:
        assert self.bbox_deltas.weight.sum().item() != 1e9
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CascadeRPNStage, "forward", forward_and_wait)
    after, lines_after = waits()
    assert after - before == len(model.proposal_generator.stages)
    (line,) = lines_after - lines
    assert "d2_plugins/modeling/proposal_generator/cascade_rpn.py" in line


def test_an_operator_without_a_cuda_kernel_is_caught(gpu: SimulatedCuda) -> None:
    with torch.library._scoped_library("d2_plugins_tests", "FRAGMENT") as library:
        library.define("cpu_only(Tensor x) -> Tensor")
        library.impl("cpu_only", lambda x: x.clone(), "CPU")
        assert torch.ops.d2_plugins_tests.cpu_only(torch.ones(1)) == 1
        with pytest.raises(DeviceError, match="no CUDA kernel"):
            torch.ops.d2_plugins_tests.cpu_only(torch.ones(1, device="cuda"))


def test_wrong_dtypes_generators_and_devices_are_caught(gpu: SimulatedCuda) -> None:
    with pytest.raises(DeviceError, match="not for integers"):
        torch.ones(2, 2, device="cuda", dtype=torch.long).mm(
            torch.ones(2, 2, device="cuda", dtype=torch.long)
        )
    with pytest.raises(DeviceError, match="generator of the host"):
        torch.randn(2, device="cuda", generator=torch.Generator())
    with pytest.raises(DeviceError, match="generator of the device"):
        torch.ones(2, device="cuda").cpu().normal_(generator=torch.Generator("cuda"))
    torch.randn(2, device="cuda", generator=torch.Generator("cuda"))
    with pytest.raises(DeviceError, match="no device cuda:1"):
        torch.empty(2, device="cuda:1")
    with pytest.raises(TypeError, match="numpy"):
        torch.ones(1, device="cuda").numpy()


HOST = torch.arange(3.0)
MIXED: dict[str, Callable[[Tensor], object]] = {
    "elementwise": lambda x: x + HOST,
    "concatenation": lambda x: torch.cat([x, HOST]),
    "product": lambda x: x @ HOST,
    "source of indices": lambda x: HOST[x.long()],
    "assigned values": lambda x: x.__setitem__(x > 1, HOST[:1].expand(2)),
    "in place": lambda x: HOST.clone().add_(x),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices_are_caught(name: str, gpu: SimulatedCuda) -> None:
    with pytest.raises(DeviceError, match="host tensors"):
        MIXED[name](torch.arange(3.0, device="cuda"))


def test_mixtures_that_cuda_allows_pass(gpu: SimulatedCuda) -> None:
    x = torch.arange(3.0, device="cuda")
    assert (x * torch.tensor(2.0)).tolist() == [0, 2, 4]
    assert x[torch.tensor([2, 0])].tolist() == [2, 0]
    x[1] = torch.tensor(7.0)
    assert x.clamp(max=torch.tensor(5.0)).tolist() == [0, 5, 2]
    assert HOST.clone().copy_(x).tolist() == [0, 7, 2]


BOXES = [[0.0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]]
WAITS: dict[str, tuple[int, Callable[[Tensor], object]]] = {
    "item": (1, lambda x: x[0].item()),
    "branch": (1, lambda x: 1 if x.any() else 0),
    "nonzero": (1, lambda x: x.nonzero()),
    "mask": (1, lambda x: x[x > 1]),
    "tolist": (1, lambda x: x.tolist()),
    "cpu": (1, lambda x: x.cpu()),
    "unique": (1, lambda x: x.unique()),
    "nms": (2, lambda x: nms(x.new_tensor(BOXES), x, 0.5)),  # the copy of the boxes, and NMS
    "host list": (1, lambda x: x.new_tensor([1.0])),
    "host tensor": (1, lambda x: HOST.to(x.device)),
    "repeats": (1, lambda x: x.repeat_interleave(x.long())),
    "host indices": (1, lambda x: x[torch.tensor([0])]),
    "equal": (1, lambda x: torch.equal(x, x)),
    "synchronize": (1, lambda x: torch.cuda.synchronize()),
    # These do not wait.
    "sum": (0, lambda x: x.sum()),
    "where": (0, lambda x: torch.where(x > 1, x, 0)),
    "filled mask": (0, lambda x: x.__setitem__(x > 1, 0.0)),
    "asynchronous copy": (0, lambda x: HOST.to(x.device, non_blocking=True)),
    "new_full": (0, lambda x: x.new_full((3,), 2.0)),
    "device indices": (0, lambda x: x[x.long()]),
    "sort": (0, lambda x: x.sort()),
}


@pytest.mark.parametrize("name", WAITS)
def test_waits(name: str, gpu: SimulatedCuda) -> None:
    expected, run = WAITS[name]
    x = torch.arange(3.0).to("cuda")
    with gpu.count() as counts:
        run(x)
    assert sum(counts.waits.values()) == expected, counts.waits
    gpu.sync_debug_mode = 0
    torch.cuda.set_sync_debug_mode("warn")
    if expected:
        with pytest.warns(UserWarning, match="synchronizing"):
            run(x)


def test_launches_are_operators_that_are_no_views(gpu: SimulatedCuda) -> None:
    x = torch.ones(4, 3, device="cuda")
    part = nn.Linear(3, 2).to("cuda")
    gpu.name_parts(part=part)
    with gpu.count("rest") as counts:
        part(x.t().contiguous().t()[1:].reshape(3, 3))
        torch.empty(5, device="cuda")
    assert counts.by("launches", 0) == {"rest": 1, "part": 1}
    assert counts.by("launches", 1) == {"clone": 1, "addmm": 1}


def test_autocast_is_that_of_cuda(gpu: SimulatedCuda) -> None:
    x = torch.randn(2, 3, device="cuda")
    layer = nn.Linear(3, 3).to("cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert y.softmax(dim=1).dtype == torch.float32
        assert torch.cat([y, x]).dtype == torch.float32
        assert (y + y).dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_everything_is_as_before_afterwards() -> None:
    before = torch.cuda.is_available, torch.cuda.Event, torch.Generator, torch.cuda.synchronize
    with SimulatedCuda():
        assert torch.cuda.is_available()
        saved = torch.ones(2, device="cuda")
    after = torch.cuda.is_available, torch.cuda.Event, torch.Generator, torch.cuda.synchronize
    assert before == after
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert saved.is_cuda
