"""Hooks that detectron2 lacks, or whose state it does not restore when a run is resumed."""

import logging
import math
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter
from fvcore.common.checkpoint import Checkpointer
from timm.utils import ModelEmaV3
from torch import nn

from ..data.loader import sample_seed
from ..progress import ProgressBar

__all__ = [
    "BestCheckpoint",
    "EMAHook",
    "EarlyStopping",
    "MetricWriter",
    "Progress",
    "SeedPerIteration",
    "StopTraining",
    "build_ema",
]

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

    Attributes:
        best_value: highest finite value of the metric; None before the first one.
        best_iter: iteration of the weights that reached it.
        not_better: number of evaluations since then.
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
        self.metric = metric
        self.best_value: float | None = None
        self.best_iter: int | None = None
        self.not_better = 0
        self._last_iter: int | None = None

    def after_step(self) -> None:
        """Compare the metric if it has just been computed."""
        if _is_evaluated(self.trainer, self._period):
            self._check(self.trainer.iter, f"model_{self.trainer.iter:07d}")

    def after_train(self) -> None:
        """Compare the metric of a run that was not interrupted."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check(self.trainer.max_iter - 1, "model_final")

    def _check(self, iteration: int, checkpoint: str) -> None:
        latest = self.trainer.storage.latest().get(self.metric)
        if latest is None:
            known = sorted(name for name in self.trainer.storage.latest() if "/AP" in name)
            logger.warning(
                "TEST.BEST_METRIC is '%s'; allowed: the metrics of this evaluation, %s",
                self.metric,
                ", ".join(known) or "which has no AP",
            )
            return
        if iteration == self._last_iter:  # the same weights, evaluated again
            return
        self._last_iter = iteration
        self._compare(latest[0], iteration)
        self._save_again(checkpoint, iteration)

    def _compare(self, value: float, iteration: int) -> None:
        if not math.isfinite(value) or (self.best_value is not None and value <= self.best_value):
            self.not_better += 1
            return
        self.best_value, self.best_iter, self.not_better = value, iteration, 0
        resume_from = self._checkpointer.get_checkpoint_file()
        self._checkpointer.save("model_best", iteration=iteration)
        if resume_from and os.path.isfile(resume_from):
            self._checkpointer.tag_last_checkpoint(os.path.basename(resume_from))
        logger.info("New best %s: %.3f at iteration %d", self.metric, value, iteration)

    def _save_again(self, name: str, iteration: int) -> None:
        """Save the checkpoint of this iteration again, so that it holds the new state.

        It was saved before the evaluation, which may fail.
        """
        if Path(self._checkpointer.get_checkpoint_file()).stem == name:
            self._checkpointer.save(name, iteration=iteration)

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, its iteration, and what followed it."""
        return {
            "best_value": self.best_value,
            "best_iter": self.best_iter,
            "not_better": self.not_better,
            "last_iter": self._last_iter,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, also in a version without the last two."""
        self.best_value = state_dict["best_value"]
        self.best_iter = state_dict["best_iter"]
        self.not_better = state_dict.get("not_better", 0)
        self._last_iter = state_dict.get("last_iter")


def _is_evaluated(trainer: TrainerBase, period: int) -> bool:
    """Return True if EvalHook with this period has just evaluated, in its ``after_step``."""
    next_iter = trainer.iter + 1
    return period > 0 and next_iter % period == 0 and next_iter < trainer.max_iter


class StopTraining(BaseException):
    """Raised by a hook to end a training in order; not an error, so not an Exception."""


class EarlyStopping(HookBase):
    """Ends the training if the metric of :class:`BestCheckpoint` no longer improves.

    It must follow BestCheckpoint and belongs into all processes, which stop together. The run then
    ends as one whose last iteration was planned: with ``model_final.pth`` and a last evaluation.
    """

    def __init__(
        self,
        patience: int,
        eval_period: int,
        checkpointer: Checkpointer,
        best: BestCheckpoint | None,
    ) -> None:
        """Initialize the hook.

        Args:
            patience: number of evaluations without a better value after which the training ends.
            eval_period: period of the EvalHook in iterations, at least 1.
            checkpointer: checkpointer that saves the last checkpoint.
            best: the hook with the best value in the main process; None in the others.
        """
        self._patience = patience
        self._period = eval_period
        self._checkpointer = checkpointer
        self._best = best

    def before_train(self) -> None:
        """Stop at once if the resumed run had been stopped, and its patience is not greater now."""
        self._stop_if_it_is_time(self.trainer.start_iter)

    def after_step(self) -> None:
        """Stop if the metric has just been computed and was not better for too long."""
        if _is_evaluated(self.trainer, self._period):
            self._stop_if_it_is_time(self.trainer.iter + 1)

    def _stop_if_it_is_time(self, next_iter: int) -> None:
        """Announce the end of the training after ``next_iter`` iterations."""
        not_better = self._best.not_better if self._best else 0
        if max(comm.all_gather(not_better)) < self._patience:
            return
        if self._best:
            logger.info(
                "Stopped after %d of %d iterations: %s was not better than %s (iteration %s) in %d "
                "evaluation%s in a row; TEST.EARLY_STOP_PATIENCE is %d",
                next_iter,
                self.trainer.max_iter,
                self._best.metric,
                "none" if self._best.best_value is None else f"{self._best.best_value:.3f}",
                self._best.best_iter,
                not_better,
                "s" * (not_better > 1),
                self._patience,
            )
        self.trainer.max_iter = next_iter
        self._checkpointer.save("model_final", iteration=next_iter - 1)

    def before_step(self) -> None:
        """Leave the loop before the first iteration that is not wanted."""
        if self.trainer.iter >= self.trainer.max_iter:
            raise StopTraining


class Progress(HookBase):
    """Shows a bar with the loss and the remaining time, if the output is a terminal.

    It must precede EvalHook.
    """

    def __init__(self) -> None:
        self._bar: ProgressBar | None = None

    def before_step(self) -> None:
        """Open the bar."""
        if self._bar is None:
            self._bar = ProgressBar(
                total=self.trainer.max_iter, initial=self.trainer.iter, desc="training", unit="it"
            )

    def after_step(self) -> None:
        """Show this iteration."""
        loss = self.trainer.storage.latest().get("total_loss")
        if self._bar is not None:
            if loss:
                self._bar.set_postfix_str(f"loss {loss[0]:.4g}", refresh=False)
            self._bar.update()

    def hide(self) -> None:
        """Remove the bar from the screen until the next iteration."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def after_train(self) -> None:
        """Remove the bar from the screen."""
        self.hide()


class MetricWriter(hooks.PeriodicWriter):
    """PeriodicWriter that also writes the first iteration, so that curves start where the run does.

    Without it the first loss is that of the 20th iteration, a mean over all before it.
    """

    def after_step(self) -> None:
        """Write in the first iteration, in every ``period``-th and in the last one."""
        if self.trainer.iter == self.trainer.start_iter:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()

    def after_train(self) -> None:
        """Write what is new, and close the writers.

        The printer only closes: it prints iterations, and has printed the last one.
        """
        for writer in self._writers:
            if not isinstance(writer, CommonMetricPrinter):
                writer.write()
            writer.close()


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
