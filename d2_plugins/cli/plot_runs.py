"""Draw the losses and APs of several training runs, one panel per metric, into one picture.

Reads metrics.json in the runs' output folders. Without --metrics: the total loss, all parts of the
loss, and box, mask and proposal AP, as far as the runs have them. A metric may be a shell pattern.
Runs are named by their folders. Evaluations are never smoothed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..report.comparison import choose_metrics, draw_runs, run_names
from ..report.run import Run, load_run
from .parsers import exit_status, picture_file, save_figure, text_parser

__all__ = ["main"]

_EXAMPLE = """
Examples:
    $ d2-plugins plot-runs output/plain output/flagship --smooth 0.9 --output runs.png
    $ d2-plugins plot-runs output/* --metrics total_loss "bbox/AP*" lr
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the command line.
    """
    parser = text_parser(__doc__, _EXAMPLE)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="output folder of a run")
    parser.add_argument(
        "--metrics", nargs="+", metavar="KEY", help="of metrics.json; after the folders"
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0.0,
        metavar="WEIGHT",
        help="of the past in an exponential mean, 0 (not at all) to below 1 (%(default)s)",
    )
    parser.add_argument(
        "--output", type=picture_file, default="runs.png", metavar="FILE", help="(%(default)s)"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.smooth < 1:
        parser.error(f"--smooth is {args.smooth}; allowed: 0 to below 1")
    return exit_status(_run, args)


def _run(args: argparse.Namespace) -> int:
    runs = _load(args.runs)
    metrics = choose_metrics(list(runs.values()), args.metrics)
    figure = draw_runs(runs, metrics, weight=args.smooth)
    save_figure(figure, args.output)
    print(f"wrote {args.output}: {', '.join(metrics)} of {', '.join(runs)}")
    return 0


def _load(folders: Sequence[str]) -> dict[str, Run]:
    paths = list(dict.fromkeys(Path(folder).resolve() for folder in folders))
    runs = {}
    for name, path in zip(run_names(paths), paths, strict=True):
        try:
            run = load_run(path)
        except Exception as error:  # a config or rows that were not written by a run
            raise UsageError(f"{path}: {error}") from error
        if not run.metrics:
            raise UsageError(f"{path} has no metrics.json with an iteration in it")
        runs[name] = run
    return runs
