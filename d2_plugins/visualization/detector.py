"""What tools/demo.py detects with, and how its detections are written down."""

import logging
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ..checkpoint.checkpointer import load_model
from ..errors import UsageError

__all__ = ["Detector", "class_metadata", "set_confidence_threshold"]

logger = logging.getLogger(__name__)


class Detector(DefaultPredictor):
    """detectron2's DefaultPredictor with every weight checked and the names of its classes.

    Attributes:
        metadata: of the data set whose classes the model knows; empty if unknown.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Args:
        cfg: with ``MODEL.WEIGHTS``.

        Raises:
            UsageError: there are no weights, or they do not fill the model.
        """
        # Not DefaultPredictor.__init__, whose checkpointer only warns of missing weights.
        if not cfg.MODEL.WEIGHTS:
            raise UsageError(
                "MODEL.WEIGHTS is empty: name a trained model, MODEL.WEIGHTS model_final.pth"
            )
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("BGR", "RGB"):
            raise UsageError(f"INPUT.FORMAT is '{self.input_format}'; allowed: BGR, RGB")
        self.cfg = cfg.clone()
        self.metadata = class_metadata(cfg)
        self.aug = ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        self.model = load_model(self.cfg)

    def detect(self, image: np.ndarray) -> Instances:
        """Detect objects.

        Args:
            image: (H, W, 3) uint8, BGR.

        Returns:
            On the CPU, in pixels of ``image``.

        Raises:
            UsageError: the model detects no objects, e.g. makes proposals only.
        """
        output = self(image)
        if "instances" not in output:
            raise UsageError(
                f"MODEL.META_ARCHITECTURE '{self.cfg.MODEL.META_ARCHITECTURE}' gives "
                f"{', '.join(output)}; the demo shows detected objects only"
            )
        return output["instances"].to("cpu")

    def coco_rows(
        self, instances: Instances, *, image_id: int, file_name: str
    ) -> list[dict[str, Any]]:
        """Detections in COCO's result format, with ``file_name`` beside ``image_id``.

        Args:
            instances: of one image.
            image_id: its number.
            file_name: its file.
        """
        to_index = self.metadata.get("thing_dataset_id_to_contiguous_id", {})
        to_category = {index: category for category, index in to_index.items()}
        rows = instances_to_coco_json(instances, image_id)
        for row in rows:
            row["category_id"] = to_category.get(row["category_id"], row["category_id"])
            row["file_name"] = file_name
        return rows


def set_confidence_threshold(cfg: CfgNode, threshold: float) -> None:
    """Let detectors of ``cfg`` give only objects whose score is above ``threshold``, in 0..1."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = threshold
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = threshold


def class_metadata(cfg: CfgNode) -> Metadata:
    """What the catalog knows of the model's classes.

    Args:
        cfg: the first of its ``DATASETS.TEST`` and ``DATASETS.TRAIN`` that is registered and names
            its classes counts.

    Returns:
        The data set's metadata; an empty one if there is none, or if the model has more classes.
    """
    is_retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
    num_classes = (cfg.MODEL.RETINANET if is_retinanet else cfg.MODEL.ROI_HEADS).NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name) if name in DatasetCatalog else Metadata()
        names = metadata.get("thing_classes")
        if names and len(names) >= num_classes:
            return metadata
        if names:
            logger.warning(
                "Data set '%s' names %d classes, the model has %d: shown by number",
                *(name, len(names), num_classes),
            )
            break
    return Metadata()
