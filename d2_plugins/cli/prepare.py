"""Prepare datasets below the dataset root.

Downloads, verifies, unpacks and converts them, or renders the embedded one. The dataset root is
--root, the environment variable DETECTRON2_DATASETS or ./datasets.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..data.datasets.registration import dataset_root
from ..data.datasets.shapes import shapes_datasets
from ..data.prepare.prepare import prepare
from ..data.prepare.recipes import RECIPES
from ..errors import UsageError
from .check import add_check_options, run_check
from .parsers import exit_status, text_parser

__all__ = ["main"]

_EXAMPLE = """
Examples:
    $ d2-plugins prepare shapes
    $ d2-plugins prepare penn_fudan
    $ d2-plugins prepare coco2017 --splits val --root /data

From archives, or a folder with VOC2007 or VOC2012, instead of a download:
    $ d2-plugins prepare voc --from ~/downloads
    $ d2-plugins prepare coco2017 --from /data/coco --link
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a dataset, or check one.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if a checked dataset has errors; 2 after a mistake in the command
        line, a failed download, or missing or damaged files.
    """
    args = _parser().parse_args(argv)
    setup_logger(name="d2_plugins")
    return exit_status(args.run, args)


def _parser() -> argparse.ArgumentParser:
    parser = text_parser(__doc__, _EXAMPLE)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--root",
        type=Path,
        help="dataset root (default: DETECTRON2_DATASETS, or ./datasets)",
    )
    for name, recipe in RECIPES.items():
        command = commands.add_parser(name, parents=[common], help=f"prepare {name}")
        command.add_argument("--splits", nargs="+", choices=recipe.splits)
        command.add_argument(
            "--from",
            dest="source",
            type=Path,
            metavar="DIR",
            help="folder with the archives or their content, instead of a download",
        )
        command.add_argument(
            "--link", action="store_true", help="link the folder --from instead of copying it"
        )
        command.add_argument(
            "--keep-archives",
            action="store_true",
            help="do not delete the archives after unpacking",
        )
        command.set_defaults(run=_prepare)
    shapes = commands.add_parser("shapes", parents=[common], help="render the embedded dataset")
    shapes.set_defaults(run=_shapes)
    check = commands.add_parser("check", help="the same as `d2-plugins check`")
    add_check_options(check)
    check.set_defaults(run=run_check)
    return parser


def _prepare(args: argparse.Namespace) -> int:
    if args.link and args.source is None:
        raise UsageError("--link needs --from")
    if args.source is not None and not args.source.is_dir():
        raise UsageError(f"--from: there is no folder {args.source}")
    counts = prepare(
        args.command,
        args.root or dataset_root(),
        splits=args.splits,
        source=args.source,
        link=args.link,
        keep_archives=args.keep_archives,
    )
    for count in counts:
        print(count)
    return 0


def _shapes(args: argparse.Namespace) -> int:
    for dataset in shapes_datasets(args.root or dataset_root()):
        dataset.ensure()
        print(f"{dataset.name}: {dataset.json_file}")
    return 0
