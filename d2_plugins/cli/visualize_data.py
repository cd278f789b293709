"""Draw a dataset's annotations, or the augmented samples that a model is trained on.

The dataset is DATASETS.TRAIN, any registered one (--dataset) or your own (--data, or --train-json
and --train-images). `--source dataloader` draws the samples of the training loader: after
augmentation, with masks if MODEL.MASK_ON is set, in the order of a run with the config's SEED.
Pictures are named by their number and their image. Unreadable images are reported and
skipped; the exit status is then 1.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from PIL import Image

from ..data.loader import TrainLoader
from ..data.own_files import OwnFiles
from ..data.prepare.folder import find_data
from ..engine.own_data import recorded_files
from ..engine.setup import check_datasets, register_own_data
from ..engine.trainer import Trainer
from ..files import atomic_open
from ..visualization.dataset import draw_annotations, draw_sample
from .parsers import config_from, config_parser, exit_status

__all__ = ["main", "training_samples"]

_EXAMPLE = """
Examples:
    $ d2-plugins visualize-data --dataset shapes_train --limit 8 --scale 4 --output pictures
    $ d2-plugins visualize-data --config-file csp_cascade.yaml --source dataloader \\
        --output pictures
    $ d2-plugins visualize-data --train-json train.json --train-images train/ --output pictures
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the pictures of a dataset.

    Args:
        argv: the arguments; None for those of the process.

    Returns:
        The exit status: 0; 1 if an image could not be read; 2 after a mistake in the command line,
        the config or the data.
    """
    parser = config_parser(__doc__, _EXAMPLE, required=False)
    parser.add_argument("--dataset", metavar="NAME", help="instead of DATASETS.TRAIN")
    parser.add_argument("--data", metavar="DIR", help="folder of your data: COCO, VOC XML or YOLO")
    parser.add_argument("--train-json", metavar="FILE", help="your annotations in COCO format")
    parser.add_argument("--train-images", metavar="DIR", help="folder of your images")
    parser.add_argument(
        "--source",
        choices=("annotation", "dataloader"),
        default="annotation",
        help="what to draw (%(default)s)",
    )
    parser.add_argument("--output", type=Path, default=Path("visualized"), metavar="FOLDER")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="size factor of the pictures (%(default)s)"
    )
    args = parser.parse_args(argv)
    if bool(args.train_json) != bool(args.train_images):
        parser.error("--train-json and --train-images go together")
    if not (args.data or args.dataset or args.train_json or args.config_file):
        parser.error("give --config-file, --data, --dataset, or --train-json and --train-images")
    if bool(args.dataset) + bool(args.train_json) + bool(args.data) > 1:
        parser.error("--data, --dataset and --train-json exclude each other")
    if args.limit < 1 or args.scale <= 0:
        parser.error("--limit is at least 1 and --scale above 0")
    return exit_status(_run, args)


def _run(args: argparse.Namespace) -> int:
    cfg = _build_config(args)
    items = _annotated_items(cfg) if args.source == "annotation" else training_samples(cfg)
    num_unreadable = num_written = 0
    for number, (item, metadata) in enumerate(itertools.islice(items, args.limit)):
        try:
            if args.source == "annotation":
                picture = draw_annotations(item, metadata, scale=args.scale)
            else:
                picture = draw_sample(item, cfg.INPUT.FORMAT, metadata, scale=args.scale)
        except OSError as error:
            print(f"error: {error}", file=sys.stderr)
            num_unreadable += 1
            continue
        path = args.output / f"{number:04d}_{Path(item['file_name']).stem}.jpg"
        with atomic_open(path, "wb") as file:
            Image.fromarray(picture).save(file, "JPEG", quality=92)
        num_written += 1
    print(f"wrote {args.output}: {num_written} pictures of {', '.join(cfg.DATASETS.TRAIN)}")
    return 1 if num_unreadable else 0


def _build_config(args: argparse.Namespace) -> CfgNode:
    """Return the config with the dataset to draw as its ``DATASETS.TRAIN``."""
    cfg = config_from(args)
    if files := _own_files(args, cfg):
        args = argparse.Namespace(**vars(args) | asdict(files))
        register_own_data(cfg, args, check=False)  # broken datasets can be drawn, too
    elif args.dataset:
        cfg.DATASETS.TRAIN = (args.dataset,)
    cfg.DATASETS.TEST = ()
    if args.config_file is None and args.dataset in DatasetCatalog:  # no model, no class count
        names = MetadataCatalog.get(args.dataset).get("thing_classes", ())
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
    check_datasets(cfg, training=True)
    cfg.DATALOADER.NUM_WORKERS = 0  # starting processes takes longer than a few samples
    return cfg


def _own_files(args: argparse.Namespace, cfg: CfgNode) -> OwnFiles | None:
    """Return the training files of your own data: given, found, or recorded by the config's run."""
    if args.train_json:
        return OwnFiles(train_json=args.train_json, train_images=args.train_images)
    if args.data:
        found = find_data(Path(args.data), args.output / "data")
        return replace(found.files, val_json=None, val_images=None)
    if args.config_file and not args.dataset and "custom_train" in cfg.DATASETS.TRAIN:
        return recorded_files(cfg, args.config_file, ("train",))
    return None


def _annotated_items(cfg: CfgNode) -> Iterator[tuple[dict[str, Any], Metadata]]:
    for name in cfg.DATASETS.TRAIN:
        items = DatasetCatalog.get(name)  # some datasets fill their metadata here
        for item in items:
            yield item, MetadataCatalog.get(name)


def training_samples(cfg: CfgNode) -> Iterator[tuple[dict[str, Any], Metadata]]:
    """Yield the samples that the model gets in training, one after the other, without end.

    Args:
        cfg: the config; a negative ``SEED`` counts as 0.

    Returns:
        Mapped samples, each with the metadata of the (first) training set.
    """
    loader = Trainer.build_train_loader(cfg)
    if isinstance(loader, TrainLoader):
        loader.seek(0, max(0, cfg.SEED))
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    for batch in loader:
        for sample in batch:
            yield sample, metadata
