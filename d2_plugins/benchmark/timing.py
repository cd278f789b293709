"""Comparing the times of two things on a machine that others use too."""

import time
from collections.abc import Callable
from statistics import median

__all__ = ["median_ratio"]


def median_ratio(
    candidate: Callable[[], object],
    baseline: Callable[[], object],
    *,
    repeats: int,
    clock: Callable[[], float] | None = None,
) -> float:
    """Median of the time of ``candidate`` over that of ``baseline``, taken in turn.

    Each is run once before, unmeasured.

    Args:
        candidate: what is measured.
        baseline: the unit.
        repeats: how often each is measured.
        clock: seconds. None is the process's CPU time on all its threads: other processes do not
            count, but neither does it show how well the threads are used.
    """
    clock = time.process_time if clock is None else clock
    ratios = []
    for repeat in range(repeats + 1):
        seconds = []
        for run in (candidate, baseline):
            start = clock()
            result = run()
            seconds.append(clock() - start)
            del result  # to free it takes time, too
        if repeat:
            ratios.append(seconds[0] / seconds[1])
    return median(ratios)
