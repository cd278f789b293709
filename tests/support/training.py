"""Runs of the toy detector."""

from pathlib import Path
from typing import Any

import torch

from d2_plugins.engine import Trainer
from tests.support.toy import toy_cfg


def train(output_dir: Path, opts: list[Any], *, stop_after: int | None = None) -> Trainer:
    """Train the toy detector, and stop after ``stop_after`` iterations as if interrupted."""
    torch.manual_seed(0)  # as default_setup does, for the initial weights
    trainer = Trainer(toy_cfg(output_dir, opts))
    trainer.resume_or_load(resume=True)
    if stop_after is not None:
        trainer.max_iter = stop_after
    trainer.train()
    return trainer


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return a copy of the model's weights and buffers."""
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}
