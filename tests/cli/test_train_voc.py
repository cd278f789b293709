"""Training on VOC by one command, and VOC's metrics in the report of the run."""

import json
from pathlib import Path

import pytest
from detectron2.data.datasets.builtin import register_all_pascal_voc

from d2_plugins.cli.train import main
from d2_plugins.data.datasets.registration import register_all
from tests.support.helpers import shared_path
from tests.support.toy import TOY_OPTS

CONFIG = "PascalVOC-Detection/faster_rcnn_CSPResNet_50_local_FPN.yaml"


@pytest.mark.usefixtures("empty_catalogs")
def test_vocs_metrics_are_in_the_report_of_a_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zoo's config for VOC with local attention, on six images of VOC 2012."""
    root = tmp_path / "datasets"
    source = shared_path("data/voc_small/VOCdevkit/VOC2012")
    split = root / "VOC2012/ImageSets/Main/val.txt"
    split.parent.mkdir(parents=True)
    names = (source / "ImageSets/Main/val.txt").read_text().split()
    split.write_text("\n".join(names[:6]))
    for folder in ("Annotations", "JPEGImages"):
        (root / "VOC2012" / folder).symlink_to(source / folder)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_all(root)
    register_all_pascal_voc(str(root))
    opts = dict(zip(TOY_OPTS[::2], TOY_OPTS[1::2], strict=True))
    opts |= {
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.FREEZE_AT": "0",
        "MODEL.CSPNET.ARCH": "cspresnet50",
        "MODEL.CSPNET.NORM": "BN",
        "MODEL.ATTENTION.HEADS": "2",
        "MODEL.ROI_HEADS.NUM_CLASSES": "20",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
        "DATASETS.TRAIN": "('voc_2012_val_coco',)",
        "DATASETS.TEST": "('voc_2012_val_coco',)",
        "SOLVER.REFERENCE_WORLD_SIZE": "0",
        "SOLVER.MAX_ITER": "2",
        "SOLVER.STEPS": "()",
        "TEST.REPORT": "True",
        "OUTPUT_DIR": str(tmp_path / "run"),
    }
    pairs = [word for pair in opts.items() for word in pair]
    assert main(["--config-file", CONFIG, "--num-gpus", "0", *pairs]) == 0
    rows = (tmp_path / "run/metrics.json").read_text().splitlines()
    results = {key: value for row in rows for key, value in json.loads(row).items()}
    assert {"bbox_voc/mAP_07", "bbox_voc/mAP_10", "bbox/AP"} <= set(results)
    # Not every class has objects in six images, and detectron2's own mean would be NaN.
    assert results["bbox_voc/AP50"] == results["bbox_voc/mAP_10"] >= 0, "the year is 2012"
    page = (tmp_path / "run/report.html").read_text()
    assert "VOC mAP, 11 points" in page
    assert "boxes, VOC" in page
