"""The data that the steps of the GPU check exchange: checks, steps and the scale of the work."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FULL", "TOY", "Check", "Scale", "Step", "run_step"]


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: name of the check, unique in its step.
        passed: False fails the whole run.
        value: measured value, with its unit.
        limit: requirement in words; empty for information.
    """

    name: str
    passed: bool
    value: str
    limit: str = ""


def at_most(name: str, value: float, limit: float, unit: str = "") -> Check:
    """Check that a number is finite and at most a limit."""
    return Check(name, value <= limit, f"{value:.4g}{unit}", f"<= {limit:.4g}{unit}")


def at_least(name: str, value: float, limit: float, unit: str = "") -> Check:
    """Check that a number is at least a limit."""
    return Check(name, value >= limit, f"{value:.4g}{unit}", f">= {limit:.4g}{unit}")


def value(name: str, number: float, unit: str = "") -> Check:
    """Return a number for information; it fails only if it is not a number."""
    return Check(name, number == number, f"{number:.4g}{unit}")


@dataclass(frozen=True)
class Scale:
    """Amount of work of the steps.

    Attributes:
        device: device under test.
        full: False shrinks all work, and drops the limits on times, memory and compilations.
        image_size: height and width of the images of whole training steps, in pixels.
        level_sizes: heights and widths of the feature maps that the kernels are tested on.
        channels: numbers of channels that the kernels are tested with.
        combinations: every n-th combination of the components is tested.
        random_sizes: number of steps on random image sizes.
        batches: batch sizes of the timed training steps.
        repeats: number of repetitions of each timing.
        iterations: number of iterations of the training run.
    """

    device: str = "cuda"
    full: bool = True
    image_size: tuple[int, int] = (800, 1216)
    level_sizes: tuple[tuple[int, int], ...] = ((100, 152), (50, 76), (25, 38), (13, 19), (7, 10))
    channels: tuple[int, ...] = (256, 257, 3)
    combinations: int = 1
    random_sizes: int = 50
    batches: tuple[int, ...] = (2, 4)
    repeats: int = 5
    iterations: int = 20


FULL = Scale()
TOY = Scale(
    full=False,
    image_size=(64, 96),
    level_sizes=((9, 7), (4, 3)),
    channels=(8, 3),
    combinations=36,
    random_sizes=2,
    batches=(1,),
    repeats=1,
    iterations=2,
)


@dataclass(frozen=True)
class Step:
    """Result of one step of the check.

    Attributes:
        name: name of the step.
        checks: its checks.
        seconds: wall-clock time of the step.
    """

    name: str
    checks: tuple[Check, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """True if there are checks, and all of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)


def run_step(name: str, function: Callable[[Scale], list[Check]], scale: Scale) -> Step:
    """Run one step; an exception in it, or a process that dies, is a failed check."""
    start = time.perf_counter()
    try:
        checks = function(scale)
    except (Exception, SystemExit) as error:  # every failure belongs in the report
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error}, at {where.filename}:{where.lineno}"
        checks = [Check("completed", False, text, "no exception")]
    return Step(name, tuple(checks), time.perf_counter() - start)
