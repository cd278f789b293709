"""Two processes report what one does, and only the main one reports it."""

import json
from pathlib import Path

import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.utils import comm

from d2_plugins.engine import launch
from d2_plugins.evaluation import ProposalRecorder, evaluate_corruptions
from tests.support.random_coco import Registered
from tests.support.tiny_model import evaluate, random_images, tiny_cfg


def job(folder: Path, output: str) -> None:
    """Boxes, proposals and a corruption on images that two processes share unevenly."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = json.loads((folder / "data.json").read_text())
    with Registered(folder / output, data, "shared", image_root=folder) as name:
        cfg = tiny_cfg(folder / output, name, "TEST.PROPOSAL_RECALL", True)
        cfg.TEST.CORRUPTIONS = ["noise"]
        model = ProposalRecorder(build_model(cfg))
        results = evaluate(cfg, model)
        mapper = DatasetMapper(cfg, is_train=False)
        results = evaluate_corruptions(cfg, model, mapper, results)
    if comm.is_main_process():
        (folder / output / "results.json").write_text(json.dumps(results))
    else:
        assert not any(results.values())


def test_two_processes_equal_one(tmp_path: Path) -> None:
    data = random_images(tmp_path, 3, num_images=7)
    (tmp_path / "data.json").write_text(json.dumps(data))
    for output in ("one", "two"):
        (tmp_path / output).mkdir()
    launch(job, 2, dist_url="auto", use_cpu=True, args=(tmp_path, "two"))
    job(tmp_path, "one")
    one, two = ((tmp_path / d / "results.json").read_text() for d in ("one", "two"))
    assert one == two
    assert json.loads(one).keys() >= {"bbox", "bbox_noise", "box_proposals_noise"}
