"""The simulated device for the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.simulated_device import TRIED, SimulatedCuda
from tests.support.simulated_device_triton import emulated_triton


@pytest.fixture(scope="session")
def _works() -> str:
    """Return why the simulated device does not work with this PyTorch; empty if it does."""
    try:
        with SimulatedCuda():
            layer = torch.nn.Conv2d(3, 2, 1).to("cuda")
            with torch.autocast("cuda"):
                layer(torch.randn(1, 3, 4, 4, device="cuda")).sum().backward()
            assert layer.weight.grad.is_cuda
    except Exception as error:
        if torch.__version__.startswith(f"{TRIED}."):
            raise
        return f"torch {torch.__version__} changed a private interface ({TRIED} works): {error!r}"
    return ""


@pytest.fixture
def gpu(_works: str) -> Iterator[SimulatedCuda]:
    """A simulated device, on which the adaptive convolution uses its Triton path."""
    if _works:
        pytest.skip(_works)
    with SimulatedCuda() as gpu, emulated_triton():
        yield gpu
