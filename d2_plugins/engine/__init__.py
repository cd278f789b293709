"""Training, evaluation and reports on detectron2's engine."""

from .arguments import argument_parser, parse_args
from .errors import UsageError
from .launch import launch
from .main import main, run
from .setup import build_cfg, setup
from .trainer import Trainer

__all__ = [
    "Trainer",
    "UsageError",
    "argument_parser",
    "build_cfg",
    "launch",
    "main",
    "parse_args",
    "run",
    "setup",
]
