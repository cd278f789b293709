"""Command line of the training tool: detectron2's arguments and four of our own."""

import argparse
from collections.abc import Sequence

from detectron2.engine import default_argument_parser

__all__ = ["argument_parser", "check_launch", "parse_args"]

_EPILOG = """
Examples:

Four GPUs:
    $ tools/train_net.py --config-file configs/csp_cascade.yaml --num-gpus 4

No GPU, and some config values changed (KEY VALUE pairs come last):
    $ tools/train_net.py --config-file configs/Demo/faster_rcnn.yaml --num-gpus 0 SOLVER.MAX_ITER 9

Your own data in COCO format; the class counts are set from it:
    $ tools/train_net.py --config-file configs/csp_cascade.yaml \\
        --train-json train.json --train-images train/ --val-json val.json --val-images val/

Two machines of eight GPUs:
    (machine 0)$ tools/train_net.py ... --num-gpus 8 --num-machines 2 --machine-rank 0 \\
        --dist-url tcp://machine0:23456
    (machine 1)$ tools/train_net.py ... --num-gpus 8 --num-machines 2 --machine-rank 1 \\
        --dist-url tcp://machine0:23456
"""


def argument_parser() -> argparse.ArgumentParser:
    """detectron2's parser, with options for data of your own in COCO format."""
    parser = default_argument_parser(epilog=_EPILOG)
    # detectron2's fixed port makes leftover processes visible; ours die with their parent, so a
    # free port, which lets two runs share a machine, is the better default.
    parser.set_defaults(dist_url="auto")
    data = parser.add_argument_group("your own data in COCO format")
    data.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    data.add_argument("--train-images", metavar="DIR", help="folder of the training images")
    data.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    data.add_argument("--val-images", metavar="DIR", help="folder of the evaluation images")
    return parser


def parse_args(
    argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """Parse and check a command line.

    Args:
        argv: the arguments; None takes those of the process.
        parser: a parser built on :func:`argument_parser`; None takes that one.

    Raises:
        SystemExit: with status 2 and a message that names the argument, as argparse does.
    """
    parser = parser or argument_parser()
    args = parser.parse_args(argv)
    check_launch(parser, args)
    if len(args.opts) % 2:
        words = f"got an odd number of words: {args.opts}"
        parser.error(f"KEY VALUE pairs expected at the end, {words}")
    for split in ("train", "val"):
        if bool(getattr(args, f"{split}_json")) != bool(getattr(args, f"{split}_images")):
            parser.error(f"--{split}-json and --{split}-images go together")
    if args.train_json and not args.val_json:
        parser.error("--train-json needs --val-json and --val-images, to evaluate on")
    return args


def check_launch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check what detectron2's parser takes for every tool that trains.

    Args:
        parser: built on detectron2's ``default_argument_parser``.
        args: what it parsed.

    Raises:
        SystemExit: as :func:`parse_args`.
    """
    # argparse.REMAINDER swallows everything after the first KEY: without this check
    # `SOLVER.MAX_ITER 10 --resume` would silently start from scratch.
    swallowed = [opt for opt in args.opts if opt.startswith("--")]
    if swallowed:
        parser.error(
            f"{', '.join(swallowed)} stands after the KEY VALUE pairs, where it would be "
            "ignored: put every --option before the first KEY"
        )
    if args.num_gpus < 0 or args.num_machines < 1:
        parser.error("--num-gpus is at least 0 (0 means CPU) and --num-machines at least 1")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--num-machines above 1 needs --dist-url tcp://<host of machine 0>:<port>")
    if not 0 <= args.machine_rank < args.num_machines:
        parser.error(f"--machine-rank {args.machine_rank} is not below --num-machines")
