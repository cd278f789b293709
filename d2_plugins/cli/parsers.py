"""Command lines of the tools that show something: what they share."""

import argparse
import sys
from collections.abc import Callable

import torch
from detectron2.config import CfgNode

from ..errors import UsageError
from ..model_zoo import read_config

__all__ = ["config_from", "config_parser", "exit_status", "photo_parser", "text_parser"]


def text_parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """A parser whose help keeps the line breaks of its description and its example."""
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
        description: of the tool, mostly its module's docstring.
        example: a command or two.
        required: whether the tool can do nothing without a config.
    """
    parser = text_parser(description, example)
    parser.add_argument("--config-file", required=required, metavar="FILE", help="or a zoo name")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config values to change")
    return parser


def photo_parser(description: str | None, example: str, *, output: str) -> argparse.ArgumentParser:
    """:func:`config_parser` of a tool that makes one picture of one photograph.

    Args:
        description: as there.
        example: as there.
        output: default name of the picture.
    """
    parser = config_parser(description, example)
    parser.add_argument("--input", required=True, metavar="FILE", help="a photograph")
    parser.add_argument("--output", default=output, metavar="FILE", help="the picture")
    return parser


def config_from(args: argparse.Namespace) -> CfgNode:
    """The config of a command line, for this machine.

    Raises:
        UsageError: see :func:`~d2_plugins.config_files.read_config`.
    """
    cfg = read_config(args.config_file, args.opts)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def exit_status(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run a tool; 2 and one line on stderr if its user has to mend something."""
    try:
        return run(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
