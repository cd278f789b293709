"""Config of a run, built and checked from a command line, and the set-up of a process."""

import argparse
import tempfile
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_setup
from detectron2.utils import comm

from ..data import missing_dataset_hint, register_custom
from ..errors import UsageError, nearest, usage_errors
from ..evaluation import check_test_config
from ..model_zoo import find_config, read_config
from .logs import quiet_screen, setup_loggers
from .own_data import own_files
from .train_step import amp_dtype

__all__ = ["build_cfg", "check_datasets", "setup"]


def setup(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Set up this process of a run: datasets, loggers, seed and output folder.

    The environment and the whole config are written to ``log.txt`` only.

    Args:
        args: the parsed command line of a training.
        cfg: config from :func:`build_cfg`; frozen here.
    """
    cfg.freeze()
    _register_in_worker(args, cfg)
    if args.config_file:  # default_setup logs the content of the file
        args = argparse.Namespace(**{**vars(args), "config_file": find_config(args.config_file)})
    setup_loggers(cfg.OUTPUT_DIR)
    with quiet_screen():
        default_setup(cfg, args)
    if args.train_json and not args.eval_only and comm.is_main_process():
        own_files(args).write(cfg.OUTPUT_DIR)


def build_cfg(args: argparse.Namespace) -> CfgNode:
    """Build and check the config that a command line describes.

    Called once, before any process is started, so that a mistake is reported once. The datasets of
    the command line are checked and registered.

    Args:
        args: the parsed command line of a training.

    Raises:
        UsageError: the config file is missing or unsafe, a key is unknown, a value is not allowed,
            or a dataset is missing or broken.
    """
    cfg = read_config(args.config_file, args.opts)
    if args.train_json or args.val_json:
        register_own_data(cfg, args)
    if args.num_gpus == 0 or not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    _check_output_dir(cfg.OUTPUT_DIR)
    with usage_errors():
        check_test_config(cfg)
        amp_dtype(cfg)
    check_datasets(cfg, training=not args.eval_only)
    return cfg


def _check_output_dir(name: str) -> None:
    """Check that files can be written in a folder, or in the nearest existing one above it."""
    try:
        folder = Path(name).expanduser().resolve()
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"OUTPUT_DIR is {name}; allowed: a writable folder ({reason})") from error


def _register_in_worker(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Register the datasets of the command line in a spawned process, which starts without them.

    Their pre-flight check is not repeated: :func:`build_cfg` has done it in the parent.
    """
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    if not set(names) <= set(DatasetCatalog.list()):
        register_custom(
            args.train_json, args.train_images, args.val_json, args.val_images, check=False
        )


def register_own_data(cfg: CfgNode, args: argparse.Namespace, *, check: bool = True) -> None:
    """Check and register the datasets of the command line, and adapt ``cfg`` to them.

    Sets ``DATASETS.TRAIN`` and ``DATASETS.TEST``, the numbers of classes of all heads and, if the
    masks require it, ``INPUT.MASK_FORMAT``.

    Args:
        cfg: the config to adapt.
        args: the parsed command line of a training.
        check: run the pre-flight check.

    Raises:
        UsageError: the pre-flight check finds an error; the message lists the findings.
    """
    with usage_errors():
        data = register_custom(
            args.train_json,
            args.train_images,
            args.val_json,
            args.val_images,
            check=check,
            needs_masks=cfg.MODEL.MASK_ON,
        )
    for report in data.reports:  # printed, because the loggers are set up later in each process
        print(report, flush=True)
    if data.train_names or not args.eval_only:  # an evaluation keeps the names of its run
        cfg.DATASETS.TRAIN = data.train_names
    cfg.DATASETS.TEST = data.test_names
    if not data.test_names:  # as in detectron2, a run without validation data is not evaluated
        cfg.TEST.BEST_METRIC = ""
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(data.class_names)
    cfg.MODEL.RETINANET.NUM_CLASSES = len(data.class_names)
    if data.mask_format:
        cfg.INPUT.MASK_FORMAT = data.mask_format


def check_datasets(cfg: CfgNode, *, training: bool) -> None:
    """Check that the datasets of ``cfg`` are registered and on disk, and their class counts.

    Args:
        cfg: the config.
        training: check ``DATASETS.TRAIN`` too.

    Raises:
        UsageError: a dataset is unknown or missing, or has more classes than the model.
    """
    names = (*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST)
    if training and not cfg.DATASETS.TRAIN:
        raise UsageError(
            "DATASETS.TRAIN is (); allowed: names of datasets, or the option --data or --train-json"
        )
    for name in names:
        if name not in DatasetCatalog.list():
            near = nearest(name, sorted(DatasetCatalog.list()))
            raise UsageError(f"There is no dataset '{name}'. Nearest: {near}")
        hint = missing_dataset_hint(name)
        if hint:
            raise UsageError(hint)
        classes = getattr(MetadataCatalog.get(name), "thing_classes", None)
        if classes and _uses_roi_classes(cfg) and len(classes) > cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise UsageError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but dataset "
                f"'{name}' has {len(classes)} classes"
            )


def _uses_roi_classes(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN")
