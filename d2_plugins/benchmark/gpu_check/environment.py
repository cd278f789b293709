"""Step 1: the machine has what the CUDA path needs."""

import os
import platform
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..machine import describe_machine
from .checks import Check, Scale, at_least

__all__ = ["check_environment"]

_GIB = 2**30


def check_environment(scale: Scale) -> list[Check]:
    """Check the GPU, Triton, and the compiler and headers that Triton needs at its first launch."""
    checks = [Check("machine", True, describe_machine())]
    available = torch.cuda.is_available()
    checks.append(Check("CUDA device", available, f"{torch.cuda.device_count()} found", ">= 1"))
    if not available:
        return checks
    major, minor = torch.cuda.get_device_capability(scale.device)
    free, _ = torch.cuda.mem_get_info(scale.device)
    checks += [
        Check("compute capability", (major, minor) >= (8, 0), f"{major}.{minor}", ">= 8.0"),
        at_least("free memory", free / _GIB, 16, " GiB"),
        Check("versions", True, _versions()),
    ]
    if scale.full:
        checks += _triton_requirements()
    return checks


def _versions() -> str:
    packages = {"triton": "triton", "torchvision": "torchvision", "numpy": "numpy"}
    found = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]
    if torch.backends.cudnn.is_available():
        found.append(f"cuDNN {torch.backends.cudnn.version()}")
    found += [f"{name} {_version(package)}" for name, package in packages.items()]
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _triton_requirements() -> list[Check]:
    triton = _version("triton")
    names = (os.environ.get("CC", ""), "gcc", "clang", "cc")
    compiler = next((path for name in names if name and (path := shutil.which(name))), "none")
    header = Path(sysconfig.get_path("include"), "Python.h")
    return [
        Check("Triton", triton != "missing", triton, "installed"),
        Check("C compiler for Triton", compiler != "none", compiler, "gcc or clang"),
        Check("Python.h for Triton", header.is_file(), str(header), "exists"),
    ]
