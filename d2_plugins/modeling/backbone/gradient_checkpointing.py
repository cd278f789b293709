"""Activation checkpointing that leaves BatchNorm's running statistics alone."""

from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["run_checkpointed"]


def run_checkpointed(module: nn.Module, *args: Tensor | None) -> Tensor:
    """``module(*args)``, storing its inputs only and computing the rest again for the gradient.

    Outputs, gradients and running statistics are those of the plain call. ``module`` must draw no
    random numbers.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _RunningStatsHeld(module)

    return checkpoint(
        module, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


class _RunningStatsHeld(AbstractContextManager):
    """Within it, BatchNorm normalises as before but does not update its running statistics.

    Without it the second forward pass would count every batch twice.
    """

    def __init__(self, module: nn.Module) -> None:
        self._norms = [
            child
            for child in module.modules()
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and child.track_running_stats
        ]

    def __enter__(self) -> None:
        for norm in self._norms:
            norm.track_running_stats = False

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for norm in self._norms:
            norm.track_running_stats = True
