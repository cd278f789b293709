"""Hooks that detectron2 does not have, or whose state a resumed run would miss."""

import random
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm

from ..data.loader import sample_seed

__all__ = ["BestCheckpoint", "SeedPerIteration"]


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


class BestCheckpoint(BestCheckpointer):
    """detectron2's BestCheckpointer, which after a resume still knows what is to be beaten."""

    def state_dict(self) -> dict[str, Any]:
        """The best value so far and the iteration it was reached at."""
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.best_metric = state_dict["best_metric"]
        self.best_iter = state_dict["best_iter"]
