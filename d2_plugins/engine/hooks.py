"""Hooks that detectron2 does not have, or whose state a resumed run would miss."""

import logging
import math
import os
import random
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer

from ..data.loader import sample_seed

__all__ = ["BestCheckpoint", "SeedPerIteration"]

logger = logging.getLogger(__name__)


class SeedPerIteration(HookBase):
    """Seeds the global generators before every step, from seed, iteration and rank.

    What a step draws (sampled proposals, dropout) then does not depend on what ran before it, be
    it an evaluation or the first half of an interrupted run.
    """

    def __init__(self, seed: int) -> None:
        """Args:
        seed: of the run; equal in all processes. :meth:`load_state_dict` replaces it.
        """
        self.seed = seed

    def before_step(self) -> None:
        """Seed Python's, numpy's and torch's generators."""
        seed = sample_seed(self.seed, self.trainer.iter, comm.get_rank())
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    def state_dict(self) -> dict[str, Any]:
        """The seed of the run."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seed of the run that is resumed."""
        self.seed = state_dict["seed"]


class BestCheckpoint(HookBase):
    """Keeps ``model_best.pth``, the checkpoint with the highest value of a metric so far.

    Stands right behind EvalHook and has its schedule. detectron2's BestCheckpointer forgets what
    is to be beaten when a run resumes, and makes the best checkpoint the one to resume from.
    """

    def __init__(self, eval_period: int, checkpointer: Checkpointer, metric: str) -> None:
        """Args:
        eval_period: of the EvalHook; 0 looks after the last iteration only.
        checkpointer: saves the checkpoint.
        metric: a name in the event storage, such as "bbox/AP"; higher is better.
        """
        self._period = eval_period
        self._checkpointer = checkpointer
        self._metric = metric
        self.best_value: float | None = None
        self.best_iter: int | None = None

    def after_step(self) -> None:
        """Look at the metric if it has just been computed."""
        next_iter = self.trainer.iter + 1
        if self._period > 0 and next_iter % self._period == 0 and next_iter < self.trainer.max_iter:
            self._check(self.trainer.iter)

    def after_train(self) -> None:
        """Look at the metric of a run that came to its end."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check(self.trainer.max_iter - 1)

    def _check(self, iteration: int) -> None:
        latest = self.trainer.storage.latest().get(self._metric)
        if latest is None:
            known = sorted(name for name in self.trainer.storage.latest() if "/AP" in name)
            logger.warning(
                "TEST.BEST_METRIC is '%s', which the evaluation did not give; it gave: %s",
                self._metric,
                ", ".join(known) or "no AP",
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
        """The best value so far and the iteration it was reached at."""
        return {"best_value": self.best_value, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best_value = state_dict["best_value"]
        self.best_iter = state_dict["best_iter"]
