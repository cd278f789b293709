"""The files of a published detector, and their upload through huggingface_hub."""

import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants

from ..checkpoint.hub_files import WEIGHTS_FILE, check_repository
from ..checkpoint.reading import read_checkpoint
from ..checkpoint.strip import strip_checkpoint
from ..data.classes import find_classes
from ..errors import UsageError
from ..files import atomic_open
from ..report.run import load_run
from ..visualization.detector import run_config
from .card import model_card

__all__ = ["push_run", "write_repository"]


def write_repository(
    source: str | Path,
    folder: Path,
    *,
    repository: str,
    license_id: str | None = None,
    card: Path | None = None,
) -> None:
    """Write the files of a repository: weights, config, classes and model card.

    The weights are without the state of the training. The config is without the folders of this
    machine.

    Args:
        source: output folder of a run, or one of its checkpoints.
        folder: folder to write to; created if needed.
        repository: ``OWNER/NAME``.
        license_id: see :func:`model_card`.
        card: a Markdown file to use instead of the model card.

    Raises:
        UsageError: the run has no config or no weights, or a file cannot be read.
    """
    cfg = run_config(source)
    weights = Path(cfg.MODEL.WEIGHTS)
    strip_checkpoint(weights, folder / WEIGHTS_FILE)
    classes = find_classes(cfg, read_checkpoint(str(folder / WEIGHTS_FILE)))
    if classes is not None:
        classes.write(folder)
    text = (
        card.read_text(encoding="utf-8")
        if card is not None
        else model_card(
            load_run(weights.parent, cfg),
            cfg,
            repository=repository,
            weights=weights.name,
            classes=classes,
            license_id=license_id,
        )
    )
    with atomic_open(folder / "README.md") as file:
        file.write(text)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "./output"
    with atomic_open(folder / "config.yaml") as file:
        file.write(cfg.dump())


def push_run(
    source: str | Path,
    repository: str,
    *,
    license_id: str | None = None,
    card: Path | None = None,
    private: bool = False,
) -> str:
    """Upload a trained detector in one commit; the repository is created if needed.

    Args:
        source: see :func:`write_repository`.
        repository: ``OWNER/NAME``.
        license_id: see :func:`model_card`.
        card: see :func:`write_repository`.
        private: create the repository as a private one.

    Returns:
        The address of the commit.

    Raises:
        UsageError: see :func:`write_repository`; or the hub refuses the upload or cannot be
            reached.
    """
    check_repository(repository)
    folder = Path(tempfile.mkdtemp(prefix="d2_plugins."))
    try:
        write_repository(source, folder, repository=repository, license_id=license_id, card=card)
        return _upload(folder, repository, private)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _upload(folder: Path, repository: str, private: bool) -> str:
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload a detector of d2_plugins"
        )
    except Exception as error:  # many kinds: no network, no token, no right to write
        raise UsageError(
            f"{constants.ENDPOINT}/{repository} cannot be written: {error} "
            "(a token with the right to write comes from HF_TOKEN or 'hf auth login')"
        ) from error
    return str(commit.commit_url)
