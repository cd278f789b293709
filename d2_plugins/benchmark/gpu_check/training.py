"""Step 4, second part: a run of the trainer that is resumed, averaged and evaluated."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...data import register_coco_json
from ...data.datasets.shapes import ShapesRecipe, ensure_shapes
from ...engine import Trainer
from .checks import Check, Scale
from .small_detectors import small_cfg

__all__ = ["check_training"]

_SPLITS = ("train", "val")
_RESULTS = ("bbox", "segm", "box_proposals", "bbox_occlusion", "bbox_blur", "bbox_noise")
_RUN: tuple[object, ...] = (
    *("SOLVER.AMP.ENABLED", True, "SOLVER.EMA.ENABLED", True, "SOLVER.IMS_PER_BATCH", 2),
    *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"),
    *("TEST.EVAL_PERIOD", 0, "TEST.BEST_METRIC", "", "TEST.REPORT", False),
    *("TEST.PROPOSAL_RECALL", True, "TEST.CORRUPTIONS", ["occlusion", "blur", "noise"]),
    *("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.MAX_SIZE", 80),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "MODEL.ROI_HEADS.NUM_CLASSES", 4),
)


def check_training(scale: Scale) -> list[Check]:
    """Train with mixed precision, clipping and EMA, resume the run, and evaluate it."""
    with tempfile.TemporaryDirectory() as folder, _shapes(Path(folder)) as names:
        cfg = small_cfg(("cspnet", "cascade_rpn", "double_head", True, True), *_RUN)
        cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = scale.device, str(Path(folder) / "run")
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,) for name in names)
        cfg.SOLVER.MAX_ITER = scale.iterations
        first = _trainer(cfg)
        first.max_iter = scale.iterations // 2
        first.train()
        resumed = _trainer(cfg)
        start = resumed.start_iter
        results: dict[str, Any] = resumed.train() or {}
    missing = [name for name in _RESULTS if name not in results]
    augmented = any("TTA" in name for name in results)
    scaler = resumed._trainer.grad_scaler.get_scale()
    return [
        Check("resumed run", start == first.max_iter, f"from {start}", f"from {first.max_iter}"),
        Check("gradient scaler", scaler > 0, f"scale {scaler:.4g}", "> 0"),
        Check("evaluations", not missing, f"missing: {missing}", "recall, masks, corruptions"),
        Check("test-time augmentation", augmented, f"{sorted(results)}", "evaluated"),
    ]


def _trainer(cfg: CfgNode) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


@contextmanager
def _shapes(folder: Path) -> Iterator[list[str]]:
    """Render a few images of the shapes dataset and register them for the context."""
    data = folder / "shapes"
    ensure_shapes(data, ShapesRecipe(num_images=tuple((split, 4) for split in _SPLITS), size=64))
    names = [f"gpu_check_{split}" for split in _SPLITS]
    for name, split in zip(names, _SPLITS, strict=True):
        register_coco_json(name, data / f"annotations_{split}.json", data / split)
    try:
        yield names
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
