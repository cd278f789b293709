"""Description of the machine, and measurement of memory."""

import ctypes
import gc
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["describe_machine", "extra_memory_mb"]

_MB = 2**20


def describe_machine() -> str:
    """Return one line with the processor, the number of threads, the GPU and the versions."""
    parts = [_processor(), f"{torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts.append(f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})")
    parts.append(f"Python {platform.python_version()} on {platform.system()}")
    return ", ".join(parts)


def _processor() -> str:
    """Return the processor's name; on Linux ``platform.processor`` does not know it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name.group(1) if name else platform.processor() or platform.machine()


def extra_memory_mb(function: Callable[[], Tensor], device: str) -> float:
    """Return the peak memory of a function in addition to its result.

    On the CPU this is the resident memory of the process, which includes what libraries allocate
    by themselves.

    Args:
        function: function that returns one tensor. It is called twice, first as a warm-up.
        device: device whose memory is measured.

    Returns:
        MB of 2**20 bytes; NaN for CPU memory on systems other than Linux.
    """
    result = function()
    size = result.numel() * result.element_size()
    del result
    gc.collect()
    if torch.device(device).type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before - size) / _MB
    if not sys.platform.startswith("linux"):
        return float("nan")
    # Return free memory to the system first; otherwise the function could reuse it unnoticed.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = _process_status("VmRSS")
    function()
    return (_process_status("VmHWM") - before - size) / _MB


def _process_status(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, field
    return 1024 * int(match.group(1))
