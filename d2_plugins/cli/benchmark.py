"""Time components and detectors against alternatives; results are ratios of times measured in turn.

Each benchmark is a sub-command; its options are the arguments of its function.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tabulate import tabulate

from ..benchmark.adaptive_conv import adaptive_conv
from ..benchmark.cascade_rpn import cascade_rpn, region_matching
from ..benchmark.detectors import detectors
from ..benchmark.gpu_check import FULL, STEP_NAMES, TOY, gpu_check
from ..benchmark.machine import describe_machine
from ..benchmark.roi_heads import double_head, flagship_step, inverted_attention
from .parsers import exit_status, text_parser

__all__ = ["BENCHMARKS", "main"]

_EXAMPLE = """
Example:
    $ d2-plugins benchmark adaptive-conv --json

Check a machine with a GPU in ten minutes; the exit status is 0 if all checks pass:
    $ d2-plugins benchmark gpu-check --output-dir gpu_check
"""

_GPU_CHECK = "gpu-check"
# Functions whose arguments all have defaults (numbers, names or sizes) and that return numbers by
# name.
BENCHMARKS: dict[str, Callable[..., Mapping[str, object]]] = {
    "adaptive-conv": adaptive_conv,
    "cascade-rpn": cascade_rpn,
    "region-matching": region_matching,
    "double-head": double_head,
    "inverted-attention": inverted_attention,
    "flagship-step": flagship_step,
    "detectors": detectors,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and print the machine and the results.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if a check of the GPU failed; 2 after a mistake in the command line.
    """
    return exit_status(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    options = vars(args)
    if args.benchmark == _GPU_CHECK:
        return _run_gpu_check(args)
    benchmark = BENCHMARKS[options.pop("benchmark")]
    threads, as_json = options.pop("threads"), options.pop("json")
    if threads:
        torch.set_num_threads(threads)
    print(describe_machine(), file=sys.stderr if as_json else sys.stdout, flush=True)
    results = benchmark(**options)
    if as_json:
        print(json.dumps(results))
    else:
        print(_table(results) or "\n".join(_lines(results)))
    return 0


def _run_gpu_check(args: argparse.Namespace) -> int:
    scale = TOY if args.toy else FULL
    passed = gpu_check(args.output_dir, num_gpus=args.num_gpus, scale=scale, only=args.steps)
    print(f"{'All checks passed' if passed else 'Some checks failed'}: {args.output_dir}")
    return 0 if passed else 1


def _parser() -> argparse.ArgumentParser:
    parser = text_parser(__doc__, _EXAMPLE)
    commands = parser.add_subparsers(dest="benchmark", required=True)
    for name, function in BENCHMARKS.items():
        text = inspect.getdoc(function)
        assert text is not None
        command = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("--threads", type=int, help="number of PyTorch's threads")
        for parameter in inspect.signature(function).parameters.values():
            _add_option(command, parameter)
    _add_gpu_check(commands)
    return parser


def _add_gpu_check(commands: Any) -> None:
    text = "Check the kernels, detectors, launches and times on CUDA devices."
    command = commands.add_parser(_GPU_CHECK, help=text, description=text)
    command.add_argument("--output-dir", default="gpu_check", help="folder of the two reports")
    command.add_argument("--num-gpus", type=int, default=1, help="with 2 and more, DDP is checked")
    command.add_argument(
        "--steps",
        nargs="+",
        choices=STEP_NAMES,
        default=[],
        metavar="STEP",
        help=f"only these: {', '.join(STEP_NAMES)} (with several GPUs)",
    )
    command.add_argument("--toy", action="store_true", help="tiny inputs, no limits on times")


def _add_option(command: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    default = parameter.default
    option = "--" + parameter.name.replace("_", "-")
    if isinstance(default, bool):
        command.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
        return
    several = isinstance(default, tuple)
    command.add_argument(
        option,
        type=type(default[0] if several else default),
        nargs=len(default) if several else None,
        default=default,
        help=f"default: {default}",
    )


def _table(results: Mapping[str, object]) -> str:
    """Return a table of results that have the same numbers for several things; "" for others."""
    rows = [dict(row) for row in results.values() if isinstance(row, Mapping)]
    if len(rows) < max(2, len(results)) or any(row.keys() != rows[0].keys() for row in rows):
        return ""
    cells = [[name, *row.values()] for name, row in zip(results, rows, strict=True)]
    return tabulate(cells, headers=["", *rows[0]], tablefmt="github", floatfmt=".3g")


def _lines(results: Mapping[str, object], indent: str = "") -> list[str]:
    """Format numbers by name, and groups of them, as indented lines."""
    lines = []
    for name, value in results.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value:.4g}")
    return lines
