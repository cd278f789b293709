"""Argument parsers and exit status shared by the commands."""

import argparse
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from matplotlib.figure import Figure

from ..checkpoint.hub_files import HUB_PREFIX, download_config
from ..engine.allocator import keep_freed_memory
from ..errors import UsageError
from ..files import atomic_open
from ..model_zoo import read_config

__all__ = [
    "check_launch",
    "config_from",
    "config_parser",
    "exit_status",
    "output_file",
    "parse_train_args",
    "photo_parser",
    "picture_file",
    "save_figure",
    "text_parser",
    "train_parser",
]

_TRAIN_EXAMPLES = """
Examples:

Four GPUs:
    $ d2-plugins train --config-file csp_cascade.yaml --num-gpus 4

No GPU, and some config values changed (KEY VALUE pairs come last):
    $ d2-plugins train --config-file Demo/faster_rcnn.yaml --num-gpus 0 SOLVER.MAX_ITER 9

Your own data in a folder (COCO JSON, VOC XML or YOLO), with a small config for a CPU:
    $ d2-plugins train --data my_dataset OUTPUT_DIR output/own

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
        "--output",
        type=picture_file,
        default=output,
        metavar="FILE",
        help="the picture (%(default)s)",
    )
    return parser


def output_file(value: str) -> Path:
    """Convert the argument of an option that names a file to write.

    Raises:
        argparse.ArgumentTypeError: it cannot be written: it is a folder, or a parent of it is a
            file or a folder without write permission.
    """
    path = Path(value)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"'{value}' is a folder; allowed: the name of a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        reason = "cannot be written to" if folder.is_dir() else "is not a folder"
        raise argparse.ArgumentTypeError(f"'{value}' cannot be written: '{folder}' {reason}")
    return path


def picture_file(value: str) -> Path:
    """:func:`output_file` with a suffix in which matplotlib can save a picture; none means PNG."""
    path = output_file(value)
    known = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in known:
        suffixes = ", ".join(f".{name}" for name in known)
        raise argparse.ArgumentTypeError(
            f"no picture can be saved as '{value}'; allowed suffixes: {suffixes}"
        )
    return path


def save_figure(figure: Figure, path: Path, *, dpi: float | None = None) -> None:
    """Write a picture completely or not at all, in the format of its suffix.

    Args:
        figure: the picture.
        path: result of :func:`picture_file`.
        dpi: dots per inch; None for those of the figure.
    """
    with atomic_open(path, "wb") as file:
        figure.savefig(file, format=path.suffix[1:].lower() or "png", dpi=dpi or "figure")


def config_from(args: argparse.Namespace) -> CfgNode:
    """Return the config of a command line, on the CPU if there is no GPU.

    ``--config-file hf://OWNER/NAME`` is the config of that repository, with its weights.

    Raises:
        UsageError: see :func:`~d2_plugins.model_zoo.read_config`.
    """
    file, opts = args.config_file, args.opts
    if file and file.startswith(HUB_PREFIX):
        file, opts = download_config(file), ["MODEL.WEIGHTS", file, *opts]
    cfg = read_config(file, opts)
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
    data = parser.add_argument_group(
        "your own data", "a folder, or files in COCO format; --config-file may be left out"
    )
    data.add_argument(
        "--data", metavar="DIR", help="folder of a dataset: COCO JSON, VOC XML or YOLO"
    )
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
    if args.data and (args.train_json or args.val_json):
        parser.error("--data excludes --train-json and --val-json")
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
    if args.dist_url != "auto":
        _check_address(parser, args)
    if not 0 <= args.machine_rank < args.num_machines:
        parser.error(f"--machine-rank {args.machine_rank} is not below --num-machines")


def _check_address(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    url = urlsplit(args.dist_url)
    try:
        host, port = url.hostname, url.port
    except ValueError:  # not a number, or out of range
        host = port = None
    if url.scheme != "tcp" or not host or not port:
        parser.error(f"--dist-url is '{args.dist_url}'; allowed: auto, tcp://<host>:<port>")
    several = args.num_gpus * args.num_machines > 1
    if several and args.machine_rank == 0 and host in ("127.0.0.1", "localhost"):
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                server.bind((host, port))
            except OSError as error:
                parser.error(f"--dist-url is '{args.dist_url}', but its port: {error.strerror}")
