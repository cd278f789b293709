"""Your own data on the command line of a training: where it is, and the config it is trained with.

The files are named by options, found in the folder ``--data``, or recorded in the run's folder.
"""

import argparse
import os
from dataclasses import asdict, replace
from pathlib import Path

from detectron2.config import CfgNode

from ..data.own_files import OwnFiles
from ..data.prepare.folder import find_data
from ..errors import UsageError
from ..model_zoo import read_config

__all__ = ["DEFAULT_CONFIG", "OUTPUT_DIR", "complete_args", "own_files", "recorded_files"]

# A detector for a CPU, with ImageNet weights; docs/own_data.md trains it.
DEFAULT_CONFIG = "PennFudan/faster_rcnn_crpn_efficientnet_lite0.yaml"
OUTPUT_DIR = "output/own"


def complete_args(args: argparse.Namespace) -> argparse.Namespace:
    """Return a command line that names its config file and the files of its own data.

    Without ``--config-file``, your own data are trained with :data:`DEFAULT_CONFIG` in
    :data:`OUTPUT_DIR`. The files of ``--data`` and those recorded in the folder of a run take the
    place of ``--train-json`` and so on. Both are reported in one line.

    Args:
        args: the parsed command line of a training; not changed.

    Raises:
        UsageError: neither a config file nor data are given; the data cannot be recognized, or are
            not where they were.
    """
    args = argparse.Namespace(**vars(args))
    if not args.config_file:
        _choose_config(args)
    cfg = read_config(args.config_file, args.opts)
    if args.data:
        # The files of a training stay as they are when its run is evaluated on other data.
        name = "data_eval" if args.eval_only else "data"
        found = find_data(Path(args.data), Path(cfg.OUTPUT_DIR) / name)
        where = f"; JSON files in {found.output}" if found.output else ""
        print(f"Data in {found.description}{where}", flush=True)
        files = found.files
        _require(files, args)
        if args.eval_only:
            files = replace(files, train_json=None, train_images=None)
    elif own_files(args) == OwnFiles() and _names_own_data(cfg, args):
        splits = ("val",) if args.eval_only else ("train", "val")
        files = recorded_files(cfg, args.config_file, splits)
    else:
        return args
    for key, path in asdict(files).items():
        setattr(args, key, path)
    return args


def own_files(args: argparse.Namespace) -> OwnFiles:
    """Return the files that a command line names."""
    return OwnFiles(**{key: getattr(args, key) or None for key in asdict(OwnFiles())})


def _choose_config(args: argparse.Namespace) -> None:
    if args.eval_only or args.resume:
        option = "--eval-only" if args.eval_only else "--resume"
        raise UsageError(f"{option} needs --config-file: the config.yaml in the folder of the run")
    if not (args.data or args.train_json):
        raise UsageError(
            "give --config-file FILE (a file, or a name of the model zoo), or your own data: "
            "--data DIR, or --train-json FILE --train-images DIR"
        )
    args.config_file = DEFAULT_CONFIG
    args.opts = ["OUTPUT_DIR", OUTPUT_DIR, *args.opts]
    print(f"Config: {DEFAULT_CONFIG}, because --config-file is not given", flush=True)


def _require(files: OwnFiles, args: argparse.Namespace) -> None:
    kind = "validation" if args.eval_only else "training"
    if not (files.val_json if args.eval_only else files.train_json):
        raise UsageError(f"--data is {args.data}, which has no {kind} images")


def _names_own_data(cfg: CfgNode, args: argparse.Namespace) -> bool:
    names = {*cfg.DATASETS.TEST, *(() if args.eval_only else cfg.DATASETS.TRAIN)}
    return not names.isdisjoint(("custom_train", "custom_val"))


def recorded_files(cfg: CfgNode, config_file: str, splits: tuple[str, ...]) -> OwnFiles:
    """Return the files of a run on your own data, from its ``data.json``.

    Args:
        cfg: config of the run; the record is in its output folder or next to its weights.
        config_file: file of the config; the record may be next to it, too.
        splits: "train" and "val", or one of them.

    Raises:
        UsageError: there is no record, or its files do not exist.
    """
    for folder in (
        cfg.OUTPUT_DIR,
        os.path.dirname(config_file),
        os.path.dirname(cfg.MODEL.WEIGHTS),
    ):
        files = OwnFiles.read(folder)
        if files is not None:
            chosen = {k: p for k, p in asdict(files).items() if k.startswith(splits)}
            files = OwnFiles(**chosen)
            files.check(os.path.join(folder, "data.json"))
            return files
    options = " ".join(f"--{split}-json FILE --{split}-images DIR" for split in splits)
    raise UsageError(
        f"the config names your own data, but {cfg.OUTPUT_DIR} has no data.json with its files; "
        f"give {options}, or --data DIR"
    )
