"""Start of the worker processes of a run; none of them outlives it."""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing.spawn import ProcessExitedException

from ..errors import UsageError
from .allocator import keep_freed_memory

__all__ = ["launch", "launch_as"]

_PR_SET_PDEATHSIG = 1
_USAGE_STATUS = 2


def launch(
    main: Callable[..., Any],
    num_gpus: int,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    use_cpu: bool = False,
    args: tuple[Any, ...] = (),
) -> None:
    """Run ``main(*args)`` in one process per GPU, through detectron2's launch.

    Without a GPU, ``num_gpus`` is the number of CPU processes, which communicate over GLOO.

    Args:
        main: a function that can be imported by name, because the processes are spawned.
        num_gpus: number of processes on this machine; with 0 and 1, ``main`` runs in this process.
        num_machines: number of machines of the run.
        machine_rank: rank of this machine.
        dist_url: address on which machine 0 listens; "auto" takes a free local port.
        use_cpu: train on the CPU even if there are GPUs.
        args: arguments of ``main``.

    Raises:
        UsageError: ``num_gpus`` is greater than the number of GPUs, or ``dist_url`` is not valid.
        SystemExit: a worker died; the message names it and the cause. The others were stopped.
            Status 2 means that the worker printed a mistake of the user.
    """
    _check_dist_url(dist_url)
    if use_cpu:
        # Hide the GPUs before CUDA is initialized: detectron2 uses NCCL if it sees one.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif num_gpus > torch.cuda.device_count() > 0:
        raise UsageError(
            f"--num-gpus is {num_gpus}; allowed: 0 to {torch.cuda.device_count()}, the GPUs here"
        )
    processes = max(num_gpus, 1)
    try:
        detectron2_launch(
            _worker,
            processes,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=(main, processes * num_machines > 1, processes, args),
        )
    except ProcessExitedException as error:
        reported = error.exit_code == _USAGE_STATUS  # printed by the worker, see _worker
        raise SystemExit(_USAGE_STATUS if reported else _cause(error, processes)) from None


def _check_dist_url(dist_url: str) -> None:
    if dist_url == "auto" or dist_url.startswith(("env://", "file://")):
        return
    try:
        url = urlparse(dist_url)
        valid = url.scheme == "tcp" and bool(url.hostname) and url.port is not None and url.port > 0
    except ValueError:  # a port that is not a number from 0 to 65535
        valid = False
    if not valid:
        raise UsageError(f"--dist-url is {dist_url}; allowed: auto, tcp://HOST:PORT")


def launch_as(
    args: argparse.Namespace, main: Callable[..., Any], *main_args: Any, use_cpu: bool
) -> None:
    """:func:`launch` ``main(args, *main_args)`` with the processes that a command line asks for.

    Args:
        args: command line of a parser like detectron2's ``default_argument_parser``.
        main: see :func:`launch`.
        main_args: further arguments of ``main``; pickled for spawned processes.
        use_cpu: see :func:`launch`.
    """
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        use_cpu=use_cpu,
        args=(args, *main_args),
    )


def _worker(main: Callable[..., Any], spawned: bool, processes: int, args: tuple[Any, ...]) -> None:
    if not torch.cuda.is_available():
        keep_freed_memory()
    if spawned:
        _die_with_parent()
        if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
            # One thread per core in every process would make the processes wait for each other.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    try:
        main(*args)
    except (OSError, UsageError) as error:
        if not spawned:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(_USAGE_STATUS) from error


def _die_with_parent() -> None:
    """Make the kernel kill this process when its parent ends for any reason."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _cause(error: ProcessExitedException, processes: int) -> str:
    worker = f"worker {error.error_index + 1} of {processes} (process {error.error_pid})"
    if error.signal_name is None:
        return f"error: {worker} ended with status {error.exit_code}. The others were stopped."
    hint = ", often the kernel running out of memory" if error.signal_name == "SIGKILL" else ""
    return f"error: {worker} was killed by {error.signal_name}{hint}. The others were stopped."
