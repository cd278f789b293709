import sys

import pytest
import torch

from d2_plugins.benchmark.machine import describe_machine, extra_memory_mb


def test_the_machine_is_named() -> None:
    text = describe_machine()
    assert f"torch {torch.__version__}" in text
    assert f"{torch.get_num_threads()} threads" in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_extra_memory_is_the_peak_beside_the_result() -> None:
    def function() -> torch.Tensor:
        scratch = torch.ones(48 * 2**18)  # 48 MB
        return scratch[: 16 * 2**18] * 2  # 16 MB

    assert extra_memory_mb(function, "cpu") == pytest.approx(48, abs=3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_extra_memory_of_the_device() -> None:
    def function() -> torch.Tensor:
        return torch.ones(4 * 2**18, device="cuda")[: 2**18] * 2

    assert extra_memory_mb(function, "cuda") == pytest.approx(4, abs=0.1)
