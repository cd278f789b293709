"""Compilation of the Triton kernels ahead of time, as a launch would do, without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from d2_plugins.layers.adaptive_conv import triton_cuda, triton_kernels

KERNELS = {
    "forward": (triton_kernels.forward_kernel, triton_kernels.FORWARD_CONFIGS),
    "feature": (triton_kernels.feature_gradient_kernel, triton_kernels.FEATURE_CONFIGS),
    "weight": (triton_kernels.weight_gradient_kernel, triton_kernels.WEIGHT_CONFIGS),
}
TUNED = {
    "forward": "tuned_forward",
    "feature": "tuned_feature_gradient",
    "weight": "tuned_weight_gradient",
}
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def launches(
    feature: Tensor, boxes: Tensor, weight: Tensor, stride: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kernels and arguments of a forward and backward pass, which runs no kernel."""
    found: list[tuple[str, dict[str, Any]]] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Callable[..., Any]) -> Callable[..., None]:
            return lambda **arguments: found.append((self.name, arguments))

    patches = [
        mock.patch.object(triton_cuda, tuned, Recorder(name)) for name, tuned in TUNED.items()
    ]
    for patch in patches:
        patch.start()
    try:
        out = triton_cuda.forward(feature, boxes, weight, None, stride)
        triton_cuda.backward(out, feature, boxes, weight, stride, True, True)
    finally:
        for patch in patches:
            patch.stop()
    yield from found


def specialization(
    name: str, arguments: dict[str, Any], architecture: int = 90
) -> list[tuple[str, Any]]:
    """Return what Triton compiles a kernel for: the type and the hints of each argument."""
    jit = pytest.importorskip("triton.runtime.jit")
    if not hasattr(jit, "create_function_from_signature"):
        pytest.skip("this version of Triton specializes kernels in another way")
    kernel, _ = KERNELS[name]
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    bind = jit.create_function_from_signature(kernel.signature, kernel.params, backend)
    tiles = {p.name: 16 for p in kernel.params if p.is_constexpr}
    return bind(**{**tiles, **arguments})[1]


@dataclass(frozen=True)
class Compiled:
    """Machine code of a kernel and the resources it takes, by NVIDIA's assembler."""

    ptx: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def compile_kernel(
    name: str, arguments: dict[str, Any], config: triton.Config, architecture: int
) -> Compiled:
    """Compile a kernel for a launch with these arguments, and assemble it."""
    kernel, _ = KERNELS[name]
    arguments = {**arguments, **config.kwargs}
    backend = make_backend(GPUTarget("cuda", architecture, 32))
    found = specialization(name, arguments, architecture)
    types = {p.name: kind for p, (kind, _) in zip(kernel.params, found, strict=True)}
    compiled = triton.compile(
        ASTSource(
            fn=kernel,
            signature=types,
            constexprs={n: arguments[n] for n, kind in types.items() if kind == "constexpr"},
            attrs={
                (i,): backend.parse_attr(hint)
                for i, (_, hint) in enumerate(found)
                if isinstance(hint, str)
            },
        ),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    ptx = compiled.asm["ptx"]
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [PTXAS, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return Compiled(
        ptx=ptx,
        registers=int(re.search(r"Used (\d+) registers", report)[1]),
        spilled_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        shared_bytes=compiled.metadata.shared,
    )
