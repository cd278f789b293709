"""Command line of the data set tool."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from ..data.datasets.missing import missing_dataset_hint
from ..data.datasets.registration import dataset_root
from ..data.datasets.shapes import shapes_datasets
from ..data.preflight.check import check_dataset
from ..data.prepare.prepare import prepare
from ..data.prepare.recipes import RECIPES
from ..errors import UsageError

__all__ = ["main"]

_EPILOG = """
examples:
  %(prog)s penn_fudan
  %(prog)s coco2017 --splits val --root /data
  %(prog)s voc --from ~/downloads            (archives, or a folder with VOC2007 or VOC2012)
  %(prog)s coco2017 --from /data/coco --link
  %(prog)s check --json train.json --images train/
  %(prog)s check penn_fudan_train --decode
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare or check a data set as the command line says.

    Args:
        argv: the arguments; None takes those of the process.

    Returns:
        The exit status: 0, or 1 where something is missing, damaged or wrong.
    """
    args = _parser().parse_args(argv)
    setup_logger(name="d2_plugins")
    try:
        return args.run(args)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Prepare data sets under the dataset root, or check one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
            help="folder with the archives or with what they hold, instead of a download",
        )
        command.add_argument("--link", action="store_true", help="link --from, do not copy it")
        command.add_argument("--keep-archives", action="store_true", help="after unpacking")
        command.set_defaults(run=_prepare)
    shapes = commands.add_parser("shapes", parents=[common], help="render the embedded data set")
    shapes.set_defaults(run=_shapes)
    check = commands.add_parser("check", help="pre-flight check of a data set in COCO format")
    check.add_argument("name", nargs="?", help="a registered name")
    check.add_argument("--json", type=Path, help="annotations, instead of a name")
    check.add_argument("--images", type=Path, help="folder of the images of --json")
    check.add_argument("--decode", action="store_true", help="decode every image: slow, thorough")
    check.set_defaults(run=_check)
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


def _check(args: argparse.Namespace) -> int:
    if args.name and not (args.json or args.images):
        json_file, image_root = _registered(args.name)
    elif args.json and args.images and not args.name:
        json_file, image_root = args.json, args.images
    else:
        raise UsageError("check takes either a registered name, or --json and --images")
    report = check_dataset(json_file, image_root, decode=args.decode)
    print(report)
    return 0 if report.ok else 1


def _registered(name: str) -> tuple[Path, Path]:
    if name not in DatasetCatalog:
        raise UsageError(f"there is no data set '{name}'; there are: {', '.join(DatasetCatalog)}")
    hint = missing_dataset_hint(name)
    if hint:
        raise FileNotFoundError(hint)
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):
        raise UsageError(f"'{name}' is not in COCO format")
    return Path(PathManager.get_local_path(metadata.json_file)), Path(metadata.image_root)
