"""Activation checkpointing that updates BatchNorm's running statistics only once."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["run_checkpointed"]


def run_checkpointed(module: nn.Module, *args: Tensor | None) -> Tensor:
    """Call ``module(*args)``, and recompute its activations in the backward pass.

    Outputs, gradients and running statistics equal those of the plain call. The module must not
    draw random numbers.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _RunningStatsHeld(module)

    return checkpoint(
        module, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


class _RunningStatsHeld(AbstractContextManager):
    """Context in which BatchNorm normalises as usual but keeps its running statistics.

    Otherwise the second forward pass would count every batch twice. The statistics are still
    passed to the operator, because it must save the same tensors in both passes.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms: list[Any] = [
            child
            for child in module.modules()
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats
        ]

    def __enter__(self) -> None:
        self._held = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = norm.num_batches_tracked.clone()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for norm, (momentum, batches) in zip(self._norms, self._held, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
