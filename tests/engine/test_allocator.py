"""Freed memory is reused: counted in page faults, each of which is a page from the kernel."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# Allocates and frees 64 MiB twenty times and prints the page faults of the last ten.
PROGRAM = """
import resource, sys
import torch
from d2_plugins.engine.allocator import keep_freed_memory

made = keep_freed_memory()
def fill():
    for _ in range(10):
        torch.empty(16 << 20).fill_(1.0)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(made, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(switch: str) -> tuple[str, int]:
    env = {**os.environ, "D2_PLUGINS_KEEP_FREED_MEMORY": switch}
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={name: value for name, value in env.items() if not name.startswith("MALLOC_")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made, faults = out.split()
    return made, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_memory_is_reused_unless_switched_off() -> None:
    made, faults = run("1")
    if made == "False":
        pytest.skip("the C library has no mallopt")
    assert faults < 1000
    made, faults_by_default = run("0")
    assert made == "False"
    assert faults_by_default > 10000
