"""``d2-plugins benchmark gpu-check`` at toy size on the simulated device passes and fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2_plugins.benchmark.gpu_check import TOY, counts, gpu_check, models
from d2_plugins.benchmark.gpu_check.checks import Check, at_least, at_most, run_step, value
from d2_plugins.benchmark.gpu_check.processes import check_processes
from d2_plugins.cli.benchmark import main
from d2_plugins.layers.adaptive_conv import triton_cuda
from d2_plugins.modeling.proposal_generator.cascade_rpn_stage import CascadeRPNStage
from tests.support.simulated_device import SimulatedCuda

pytestmark = pytest.mark.slow


@pytest.fixture
def counting_gpu(gpu: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> SimulatedCuda:
    """The device with its own count of launches; PyTorch's profiler needs a real one."""

    def count_launches(run: Callable[[], None]) -> int:
        with gpu.count() as counted:
            run()
        return counted.launches.total()

    monkeypatch.setattr(counts, "count_launches", count_launches)
    return gpu


def run(folder: Path, *steps: str) -> tuple[int, dict[str, dict]]:
    """Return the exit status and the checks by step and name."""
    options = ["--toy", "--output-dir", str(folder), *(["--steps", *steps] if steps else [])]
    status = main(["gpu-check", *options])
    report = json.loads((folder / "gpu_check.json").read_text())
    assert report["passed"] == (status == 0)
    return status, {s["name"]: {c["name"]: c for c in s["checks"]} for s in report["steps"]}


@pytest.mark.slow
def test_all_steps_pass(counting_gpu: SimulatedCuda, tmp_path: Path) -> None:
    status, steps = run(tmp_path)
    assert status == 0, [c for s in steps.values() for c in s.values() if not c["passed"]]
    assert list(steps) == [
        *("machine", "kernels", "start-up", "models", "training", "counts", "times")
    ]
    page = (tmp_path / "gpu_check.md").read_text()
    assert "# GPU check: passed" in page
    assert "| error in tf32 " in page
    assert "**no**" not in page
    # The Triton path is what was checked, and the stock detector was measured as well.
    assert counting_gpu.counts[0].by("launches", 1)["triton_feature_gradient"] > 0
    assert float(steps["counts"]["stock Faster R-CNN, waits"]["value"]) == 72
    assert "stock Faster R-CNN, 1 images: training step" in steps["times"]


def test_a_wrong_kernel_fails(
    gpu: SimulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = triton_cuda.forward

    def wrong(*args: object) -> torch.Tensor:
        return forward(*args) * 1.01

    monkeypatch.setattr(triton_cuda, "forward", wrong)
    status, steps = run(tmp_path, "kernels")
    assert status == 1
    assert not steps["kernels"]["error in float32"]["passed"]
    assert "**no**" in (tmp_path / "gpu_check.md").read_text()


def test_a_detector_that_differs_from_the_cpus_fails(
    gpu: SimulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def passed() -> list[bool]:
        cfg = models.flagship_cfg(TOY, "csp_cascade.yaml", *models.WITHOUT_CHANCE)
        return [check.passed for check in models.same_as_on_the_cpu("flagship", [cfg], TOY)]

    assert passed() == [True, True]
    forward = CascadeRPNStage.forward

    def wrong(self: CascadeRPNStage, *args: object, **kwargs: object) -> object:
        if self.bbox_deltas.weight.is_cuda:
            with torch.no_grad():
                self.bbox_deltas.bias.add_(0.1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CascadeRPNStage, "forward", wrong)
    assert not passed()[0]


def test_a_tensor_on_the_wrong_device_fails(
    counting_gpu: SimulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CascadeRPNStage.forward

    def mixed(self: CascadeRPNStage, *args: object, **kwargs: object) -> object:
        _ = self.bbox_deltas.weight + torch.ones(1, 1, 1, 1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CascadeRPNStage, "forward", mixed)
    status, steps = run(tmp_path, "counts")
    assert status == 1
    assert "DeviceError" in steps["counts"]["completed"]["value"]


def test_too_many_waits_fail(
    counting_gpu: SimulatedCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CascadeRPNStage.forward

    def waits(self: CascadeRPNStage, *args: object, **kwargs: object) -> object:
        for _ in range(20):
            torch.cuda.synchronize()
            self.bbox_deltas.weight.sum().item()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(CascadeRPNStage, "forward", waits)
    status, steps = run(tmp_path, "counts")
    assert status == 1
    assert not steps["counts"]["flagship, waits"]["passed"]


def test_without_a_gpu_nothing_else_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, steps = run(tmp_path)
    assert status == 1
    assert list(steps) == ["machine"]
    assert "CUDA device: 0 found (required: >= 1)" in capsys.readouterr().out


def test_what_fails_a_check_and_a_step() -> None:
    nan = float("nan")
    assert not any(c.passed for c in (at_most("a", nan, 1), at_least("a", nan, 1), value("a", nan)))
    assert at_most("a", 1, 1).passed
    assert not at_most("a", 1.1, 1).passed
    assert at_least("a", 1, 1).passed
    assert not at_least("a", 0.9, 1).passed
    assert not run_step("empty", lambda scale: [], TOY).passed
    assert not run_step(
        "one failed", lambda s: [Check("a", True, ""), Check("b", False, "")], TOY
    ).passed


@pytest.mark.slow
def test_several_processes_on_the_cpu() -> None:
    """The step for several GPUs, with processes on the CPU."""
    checks = {check.name: check for check in check_processes(2, "cpu")}
    assert all(check.passed for check in checks.values()), checks
    assert "SIGKILL" in checks["killed process stops the run"].value


def test_steps_are_those_asked_for(gpu: SimulatedCuda, tmp_path: Path) -> None:
    assert gpu_check(tmp_path, scale=TOY, only=("start-up",))
    names = [s["name"] for s in json.loads((tmp_path / "gpu_check.json").read_text())["steps"]]
    assert names == ["machine", "start-up"]
