"""Trainer for GPU and CPU whose resumed runs end with the same weights."""

import contextlib
import logging
import os
import shutil
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn

from ..checkpoint import PluginCheckpointer
from ..config_conflicts import check_combinations
from ..data.classes import Classes
from ..data.loader import TrainLoader, build_test_loader, build_train_loader
from ..data.mapper import PluginDatasetMapper
from ..errors import UsageError, model_errors
from ..evaluation import (
    ProposalRecorder,
    build_evaluator,
    evaluate_corruptions,
    evaluate_tta,
    merge_results,
)
from ..modeling.roi_heads.double_head_box_head import ConvHead
from ..progress import with_progress
from .hooks import (
    BestCheckpoint,
    EarlyStopping,
    MetricWriter,
    Progress,
    SeedPerIteration,
    StopTraining,
    build_ema,
)
from .train_step import StepTrainer, amp_dtype, wrap_ddp
from .writers import build_run_writers, forget_runs

__all__ = ["Trainer", "scale_to_world_size"]

logger = logging.getLogger(__name__)

# CLIP_GRADIENTS.CLIP_TYPE of detectron2 is "value" or "norm", both per parameter.
_CLIP_FULL_MODEL = "full_model"


class Trainer(DefaultTrainer):
    """Trainer with the interface of detectron2's DefaultTrainer.

    It adds data-parallel training on CPUs, mixed precision on either device, accumulated gradients
    (``SOLVER.ACCUMULATE``), clipping of the gradient norm of the whole model
    (``SOLVER.CLIP_GRADIENTS.CLIP_TYPE: "full_model"``), an average of the weights that is evaluated
    and saved instead of them (``SOLVER.EMA``), atomic checkpoints, the best checkpoint by
    ``TEST.BEST_METRIC``, early stopping by it (``TEST.EARLY_STOP_PATIENCE``) and writers to
    tracking services (``OUTPUT_WRITERS``). A run depends only on ``SEED`` and the iteration: a
    resumed run ends with the weights of an uninterrupted one, bit for bit on a CPU.
    """

    _last_eval_results: dict[str, Any]

    def __init__(self, cfg: CfgNode) -> None:
        """Build model, optimizer, data loader, checkpointer and hooks.

        Args:
            cfg: the whole config; it is scaled to the number of processes here.

        Raises:
            UsageError: values of ``cfg`` do not work together, or not with the number of processes.
        """
        # TrainerBase.__init__ instead of DefaultTrainer's, which builds DDP for GPUs only.
        super(DefaultTrainer, self).__init__()
        cfg = scale_to_world_size(cfg, comm.get_world_size())
        _check_parts(cfg, comm.get_world_size())
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
            accumulate=cfg.SOLVER.ACCUMULATE,
            clip_norm=clip.CLIP_VALUE if clip_full_model else None,
            norm_type=clip.NORM_TYPE,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._ema = build_ema(cfg, model)
        self._classes = Classes.of_config(cfg)  # known once the loader has read the dataset
        self.checkpointer = PluginCheckpointer(
            self._ema.averaged if self._ema else model,
            cfg.OUTPUT_DIR,
            allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING,
            trainer=weakref.proxy(self),
            constants={"classes": self._classes.state_dict()} if self._classes else {},
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._progress = Progress()
        self._evaluated_iters = 0
        self._seeds = SeedPerIteration(cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())
        self.register_hooks(self.build_hooks())

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
                f"must be one folder that all machines see, and {self.cfg.OUTPUT_DIR} is not"
            )
        if resume and found:
            logger.info("Resuming from iteration %d of %d", self.start_iter, self.max_iter)
        elif resume:
            logger.warning("--resume: %s has no checkpoint; starting from 0", self.cfg.OUTPUT_DIR)
        elif found:
            logger.warning(
                "%s has checkpoints of an earlier run, which this run replaces; "
                "--resume would continue that run",
                self.cfg.OUTPUT_DIR,
            )
        if self.start_iter == 0 and comm.is_main_process():
            _set_aside(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"))
            forget_runs(self.cfg.OUTPUT_DIR)
        if isinstance(self.data_loader, TrainLoader):
            self.data_loader.seek(self.start_iter, self._seeds.seed)

    def train(self) -> dict[str, Any] | None:
        """Train from ``start_iter`` to ``max_iter``, or until a hook stops the training.

        Returns:
            Results of the last evaluation; None in all processes except the main one.
        """
        if self._classes and comm.is_main_process():
            self._classes.write(self.cfg.OUTPUT_DIR)
        with contextlib.suppress(StopTraining):  # DefaultTrainer.train cannot be stopped
            super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
        if not comm.is_main_process():
            return None
        results = getattr(self, "_last_eval_results", None)
        if self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, results or {})
        return results

    def build_writers(self) -> list[EventWriter]:
        """Return detectron2's writers and those of ``OUTPUT_WRITERS``."""
        return [*super().build_writers(), *build_run_writers(self.cfg)]

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Return the hooks in the order in which they run; a None is skipped."""
        cfg, is_main = self.cfg, comm.is_main_process()
        period, metric = cfg.TEST.EVAL_PERIOD, cfg.TEST.BEST_METRIC
        best = BestCheckpoint(period, self.checkpointer, metric) if metric and is_main else None
        patience = cfg.TEST.EARLY_STOP_PATIENCE
        return [
            self._seeds,
            self._ema,
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._progress,
            # It changes the model, so it precedes checkpoint and evaluation.
            self._build_precise_bn(),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if is_main
            else None,
            # After the checkpoint, which is then available if the evaluation fails.
            hooks.EvalHook(period, self._evaluate),
            best,
            EarlyStopping(patience, period, self.checkpointer, best) if patience else None,
            # Last, because it writes the metrics of the evaluation.
            MetricWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def _build_precise_bn(self) -> hooks.PreciseBN | None:
        precise_bn = self.cfg.TEST.PRECISE_BN
        if not precise_bn.ENABLED or not get_bn_modules(self.model):
            return None
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        # A loader of its own, so that training does not miss the batches it uses.
        loader = self.build_train_loader(cfg)
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, precise_bn.NUM_ITER)

    def _evaluate(self) -> dict[str, Any]:
        """Evaluate the weights that are saved: with ``SOLVER.EMA``, their average.

        After a training that was stopped, its last evaluation is not repeated; only the test-time
        augmentation of ``TEST.AUG`` is missing then.
        """
        self._progress.hide()
        model = self.model if self._ema is None else self._ema.averaged
        is_last = self.iter + 1 >= self.max_iter
        iters = min(self.iter + 1, self.max_iter)
        if iters == self._evaluated_iters:
            new = self.test_augmented(self.cfg, model) if self.cfg.TEST.AUG.ENABLED else {}
            self._last_eval_results = merge_results(self._last_eval_results, new)
            return new
        self._last_eval_results = self.evaluate(self.cfg, model, augmented=is_last)
        self._evaluated_iters = iters
        return self._last_eval_results

    def state_dict(self) -> dict[str, Any]:
        """Return the state; after the last iteration, still with the number of that one."""
        return super().state_dict() | {"iteration": min(self.iter, self.max_iter - 1)}

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Return the model of ``cfg``, as DefaultTrainer does.

        Raises:
            UsageError: values of ``cfg`` do not work together, for example because detectron2's RoI
                heads would ignore one of them, or because a feature does not exist.
        """
        check_combinations(cfg)
        with model_errors():
            return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Return detectron2's optimizer; StepTrainer, not the optimizer, clips the full model."""
        if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == _CLIP_FULL_MODEL:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
        optimizer = build_optimizer(cfg, model)
        factor = cfg.MODEL.DOUBLE_HEAD.CONV_HEAD_LR_FACTOR
        if factor != 1:
            heads = [m for m in model.modules() if isinstance(m, ConvHead)]
            scale_learning_rate(optimizer, [p for m in heads for p in m.parameters()], factor)
        return optimizer

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        """Return a seekable loader; see :func:`~d2_plugins.data.loader.build_train_loader`."""
        return build_train_loader(cfg, PluginDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Return detectron2's test loader with this package's mapper, and a bar on a terminal."""
        mapper = PluginDatasetMapper(cfg, is_train=False)
        loader = build_test_loader(cfg, dataset_name, mapper)
        return with_progress(loader, f"evaluating {dataset_name}")

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Return the evaluator for ``dataset_name``; it writes under ``OUTPUT_DIR/inference``."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)

    @classmethod
    def evaluate(cls, cfg: CfgNode, model: nn.Module, *, augmented: bool = True) -> dict[str, Any]:
        """Run every evaluation that ``cfg.TEST`` asks for, in training and for ``--eval-only``.

        Args:
            cfg: the whole config.
            model: model with its weights loaded.
            augmented: include the test-time augmentation of ``TEST.AUG``, if it is enabled.
                Training does so after the last iteration only.

        Returns:
            Results of :meth:`test` and :meth:`test_augmented`.
        """
        results = cls.test(cfg, model)
        if augmented and cfg.TEST.AUG.ENABLED:
            results = merge_results(results, cls.test_augmented(cfg, model))
        return results

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: list[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluate on ``DATASETS.TEST``, and on corrupted images if ``TEST.CORRUPTIONS`` is set.

        Args:
            cfg: the whole config.
            model: model with its weights loaded.
            evaluators: one evaluator per dataset; None builds those that the config requires.

        Returns:
            Metrics by task, nested by dataset if there are several, as DefaultTrainer.test returns
            them. The tasks on corrupted images are named ``bbox_occlusion`` and so on.
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

        Args:
            cfg: the whole config.
            model: model with its weights loaded.

        Returns:
            Results as those of :meth:`test`, with tasks named ``bbox_TTA`` and so on.
        """
        return evaluate_tta(cfg, model, lambda cfg: PluginDatasetMapper(cfg, is_train=False))


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Scale batch, learning rate and schedule from ``SOLVER.REFERENCE_WORLD_SIZE`` processes.

    The rule is detectron2's linear scaling (arXiv 1706.02677). The changes are logged in one line.

    Args:
        cfg: the config; not changed.
        world_size: number of processes of this run.

    Returns:
        A scaled copy, or ``cfg`` itself if there is nothing to scale.
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


def _check_parts(cfg: CfgNode, world_size: int) -> None:
    """Check that the batch of a process can be split into ``SOLVER.ACCUMULATE`` parts."""
    batch, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if batch % world_size == 0 and batch // world_size % parts:
        raise UsageError(
            f"SOLVER.ACCUMULATE is {parts}; allowed: divisors of {batch // world_size}, the number "
            f"of images per process (SOLVER.IMS_PER_BATCH {batch} over {world_size} processes)"
        )


def _set_aside(path: str) -> None:
    """Move the content of an earlier run's file to a numbered file next to it.

    The file itself stays, empty: a writer of the new run already has it open for appending.
    """
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return
    stem, extension = os.path.splitext(path)
    number = 1
    while os.path.exists(f"{stem}.{number}{extension}"):
        number += 1
    shutil.copyfile(path, f"{stem}.{number}{extension}")
    os.truncate(path, 0)


def scale_learning_rate(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], factor: float
) -> None:
    """Move parameters of an optimizer that has not stepped yet to groups with a scaled rate.

    Args:
        optimizer: changed in place.
        parameters: the parameters; those that are frozen are ignored.
        factor: factor of their groups' learning rate.
    """
    chosen = set(parameters)
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if p in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if p not in chosen]
            optimizer.add_param_group(group | {"params": moved, "lr": group["lr"] * factor})
