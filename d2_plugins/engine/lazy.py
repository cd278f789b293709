"""Training and evaluation of a LazyConfig.

The functions of detectron2's lazyconfig_train_net with this package's step, checkpoints and
launch: they also train on a CPU, load weights by name, and clip the norm of the whole gradient.
"""

from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ..checkpoint import PluginCheckpointer
from ..errors import UsageError, nearest
from ..model_zoo import find_config
from ..progress import with_progress
from .hooks import MetricWriter, Progress
from .train_step import StepTrainer, wrap_ddp

__all__ = ["evaluate", "load_lazy_config", "train"]


def load_lazy_config(config_file: str, overrides: list[str], *, on_cpu: bool = False) -> DictConfig:
    """Load a LazyConfig and set its device to the CPU if there is no GPU.

    Args:
        config_file: a path, or a name of the zoo such as "lazy/csp_cascade.py".
        overrides: ``key=value`` pairs; ``+key=value`` adds a key that your own config reads.
        on_cpu: use the CPU in any case.

    Raises:
        UsageError: the file does not exist or is not a LazyConfig, an override cannot be parsed,
            or it names a key that does not exist.
    """
    if not config_file.endswith(".py"):
        raise UsageError(f"'{config_file}' is not a LazyConfig: its name does not end in .py")
    cfg = LazyConfig.load(find_config(config_file))
    for override in overrides:
        if not override.startswith("+"):
            _check_key(cfg, override.partition("=")[0])
    try:
        cfg = LazyConfig.apply_overrides(cfg, overrides)
    except Exception as error:  # hydra's parser has exceptions of its own
        raise UsageError(f"{' '.join(overrides)}: {error}") from error
    if on_cpu or not torch.cuda.is_available():
        cfg.train.device = "cpu"
    return cfg


def _check_key(cfg: DictConfig, key: str) -> None:
    """Refuse a new key, which OmegaConf adds silently, unless it is an argument of a call."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, ListConfig):
        return  # a wrong index is found when the override is applied
    if isinstance(node, DictConfig) and (name in node or "_target_" in node):
        return
    prefix = f"{parent}." if parent else ""
    known = [prefix + str(other) for other in node] if isinstance(node, DictConfig) else []
    raise UsageError(f"There is no config key '{key}'. Nearest: {nearest(key, known)}")


def train(cfg: DictConfig, *, resume: bool = False) -> dict[str, Any] | None:
    """Train the model of a LazyConfig, and evaluate it every ``train.eval_period`` iterations.

    Args:
        cfg: config with ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``,
            as detectron2's tool reads it. ``train.clip_norm`` and
            ``train.accumulate`` are keys of this package.
        resume: continue if ``train.output_dir`` has a checkpoint. The order of the data starts
            from the beginning.

    Returns:
        Results of the last evaluation; None without an evaluator.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    trainer = StepTrainer(
        wrap_ddp(model),
        instantiate(cfg.dataloader.train),
        instantiate(cfg.optimizer),
        amp_dtype=_amp_dtype(cfg),
        accumulate=cfg.train.get("accumulate", 1),
        clip_norm=cfg.train.get("clip_norm"),
    )
    checkpointer = PluginCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results: dict[str, Any] = {}
    progress = Progress()

    def test() -> dict[str, Any] | None:
        progress.hide()
        results.update(evaluate(cfg, model) or {})
        return results or None

    is_main = comm.is_main_process()
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) if is_main else []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            progress,
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
            hooks.EvalHook(cfg.train.eval_period, test),
            MetricWriter(writers, period=cfg.train.log_period) if is_main else None,
        ]
    )
    found = resume and checkpointer.has_checkpoint()
    checkpointer.resume_or_load(
        cfg.train.init_checkpoint, resume=resume, key="train.init_checkpoint"
    )
    trainer.train(trainer.iter + 1 if found else 0, cfg.train.max_iter)
    return results or None


def evaluate(cfg: DictConfig, model: nn.Module) -> dict[str, Any] | None:
    """Evaluate on ``dataloader.test`` with ``dataloader.evaluator``; None without one."""
    if "evaluator" not in cfg.dataloader:
        return None
    loader = with_progress(instantiate(cfg.dataloader.test), "evaluating")
    evaluator = instantiate(cfg.dataloader.evaluator)
    results: dict[str, Any] = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def _amp_dtype(cfg: DictConfig) -> torch.dtype | None:
    if not cfg.train.amp.enabled:
        return None
    return torch.bfloat16 if cfg.train.device == "cpu" else torch.float16
