"""What tools/train_net.py runs: one job, from parsed arguments to results."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import PluginCheckpointer
from ..data import DatasetError
from .arguments import parse_args
from .errors import UsageError
from .launch import launch
from .setup import build_cfg, setup
from .trainer import Trainer

__all__ = ["main", "run"]


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate as the command line says.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the command line, the config or the data.
    """
    args = parse_args(argv)
    try:
        cfg = build_cfg(args)  # once before any process starts: mistakes show up once
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            use_cpu=cfg.MODEL.DEVICE == "cpu",
            args=(args,),
        )
    except (UsageError, DatasetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Train or evaluate in this process, one of those that :func:`launch` starts.

    Returns:
        The results of the (last) evaluation; None in all processes but the main one.
    """
    cfg = setup(args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        with _usage_errors():
            trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg).eval()  # which makes the checkpointer ask for every weight
    checkpointer = PluginCheckpointer(
        model, cfg.OUTPUT_DIR, allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING
    )
    with _usage_errors():
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Weights that are missing, unreachable or of another model are for the user to mend."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UsageError(f"MODEL.WEIGHTS: {error}") from error
