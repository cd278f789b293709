"""Check of a machine with CUDA devices: correctness, start-up, launches, waits and times.

Each step is a function that returns named checks; the check passes if all of them pass.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from .checks import FULL, TOY, Check, Scale, Step, run_step
from .counts import check_counts
from .environment import check_environment
from .kernels import check_kernels
from .models import check_models
from .processes import check_processes
from .report import summary, write_report
from .startup import check_startup
from .times import check_times
from .training import check_training

__all__ = ["FULL", "STEP_NAMES", "TOY", "Check", "Scale", "Step", "gpu_check"]

_STEPS: dict[str, Callable[[Scale], list[Check]]] = {
    "machine": check_environment,
    "kernels": check_kernels,
    "start-up": check_startup,
    "models": check_models,
    "training": check_training,
    "counts": check_counts,
    "times": check_times,
}
_MACHINE = "machine"
_PROCESSES = "processes"  # with several GPUs only
STEP_NAMES = (*_STEPS, _PROCESSES)


def gpu_check(
    output_dir: str | Path, *, num_gpus: int = 1, scale: Scale = FULL, only: Sequence[str] = ()
) -> bool:
    """Run the steps, print a line for each, and write ``gpu_check.md`` and ``gpu_check.json``.

    Args:
        output_dir: folder of the two files.
        num_gpus: number of GPUs; with 2 and more, data-parallel training is checked as well.
        scale: amount of work.
        only: names of the steps to run; empty runs all. The machine is always checked first, and
            the other steps run only if that step passes.

    Returns:
        True if all checks passed.
    """
    steps: dict[str, Callable[[Scale], list[Check]]] = dict(_STEPS)
    if num_gpus > 1:
        steps[_PROCESSES] = lambda scale: check_processes(num_gpus, scale.device)
    results: list[Step] = []
    for name, function in steps.items():
        if name == _MACHINE or not only or name in only:
            results.append(run_step(name, function, scale))
            print(summary(results[-1]), flush=True)
            if name == _MACHINE and not results[-1].passed:
                break
    write_report(results, Path(output_dir))
    return all(step.passed for step in results)
