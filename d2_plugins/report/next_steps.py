"""The commands that use a run that has ended, with its paths."""

import shlex
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..checkpoint.run_folder import find_weights
from ..data.datasets.missing import missing_dataset_hint

__all__ = ["next_commands", "train_command"]


def next_commands(cfg: CfgNode, *, num_gpus: int = 0) -> dict[str, str]:
    """Return commands by purpose; empty if the run has no checkpoint.

    Args:
        cfg: config of the run.
        num_gpus: number of GPUs that it used.
    """
    folder = Path(cfg.OUTPUT_DIR)
    weights = find_weights(folder)
    if weights is None:
        return {}
    config = ("--config-file", str(folder / "config.yaml"))
    image = ("--input", _example(cfg))
    opts = ("MODEL.WEIGHTS", str(weights))
    longer = ["--resume", "SOLVER.MAX_ITER", str(2 * cfg.SOLVER.MAX_ITER)]
    if cfg.TEST.EARLY_STOP_PATIENCE:  # it may have stopped the run, and would stop it again
        longer += ["TEST.EARLY_STOP_PATIENCE", "0"]
    commands = {
        "detect": ("predict", *config, *image, "--output", str(folder / "detected"), *opts),
        "export": ("export", *config, *image, "--output", str(folder / "model.ts"), *opts),
        "publish": ("push", str(folder), "OWNER/NAME", "--output", str(folder / "published")),
    }
    return {
        **{purpose: shlex.join(["d2-plugins", *words]) for purpose, words in commands.items()},
        "train longer": train_command(cfg, *longer, num_gpus=num_gpus),
    }


def train_command(cfg: CfgNode, *words: str, num_gpus: int = 0) -> str:
    """Return the command that trains the config of a run.

    Args:
        cfg: config of the run.
        words: further arguments.
        num_gpus: number of GPUs.
    """
    processes = ("--num-gpus", str(num_gpus)) if num_gpus > 1 else ()
    config = ("--config-file", str(Path(cfg.OUTPUT_DIR) / "config.yaml"))
    return shlex.join(["d2-plugins", "train", *config, *processes, *words])


def _example(cfg: CfgNode) -> str:
    """Return an image of the validation set, or else a placeholder."""
    for name in cfg.DATASETS.TEST:
        if name in DatasetCatalog and not missing_dataset_hint(name):
            for item in DatasetCatalog.get(name)[:1]:
                return str(item["file_name"])
    return "photo.jpg"
