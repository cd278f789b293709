#!/usr/bin/env python
"""Parameters, FLOPs, activations and latency of a config's detector, part by part.

The weights are random. So that this says something, the RoI heads are given random boxes, as many
proposals and detections as the config allows in testing.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch

from d2_plugins.benchmark.fixed_work import build_fixed_work
from d2_plugins.benchmark.machine import describe_machine
from d2_plugins.benchmark.model_costs import analyze, format_report
from d2_plugins.cli.parsers import config_from, config_parser, exit_status
from d2_plugins.data.images import load_photo
from d2_plugins.errors import UsageError, usage_errors

EXAMPLE = """
Example:
    $ tools/analyze_model.py --config-file configs/csp_cascade.yaml --size 800 1216
"""


def parser() -> argparse.ArgumentParser:
    parser = config_parser(__doc__, EXAMPLE)
    image = parser.add_mutually_exclusive_group()
    image.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="of an image of noise; default: as the config resizes a photograph of 2 by 3",
    )
    image.add_argument("--input", metavar="FILE", help="a photograph, resized as in testing")
    parser.add_argument("--repeats", type=int, default=5, help="timings; 0: none (%(default)s)")
    parser.add_argument("--threads", type=int, help="PyTorch's threads; default: as it has")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
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


def main(argv: Sequence[str] | None = None) -> int:
    return exit_status(run, parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
