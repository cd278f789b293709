"""Pre-flight check of a COCO dataset, before training.

Takes a registered name, the folder of a dataset (COCO JSON, VOC XML or YOLO), or --json and
--images. Prints what it finds, with ids; the exit status is 1 if there are errors, which would fail
in training or evaluation.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data.coco_json import read_coco
from ..data.datasets.missing import missing_dataset_hint
from ..data.preflight.check import check_dataset
from ..data.prepare.folder import find_data
from ..errors import UsageError, nearest
from .parsers import exit_status, text_parser

__all__ = ["add_check_options", "main", "run_check"]

_EXAMPLE = """
Examples:
    $ d2-plugins check --json train.json --images train/
    $ d2-plugins check my_dataset/
    $ d2-plugins check penn_fudan_train --decode
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Check a dataset.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if the dataset has errors; 2 if there is no such dataset or a file
        cannot be read.
    """
    parser = text_parser(__doc__, _EXAMPLE)
    add_check_options(parser)
    return exit_status(run_check, parser.parse_args(argv))


def add_check_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that :func:`run_check` reads."""
    parser.add_argument("name", nargs="?", help="a registered name, or a folder")
    parser.add_argument("--json", type=Path, help="annotations, instead of a name")
    parser.add_argument("--images", type=Path, help="folder of the images of --json")
    parser.add_argument("--decode", action="store_true", help="decode every image: slow, thorough")


def run_check(args: argparse.Namespace) -> int:
    """Print the report of a dataset and return the exit status, 1 if it has errors."""
    if args.json and args.images and not args.name:
        return _check([(args.json, args.images)], args)
    if not args.name or args.json or args.images:
        raise UsageError("check takes a registered name, a folder, or --json and --images")
    if args.name in DatasetCatalog or not Path(args.name).exists():
        return _check([_registered(args.name)], args)
    if Path(args.name).is_file():
        read_coco(args.name)  # raises an error that names another format
        raise UsageError(f"'{args.name}' is a file: give --json {args.name} and --images DIR")
    with tempfile.TemporaryDirectory() as converted:
        found = find_data(Path(args.name), Path(converted))
        print(found.description)
        files = found.files
        pairs = ((files.train_json, files.train_images), (files.val_json, files.val_images))
        return _check([(Path(j), Path(i)) for j, i in pairs if j and i], args)


def _check(data: list[tuple[Path, Path]], args: argparse.Namespace) -> int:
    reports = []
    for json_file, image_root in data:
        reports.append(check_dataset(json_file, image_root, decode=args.decode))
        print(reports[-1], flush=True)
    return 0 if all(report.ok for report in reports) else 1


def _registered(name: str) -> tuple[Path, Path]:
    if name not in DatasetCatalog:
        near = nearest(name, DatasetCatalog)
        raise UsageError(f"there is no dataset or folder '{name}'. Nearest: {near}")
    hint = missing_dataset_hint(name)
    if hint:
        raise UsageError(hint)
    metadata = MetadataCatalog.get(name)
    if not hasattr(metadata, "json_file"):
        raise UsageError(f"'{name}' is not in COCO format")
    return Path(PathManager.get_local_path(metadata.json_file)), Path(metadata.image_root)
