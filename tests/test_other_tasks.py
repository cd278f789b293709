"""Keypoints, and things and stuff: the zoo's configs train and are evaluated at toy size."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin import register_all_coco
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from d2_plugins import model_zoo
from d2_plugins.config_schema import check_config
from d2_plugins.data.prepare.prepare import prepare
from d2_plugins.data.prepare.stuff import semantic_map
from d2_plugins.engine import Trainer
from d2_plugins.errors import UsageError
from tests.support.toy import write_toy_coco

SMALL: tuple[Any, ...] = (
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.WIDTH_PER_GROUP", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.CSPNET.WIDTH_MULTIPLIER", 0.125, "MODEL.CSPNET.DEPTH_MULTIPLIER", 0.2),
    *("MODEL.CSPNET.NORM", "BN", "MODEL.FPN.OUT_CHANNELS", 16),
    *("MODEL.DOUBLE_HEAD.FC_DIM", 16, "MODEL.DOUBLE_HEAD.CONV_DIM", 16),
    *("MODEL.DOUBLE_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 8),
    *("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (8,), "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
    *("MODEL.RPN.POST_NMS_TOPK_TRAIN", 30, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
    *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2),
    *("SOLVER.STEPS", (), "SOLVER.BASE_LR", 0.001, "TEST.BEST_METRIC", ""),
)


def train(config: str, dataset: str, output: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Train a config for two iterations; return the results and the last row of the metrics.

    Every parameter has a finite gradient afterwards.
    """
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([*SMALL, "DATASETS.TRAIN", (dataset,), "DATASETS.TEST", (dataset,)])
    cfg.OUTPUT_DIR = str(output)
    check_config(cfg)
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    results = trainer.train()
    for name, parameter in trainer.model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    rows = (output / "metrics.json").read_text().splitlines()
    return results, {key: v for row in rows for key, v in json.loads(row).items()}


def test_keypoints(tmp_path: Path) -> None:
    json_file, images = write_toy_coco(tmp_path / "data", num_images=4)
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["category_id"] = 1
        points = [(x + w * (i % 5 + 0.5) / 5, y + h * (i // 5 + 0.5) / 4, 2) for i in range(17)]
        annotation |= {"keypoints": [v for p in points for v in p], "num_keypoints": 17}
    content["categories"] = [{"id": 1, "name": "person"}]
    json_file.write_text(json.dumps(content))
    metadata = MetadataCatalog.get("keypoints_coco_2017_val")
    names = {k: metadata.get(k) for k in ("keypoint_names", "keypoint_flip_map")}
    register_coco_instances("toy_keypoints", names, str(json_file), str(images))
    try:
        config = "COCO-Keypoints/keypoint_rcnn_crpn_double_head_R_50_FPN_1x.yaml"
        results, metrics = train(config, "toy_keypoints", tmp_path / "run")
    finally:
        DatasetCatalog.remove("toy_keypoints")
        MetadataCatalog.remove("toy_keypoints")
    losses = {key for key, value in metrics.items() if "loss" in key and math.isfinite(value)}
    assert {"loss_keypoint", "loss_rpn_stage1_loc", "loss_rpn_stage2_cls"} <= losses, losses
    assert metrics["loss_keypoint"] > 0
    for task in ("bbox", "keypoints"):
        assert 0 <= results[task]["AP"] <= 100
    found = tmp_path / "run/inference/toy_keypoints/coco_instances_results.json"
    detections = json.loads(found.read_text())
    assert detections
    assert all(len(d["keypoints"]) == 3 * 17 for d in detections)


# A person, a bicycle, and grass and sky; the colour gives the id of the segment.
SEGMENTS = {1: 1, 70_000: 2, 300: 193, 256 * 256 + 7: 187}


def write_panoptic_coco(root: Path) -> None:
    """Write a COCO of four images with two things on two kinds of stuff, and unlabelled pixels."""
    json_file, images = write_toy_coco(root / "toy", num_images=4)
    (root / "val2017").mkdir()
    content = json.loads(json_file.read_text())
    for image in content["images"]:
        name = Path(image["file_name"]).with_suffix(".jpg").name
        Image.open(images / image["file_name"]).save(root / "val2017" / name)
        image["file_name"] = name
    annotations = []
    pictures = root / "annotations/panoptic_val2017"
    pictures.mkdir(parents=True)
    for image in content["images"]:
        ids = np.full((image["height"], image["width"]), 300)
        ids[:20] = 256 * 256 + 7
        ids[:, :3] = 0
        boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        for segment, (x, y, w, h) in zip((1, 70_000), boxes, strict=True):
            ids[y : y + h, x : x + w] = segment
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=2)
        name = Path(image["file_name"]).with_suffix(".png").name
        Image.fromarray(colours.astype(np.uint8)).save(pictures / name)
        present = [s for s in SEGMENTS if (ids == s).any()]
        segments = [{"id": s, "category_id": SEGMENTS[s], "iscrowd": 0} for s in present]
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    things = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    (root / "annotations/instances_val2017.json").write_text(
        json.dumps(content | {"categories": things})
    )
    (root / "annotations/panoptic_val2017.json").write_text(
        json.dumps({"images": content["images"], "annotations": annotations})
    )
    shutil.make_archive(str(pictures), "zip", pictures.parent, pictures.name)
    shutil.rmtree(pictures)
    shutil.rmtree(root / "toy")


def test_semantic_map_by_hand() -> None:
    colours = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [7, 0, 0]]], dtype=np.uint8)
    labels = {1: 4, 256: 0, 65536: 53}
    assert semantic_map(colours, labels).tolist() == [[4, 0], [53, 255]]


