"""The Triton kernels: interpreted, compiled for devices that need not be there, and on the GPU."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from d2_plugins.layers import adaptive_conv2d
from d2_plugins.layers.adaptive_conv import convolution as adaptive_conv
from tests.support.adaptive_conv import jittered_boxes, with_gradients
from tests.support.helpers import REPO

pytest.importorskip("triton")

from d2_plugins.layers.adaptive_conv import triton_cuda
from tests.support import triton_aot

needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)),
    reason="needs a CUDA device of the Ampere generation or later",
)

# Of an A100 and of an RTX 3090, the least from Ampere on; of an H100.
SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024}
DTYPES = {"float32": 32, "float16": 16, "bfloat16": 16}
CONFIGS = [
    pytest.param(dtype, kernel, i, architecture, marks=[pytest.mark.slow] if i else [])
    for dtype, bits in DTYPES.items()
    for kernel, count in (("forward", 3), ("feature", 2), ("weight", 3))
    # bfloat16 differs from float16 in the type of a few instructions.
    for i in range(count if dtype != "bfloat16" else 1)
    for architecture in (80, 90)
]


@pytest.mark.slow
def test_under_the_interpreter() -> None:
    """The tests of adaptive_conv_interpreted.py, in a process in which Triton interprets."""
    file = REPO / "tests" / "support" / "adaptive_conv_interpreted.py"
    command = [sys.executable, "-m", "pytest", str(file), "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        command,
        cwd=REPO,
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def one_pass(dtype: torch.dtype, channels: int, size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Return the arguments of each kernel in a forward and backward pass of two images."""
    height, width = size
    feature = torch.zeros(2, channels, height, width, dtype=dtype)
    boxes = torch.zeros(2, height * width, 4)
    weight = torch.zeros(channels, channels, 3, 3, dtype=dtype)
    return dict(triton_aot.launches(feature, boxes, weight, 4.0))


