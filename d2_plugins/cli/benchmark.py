"""Time the components against alternatives; results are ratios of times measured in turn.

Each benchmark is a sub-command; its options are the arguments of its function.
"""

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence

import torch

from ..benchmark.adaptive_conv import adaptive_conv
from ..benchmark.cascade_rpn import cascade_rpn, region_matching
from ..benchmark.machine import describe_machine
from ..benchmark.roi_heads import double_head, flagship_step, inverted_attention
from .parsers import exit_status, text_parser

__all__ = ["BENCHMARKS", "main"]

_EXAMPLE = """
Example:
    $ d2-plugins benchmark adaptive-conv --json
"""

# Functions whose arguments all have defaults (numbers, names or sizes) and that return numbers by
# name.
BENCHMARKS: dict[str, Callable[..., Mapping[str, object]]] = {
    "adaptive-conv": adaptive_conv,
    "cascade-rpn": cascade_rpn,
    "region-matching": region_matching,
    "double-head": double_head,
    "inverted-attention": inverted_attention,
    "flagship-step": flagship_step,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and print the machine and the results.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the command line.
    """
    return exit_status(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    options = vars(args)
    benchmark = BENCHMARKS[options.pop("benchmark")]
    threads, as_json = options.pop("threads"), options.pop("json")
    if threads:
        torch.set_num_threads(threads)
    print(describe_machine(), file=sys.stderr if as_json else sys.stdout, flush=True)
    results = benchmark(**options)
    print(json.dumps(results) if as_json else "\n".join(_lines(results)))
    return 0


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
    return parser


def _add_option(command: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    default = parameter.default
    several = isinstance(default, tuple)
    command.add_argument(
        "--" + parameter.name.replace("_", "-"),
        type=type(default[0] if several else default),
        nargs=len(default) if several else None,
        default=default,
        help=f"default: {default}",
    )


def _lines(results: Mapping[str, object], indent: str = "") -> list[str]:
    """Format numbers by name, and groups of them, as indented lines."""
    lines = []
    for name, value in results.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value:.4g}")
    return lines