@pytest.mark.usefixtures("empty_catalogs")
def test_things_and_stuff(tmp_path: Path) -> None:
    """From COCO's files to an evaluated panoptic FPN."""
    write_panoptic_coco(tmp_path / "source")
    root = tmp_path / "root"
    (count,) = prepare(
        "coco2017", root, splits=["panoptic-val"], source=tmp_path / "source", link=False
    )
    assert count.images == 4
    annotations = json.loads((root / "coco/annotations/panoptic_val2017.json").read_text())
    assert count.annotations == sum(len(a["segments_info"]) for a in annotations["annotations"])

    register_all_coco(str(root))
    name = "coco_2017_val_panoptic_separated"
    classes = MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id
    for annotation in annotations["annotations"]:
        file = annotation["file_name"]
        red, green, blue = np.asarray(Image.open(root / "coco/panoptic_val2017" / file)).T.astype(
            int
        )
        ids = (red + 256 * green + 256**2 * blue).T
        expected = np.full_like(ids, 255)
        for segment, category in SEGMENTS.items():
            # detectron2 gives 0 to "things", which are the first two.
            expected[ids == segment] = 0 if category in (1, 2) else classes[category]
        written = np.asarray(Image.open(root / "coco/panoptic_stuff_val2017" / file))
        assert (written == expected).all()
    assert len(DatasetCatalog.get(name)) == 4

    config = "COCO-PanopticSegmentation/panoptic_fpn_csp_cascade_1x.yaml"
    results, metrics = train(config, name, tmp_path / "run")
    assert metrics["loss_sem_seg"] > 0
    assert metrics["loss_mask"] > 0
    assert 0 <= results["bbox"]["AP"] <= 100
    assert 0 <= results["segm"]["AP"] <= 100
    assert 0 <= results["sem_seg"]["mIoU"] <= 100


def test_damaged_pictures_are_named(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_panoptic_coco(source)
    (source / "annotations/panoptic_val2017.zip").unlink()
    with pytest.raises(UsageError, match=r"panoptic_val2017\.zip are missing"):
        prepare("coco2017", tmp_path / "root", splits=["panoptic-val"], source=source)
    pictures = source / "annotations/panoptic_val2017"
    pictures.mkdir()
    (pictures / "000.png").write_bytes(b"no picture")
    shutil.make_archive(str(pictures), "zip", pictures.parent, pictures.name)
    shutil.rmtree(tmp_path / "root")
    with pytest.raises(UsageError, match=r"000\.png cannot be converted"):
        prepare("coco2017", tmp_path / "root", splits=["panoptic-val"], source=source)
    assert not (tmp_path / "root/coco/panoptic_stuff_val2017").exists()