@pytest.mark.parametrize(("dtype", "kernel", "index", "architecture"), CONFIGS)
def test_compiles_ahead_of_time(
    dtype: str,
    kernel: str,
    index: int,
    architecture: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With tensor cores, in the memory and the registers that the GPUs have."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # needs the most registers
    arguments = one_pass(getattr(torch, dtype), 256, (5, 7))[kernel]
    assert arguments["precision"] == ("tf32x3" if dtype == "float32" else "ieee")
    config = triton_aot.KERNELS[kernel][1][DTYPES[dtype]][index]
    compiled = triton_aot.compile_kernel(kernel, arguments, config, architecture)
    # Hopper's own instruction multiplies 64 rows or more.
    rows = next(iter(config.kwargs.values()))
    hopper = architecture == 90 and rows >= 64
    assert ("wgmma.mma_async" if hopper else "mma.sync") in compiled.ptx
    assert compiled.spilled_bytes <= 64
    assert compiled.shared_bytes <= SHARED_MEMORY[architecture]


def test_all_configs_are_compiled_in_the_tests() -> None:
    counted = {(p.values[1], DTYPES[p.values[0]], p.values[2]) for p in CONFIGS}
    assert counted == {
        (kernel, bits, i)
        for kernel, (_, configs) in triton_aot.KERNELS.items()
        for bits, of_dtype in configs.items()
        for i in range(len(of_dtype))
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_at_most_eight_compilations_and_none_for_other_sizes(dtype: torch.dtype) -> None:
    """Over image sizes as of COCO, on five levels, and batches of several sizes."""
    torch.manual_seed(0)
    variants: dict[str, set[str]] = {name: set() for name in triton_aot.KERNELS}
    for _ in range(12):
        height, width = torch.randint(640, 1334, (2,)).tolist()
        for stride in (4, 8, 16, 32, 64):
            size = (-(-height // stride), -(-width // stride))
            for name, arguments in one_pass(dtype, 8, size).items():
                variants[name].add(str(triton_aot.specialization(name, arguments)))
    assert [len(found) for found in variants.values()] == [1, 1, 1]

    # The tuner compiles every configuration that it does not prune.
    compiled = 0
    for name, arguments in one_pass(dtype, 8, (5, 7)).items():
        tuner = getattr(triton_cuda, triton_aot.TUNED[name])
        tuner.nargs = {}
        pruned = tuner.prune_configs(arguments)
        assert pruned == triton_aot.KERNELS[name][1][8 * dtype.itemsize]
        assert tuner.cache_results
        compiled += len(pruned)
    assert compiled <= 8


def test_precision_is_that_of_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    precision = triton_cuda._precision
    assert {precision(torch.float16), precision(torch.bfloat16)} == {"ieee"}
    assert precision(torch.float32) == "tf32"  # PyTorch's default
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert precision(torch.float32) == "tf32x3"
    # After the newer switches were used, reading the older ones may raise.
    if hasattr(torch.backends.cudnn, "conv"):
        switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
        before = [switch.fp32_precision for switch in switches]
        try:
            for value, expected in (("ieee", "tf32x3"), ("tf32", "tf32")):
                switches[0].fp32_precision, switches[1].fp32_precision = "tf32", value
                assert precision(torch.float32) == expected
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.fp32_precision = value
    # PyTorch before that switch.
    monkeypatch.setattr(torch.backends, "cudnn", SimpleNamespace(allow_tf32=False))
    assert precision(torch.float32) == "tf32x3"


def test_triton_that_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tried once per process, with one warning that carries the reason."""
    tried = []

    def probe(device: torch.device) -> None:
        tried.append(device)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton_cuda, "probe", probe)
    adaptive_conv._triton_works.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"RuntimeError: Failed to find C compiler.*reference"):
            assert adaptive_conv._choose_backend("auto", Feature()) == "reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert adaptive_conv._choose_backend("auto", Feature()) == "reference"
        assert tried == [Feature.device]
        assert adaptive_conv._choose_backend("triton", Feature()) == "triton"
    finally:
        adaptive_conv._triton_works.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_probe_raises_without_a_device() -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        triton_cuda.probe(torch.device("cuda", 0))


class Feature:
    """The part of a CUDA tensor that the choice of the backend reads."""

    device = torch.device("cuda", 0)
    dtype = torch.float32


def test_choice_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend that CUDA tensors get, tested without a device."""
    monkeypatch.setattr(adaptive_conv, "_triton_works", lambda device: True)
    choose = adaptive_conv._choose_backend
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("auto", Feature()) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose("auto", Feature()) == "reference"
    assert choose("triton", Feature()) == "triton"
    monkeypatch.setattr(Feature, "dtype", torch.float64)
    assert choose("auto", Feature()) == "reference"
    with pytest.raises(ValueError, match="no float64"):
        choose("triton", Feature())
    monkeypatch.setattr(adaptive_conv, "_HAS_TRITON", False)
    monkeypatch.setattr(Feature, "dtype", torch.float32)
    assert choose("auto", Feature()) == "reference"
    with pytest.raises(RuntimeError, match="needs Triton"):
        choose("triton", Feature())


def test_cpu_tensors_are_refused() -> None:
    inputs = (torch.zeros(1, 2, 3, 4), torch.zeros(1, 12, 4), torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match="for CUDA tensors, not for cpu"):
        adaptive_conv2d(*inputs, stride=4, backend="triton")


@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "allow_tf32", "tolerance"),
    [
        (torch.float32, False, 1e-5),
        (torch.float32, True, 2e-3),
        (torch.float16, True, 2e-3),
        (torch.bfloat16, True, 2e-2),
    ],
)
@pytest.mark.parametrize("size", [(1, 100, 152), (2, 13, 19)])
def test_on_the_gpu(
    dtype: torch.dtype,
    allow_tf32: bool,
    tolerance: float,
    size: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allow_tf32)
    images, height, width = size
    boxes = jittered_boxes(images, height, width, 4).float()
    inputs = (
        torch.randn(images, 256, height, width).to(dtype),
        (torch.randn(256, 256, 3, 3) / 48).to(dtype),
        torch.randn(256).to(dtype),
    )
    grad = torch.randn(images, 256, height, width).to(dtype)
    expected = with_gradients(
        lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4),
        grad,
        *[x.double() for x in inputs],
    )
    actual = with_gradients(
        lambda x, w, b: adaptive_conv2d(x, boxes.cuda(), w, b, stride=4, backend="triton"),
        grad.cuda(),
        *[x.cuda() for x in inputs],
    )
    for a, e in zip(actual, expected, strict=True):
        scale = e.abs().max().item()
        torch.testing.assert_close(a.double().cpu(), e, rtol=0, atol=tolerance * scale)


@needs_gpu
def test_compiled_and_under_autocast_on_the_gpu() -> None:
    boxes = jittered_boxes(1, 20, 30, 4).float().cuda()
    feature = torch.randn(1, 32, 20, 30, device="cuda")
    weight = torch.randn(64, 32, 3, 3, device="cuda") / 17

    def convolve(feature: torch.Tensor) -> torch.Tensor:
        return adaptive_conv2d(feature, boxes, weight, stride=4)

    compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(feature), convolve(feature))
    with torch.autocast("cuda", torch.float16):
        half = convolve(feature)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), convolve(feature), rtol=0, atol=2e-2)
