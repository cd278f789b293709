"""Step 7: data-parallel training on several devices."""

import json
import os
import signal
import tempfile
import time
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from ...engine import launch
from ...engine.train_step import wrap_ddp
from .checks import Check, at_most, value
from .small_detectors import small_batch, small_cfg

__all__ = ["check_processes"]

_COMBINATION = ("cspnet", "cascade_rpn", "double_head", True, False)
_STEPS = 10
_LONGEST_STOP = 60  # seconds


def check_processes(num_processes: int, device: str = "cuda") -> list[Check]:
    """Compare gradients with those of one process, and stop a run by killing a process.

    Args:
        num_processes: number of processes and GPUs.
        device: "cuda", or "cpu" for processes without a GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        launch(
            _compare_gradients,
            num_processes,
            use_cpu=device == "cpu",
            args=(str(file), device),
        )
        result = json.loads(file.read_text(encoding="utf-8"))
    return [
        at_most("gradients: deviation from one process", result["deviation"], 1e-3),
        at_most("SyncBN: deviation of the statistics between processes", result["statistics"], 0),
        value("small detector", result["images_per_second"], " images/s"),
        _killed(num_processes, device),
    ]


def _compare_gradients(file: str, device: str) -> None:
    """Train in each process on its images; the last process has an image without objects."""
    rank, size = comm.get_rank(), comm.get_world_size()
    device = device if device == "cpu" else f"{device}:{comm.get_local_rank()}"
    shares = [small_batch((3, 0 if share == size - 1 else 2), seed=share) for share in range(size)]
    alone, shared = _build(device), wrap_ddp(_build(device))
    expected: dict[str, Tensor] = {}
    for share in shares:  # one process: the mean over the shares
        for name, gradient in _gradients(alone, share).items():
            expected[name] = expected.get(name, 0) + gradient / size
    actual = _gradients(shared, shares[rank])
    deviation = max(_relative(actual[f"module.{name}"], expected[name]) for name in expected)
    start = time.perf_counter()
    for _ in range(_STEPS):
        _gradients(shared, shares[rank])
    seconds = time.perf_counter() - start
    statistics = _synchronized_statistics(device, shares[rank])
    result = {
        "deviation": max(comm.all_gather(deviation)),
        "statistics": max(comm.all_gather(statistics)),
        "images_per_second": 2 * size * _STEPS / seconds,
    }
    if comm.is_main_process():
        Path(file).write_text(json.dumps(result), encoding="utf-8")


def _build(device: str, norm: str = "BN") -> nn.Module:
    opts = ("MODEL.CSPNET.NORM", norm, "MODEL.FPN.NORM", norm, "MODEL.DEVICE", device)
    torch.manual_seed(0)
    model: nn.Module = build_model(small_cfg(_COMBINATION, *opts))
    return model.train()


def _gradients(model: nn.Module, batch: list[dict[str, object]]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    with EventStorage(1):
        sum(model(batch).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _synchronized_statistics(device: str, batch: list[dict[str, object]]) -> float:
    """Return the largest difference of SyncBN's running statistics between the processes."""
    if torch.device(device).type == "cpu":  # PyTorch's SyncBN needs a GPU
        return 0.0
    model = wrap_ddp(_build(device, "SyncBN"))
    _gradients(model, batch)
    sums = [float(b.double().sum()) for n, b in model.named_buffers() if "running_mean" in n]
    everywhere = comm.all_gather(sums)
    return max(abs(a - b) for other in everywhere for a, b in zip(sums, other, strict=True))


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / (expected.norm() + 1e-3))


def _killed(num_processes: int, device: str) -> Check:
    start, message = time.perf_counter(), "no error"
    try:
        launch(_die, num_processes, use_cpu=device == "cpu")
    except SystemExit as stop:
        message = str(stop)
    seconds = time.perf_counter() - start
    passed = "SIGKILL" in message and seconds < _LONGEST_STOP
    return Check("killed process stops the run", passed, f"{seconds:.0f} s: {message}", "SIGKILL")


def _die() -> None:
    comm.synchronize()
    if comm.get_rank() == comm.get_world_size() - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10 * _LONGEST_STOP)  # stopped by the parent
