"""Scores the ground truth itself as detections."""

from collections.abc import Callable
from typing import Any

import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances


def perfect_scores(
    name: str, tasks: tuple[str, ...], keep: Callable[[dict[str, Any]], bool] = lambda a: True
) -> dict[str, dict[str, float]]:
    """detectron2's results for a detector that finds the objects for which ``keep`` is true."""
    evaluator = COCOEvaluator(name, tasks, distributed=False, use_fast_impl=False)
    evaluator.reset()
    for item in DatasetCatalog.get(name):
        found = [annotation for annotation in item["annotations"] if keep(annotation)]
        instances = Instances((item["height"], item["width"]))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in found]
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.pred_classes = torch.tensor([a["category_id"] for a in found]).long()
        instances.scores = torch.ones(len(found))
        if "segm" in tasks:
            masks = [torch.from_numpy(mask_util.decode(a["segmentation"])) for a in found]
            instances.pred_masks = torch.stack(masks).bool()
        evaluator.process([item], [{"instances": instances}])
    return evaluator.evaluate()
