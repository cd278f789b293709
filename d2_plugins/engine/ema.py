"""An exponential moving average of the weights, which is what a run evaluates and saves."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from timm.utils import ModelEmaV3
from torch import nn

__all__ = ["EMAHook", "build_ema"]


class EMAHook(HookBase):
    """Keeps the average of a model's weights and buffers over the iterations.

    After every step, average = decay * average + (1 - decay) * weights. A checkpoint's ``model``
    is the average, so whatever loads it gets what was evaluated; the weights that training goes on
    from stand in the hook's own state.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool) -> None:
        """Args:
        model: the one that is trained, without DistributedDataParallel around it.
        decay: of the average, in [0, 1).
        warmup: begin with a small decay, which grows as 1 - (1 + iteration) ** (-2 / 3) up to
            ``decay``; the first weights, which are random, then are soon forgotten.
        """
        self._model = model
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=warmup)
        # In training mode, as the model itself: weights to start from need not fill all of it.
        self.averaged: nn.Module = self._ema.module.train().requires_grad_(False)
        self._resumed = False

    def before_train(self) -> None:
        """Train the weights that were loaded, which the checkpointer gave to the average."""
        if not self._resumed:
            self._model.load_state_dict(self.averaged.state_dict())

    def after_step(self) -> None:
        """Update the average. In the first iteration it is the weights themselves."""
        self._ema.update(self._model, step=self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        """The weights that are trained; the average is the checkpoint's ``model``."""
        return {"trained": self._model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._model.load_state_dict(state_dict["trained"])
        self._resumed = True


def build_ema(cfg: CfgNode, model: nn.Module) -> EMAHook | None:
    """The hook that ``SOLVER.EMA`` asks for; None when it is off.

    Raises:
        ValueError: a key of ``SOLVER.EMA`` has a value that is not allowed, or precise BN, whose
            statistics are not those of the average, is on too.
    """
    ema = cfg.SOLVER.EMA
    if not ema.ENABLED:
        return None
    if not 0 <= ema.DECAY < 1:
        raise ValueError(f"SOLVER.EMA.DECAY is {ema.DECAY}; allowed: at least 0 and below 1")
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "SOLVER.EMA.ENABLED and TEST.PRECISE_BN.ENABLED are both set, but the statistics of "
            "precise BN belong to other weights than the average; choose one"
        )
    return EMAHook(model, decay=ema.DECAY, warmup=ema.WARMUP)
