"""Summary of a run before it starts, and the commands that use it afterwards."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import nn

from ..data.classes import Classes
from ..report.facts import describe_model
from ..report.next_steps import next_commands, train_command
from ..report.record import device_name

__all__ = ["describe_run", "next_steps"]

_WIDTH = 100


def describe_run(
    args: argparse.Namespace, cfg: CfgNode, model: nn.Module, *, loader: Any = None, start: int = 0
) -> str:
    """Describe a run that is about to start.

    Args:
        args: its command line.
        cfg: its config, scaled to the number of processes.
        model: its model.
        loader: its training loader; None for an evaluation.
        start: its first iteration.

    Returns:
        About ten lines, each with the name of a fact and its value.
    """
    facts = dict(_facts(args, cfg, model, loader, start))
    return _table("Training:" if loader is not None else "Evaluation:", facts)


def _facts(
    args: argparse.Namespace, cfg: CfgNode, model: nn.Module, loader: Any, start: int
) -> Iterator[tuple[str, str]]:
    changes = f", {shlex.join(args.opts)}" if args.opts else ""
    yield "config", shorten(f"{args.config_file}{changes}", _WIDTH, placeholder=" ...")
    if loader is not None:
        number = getattr(loader, "num_images", None)
        yield "train on", ", ".join(cfg.DATASETS.TRAIN) + (f": {number} images" if number else "")
    yield "evaluate on", ", ".join(map(_with_number, cfg.DATASETS.TEST)) or "nothing"
    if classes := Classes.of_config(cfg):
        names = shorten(", ".join(classes.names), _WIDTH, placeholder=" ...")
        yield "classes", f"{len(classes.names)}: {names}"
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    parts = [text for _, text in describe_model(cfg)]
    yield "model", "; ".join([*parts, f"{count:.1f} million parameters"])
    yield "weights", cfg.MODEL.WEIGHTS or "random"
    world = comm.get_world_size()
    yield "device", f"{device_name(cfg.MODEL.DEVICE)}, {world} process{'es' * (world > 1)}"
    if loader is not None:
        yield "iterations", _schedule(cfg, getattr(loader, "num_images", None), start)
    yield "output", f"{cfg.OUTPUT_DIR}; its log.txt has the environment, the config and the model"
    if loader is not None:
        yield "to continue", train_command(cfg, "--resume", num_gpus=args.num_gpus)


def _with_number(name: str) -> str:
    return f"{name}: {len(DatasetCatalog.get(name))} images"


def _schedule(cfg: CfgNode, num_images: int | None, start: int) -> str:
    solver = cfg.SOLVER
    text = f"{start} to {solver.MAX_ITER}, {solver.IMS_PER_BATCH} images each"
    if num_images:
        epochs = solver.MAX_ITER * solver.IMS_PER_BATCH / num_images
        text += f" ({epochs:.1f} times all images)"
    return f"{text}; learning rate {solver.BASE_LR:g}"


def next_steps(args: argparse.Namespace, cfg: CfgNode) -> str:
    """Name the commands that use a run that has ended, with its paths.

    Args:
        args: its command line.
        cfg: its config.
    """
    facts = next_commands(cfg, num_gpus=args.num_gpus)
    report = Path(cfg.OUTPUT_DIR) / "report.html"
    if report.is_file():
        facts = {"see the report": str(report), **facts}
    return _table("Next:", facts)


def _table(title: str, facts: dict[str, str]) -> str:
    width = max(map(len, facts), default=0)
    return "\n".join([title, *(f"  {name:{width}}  {text}" for name, text in facts.items())])
