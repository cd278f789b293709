"""The trainer: detectron2's DefaultTrainer on GPU and CPU, resumable to the same weights."""

import logging
import os
import shutil
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from torch import nn

from ..checkpoint import PluginCheckpointer
from ..data.loader import TrainLoader, build_train_loader
from ..data.mapper import PluginDatasetMapper
from ..errors import UsageError
from ..evaluation import ProposalRecorder, build_evaluator, evaluate_corruptions, evaluate_tta
from .ema import build_ema
from .hooks import BestCheckpoint, SeedPerIteration
from .train_step import StepTrainer, amp_dtype, wrap_ddp

__all__ = ["Trainer", "merge_results", "scale_to_world_size"]

logger = logging.getLogger(__name__)

# CLIP_GRADIENTS.CLIP_TYPE of detectron2 is "value" or "norm", both per parameter.
_CLIP_FULL_MODEL = "full_model"


class Trainer(DefaultTrainer):
    """Trains what a config describes; see DefaultTrainer for the use.

    What it adds: data-parallel training on CPUs, mixed precision on either device, clipping of
    the whole model's gradient norm (``SOLVER.CLIP_GRADIENTS.CLIP_TYPE: "full_model"``), an average
    of the weights that is evaluated and saved in their place (``SOLVER.EMA``), atomic checkpoints,
    the best checkpoint by ``TEST.BEST_METRIC``, and runs that depend on ``SEED`` and the iteration
    alone: a resumed run ends with the weights of an uninterrupted one (bit for bit on a CPU).
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Args:
        cfg: the whole config, scaled to the number of processes here.
        """
        # Skip DefaultTrainer.__init__, which builds DDP for GPUs only, not TrainerBase's.
        super(DefaultTrainer, self).__init__()
        cfg = scale_to_world_size(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        clip = cfg.SOLVER.CLIP_GRADIENTS
        clip_full_model = clip.ENABLED and clip.CLIP_TYPE == _CLIP_FULL_MODEL
        self._trainer = StepTrainer(
            wrap_ddp(model),
            loader,
            optimizer,
            amp_dtype=amp_dtype(cfg),
            clip_norm=clip.CLIP_VALUE if clip_full_model else None,
            norm_type=clip.NORM_TYPE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._ema = build_ema(cfg, model)
        self.checkpointer = PluginCheckpointer(
            self._ema.averaged if self._ema else model,
            cfg.OUTPUT_DIR,
            allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._seeds = SeedPerIteration(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        self.register_hooks([self._seeds, *self.build_hooks()])

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue the run in ``OUTPUT_DIR``, or start one from ``MODEL.WEIGHTS``.

        Args:
            resume: continue if ``OUTPUT_DIR`` holds a checkpoint.

        Raises:
            UsageError: not all processes would start from the same iteration.
        """
        found = self.checkpointer.has_checkpoint()
        super().resume_or_load(resume=resume)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:  # they would average the gradients of different models
            raise UsageError(
                f"--resume: the processes would start from the iterations {starts}. OUTPUT_DIR "
                f"must be one folder that all machines see, not {self.cfg.OUTPUT_DIR} on each"
            )
        if resume and found:
            logger.info("Resuming from iteration %d of %d", self.start_iter, self.max_iter)
        elif resume:
            logger.warning("--resume: no checkpoint in %s; starting anew", self.cfg.OUTPUT_DIR)
        elif found:
            logger.warning(
                "%s holds checkpoints of an earlier run, which this one replaces; "
                "--resume would continue it",
                self.cfg.OUTPUT_DIR,
            )
        if self.start_iter == 0 and comm.is_main_process():
            _set_aside(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seek(self.start_iter, self._seeds.seed)

    def train(self) -> dict[str, Any] | None:
        """Train from ``start_iter`` to ``max_iter``.

        Returns:
            The results of the last evaluation; None in all processes but the main one.
        """
        super().train()
        return getattr(self, "_last_eval_results", None) if comm.is_main_process() else None

    def build_hooks(self) -> list[hooks.HookBase]:
        """detectron2's hooks, and the best checkpoint right behind each evaluation.

        With ``SOLVER.EMA`` the average comes first, and it is what is evaluated.
        """
        built = [hook for hook in super().build_hooks() if hook is not None]
        evaluation = max(i for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
        metric = self.cfg.TEST.BEST_METRIC
        if metric and comm.is_main_process():
            best = BestCheckpoint(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, metric)
            built.insert(evaluation + 1, best)
        if self.cfg.TEST.AUG.ENABLED:
            built.insert(evaluation + 1, hooks.EvalHook(0, self._test_augmented))
        built[evaluation] = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test)
        if self._ema is not None:
            built.insert(0, self._ema)
        return built

    @property
    def _tested_model(self) -> nn.Module:
        return self.model if self._ema is None else self._ema.averaged

    def _test(self) -> dict[str, Any]:
        self._last_eval_results = self.test(self.cfg, self._tested_model)
        return self._last_eval_results

    def _test_augmented(self) -> dict[str, Any]:
        results = self.test_augmented(self.cfg, self._tested_model)
        self._last_eval_results = merge_results(self._last_eval_results, results)
        return results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """detectron2's optimizer; the full-model clip is the step's business, not its own."""
        if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == _CLIP_FULL_MODEL:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Our seekable loader with our mapper."""
        return build_train_loader(cfg, PluginDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """detectron2's test loader with our mapper."""
        mapper = PluginDatasetMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator for the type of ``dataset_name``, writing under ``OUTPUT_DIR``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate on ``DATASETS.TEST``; with ``TEST.CORRUPTIONS``, on corrupted images too.

        Args:
            cfg: the whole config.
            model: with its weights loaded.
            evaluators: one per data set; None builds what the config asks for.

        Returns:
            As DefaultTrainer.test: metrics by task, by data set first if there are several. The
            tasks on corrupted images are called ``bbox_occlusion`` and so on.
        """
        if evaluators is None and cfg.TEST.PROPOSAL_RECALL:
            model = ProposalRecorder(model)
        results = super().test(cfg, model, evaluators)
        if evaluators is None and cfg.TEST.CORRUPTIONS:
            mapper = PluginDatasetMapper(cfg, is_train=False)
            results = evaluate_corruptions(cfg, model, mapper, results)
        return results

    @classmethod
    def test_augmented(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate on ``DATASETS.TEST`` with the test-time augmentation of ``TEST.AUG``.

        :meth:`train` does it once, at its end, if ``TEST.AUG.ENABLED``.

        Args:
            cfg: the whole config.
            model: with its weights loaded.

        Returns:
            As :meth:`test`, the tasks called ``bbox_TTA`` and so on.
        """
        return evaluate_tta(cfg, model, lambda cfg: PluginDatasetMapper(cfg, is_train=False))


def merge_results(results: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Metrics by task, or by data set and task, with more tasks added."""
    return results | {name: results.get(name, {}) | metrics for name, metrics in more.items()}


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Scale batch, learning rate and schedule from ``SOLVER.REFERENCE_WORLD_SIZE`` processes.

    The rule is detectron2's (linear scaling, arXiv 1706.02677); this says in one line what it did.

    Args:
        cfg: the config; not changed.
        world_size: number of processes of this run.

    Returns:
        A scaled copy, or ``cfg`` itself where there is nothing to scale.
    """
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size)
    if scaled is not cfg:
        keys = ("IMS_PER_BATCH", "BASE_LR", "MAX_ITER", "STEPS", "WARMUP_ITERS")
        changes = ", ".join(f"{key} {cfg.SOLVER[key]} -> {scaled.SOLVER[key]}" for key in keys)
        logger.info(
            "Scaled from SOLVER.REFERENCE_WORLD_SIZE %d to %d process(es): %s",
            cfg.SOLVER.REFERENCE_WORLD_SIZE,
            world_size,
            changes,
        )
    return scaled


def _set_aside(path: str) -> None:
    """Move the content of an earlier run's file to a numbered one beside it.

    The file itself stays, empty: a writer of the new run has it open already, for appending.
    """
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return
    stem, extension = os.path.splitext(path)
    number = 1
    while os.path.exists(f"{stem}.{number}{extension}"):
        number += 1
    shutil.copyfile(path, f"{stem}.{number}{extension}")
    os.truncate(path, 0)
