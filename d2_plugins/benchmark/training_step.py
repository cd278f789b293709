"""A training step without the optimizer, to be timed."""

from collections.abc import Callable

import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

__all__ = ["training_step"]


def training_step(
    model: nn.Module, losses: Callable[..., dict[str, Tensor]], *args: object, iteration: int = 1
) -> None:
    """Run the losses and their gradients, and drop the gradients.

    Args:
        model: owner of the parameters.
        losses: function that returns the losses of the model by name.
        args: arguments of ``losses``.
        iteration: number of the iteration. detectron2 writes statistics in every 20th.
    """
    with EventStorage(iteration):
        torch.stack(list(losses(*args).values())).sum().backward()
    model.zero_grad()
