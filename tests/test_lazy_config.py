"""The flagship as a LazyConfig: equal to the YAML in model, optimizer, schedule and data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2_plugins import model_zoo
from d2_plugins.cli.train_lazy import main
from d2_plugins.data import register_coco_json
from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.engine import Trainer
from d2_plugins.modeling.backbone import CSPNet
from tests.support.toy import TOY_LAZY_OPTS, write_toy_coco

NAME = "lazy/csp_cascade.py"

SMALL = (*TOY_LAZY_OPTS, "model.roi_heads.num_classes=2")


@pytest.fixture
def yaml_cfg() -> Any:
    cfg = model_zoo.get_config("csp_cascade.yaml")
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_every_setting_of_the_model_is_that_of_the_yaml(yaml_cfg: Any) -> None:
    """Also those that a batch does not show: thresholds, limits, weights that fall out."""
    lazy, other = instantiate(model_zoo.get_config(NAME).model), build_model(yaml_cfg)
    ours, theirs = (dict(model.named_modules()) for model in (lazy, other))
    assert list(ours) == list(theirs)
    for name, module in theirs.items():
        assert settings_of(ours[name]) == settings_of(module), name
    found = settings_of(other.roi_heads.box_predictor) | settings_of(other.proposal_generator)
    assert found["test_score_thresh"] == 0.001
    assert found["box2box_transform"]["weights"] == [25.0, 25.0, 12.5, 12.5]
    assert found["criterion"]["regression_weight"] == 7.0


def settings_of(thing: Any) -> dict[str, Any]:
    """Return the numbers, strings and containers of an object and of its parts."""
    own = {k: v for k, v in vars(thing).items() if k not in vars(nn.Module())}
    return {key: plain(value) for key, value in own.items()}


def plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, Sequence):  # an omegaconf list too
        return [plain(v) for v in value]
    if type(value).__module__.startswith(("d2_plugins", "detectron2")):
        return settings_of(value)
    return getattr(value, "__qualname__", type(value).__qualname__)


def test_model_is_that_of_the_yaml(yaml_cfg: Any) -> None:
    # Few RoIs: at the full number this is a minute of non-local units.
    cfg = model_zoo.get_config(NAME)
    cfg.model.proposal_generator.post_nms_topk = [24, 24]
    yaml_cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = yaml_cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 24
    lazy, other = instantiate(cfg.model), build_model(yaml_cfg)
    randomise(other)
    lazy.load_state_dict(other.state_dict())
    assert [n for n, p in lazy.named_parameters() if p.requires_grad] == [
        n for n, p in other.named_parameters() if p.requires_grad
    ]
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 96, 128), dtype=torch.uint8, generator=generator)
    truth = Instances((96, 128))
    truth.gt_boxes = Boxes(torch.tensor([[10.0, 12.0, 70.0, 80.0], [60.0, 5.0, 120.0, 50.0]]))
    truth.gt_classes = torch.tensor([3, 70])
    batch = [{"image": image, "instances": truth}]

    def losses(model: nn.Module) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        with EventStorage():
            return model.train()(batch)

    def detections(model: nn.Module) -> Instances:
        with torch.no_grad():
            return model.eval()([{"image": image}])[0]["instances"]

    ours, theirs = losses(lazy), losses(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours_found, theirs_found = detections(lazy), detections(other)
    assert len(ours_found) > 0
    assert torch.equal(ours_found.pred_boxes.tensor, theirs_found.pred_boxes.tensor)
    assert torch.equal(ours_found.scores, theirs_found.scores)
    assert torch.equal(ours_found.pred_classes, theirs_found.pred_classes)


def randomise(model: nn.Module) -> None:
    """Class scores and boxes that differ from RoI to RoI."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "cls_score" in name or "bbox_pred" in name:
            nn.init.normal_(parameter, std=0.05)


