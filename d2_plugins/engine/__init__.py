"""Training on detectron2's engine."""

from .launch import launch
from .setup import build_cfg, setup
from .trainer import Trainer

__all__ = ["Trainer", "build_cfg", "launch", "setup"]
