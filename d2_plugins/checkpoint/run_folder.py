"""The weights of a training run's folder."""

from pathlib import Path

__all__ = ["find_weights"]


def find_weights(folder: Path) -> Path | None:
    """Return the weights to use of a run, None if it has no checkpoint.

    These are ``model_best.pth``, or else ``model_final.pth``, or else the checkpoint that
    ``last_checkpoint`` names.
    """
    names = ["model_best.pth", "model_final.pth"]
    last = folder / "last_checkpoint"
    if last.is_file():
        names.append(last.read_text(encoding="utf-8").strip())
    return next((folder / name for name in names if (folder / name).is_file()), None)
