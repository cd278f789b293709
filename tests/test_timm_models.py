"""Our backbones as timm models: the interface, timm's training, its checkpoints in a detector."""

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

import d2_plugins.timm_models
from d2_plugins import get_cfg
from d2_plugins.checkpoint import PluginCheckpointer
from d2_plugins.errors import UsageError
from d2_plugins.modeling.backbone import AttentionResNet, CSPNet

NARROW: dict[str, Any] = {"width_multiplier": 0.25, "depth_multiplier": 0.2}
# Channels and strides of timm's own models with the same architecture.
FEATURES = {
    "d2_cspresnext50_eca": ([256, 512, 1024, 2048], [4, 8, 16, 32]),
    "d2_cspresnet50_local": ([128, 256, 512, 1024], [4, 8, 16, 32]),
    "d2_cspdarknet53": ([32, 64, 128, 256, 512, 1024], [1, 2, 4, 8, 16, 32]),
    "d2_cs3darknet_m_se": ([48, 96, 192, 384, 768], [2, 4, 8, 16, 32]),
    "d2_resnet50_cbam": ([256, 512, 1024, 2048], [4, 8, 16, 32]),
}


def parameters(name: str, **options: object) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, **options).parameters())


def test_sizes_are_those_of_timms_models() -> None:
    assert "d2_darknet53_local" not in timm.list_models("d2_*")
    assert parameters("d2_cspresnext50") == parameters("cspresnext50")
    assert parameters("d2_cspdarknet53", num_classes=10) == parameters(
        "cspdarknet53", num_classes=10
    )
    assert parameters("d2_resnet50_eca") == parameters("resnet50") + (3 + 4 + 6) * 5 + 3 * 7
    for name, (channels, strides) in FEATURES.items():
        with torch.device("meta"):
            model = timm.create_model(name, features_only=True)
        assert model.feature_info.channels() == channels
        assert model.feature_info.reduction() == strides


def test_interface_of_a_timm_model() -> None:
    model = timm.create_model("d2_cspresnet50_eca", num_classes=5, drop_rate=0.5, **NARROW).eval()
    x = torch.randn(2, 3, 64, 64)
    features = model.forward_features(x)
    assert features.shape == (2, model.num_features, 2, 2)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features.mean((2, 3)))
    torch.testing.assert_close(model(x), model.get_classifier()(pooled))
    assert model.head.drop.p == 0.5
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model.num_classes == 7
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled)
    groups = group_parameters(model, model.group_matcher())
    assert len(groups) == 5, "the stem and four stages; the classifier is removed"
    assert model.default_cfg["classifier"] == "head.fc"
    assert resolve_data_config({}, model=model)["input_size"] == (3, 224, 224)

    features_only = timm.create_model("d2_cspresnet50_eca", features_only=True, **NARROW).eval()
    body = CSPNet(
        arch="cspresnet50",
        out_features=("res2", "res3", "res4", "res5"),
        attention=d2_plugins.timm_models._plan("eca"),
        **NARROW,
    ).eval()
    body.load_state_dict(features_only.state_dict())
    for ours, theirs in zip(features_only(x), body(x).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = timm.create_model("d2_cspresnet50_local", num_classes=3, **NARROW)
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def write_images(root: Path) -> None:
    """Write a folder per split and class, as ImageNet's, with images of the class's colour."""
    for split, count in (("train", 4), ("validation", 2)):
        for name, colour in (("dark", (30, 40, 50)), ("bright", (220, 210, 200))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (48 + 8 * index, 56), colour).save(folder / f"{index}.png")


def train_with_timm(model: nn.Module, name: str, root: Path, output: Path) -> dict[str, Tensor]:
    """Train two epochs with the parts of timm's train.py, and return the averaged weights."""
    write_images(root)
    data = resolve_data_config({"input_size": (3, 64, 64)}, model=model)
    loader = create_loader(
        create_dataset("", root=str(root), split="train", is_training=True),
        batch_size=4,
        is_training=True,
        use_prefetcher=False,
        num_workers=0,
        **{key: data[key] for key in ("input_size", "mean", "std", "interpolation")},
    )
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, weight_decay=2e-5, momentum=0.9)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2)
    ema = ModelEmaV3(model, decay=0.5)
    saver = CheckpointSaver(
        model,
        optimizer,
        args=argparse.Namespace(model=name, lr=0.05, amp=False, std=None),
        model_ema=ema,
        checkpoint_dir=str(output),
        recovery_dir=str(output),
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for epoch in range(epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.train()(images), labels).backward()
            optimizer.step()
            ema.update(model)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=float(epoch))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert len(changed) > 0.9 * len(before)
    assert any(".attention." in n for n in changed)
    return ema.module.state_dict()


