"""A record of how a run was made: ``run.json`` in its output folder."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..files import atomic_write_json

__all__ = ["FILE_NAME", "device_name", "read_sessions", "record_session"]

FILE_NAME = "run.json"


@contextmanager
def record_session(cfg: CfgNode, config_file: str, *, resume: bool) -> Iterator[None]:
    """Record a training session in ``OUTPUT_DIR/run.json``, from the main process.

    The record is written when the block starts and again, with its duration, when the block ends.
    A session that is killed therefore has a record without a duration.

    Args:
        cfg: config of the run.
        config_file: the config file that the user gave; "" for none.
        resume: keep the sessions that are recorded already.
    """
    if not comm.is_main_process():
        yield
        return
    path = Path(cfg.OUTPUT_DIR) / FILE_NAME
    sessions = read_sessions(cfg.OUTPUT_DIR) if resume else []
    session = _session(cfg, config_file)
    atomic_write_json(path, {"sessions": [*sessions, session]})
    start = time.perf_counter()
    try:
        yield
    finally:
        session["seconds"] = round(time.perf_counter() - start, 1)
        atomic_write_json(path, {"sessions": [*sessions, session]})


def _session(cfg: CfgNode, config_file: str) -> dict[str, Any]:
    # d2-plugins sets argv[0] to "d2-plugins train", for argparse; argv[1] is "train" too.
    program = os.path.basename(sys.argv[0])
    program = "d2-plugins" if program.startswith("d2-plugins ") else program
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "config_file": config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(cfg.MODEL.DEVICE),
        "processes": comm.get_world_size(),
        "torch": torch.__version__,
    }


def device_name(device: str) -> str:
    """Return the name of the GPU, or the number of CPU threads, of a ``MODEL.DEVICE``."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' * (threads > 1)}" if device == "cpu" else device


def read_sessions(output_dir: str | Path) -> list[dict[str, Any]]:
    """Return the recorded sessions of a run, oldest first; none if the record cannot be read."""
    try:
        content = json.loads((Path(output_dir) / FILE_NAME).read_text(encoding="utf-8"))
        return [session for session in content["sessions"] if isinstance(session, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
