"""Starts the worker processes of a run and makes sure that none outlives it."""

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import launch as detectron2_launch
from torch.multiprocessing.spawn import ProcessExitedException

from ..errors import UsageError

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

    Without a GPU, ``num_gpus`` is a number of CPU processes that talk over GLOO.

    Args:
        main: a function importable by name (the processes are spawned).
        num_gpus: processes on this machine; 0 and 1 run ``main`` in this very process.
        num_machines: machines of the run.
        machine_rank: rank of this machine.
        dist_url: where machine 0 listens; "auto" takes a free local port.
        use_cpu: train on the CPU although there are GPUs.
        args: arguments of ``main``.

    Raises:
        UsageError: more processes are asked for than there are GPUs.
        SystemExit: a worker died; the message says which and of what. The others were stopped.
            With status 2 a worker has told its user's mistake.
    """
    if use_cpu:
        # Before any worker asks CUDA: detectron2 takes NCCL wherever it sees a GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif num_gpus > torch.cuda.device_count() > 0:
        raise UsageError(
            f"--num-gpus {num_gpus} asks for more than the {torch.cuda.device_count()} GPU(s) here"
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
        told = error.exit_code == _USAGE_STATUS  # by the worker, see below
        raise SystemExit(_USAGE_STATUS if told else _cause(error, processes)) from None


def launch_as(args: argparse.Namespace, main: Callable[..., Any], *, use_cpu: bool) -> None:
    """:func:`launch` ``main(args)`` as a command line says.

    Args:
        args: parsed by a parser like detectron2's ``default_argument_parser``.
        main: as there.
        use_cpu: as there.
    """
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        use_cpu=use_cpu,
        args=(args,),
    )


def _worker(main: Callable[..., Any], spawned: bool, processes: int, args: tuple[Any, ...]) -> None:
    if spawned:
        _die_with_parent()
        if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
            # Every process with a thread per core makes all of them wait for each other.
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    try:
        main(*args)
    except UsageError as error:
        if not spawned:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(_USAGE_STATUS) from error


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent is gone, however the parent ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _cause(error: ProcessExitedException, processes: int) -> str:
    worker = f"worker {error.error_index + 1} of {processes} (process {error.error_pid})"
    if error.signal_name is None:
        return f"error: {worker} ended with status {error.exit_code}. The others were stopped."
    hint = ", often the kernel running out of memory" if error.signal_name == "SIGKILL" else ""
    return f"error: {worker} was killed by {error.signal_name}{hint}. The others were stopped."
