"""Argument parsers and exit status shared by the commands."""

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from ..engine.allocator import keep_freed_memory
from ..errors import UsageError
from ..model_zoo import read_config

__all__ = [
    "check_launch",
    "config_from",
    "config_parser",
    "exit_status",
    "parse_train_args",
    "photo_parser",
    "text_parser",
    "train_parser",
]

_TRAIN_EXAMPLES = """
Examples:

Four GPUs:
    $ d2-plugins train --config-file csp_cascade.yaml --num-gpus 4

No GPU, and some config values changed (KEY VALUE pairs come last):
    $ d2-plugins train --config-file Demo/faster_rcnn.yaml --num-gpus 0 SOLVER.MAX_ITER 9

Your own data in COCO format; the class counts are set from it:
    $ d2-plugins train --config-file csp_cascade.yaml \\
        --train-json train.json --train-images train/ --val-json val.json --val-images val/

Two machines of eight GPUs:
    (machine 0)$ d2-plugins train ... --num-gpus 8 --num-machines 2 --machine-rank 0 \\
        --dist-url tcp://machine0:23456
    (machine 1)$ d2-plugins train ... --num-gpus 8 --num-machines 2 --machine-rank 1 \\
        --dist-url tcp://machine0:23456
"""


def exit_status(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a command and turn the user's mistakes into one line on stderr and an exit status.

    Args:
        run: the command; returns its exit status.
        args: its parsed arguments.

    Returns:
        The status that ``run`` returns; 2 after a mistake that the user can fix (files that cannot
        be read or written included); 130 after Ctrl-C.
    """
    try:
        return run(args)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def text_parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """Return a parser whose help keeps the line breaks of its description and its example."""
    return argparse.ArgumentParser(
        description=description,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(
    description: str | None, example: str, *, required: bool = True
) -> argparse.ArgumentParser:
    """:func:`text_parser` with ``--config-file`` and KEY VALUE pairs.

    Args:
        description: first paragraph of the help, usually the docstring of the command's module.
        example: one or two commands.
        required: ``--config-file`` must be given.
    """
    parser = text_parser(description, example)
    parser.add_argument(
        "--config-file", required=required, metavar="FILE", help="a file or a name of the zoo"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config values to change")
    return parser


def photo_parser(description: str | None, example: str, *, output: str) -> argparse.ArgumentParser:
    """:func:`config_parser` of a command that makes one picture of one photo.

    Args:
        description: see :func:`config_parser`.
        example: see :func:`config_parser`.
        output: default file name of the picture.
    """
    parser = config_parser(description, example)
    parser.add_argument("--input", required=True, metavar="FILE", help="the photo")
    parser.add_argument(
        "--output", default=output, metavar="FILE", help="the picture (%(default)s)"
    )
    return parser


def config_from(args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, on the CPU if there is no GPU.

    Raises:
        UsageError: see :func:`~d2_plugins.model_zoo.read_config`.
    """
    cfg = read_config(args.config_file, args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    return cfg


def train_parser() -> argparse.ArgumentParser:
    """Return detectron2's training parser, with options for your own data in COCO format."""
    parser = default_argument_parser(epilog=_TRAIN_EXAMPLES)
    parser.description = "Train or evaluate a detector."
    # detectron2's fixed port makes leftover processes visible. Ours die with their parent, so a
    # free port, which lets two runs share a machine, is the better default.
    parser.set_defaults(dist_url="auto")
    data = parser.add_argument_group("your own data in COCO format")
    data.add_argument("--train-json", metavar="FILE", help="annotations to train on")
    data.add_argument("--train-images", metavar="DIR", help="folder of the training images")
    data.add_argument("--val-json", metavar="FILE", help="annotations to evaluate on")
    data.add_argument("--val-images", metavar="DIR", help="folder of the evaluation images")
    return parser


def parse_train_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line of a training.

    Args:
        argv: the arguments; None for those of the process.

    Raises:
        SystemExit: with status 2 and a message that names the argument, as argparse does.
    """
    parser = train_parser()
    args = parser.parse_args(argv)
    check_launch(parser, args)
    if len(args.opts) % 2:
        words = f"got an odd number of words: {args.opts}"
        parser.error(f"KEY VALUE pairs expected at the end, {words}")
    for split in ("train", "val"):
        if bool(getattr(args, f"{split}_json")) != bool(getattr(args, f"{split}_images")):
            parser.error(f"--{split}-json and --{split}-images go together")
    if args.eval_only and args.train_json and not args.val_json:
        parser.error("--eval-only needs --val-json and --val-images, to evaluate on")
    return args


def check_launch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Check the arguments that all training commands take from detectron2's parser.

    Args:
        parser: a parser built on detectron2's ``default_argument_parser``.
        args: the parsed arguments.

    Raises:
        SystemExit: see :func:`parse_train_args`.
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
