"""The Triton kernels: interpreted, compiled for devices that need not be there, and on the GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2_plugins.layers import adaptive_conv2d
from d2_plugins.layers.adaptive_conv import convolution as adaptive_conv
from tests.support.adaptive_conv import jittered_boxes, with_gradients
from tests.support.helpers import REPO

triton = pytest.importorskip("triton")
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)),
    reason="needs a CUDA device of the Ampere generation or later",
)

# What the kernels' arguments are: tensors of the inputs' dtype, float32 tensors, integers.
INPUTS = {"feature", "weight", "bias", "grad", "out"}
FLOATS = {"boxes", "grad_feature", "grad_weight"}
INTEGERS = {"total", "height", "width", "cells_per_sum"}
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async"}


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


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kernel", ["forward", "feature", "weight"])
def test_compiles_ahead_of_time(
    kernel: str, dtype: str, architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To machine code for A100 and H100, with tensor cores, in the memory that these have."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from d2_plugins.layers.adaptive_conv import triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function, configs = {
        "forward": (kernels.forward_kernel, kernels.FORWARD_CONFIGS),
        "feature": (kernels.feature_gradient_kernel, kernels.FEATURE_CONFIGS),
        "weight": (kernels.weight_gradient_kernel, kernels.WEIGHT_CONFIGS),
    }[kernel]
    config = configs[0]
    constants = {"channels": 256, "out_channels": 256, "precision": "tf32x3", **config.kwargs}
    types = {
        **dict.fromkeys(INPUTS, f"*{dtype}"),
        **dict.fromkeys(FLOATS, "*fp32"),
        **dict.fromkeys(INTEGERS, "i32"),
        **dict.fromkeys(constants, "constexpr"),
        "stride": "fp32",
        "size_class": "u1",
    }
    signature = {name: types[name] for name in function.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={k: v for k, v in constants.items() if k in function.arg_names},
        attrs=aligned,
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    assert len(compiled.asm["cubin"]) > 1000
    assert f".target sm_{architecture}" in compiled.asm["ptx"]
    assert TENSOR_CORES[architecture] in compiled.asm["ptx"]
    assert compiled.metadata.shared <= SHARED_MEMORY[architecture]


def test_choice_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend that CUDA tensors get, tested without a device."""

    class Feature:
        device = torch.device("cuda", 0)
        dtype = torch.float32

    choose = adaptive_conv._choose_backend
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert choose("auto", Feature()) == "triton"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert choose("auto", Feature()) == "reference"
    assert choose("triton", Feature()) == "triton"
    Feature.dtype = torch.float64
    assert choose("auto", Feature()) == "reference"
    with pytest.raises(ValueError, match="no float64"):
        choose("triton", Feature())
    monkeypatch.setattr(adaptive_conv, "_HAS_TRITON", False)
    Feature.dtype = torch.float32
    assert choose("auto", Feature()) == "reference"
    with pytest.raises(RuntimeError, match="needs Triton"):
        choose("triton", Feature())


def test_cpu_tensors_are_refused() -> None:
    inputs = (torch.zeros(1, 2, 3, 4), torch.zeros(1, 12, 4), torch.zeros(2, 2, 3, 3))
    with pytest.raises(ValueError, match="for CUDA tensors, not for cpu"):
        adaptive_conv2d(*inputs, stride=4, backend="triton")


@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("size", [(1, 100, 152), (2, 13, 19)])
def test_on_the_gpu(dtype: torch.dtype, tolerance: float, size: tuple[int, int, int]) -> None:
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
