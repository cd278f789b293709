"""A random COCO dataset with everything that makes evaluation hard, and detections on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

SIZE = 160
# Not contiguous, and the last has no object.
CATEGORIES = {3: "cat", 7: "dog", 8: "owl", 12: "yak"}
NUM_KEYPOINTS = 4
SIGMAS = (0.05, 0.1, 0.05, 0.2)


def random_annotations(seed: int, num_images: int = 12) -> dict[str, Any]:
    """Boxes of all areas, RLE masks, keypoints, crowd regions, images without objects."""
    rng = np.random.default_rng(seed)
    images = [
        {"id": 10 * i + 1, "file_name": f"{i}.png", "height": SIZE, "width": SIZE}
        for i in range(num_images)
    ]
    annotations: list[dict[str, Any]] = []
    for image in images[1:]:
        for _ in range(rng.integers(0, 7)):
            x, y, w, h = _random_box(rng)
            mask = _ellipse(x, y, w, h)
            points = np.stack(
                [x + w * rng.random(NUM_KEYPOINTS), y + h * rng.random(NUM_KEYPOINTS)]
            )
            visible = rng.integers(0, 3, NUM_KEYPOINTS)
            keypoints = np.concatenate([points, visible[None]]).T
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([3, 7, 8])),
                    "bbox": [x, y, w, h],
                    "area": float(mask_util.area(mask)),
                    "iscrowd": int(rng.random() < 0.1),
                    "segmentation": mask | {"counts": mask["counts"].decode()},
                    "keypoints": keypoints.flatten().tolist(),
                    "num_keypoints": int((visible > 0).sum()),
                }
            )
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def perfect_instances(data: dict[str, Any]) -> dict[int, Instances]:
    """Return the objects that are not crowd regions, each detected once."""
    contiguous = {category: i for i, category in enumerate(CATEGORIES)}
    predictions = {}
    for image in data["images"]:
        truth = [
            a for a in data["annotations"] if a["image_id"] == image["id"] and not a["iscrowd"]
        ]
        boxes = torch.tensor([a["bbox"] for a in truth]).reshape(-1, 4)
        instances = Instances((SIZE, SIZE))
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
        instances.scores = torch.ones(len(truth))
        instances.pred_classes = torch.tensor(
            [contiguous[a["category_id"]] for a in truth], dtype=torch.long
        )
        predictions[image["id"]] = instances
    return predictions


def random_instances(
    data: dict[str, Any], seed: int, *, masks: bool = True, keypoints: bool = True
) -> dict[int, Instances]:
    """Shifted copies of the objects, several of some, and false positives; scores have ties."""
    rng = np.random.default_rng(seed + 1000)
    contiguous = {category: i for i, category in enumerate(CATEGORIES)}
    predictions = {}
    for image in data["images"]:
        truth = [a for a in data["annotations"] if a["image_id"] == image["id"]]
        boxes, classes = [_random_box(rng) for _ in range(2)], [0, 3]
        for annotation in truth * 2:
            x, y, w, h = annotation["bbox"]
            dx, dy, dw, dh = rng.normal(0, 0.12, 4)
            boxes.append((x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)))
            wrong = rng.random() < 0.2
            classes.append(rng.integers(4) if wrong else contiguous[annotation["category_id"]])
        xywh = np.array(boxes)
        instances = Instances((SIZE, SIZE))
        instances.pred_boxes = Boxes(
            torch.tensor(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)).float()
        )
        instances.scores = torch.tensor(rng.integers(1, 20, len(boxes)) / 20.0)
        instances.pred_classes = torch.tensor(np.array(classes))
        if masks:
            decoded = [mask_util.decode(_ellipse(*box)) for box in boxes]
            instances.pred_masks = torch.tensor(np.array(decoded)).bool()
        if keypoints:
            points = xywh[:, None, :2] + xywh[:, None, 2:] * rng.random((1, NUM_KEYPOINTS, 2))
            scores = np.ones((len(boxes), NUM_KEYPOINTS, 1))
            instances.pred_keypoints = torch.tensor(np.concatenate([points, scores], axis=2))
        predictions[image["id"]] = instances
    return predictions


def _random_box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    side, stretch = np.exp(rng.uniform(np.log([8, 0.7]), np.log([0.7 * SIZE, 1.4])))
    w, h = side * stretch, side / stretch
    return (rng.random() * (SIZE - w), rng.random() * (SIZE - h), w, h)


def _ellipse(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    polygon = np.stack([x + w * (1 + np.cos(angles)) / 2, y + h * (1 + np.sin(angles)) / 2], 1)
    return mask_util.merge(mask_util.frPyObjects([polygon.flatten().tolist()], SIZE, SIZE))


def assert_same(results: Any, expected: Any) -> None:
    """The same tasks and metrics, to 1e-6; NaN is equal to NaN."""
    assert results.keys() == expected.keys()
    for task, metrics in expected.items():
        assert results[task].keys() == metrics.keys()
        np.testing.assert_allclose(
            list(results[task].values()), list(metrics.values()), atol=1e-6, rtol=0, err_msg=task
        )


class Registered:
    """Registers a COCO json under a fresh name for the length of a ``with`` block."""

    def __init__(
        self, folder: Path, data: dict[str, Any], name: str, image_root: Path | None = None
    ) -> None:
        self.name = name
        self.json_file = folder / f"{name}.json"
        self.json_file.write_text(json.dumps(data))
        self.image_root = image_root or folder

    def __enter__(self) -> str:
        register_coco_instances(self.name, {}, str(self.json_file), str(self.image_root))
        DatasetCatalog.get(self.name)  # fills the metadata in
        return self.name

    def __exit__(self, *args: object) -> None:
        DatasetCatalog.remove(self.name)
        MetadataCatalog.remove(self.name)
