"""Train or evaluate a LazyConfig (a Python config)."""

import argparse
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import default_argument_parser, default_setup
from omegaconf import DictConfig

from ..checkpoint import PluginCheckpointer
from ..engine.launch import launch_as
from ..engine.lazy import evaluate, load_lazy_config, train
from ..engine.logs import quiet_screen, setup_loggers
from ..model_zoo import find_config
from ..startup import hide_messages
from .parsers import check_launch, exit_status

__all__ = ["main"]

_EXAMPLE = """
Example:
    $ d2-plugins train-lazy --config-file lazy/csp_cascade.py --num-gpus 8 \\
        train.output_dir=output/run
"""


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate a LazyConfig.

    Args:
        argv: the arguments of detectron2's tool; None for those of the process.

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


def _cfg_of(args: argparse.Namespace) -> DictConfig:
    return load_lazy_config(args.config_file, args.opts, on_cpu=args.num_gpus == 0)


def _run(args: argparse.Namespace) -> dict[str, Any] | None:
    cfg = _cfg_of(args)
    args = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
    hide_messages()
    setup_loggers(cfg.train.output_dir)
    with quiet_screen():
        default_setup(cfg, args)
    if not args.eval_only:
        return train(cfg, resume=args.resume)
    model = instantiate(cfg.model).to(cfg.train.device).eval()
    PluginCheckpointer(model, cfg.train.output_dir).resume_or_load(
        cfg.train.init_checkpoint, resume=args.resume, key="train.init_checkpoint"
    )
    return evaluate(cfg, model)