def detector(**keys: object) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    for key, value in keys.items():
        cfg.merge_from_list([f"MODEL.{key.replace('__', '.')}", value])
    return build_model(cfg)


CSP = {
    "BACKBONE__NAME": "build_cspnet_fpn_backbone",
    "CSPNET__ARCH": "cspresnet50",
    "CSPNET__WIDTH_MULTIPLIER": 0.25,
    "CSPNET__DEPTH_MULTIPLIER": 0.2,
    "ATTENTION__NAME": "eca",
}


@pytest.mark.parametrize("kind", ["tar", "safetensors"])
def test_timms_training_and_its_checkpoint_in_a_detector(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All entries of the backbone are those that timm has trained (the averaged ones)."""
    name = "d2_cspresnet50_eca"
    model = timm.create_model(name, num_classes=2, **NARROW)
    trained = train_with_timm(model, name, tmp_path / "images", tmp_path)
    path = tmp_path / "model_best.pth.tar"
    if kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(trained, path)
    ours = detector(**CSP).train()
    with caplog.at_level("INFO", logger="d2_plugins"):
        PluginCheckpointer(ours).resume_or_load(str(path), resume=False)
    bottom_up = ours.backbone.bottom_up.state_dict()
    assert set(bottom_up) == {
        key
        for key in trained
        if not key.startswith("head.")
        and (key in bottom_up or not key.endswith("num_batches_tracked"))
    }
    assert all(torch.equal(value, trained[key]) for key, value in bottom_up.items())
    assert "backbone.bottom_up.head (2)" in caplog.text, "the classifier is reported as not used"


def test_a_resnet_with_the_stride_elsewhere_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("d2_resnet50_eca", num_classes=2)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.pth.tar")
    keys = {
        "BACKBONE__NAME": "build_attention_resnet_fpn_backbone",
        "ATTENTION__NAME": "eca",
        "RESNETS__OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    }
    ours = detector(**keys).train()
    assert isinstance(ours.backbone.bottom_up, AttentionResNet)
    PluginCheckpointer(ours).resume_or_load(str(tmp_path / "last.pth.tar"), resume=False)
    assert "MODEL.RESNETS.STRIDE_IN_1X1 is True" in caplog.text
    weight = ours.backbone.bottom_up.res5[2].conv3.weight
    assert torch.equal(weight, model.res5[2].conv3.weight)


def test_settings_that_the_weights_do_not_have_are_refused(tmp_path: Path) -> None:
    model = timm.create_model("d2_cspresnet50_eca", num_classes=2, **NARROW)
    path = tmp_path / "last.pth.tar"
    torch.save({"state_dict": model.state_dict()}, path)
    for keys, message in (
        ({"CSPNET__LEAKY_SLOPE": 0.1}, "LEAKY_SLOPE is 0.1; with timm's weights it must be 0.01"),
        ({"CSPNET__DEPTH_MULTIPLIER": 1.0}, "of the backbone"),
    ):
        ours = detector(**(CSP | keys)).train()
        with pytest.raises(UsageError, match=message):
            PluginCheckpointer(ours).resume_or_load(str(path), resume=False)


def test_the_command_runs_a_script_that_knows_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, timm\nprint(__name__, sys.argv[1:], timm.is_model(sys.argv[2]))\n"
    )
    monkeypatch.setattr(sys, "argv", ["x", str(script), "--model", "d2_cspresnext50_eca"])
    d2_plugins.timm_models.main()
    assert capsys.readouterr().out == "__main__ ['--model', 'd2_cspresnext50_eca'] True\n"
