"""Time of a call on the CPU or on a CUDA device, and the ratio of two calls measured in turn."""

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

__all__ = ["elapsed", "interleaved", "median_ratio", "median_seconds"]


def elapsed(
    run: Callable[[], object],
    device: str | torch.device = "cpu",
    clock: Callable[[], float] | None = None,
) -> float:
    """Return the seconds that one call takes.

    Args:
        run: the call.
        device: device that the call runs on. CUDA devices are timed with CUDA events, from an idle
            device until the last kernel of the call has finished.
        clock: clock for the CPU, in seconds. None is the CPU time of all threads of this process:
            other processes do not disturb it, but it does not show how well threads are used.
    """
    if torch.device(device).type == "cuda":
        return _elapsed_on_cuda(run, device)
    clock = time.process_time if clock is None else clock
    start = clock()
    result = run()
    seconds = clock() - start
    del result  # Freeing the result is not part of the measurement.
    return seconds


def _elapsed_on_cuda(run: Callable[[], object], device: str | torch.device) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1000


def median_seconds(
    run: Callable[[], object], repeats: int, device: str | torch.device = "cpu"
) -> float:
    """Return the median time of a call after one warm-up call; wall-clock time on the CPU."""
    seconds = [elapsed(run, device, time.perf_counter) for _ in range(repeats + 1)]
    return median(seconds[1:])


def median_ratio(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    *,
    repeats: int,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] | None = None,
) -> float:
    """Return the median of the time of ``candidate`` divided by the time of ``baseline``.

    The two are measured in turn, so that a change of the machine's load affects both. Each is
    called once before the measurements.

    Args:
        candidate: numerator.
        baseline: denominator.
        repeats: number of measured pairs.
        device: see :func:`elapsed`.
        clock: see :func:`elapsed`.
    """
    ratios = []
    for _ in range(repeats + 1):
        seconds = elapsed(candidate, device, clock)
        ratios.append(seconds / elapsed(baseline, device, clock))
    return median(ratios[1:])


def interleaved(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: str | torch.device = "cpu"
) -> dict[str, list[float]]:
    """Time several calls in turn, so that a change of the machine's load affects all of them.

    Args:
        runs: the calls by name. Each is called once before the measurements.
        repeats: number of turns.
        device: see :func:`elapsed`.

    Returns:
        The seconds of each call, one entry per turn.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(elapsed(run, device))
    return seconds
