"""Choice of the evaluator by dataset, and proposals inside a real (tiny) detector."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances

from d2_plugins.evaluation import (
    FastCOCOEvaluator,
    ProposalRecorder,
    build_evaluator,
    check_test_config,
)
from tests.support.random_coco import SIZE, Registered
from tests.support.tiny_model import evaluate, random_images, tiny_cfg


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    with Registered(tmp_path, random_images(tmp_path, 1, 8), "tiny") as name:
        yield name


def test_by_task_and_engine(tmp_path: Path, dataset: str) -> None:
    cfg = tiny_cfg(tmp_path, dataset, "MODEL.MASK_ON", True, "TEST.COCO_EVALUATOR", "pycocotools")
    evaluator = build_evaluator(cfg, dataset, str(tmp_path / "out"))
    assert type(evaluator) is FastCOCOEvaluator
    evaluator.reset()
    nothing = Instances((SIZE, SIZE), pred_boxes=Boxes(torch.zeros(0, 4)))
    evaluator.process([{"image_id": 1}], [{"instances": nothing}])
    # The tasks are known from the config, before there is any mask.
    assert evaluator.evaluate().keys() == {"bbox", "segm"}
    assert (tmp_path / "out" / "coco_instances_results.json").exists()


def test_wrong_configs(tmp_path: Path, dataset: str) -> None:
    cfg = tiny_cfg(tmp_path, dataset)
    check_test_config(cfg)
    for key, value, allowed in (
        ("COCO_EVALUATOR", "fast", "faster-coco-eval, pycocotools"),
        ("CORRUPTIONS", ["fog"], "occlusion, blur, noise"),
        ("OCCLUSION_SHARE", 1.5, "0 to 1"),
        ("OCCLUSION_FILL", "red", "grey, mean, noise"),
        ("BLUR_SIGMA", 0.0, "above 0"),
        ("NOISE_STD", -1.0, "at least 0"),
    ):
        wrong = cfg.clone()
        wrong.TEST[key] = value
        with pytest.raises(ValueError, match=rf"TEST\.{key} .*allowed: {allowed}"):
            check_test_config(wrong)
    MetadataCatalog.get("lvis_like").set(evaluator_type="lvis")
    with pytest.raises(ValueError, match=r"is 'lvis'; allowed: coco, pascal_voc, coco_panoptic"):
        build_evaluator(cfg, "lvis_like", str(tmp_path))
    MetadataCatalog.remove("lvis_like")


def test_proposal_network_equals_detectron2s_recall(tmp_path: Path, dataset: str) -> None:
    cfg = tiny_cfg(tmp_path, dataset, "MODEL.META_ARCHITECTURE", "ProposalNetwork")
    model = build_model(cfg)
    results = evaluate(cfg, model)
    stock = COCOEvaluator(dataset, output_dir=str(tmp_path / "stock"), use_fast_impl=False)
    expected = inference_on_dataset(model, build_detection_test_loader(cfg, dataset), stock)
    assert results.keys() == {"box_proposals"}
    for key, value in expected["box_proposals"].items():
        np.testing.assert_allclose(results["box_proposals"][key], value, atol=1e-4, err_msg=key)
    assert 0 < results["box_proposals"]["AR@1000"] < 100
    assert (tmp_path / "box_proposals.pkl").exists()


class StagedRPN(RPN):
    """Two stages: boxes outside the image, and the real ones."""

    def stage_proposals(self, images: ImageList, features: Any) -> dict[str, list[Instances]]:
        final, _ = self(images, features)
        shifted = []
        for instances in final:
            boxes = instances.proposal_boxes.tensor + SIZE
            shifted.append(
                Instances(
                    instances.image_size,
                    proposal_boxes=Boxes(boxes),
                    objectness_logits=instances.objectness_logits,
                )
            )
        return {"stage1": shifted, "stage2": final}


def test_proposals_inside_a_detector(tmp_path: Path, dataset: str) -> None:
    cfg = tiny_cfg(tmp_path, dataset)
    model = build_model(cfg).eval()
    plain = evaluate(cfg, model)
    cfg.TEST.PROPOSAL_RECALL = True
    recorder = ProposalRecorder(model)
    recorded = evaluate(cfg, recorder)
    assert recorded.keys() == {"bbox", "box_proposals"}
    np.testing.assert_array_equal(list(recorded["bbox"].values()), list(plain["bbox"].values()))
    assert not model.training, "evaluation leaves the model in the mode it had"
    assert not model.proposal_generator._forward_hooks

    # The same boxes as from the proposal generator alone.
    network = tiny_cfg(tmp_path, dataset, "MODEL.META_ARCHITECTURE", "ProposalNetwork")
    proposing = build_model(network)
    proposing.load_state_dict(model.state_dict(), strict=False)
    np.testing.assert_array_equal(
        list(recorded["box_proposals"].values()),
        list(evaluate(network, proposing)["box_proposals"].values()),
    )


def test_recall_per_stage(tmp_path: Path, dataset: str) -> None:
    cfg = tiny_cfg(tmp_path, dataset, "TEST.PROPOSAL_RECALL", True)
    for architecture in ("GeneralizedRCNN", "ProposalNetwork"):
        cfg.MODEL.META_ARCHITECTURE = architecture
        model = build_model(cfg)
        model.proposal_generator.__class__ = StagedRPN
        results = evaluate(cfg, ProposalRecorder(model))
        stages = {"box_proposals", "box_proposals_stage1", "box_proposals_stage2"}
        assert stages == results.keys() - {"bbox"}
        final = list(results["box_proposals"].values())  # the 9th is AR@1000
        # Equal to the last stage: ProposalNetwork's scaling in place has not reached the record.
        np.testing.assert_array_equal(list(results["box_proposals_stage2"].values()), final)
        assert results["box_proposals_stage1"]["AR@1000"] == 0 < final[8]


def test_recorder_without_proposals() -> None:
    with pytest.raises(ValueError, match=r"TEST.PROPOSAL_RECALL is True, .*\(Linear\) has no prop"):
        ProposalRecorder(torch.nn.Linear(1, 1))


XML = """<annotation><object><name>{name}</name><pose>Left</pose><truncated>0</truncated>
<difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>
<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    """Three images of one object each, the last a difficult one; VOC counts pixels from 1."""
    objects = []
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for i, name in enumerate(("cat", "dog", "cat")):
        box = [11 + i, 21, 60, 81]
        xml = XML.format(name=name, difficult=int(i == 2), box=box)
        xml = xml.replace("<object>", "<size><width>90</width><height>95</height></size><object>")
        (tmp_path / f"Annotations/2007_{i:06}.xml").write_text(xml)
        objects.append({"stem": f"2007_{i:06}", "class": ("cat", "dog").index(name), "box": box})
    names = "".join(f"{o['stem']}\n" for o in objects)
    (tmp_path / "ImageSets/Main/val.txt").write_text(names)
    register_pascal_voc("voc_toy", str(tmp_path), "val", 2007, ["cat", "dog"])
    MetadataCatalog.get("voc_toy").evaluator_type = "pascal_voc"
    yield objects
    DatasetCatalog.remove("voc_toy")
    MetadataCatalog.remove("voc_toy")


