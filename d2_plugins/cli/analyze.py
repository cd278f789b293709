"""Parameters, FLOPs, activations and latency of a config's detector, part by part.

The weights are random, so the RoI heads are given random boxes: as many proposals and detections
as the config allows in testing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch

from ..benchmark.fixed_work import build_fixed_work
from ..benchmark.machine import describe_machine
from ..benchmark.model_costs import analyze, format_report
from ..data.images import load_photo
from ..errors import UsageError, usage_errors
from .parsers import config_from, config_parser, exit_status

__all__ = ["main"]

_EXAMPLE = """
Example:
    $ d2-plugins analyze --config-file csp_cascade.yaml --size 800 1216
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Analyze the detector of a config.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0, or 2 after a mistake in the command line, the config or the image.
    """
    parser = config_parser(__doc__, _EXAMPLE)
    image = parser.add_mutually_exclusive_group()
    image.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="size of an image of noise; default: that of a 3:2 photo after resizing",
    )
    image.add_argument("--input", metavar="FILE", help="a photo, resized as in testing")
    parser.add_argument("--repeats", type=int, default=5, help="number of timings (%(default)s)")
    parser.add_argument("--threads", type=int, help="number of PyTorch's threads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return exit_status(_run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    if args.size is not None and min(args.size) < 1:
        raise UsageError(f"--size must be positive, not {args.size}")
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = config_from(args)
    image = None
    if args.input is not None:
        with usage_errors():
            image = load_photo(cfg, args.input)[0]
        args.size = image.shape[1:]
    work = build_fixed_work(cfg, tuple(args.size) if args.size else None)
    if image is None:
        torch.manual_seed(0)
        image = torch.rand(3, *work.size) * 255
    report = analyze(work.model, partial(work, image), repeats=args.repeats)
    setting = {
        "machine": describe_machine(),
        "device": cfg.MODEL.DEVICE,
        "image": list(work.size),
        "proposals": work.num_proposals,
        "detections": work.num_detections,
    }
    if args.json:
        print(json.dumps({**setting, **asdict(report)}))
    else:
        print("\n".join(f"{name}: {value}" for name, value in setting.items()))
        print(f"\n{format_report(report)}")
    return 0
