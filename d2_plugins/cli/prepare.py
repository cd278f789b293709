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
from ..data.preflight.check import check_dataset
from ..data.prepare.convert import FORMATS, convert
from ..data.prepare.prepare import prepare
from ..data.prepare.recipes import RECIPES
from ..errors import UsageError
from .check import add_check_options, run_check
from .parsers import exit_status, text_parser

__all__ = ["main"]

_CONTENT = {
    "coco2017": "COCO 2017: 123,287 photos of 80 classes, about 20 GB",
    "voc": "PASCAL VOC 2007 and 2012: photos of 20 classes",
    "penn_fudan": "Penn-Fudan: 170 photos of pedestrians, with masks",
    "bccd": "BCCD: 364 microscope images of blood cells",
}

_EXAMPLE = """
Examples:
    $ d2-plugins prepare shapes
    $ d2-plugins prepare penn_fudan
    $ d2-plugins prepare coco2017 --splits val --root /data

From archives, or a folder with VOC2007 or VOC2012, instead of a download:
    $ d2-plugins prepare voc --from ~/downloads
    $ d2-plugins prepare coco2017 --from /data/coco --link

Your own dataset, in VOC XML or YOLO format, to COCO JSON with a validation set:
    $ d2-plugins prepare convert my_dataset --output coco --split 0.8
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
        command = commands.add_parser(name, parents=[common], help=f"download {_CONTENT[name]}")
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
    conversion = commands.add_parser(
        "convert", help="convert VOC XML or YOLO text files to COCO JSON and check the result"
    )
    conversion.add_argument("source", type=Path, help="folder of the dataset")
    conversion.add_argument("--output", type=Path, default=Path("coco"), help="folder of the JSONs")
    conversion.add_argument("--format", choices=FORMATS, help="recognized if it is not given")
    conversion.add_argument("--split", type=float, help="fraction to train on, for example 0.8")
    conversion.add_argument("--seed", type=int, default=0, help="seed of --split (default: 0)")
    conversion.set_defaults(run=_convert)
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


def _convert(args: argparse.Namespace) -> int:
    written = convert(args.source, args.output, form=args.format, split=args.split, seed=args.seed)
    reports = [check_dataset(file.json_file, file.image_root) for file in written]
    for file, report in zip(written, reports, strict=True):
        print(file, report, sep="\n")
    by_split = {file.json_file.stem: file.json_file for file in written}
    if "train" in by_split:
        options = [
            f"--{split}-json {by_split[split]} --{split}-images {args.source}"
            for split in ("train", "val")
            if split in by_split
        ]
        print(f"Train with: d2-plugins train {' '.join(options)}")
    if "val" not in by_split:
        print("No validation set was made; --split 0.8 makes one.")
    return 0 if all(report.ok for report in reports) else 1


def _shapes(args: argparse.Namespace) -> int:
    for dataset in shapes_datasets(args.root or dataset_root()):
        dataset.ensure()
        print(f"{dataset.name}: {dataset.json_file}")
    return 0