def perfect(obj: dict[str, Any]) -> Instances:
    x0, y0, x1, y1 = obj["box"]
    return Instances(
        (95, 90),
        pred_boxes=Boxes(torch.tensor([[x0 - 1.0, y0 - 1, x1, y1]])),
        scores=torch.ones(1),
        pred_classes=torch.tensor([obj["class"]]),
    )


def test_both_metrics_of_voc_against_their_definition(
    tmp_path: Path, voc: list[dict[str, Any]]
) -> None:
    """Two cats count, of scores 0.9 and 0.3, with a false one of 0.5 between; one dog is missed.

    The curve of the cats is (recall, precision) = (1/2, 1), (1/2, 1/2), (1, 2/3).
    """
    xml = tmp_path / f"Annotations/{voc[2]['stem']}.xml"
    xml.write_text(xml.read_text().replace("<difficult>1", "<difficult>0"))
    evaluator = build_evaluator(tiny_cfg(tmp_path, "voc_toy"), "voc_toy", str(tmp_path / "out"))
    evaluator.reset()
    for obj, score in ((voc[0], 0.9), (voc[1], 0.5), (voc[2], 0.3)):
        found = perfect(obj)
        found.scores[:] = score
        found.pred_classes[:] = 0
        evaluator.process([{"image_id": obj["stem"]}], [{"instances": found}])
    results = evaluator.evaluate()["bbox"]
    eleven_points = (6 * 1 + 5 * 2 / 3) / 11  # recalls 0 to 0.5, and 0.6 to 1
    area = 0.5 * 1 + 0.5 * 2 / 3
    assert results["mAP_07"] == pytest.approx(100 * eleven_points / 2)
    assert results["mAP_10"] == pytest.approx(100 * area / 2)
    assert results["AP50"] == results["mAP_07"], "the dataset is of 2007"


