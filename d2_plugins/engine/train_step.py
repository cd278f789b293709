"""One training step: mixed precision, accumulated gradients, and clipping of the global norm."""

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["StepTrainer", "amp_dtype", "wrap_ddp"]

_LOG_PERIOD = 20
_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    """Return the dtype of mixed precision that ``cfg.SOLVER.AMP`` requires; None if it is off.

    Raises:
        ValueError: ``SOLVER.AMP.DTYPE`` is unknown, or float16 on the CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    on_cpu = torch.device(cfg.MODEL.DEVICE).type == "cpu"
    name = cfg.SOLVER.AMP.DTYPE
    if name == "auto":
        name = "bfloat16" if on_cpu else "float16"
    if name not in _AMP_DTYPES:
        raise ValueError(
            f"SOLVER.AMP.DTYPE is {cfg.SOLVER.AMP.DTYPE}; allowed: auto, {', '.join(_AMP_DTYPES)}"
        )
    if on_cpu and name == "float16":
        raise ValueError("SOLVER.AMP.DTYPE is float16; allowed on the CPU: auto, bfloat16")
    return _AMP_DTYPES[name]


def wrap_ddp(model: nn.Module) -> nn.Module:
    """Return ``model`` for data-parallel training, or ``model`` itself in a single process.

    detectron2's ``create_ddp_model`` passes a device id, which DDP refuses for a model on the CPU.
    """
    if comm.get_world_size() == 1:
        return model
    on_gpu = next(model.parameters()).is_cuda
    return DistributedDataParallel(
        model, device_ids=[comm.get_local_rank()] if on_gpu else None, broadcast_buffers=False
    )


class StepTrainer(SimpleTrainer):
    """detectron2's SimpleTrainer with autocast, accumulated gradients and a global gradient clip.

    Only float16 uses a gradient scaler; bfloat16 has the range of float32.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        amp_dtype: torch.dtype | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        norm_type: float = 2.0,
    ) -> None:
        """Initialize the step.

        Args:
            model: model that returns a dict of losses for a batch.
            data_loader: endless source of batches.
            optimizer: optimizer of the parameters of ``model``.
            amp_dtype: precision of autocast; None trains in the precision of the parameters.
            accumulate: number of equal parts into which a batch is split. The model runs on one
                after another, and the optimizer steps once, with the mean of their gradients.
            clip_norm: upper limit of the norm of all gradients, which are scaled down to it; None
                does not clip.
            norm_type: the p of that norm.
        """
        super().__init__(model, data_loader, optimizer)
        self.amp_dtype = amp_dtype
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.norm_type = norm_type
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(
            self.device_type, enabled=amp_dtype is torch.float16
        )

    def run_step(self) -> None:
        """Run the forward and backward passes of one batch, and one optimizer step.

        Raises:
            ValueError: the batch cannot be split into ``accumulate`` equal parts.
        """
        assert self.model.training, "the model was left in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        self.optimizer.zero_grad()
        losses = self._backward(_split(data, self.accumulate))
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._clip_gradients()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, parts: Sequence[Sequence[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        """Add up the gradients of the mean loss of ``parts``; return the mean of each loss."""
        means: dict[str, torch.Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self._synchronized(number == len(parts)):
                with torch.autocast(
                    self.device_type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
                ):
                    losses = self.model(part)
                self.grad_scaler.scale(sum(losses.values()) / len(parts)).backward()
            for name, loss in losses.items():
                share = loss.detach() / len(parts)
                means[name] = means[name] + share if name in means else share
        return means

    def _synchronized(self, enabled: bool) -> contextlib.AbstractContextManager[None]:
        """Return a context in which DDP averages gradients over the processes, if ``enabled``."""
        if enabled or not isinstance(self.model, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.model.no_sync()

    def _clip_gradients(self) -> None:
        if self.clip_norm is None:
            return
        self.grad_scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip_norm, self.norm_type)
        storage = get_event_storage()
        if storage.iter % _LOG_PERIOD == 0:  # put_scalar waits for the device
            storage.put_scalar("grad_norm", norm.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _split(batch: Sequence[dict[str, Any]], parts: int) -> list[Sequence[dict[str, Any]]]:
    """Split a batch into ``parts`` equal ones, in its order."""
    size, rest = divmod(len(batch), parts)
    if rest or not size:
        raise ValueError(f"a batch of {len(batch)} images cannot be split into {parts} equal parts")
    return [batch[start : start + size] for start in range(0, len(batch), size)]