def test_optimizer_and_schedule_are_those_of_the_yaml(yaml_cfg: Any) -> None:
    cfg = model_zoo.get_config(NAME)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    cfg.optimizer.params.model = model
    lazy, other = instantiate(cfg.optimizer), Trainer.build_optimizer(yaml_cfg, model)
    assert type(lazy) is type(other)

    def settings(optimizer: torch.optim.Optimizer) -> dict[int, tuple[float, ...]]:
        keys = ("lr", "weight_decay", "momentum", "nesterov", "dampening")
        return {
            id(p): tuple(float(group[key]) for key in keys)
            for group in optimizer.param_groups
            for p in group["params"]
        }

    assert settings(lazy) == settings(other)
    assert cfg.train.max_iter == yaml_cfg.SOLVER.MAX_ITER
    assert cfg.train.clip_norm == yaml_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE
    assert cfg.dataloader.train.total_batch_size == yaml_cfg.SOLVER.IMS_PER_BATCH
    assert cfg.train.init_checkpoint == yaml_cfg.MODEL.WEIGHTS
    lazy_schedule = instantiate(cfg.lr_multiplier)
    schedule = build_lr_scheduler(yaml_cfg, other)._multiplier
    for iteration in (0, 1, 500, 999, 1000, 59999, 60000, 79999, 80000, 89999):
        where = iteration / 90000
        assert lazy_schedule(where) == pytest.approx(schedule(where)), iteration


@pytest.mark.parametrize("is_train", [True, False])
def test_images_are_mapped_as_by_the_yaml(yaml_cfg: Any, toy_names: str, is_train: bool) -> None:
    loader = model_zoo.get_config(NAME).dataloader["train" if is_train else "test"]
    mappers = instantiate(loader.mapper), PluginDatasetMapper(yaml_cfg, is_train=is_train)
    sizes = set()
    for item in DatasetCatalog.get(toy_names):
        mapped = []
        for mapper in mappers:
            np.random.seed(item["image_id"])  # which augmentations draw from
            mapped.append(mapper(item))
        lazy, other = mapped
        assert lazy.keys() == other.keys()
        assert torch.equal(lazy["image"], other["image"])
        sizes.add(lazy["image"].shape)
        if is_train:
            lazy, other = lazy["instances"], other["instances"]
            assert torch.equal(lazy.gt_boxes.tensor, other.gt_boxes.tensor)
            assert lazy.get_fields().keys() == other.get_fields().keys()
    assert (len(sizes) > 1) == is_train


def test_overrides_reach_all_that_depends_on_them_and_configs_can_be_saved(tmp_path: Path) -> None:
    overrides = [*SMALL, "model.backbone.bottom_up.arch=cspresnet50"]
    cfg = LazyConfig.apply_overrides(model_zoo.get_config(NAME), list(overrides))
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    model = instantiate(LazyConfig.load(str(tmp_path / "config.yaml")).model)
    assert isinstance(model.backbone.bottom_up, CSPNet)
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (3, 32)
    assert model.roi_heads.box_predictor.bbox_pred.weight.shape == (8, 32)
    assert sum(p.numel() for p in model.parameters()) < 300_000


def test_tool_trains_resumes_and_evaluates(
    tmp_path: Path, toy_names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> int:
        output = f"train.output_dir={tmp_path / 'run'}"
        names = [f"dataloader.{part}.dataset.names={toy_names}" for part in ("train", "test")]
        head = ["--config-file", f"configs/{NAME}", "--num-gpus", "0"]
        options = [word for word in words if word.startswith("--")]
        pairs = [word for word in words if not word.startswith("--")]
        return main([*head, *options, *SMALL, *names, output, *pairs])

    assert run("train.max_iter=2", "lr_multiplier.warmup_length=0.5") == 0
    final = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 1
    metrics = (tmp_path / "run" / "metrics.json").read_text()
    assert "loss_box_reg_fc" in metrics
    assert "grad_norm" in metrics
    assert "bbox/AP" in metrics
    assert run("--resume", "train.max_iter=3") == 0
    final = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 2
    weights = f"train.init_checkpoint={tmp_path / 'run' / 'model_final.pth'}"
    assert run("--eval-only", weights) == 0
    capsys.readouterr()
    for words, said in (
        (["train.init_checkpoint=none.pth"], "train.init_checkpoint: there is no file"),
        (["train=[1"], "train=[1"),
    ):
        assert run(*words) == 2
        assert said in capsys.readouterr().err


@pytest.fixture
def toy_names(tmp_path: Path) -> Any:
    json_file, images = write_toy_coco(tmp_path)
    register_coco_json("lazy_toy", json_file, images)
    yield "lazy_toy"
    DatasetCatalog.remove("lazy_toy")
    MetadataCatalog.remove("lazy_toy")
