"""docs/losses.md has every number that a training step logs."""

import re
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from d2_plugins import model_zoo
from d2_plugins.data import register_custom
from d2_plugins.data.loader import build_train_loader
from d2_plugins.data.mapper import PluginDatasetMapper
from tests.docs.rules import SMALL
from tests.support.helpers import REPO
from tests.support.toy import write_toy_coco

_OPTS = (
    *("MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "MODEL.ROI_MASK_HEAD.NUM_CONV", "1"),
    *("MODEL.INVERTED_ATTENTION.ROI_CHOICE", "all"),
)


@pytest.mark.usefixtures("catalogs")
@pytest.mark.parametrize(
    "config",
    [
        "csp_cascade_mask.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_CSPResNet_50_FPN_1x.yaml",
        "COCO-Detection/cascade_rcnn_double_head_R_50_FPN_1x.yaml",
    ],
)
def test_page_explains_what_a_step_logs(config: str, tmp_path: Path) -> None:
    paths = [str(path) for path in write_toy_coco(tmp_path)]
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list([*SMALL, *_OPTS])
    cfg.DATASETS.TRAIN = register_custom(*paths, *paths).train_names
    loader = build_train_loader(cfg, PluginDatasetMapper(cfg, is_train=True))
    with EventStorage() as storage:
        losses = build_model(cfg).train()(next(iter(loader)))
    logged = {name for name in (*losses, *storage.latest()) if not name.startswith("rpn/num")}
    names = {re.sub(r"^stage\d/|(?<!rpn)_stage\d$", "", name) for name in logged}
    explained = set(re.findall(r"`([\w/@]+)`", (REPO / "docs" / "losses.md").read_text()))
    assert len(losses) >= 5
    assert {n.replace("rpn_stage2/mean", "rpn_stage1/mean") for n in names} <= explained