def test_classes_without_objects_are_left_out_of_vocs_means(
    tmp_path: Path, voc: list[dict[str, Any]]
) -> None:
    """All is found but a difficult dog, of a class that has no other object."""
    for obj, name, other in ((voc[1], "cat", "dog"), (voc[2], "dog", "cat")):
        xml = tmp_path / f"Annotations/{obj['stem']}.xml"
        xml.write_text(xml.read_text().replace(f"<name>{other}", f"<name>{name}"))
    evaluator = build_evaluator(tiny_cfg(tmp_path, "voc_toy"), "voc_toy", str(tmp_path / "out"))
    for _ in range(2):
        evaluator.reset()
        for obj in voc[:2]:
            found = perfect(obj)
            found.pred_classes[:] = 0
            evaluator.process([{"image_id": obj["stem"]}], [{"instances": found}])
        results = evaluator.evaluate()["bbox"]
        assert [results["mAP_07"], results["mAP_10"]] == pytest.approx([100, 100])


def test_voc_in_both_forms(tmp_path: Path, voc: list[dict[str, Any]]) -> None:
    cfg = tiny_cfg(tmp_path, "voc_toy")
    native = build_evaluator(cfg, "voc_toy", str(tmp_path / "native"))
    native.reset()
    for obj in voc[:2]:
        native.process([{"image_id": obj["stem"]}], [{"instances": perfect(obj)}])
    # The object that is not found is a difficult one, which VOC does not count.
    names = ("AP", "AP50", "AP75", "mAP_07", "mAP_10")
    expected = dict.fromkeys(names, 100.0)
    assert native.evaluate()["bbox"] == pytest.approx(expected)

    data = {
        "images": [
            {"id": i + 5, "file_name": f"{o['stem']}.jpg", "height": 95, "width": 90}
            for i, o in enumerate(voc)
        ],
        "annotations": [
            {"id": i + 1, "image_id": i + 5, "category_id": o["class"], "iscrowd": 0,
             "bbox": [o["box"][0] - 1, o["box"][1] - 1, o["box"][2] - o["box"][0] + 1, 61],
             "area": 61 * (o["box"][2] - o["box"][0] + 1)}
            for i, o in enumerate(voc)
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }  # fmt: skip
    with Registered(tmp_path, data, "voc_toy_coco") as name:
        both = build_evaluator(cfg, name, str(tmp_path / "coco"))
        both.reset()
        for i, obj in enumerate(voc[:2]):
            image = {"image_id": i + 5, "file_name": f"JPEGImages/{obj['stem']}.jpg"}
            both.process([image], [{"instances": perfect(obj)}])
        results = both.evaluate()
    assert results["bbox_voc"] == pytest.approx(expected)
    assert results["bbox"]["AP-dog"] == pytest.approx(100)
    # Here COCO counts the third object, one of two cats: precision 1 up to recall 0.5.
    assert results["bbox"]["AP-cat"] == pytest.approx(100 * 51 / 101)
