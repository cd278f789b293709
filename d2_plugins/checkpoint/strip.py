"""Checkpoints without the state of the training."""

from pathlib import Path

import torch

from ..errors import UsageError
from ..files import atomic_open
from .reading import read_checkpoint

__all__ = ["strip_checkpoint"]

# The entries of a checkpoint that using the model needs; PluginCheckpointer writes them.
_KEPT = ("model", "classes")


def strip_checkpoint(source: str | Path, target: str | Path) -> None:
    """Write the weights and the classes of a checkpoint to a new file.

    Optimizer, scheduler, hooks and iteration are left out: training cannot resume from the file,
    but it loads like the checkpoint everywhere else, in detectron2's own tools too.

    Args:
        source: a checkpoint, ``.pth``.
        target: the file to write, ``.pth``.

    Raises:
        UsageError: one of the files has another extension, they are the same file, or the
            checkpoint is missing or cannot be read.
    """
    source, target = Path(source), Path(target)
    for path in (source, target):
        if path.suffix != ".pth":
            raise UsageError(
                f"'{path}' does not end in .pth; only such checkpoints can be stripped"
            )
    if source.resolve() == target.resolve():
        raise UsageError(f"'{target}' would replace the checkpoint itself")
    try:
        checkpoint = read_checkpoint(str(source))
    except (OSError, ValueError) as error:
        raise UsageError(f"MODEL.WEIGHTS: {error}") from error
    with atomic_open(target, "wb") as file:
        torch.save({key: checkpoint[key] for key in _KEPT if key in checkpoint}, file)
