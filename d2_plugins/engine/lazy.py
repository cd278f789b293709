"""What tools/lazyconfig_train_net.py runs: training and evaluation of a LazyConfig.

detectron2's lazyconfig_train_net with this package's step, checkpoints and launch: it trains on a
CPU too, loads weights by name, and clips the norm of the whole gradient.
"""

import argparse
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_argument_parser, default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from ..checkpoint import PluginCheckpointer
from .arguments import check_launch
from .cli import exit_status
from .config_files import find_config, nearest
from .errors import UsageError, usage_errors
from .launch import launch_as
from .train_loop import StepTrainer, wrap_ddp

__all__ = ["evaluate", "load_lazy_config", "main", "train"]

_EXAMPLE = """
Example:
    $ tools/lazyconfig_train_net.py --config-file configs/lazy/csp_cascade.py --num-gpus 8 \\
        train.output_dir=output/run
"""


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate as the command line says.

    Args:
        argv: the arguments, those of detectron2's tool; None takes those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the command line, the config or the data.
    """
    parser = default_argument_parser(_EXAMPLE)
    parser.description = "Train or evaluate a LazyConfig; opts are key=value pairs."
    parser.set_defaults(dist_url="auto")
    args = parser.parse_args(argv)
    check_launch(parser, args)
    return exit_status(_launch, args)


def _launch(args: argparse.Namespace) -> int:
    launch_as(args, _run, use_cpu=_cfg_of(args).train.device == "cpu")
    return 0


def load_lazy_config(config_file: str, overrides: list[str], *, on_cpu: bool = False) -> DictConfig:
    """A LazyConfig, on the CPU where there is no GPU.

    Args:
        config_file: a path, or a zoo name such as "lazy/csp_cascade.py".
        overrides: ``key=value`` pairs; ``+key=value`` adds a key that a config of yours reads.
        on_cpu: on the CPU in any case.

    Raises:
        UsageError: there is no such file, it is no LazyConfig, or an override cannot be read or
            names a key that nothing reads.
    """
    if not config_file.endswith(".py"):
        raise UsageError(f"'{config_file}' is no LazyConfig, whose name ends in .py")
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
    """Refuse a new key, which OmegaConf adds without a word, unless it is an argument of a call."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if isinstance(node, ListConfig):
        return  # applying the override finds a wrong index
    if isinstance(node, DictConfig) and (name in node or "_target_" in node):
        return
    prefix = f"{parent}." if parent else ""
    known = [prefix + str(other) for other in node] if isinstance(node, DictConfig) else []
    raise UsageError(f"There is no config key '{key}'. Nearest: {nearest(key, known)}")


def _cfg_of(args: argparse.Namespace) -> DictConfig:
    return load_lazy_config(args.config_file, args.opts, on_cpu=args.num_gpus == 0)


def _run(args: argparse.Namespace) -> dict[str, Any] | None:
    cfg = _cfg_of(args)
    args = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="d2_plugins")
    if not args.eval_only:
        return train(cfg, resume=args.resume)
    model = instantiate(cfg.model).to(cfg.train.device).eval()
    with usage_errors("train.init_checkpoint"):
        PluginCheckpointer(model, cfg.train.output_dir).resume_or_load(
            cfg.train.init_checkpoint, resume=args.resume
        )
    return evaluate(cfg, model)


def train(cfg: DictConfig, *, resume: bool = False) -> dict[str, Any] | None:
    """Train what a LazyConfig describes, and evaluate every ``train.eval_period`` iterations.

    Args:
        cfg: has ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``, as
            detectron2's tool wants them; ``train.clip_norm`` is ours.
        resume: continue if ``train.output_dir`` holds a checkpoint. The order of the data starts
            anew.

    Returns:
        The results of the last evaluation; None without an evaluator.
    """
    model = instantiate(cfg.model).to(cfg.train.device)
    cfg.optimizer.params.model = model
    trainer = StepTrainer(
        wrap_ddp(model),
        instantiate(cfg.dataloader.train),
        instantiate(cfg.optimizer),
        amp_dtype=_amp_dtype(cfg),
        clip_norm=cfg.train.get("clip_norm"),
    )
    checkpointer = PluginCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    results: dict[str, Any] = {}

    def test() -> dict[str, Any] | None:
        results.update(evaluate(cfg, model) or {})
        return results or None

    is_main = comm.is_main_process()
    writers = default_writers(cfg.train.output_dir, cfg.train.max_iter) if is_main else []
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if is_main else None,
            hooks.EvalHook(cfg.train.eval_period, test),
            hooks.PeriodicWriter(writers, period=cfg.train.log_period) if is_main else None,
        ]
    )
    found = resume and checkpointer.has_checkpoint()
    with usage_errors("train.init_checkpoint"):
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    trainer.train(trainer.iter + 1 if found else 0, cfg.train.max_iter)
    return results or None


def evaluate(cfg: DictConfig, model: nn.Module) -> dict[str, Any] | None:
    """Evaluate on ``dataloader.test`` with ``dataloader.evaluator``; None without one."""
    if "evaluator" not in cfg.dataloader:
        return None
    results: dict[str, Any] = inference_on_dataset(
        model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    )
    print_csv_format(results)
    return results


def _amp_dtype(cfg: DictConfig) -> torch.dtype | None:
    if not cfg.train.amp.enabled:
        return None
    return torch.bfloat16 if cfg.train.device == "cpu" else torch.float16
