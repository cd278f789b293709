"""Hooks that detectron2 lacks, or whose state it does not restore when a run is resumed."""

import logging
import math
import os
import random
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from timm.utils import ModelEmaV3
from torch import nn

from ..data.loader import sample_seed

__all__ = ["BestCheckpoint", "EMAHook", "SeedPerIteration", "build_ema"]

logger = logging.getLogger(__name__)


class SeedPerIteration(HookBase):
    """Seeds the global generators before every step, from seed, iteration and rank.

    The random numbers of a step (sampled proposals, dropout) then do not depend on earlier draws,
    for example those of an evaluation or of the first half of an interrupted run.
    """

    def __init__(self, seed: int) -> None:
        """Initialize the hook.

        Args:
            seed: seed of the run, the same in all processes. :meth:`load_state_dict` replaces it.
        """
        self.seed = seed

    def before_step(self) -> None:
        """Seed the generators of Python, numpy and torch."""
        seed = sample_seed(self.seed, self.trainer.iter, comm.get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the seed of the run."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Use the seed of the run that is resumed."""
        self.seed = state_dict["seed"]


class BestCheckpoint(HookBase):
    """Keeps ``model_best.pth``, the checkpoint with the highest value of a metric so far.

    It must follow EvalHook and has the same schedule. detectron2's BestCheckpointer forgets the
    best value when a run is resumed, and makes the best checkpoint the one to resume from.
    """

    def __init__(self, eval_period: int, checkpointer: Checkpointer, metric: str) -> None:
        """Initialize the hook.

        Args:
            eval_period: period of the EvalHook in iterations; 0 means the last iteration only.
            checkpointer: checkpointer that saves the checkpoint.
            metric: name in the event storage, such as "bbox/AP"; higher is better.
        """
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = metric
        self.best_value: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        """Compare the metric if it has just been computed."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter < self.trainer.max_iter:
            self._check(self.trainer.iter)

    def after_train(self) -> None:
        """Compare the metric of a run that was not interrupted."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check(self.trainer.max_iter - 1)

    def _check(self, iteration: int) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            known = sorted(name for name in self.trainer.storage.latest() if "/AP" in name)
            logger.warning(
                "TEST.BEST_METRIC is '%s'; allowed: the metrics of this evaluation, %s",
                self._metric,
                ", ".join(known) or "which has no AP",
            )
            return
        value = latest[0]
        if not math.isfinite(value) or (self.best_value is not None and value <= self.best_value):
            return
        self.best_value, self.best_iter = value, iteration
        resume_from = self._checkpointer.get_checkpoint_file()
        self._checkpointer.save("model_best", iteration=iteration)
        if resume_from and os.path.isfile(resume_from):
            self._checkpointer.tag_last_checkpoint(os.path.basename(resume_from))
        logger.info("New best %s: %.3f at iteration %d", self._metric, value, iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far and its iteration."""
        return {"best_value": self.best_value, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.best_value = state_dict["best_value"]
        self.best_iter = state_dict["best_iter"]


class EMAHook(HookBase):
    """Keeps an exponential moving average of a model's weights and buffers.

    After every step, average = decay * average + (1 - decay) * weights. The ``model`` of a
    checkpoint is the average, so a program that loads it gets the weights that were evaluated. The
    weights that training continues from are in the state of this hook.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool) -> None:
        """Initialize the average with the weights of ``model``.

        Args:
            model: model that is trained, without DistributedDataParallel around it.
            decay: decay of the average, in [0, 1).
            warmup: begin with a small decay, which grows as 1 - (1 + iteration) ** (-2 / 3) up to
                ``decay``, so that the random initial weights are soon forgotten.
        """
        self._model = model
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=warmup)
        # In training mode, as the model itself: initial weights need not be complete then.
        self.averaged: nn.Module = self._ema.module.train().requires_grad_(False)
        self._resumed = False

    def before_train(self) -> None:
        """Copy the loaded weights from the average, where the checkpointer put them."""
        if not self._resumed:
            self._model.load_state_dict(self.averaged.state_dict())

    def after_step(self) -> None:
        """Update the average. After the first iteration it equals the weights."""
        self._ema.update(self._model, step=self.trainer.iter + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the trained weights; the average is the ``model`` of the checkpoint."""
        return {"trained": self._model.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._model.load_state_dict(state_dict["trained"])
        self._resumed = True


def build_ema(cfg: CfgNode, model: nn.Module) -> EMAHook | None:
    """Return the hook that ``SOLVER.EMA`` describes; None if it is off.

    Raises:
        ValueError: a key of ``SOLVER.EMA`` has a value that is not allowed, or precise BN is
            enabled too, whose statistics are not those of the averaged weights.
    """
    ema = cfg.SOLVER.EMA
    if not ema.ENABLED:
        return None
    if not 0 <= ema.DECAY < 1:
        raise ValueError(f"SOLVER.EMA.DECAY is {ema.DECAY}; allowed: at least 0 and below 1")
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "TEST.PRECISE_BN.ENABLED is True; allowed with SOLVER.EMA.ENABLED: False (its "
            "statistics belong to the trained weights, not to their average)"
        )
    return EMAHook(model, decay=ema.DECAY, warmup=ema.WARMUP)
