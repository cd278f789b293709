"""Train or evaluate a detector, from the command line to the results."""

import argparse
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from ..checkpoint import PluginCheckpointer
from ..engine.launch import launch_as
from ..engine.logs import quiet_screen
from ..engine.own_data import complete_args
from ..engine.setup import build_cfg, setup
from ..engine.trainer import Trainer
from ..errors import UsageError, usage_errors
from ..report import record_session, write_report
from ..startup import hide_messages
from .parsers import exit_status, parse_train_args
from .run_summary import describe_run, next_steps

__all__ = ["main", "run"]

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Train or evaluate a detector.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the command line, the config or the data.
    """
    return exit_status(_launch, parse_train_args(argv))


def _launch(args: argparse.Namespace) -> int:
    args = complete_args(args)
    cfg = build_cfg(args)
    launch_as(args, run, cfg, use_cpu=cfg.MODEL.DEVICE == "cpu")
    return 0


def run(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any] | None:
    """Train or evaluate in this process, which is one of those that :func:`launch` starts.

    Returns:
        The results of the last evaluation; None in all processes but the main one.
    """
    hide_messages()
    setup(args, cfg)
    if not args.eval_only:
        with quiet_screen():
            with usage_errors():
                trainer = Trainer(cfg)
            trainer.resume_or_load(resume=args.resume)
            if comm.is_main_process():
                _log_summary(args, trainer)
        with record_session(cfg, args.config_file, resume=args.resume), _without_tracebacks():
            results = trainer.train()
        if cfg.TEST.REPORT and comm.is_main_process():
            with quiet_screen("detectron2", "d2_plugins"):
                _write_report(cfg, results)
        if comm.is_main_process():
            with quiet_screen():
                logger.info(next_steps(args, cfg))
        return results
    return _evaluate(args, cfg)


def _log_summary(args: argparse.Namespace, trainer: Trainer) -> None:
    model, loader = trainer.model, trainer.data_loader
    logger.info(describe_run(args, trainer.cfg, model, loader=loader, start=trainer.start_iter))


def _evaluate(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    with quiet_screen():
        with usage_errors():
            model = Trainer.build_model(cfg).eval()  # makes the checkpointer ask for every weight
        checkpointer = PluginCheckpointer(
            model, cfg.OUTPUT_DIR, allow_missing=cfg.MODEL.WEIGHTS_ALLOW_MISSING
        )
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        if comm.is_main_process():
            logger.info(describe_run(args, cfg, model))
    if not cfg.MODEL.WEIGHTS and not (args.resume and checkpointer.has_checkpoint()):
        logger.warning("MODEL.WEIGHTS is empty: random weights are evaluated")
    results: dict[str, Any] = Trainer.evaluate(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keep detectron2 from logging the traceback of errors that become one line on stderr."""

    def is_defect(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], UsageError | OSError))

    loop_logger = logging.getLogger("detectron2.engine.train_loop")
    loop_logger.addFilter(is_defect)
    try:
        yield
    finally:
        loop_logger.removeFilter(is_defect)


def _write_report(cfg: CfgNode, results: dict[str, Any] | None) -> None:
    """Write ``report.html``; a failure is logged and does not lose the finished run."""
    try:
        logger.info("Report: %s", write_report(cfg.OUTPUT_DIR, cfg, results))
    except Exception:  # never lose a finished training run because the report failed
        logger.exception("The report could not be written; the run itself is complete")
