"""Comparing the times of two things on a machine that others use too."""

import time
from collections.abc import Callable
from statistics import median

__all__ = ["median_ratio"]


def median_ratio(
    candidate: Callable[[], object], baseline: Callable[[], object], *, repeats: int
) -> float:
    """Median of the time of ``candidate`` over that of ``baseline``, taken in turn.

    Each is run once before, unmeasured.
    """
    ratios = []
    for repeat in range(repeats + 1):
        seconds = []
        for run in (candidate, baseline):
            start = time.process_time()  # other processes do not count
            run()
            seconds.append(time.process_time() - start)
        if repeat:
            ratios.append(seconds[0] / seconds[1])
    return median(ratios)
