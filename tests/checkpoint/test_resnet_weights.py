"""ResNet weights of others: after loading, our features are the other network's features."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from d2_plugins.checkpoint import PluginCheckpointer
from d2_plugins.modeling.backbone import AttentionPlan, AttentionResNet
from tests.support.checkpoint_models import clones, resnet
from tests.support.helpers import randomise_norms


def _stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    """layer1..layer4 of a ResNet of torchvision or timm."""
    outputs: list[Tensor] = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda m, i, o: outputs.append(o))
    model(x)
    return outputs


def _load(state: dict, model: nn.Module, tmp_path: Path) -> nn.Module:
    path = str(tmp_path / "weights.pth")
    torch.save(state, path)
    PluginCheckpointer(model).load(path, checkpointables=[])
    return model.eval()


def _cbam_with_spread(*args: object, **kwargs: object) -> CbamModule:
    module = CbamModule(*args, **kwargs)
    nn.init.normal_(module.spatial.conv.conv.weight)
    return module


@pytest.mark.parametrize(
    ("build", "ours"),
    [
        (partial(torchvision.models.resnet18), partial(resnet, 18)),
        (partial(torchvision.models.resnet50), partial(resnet, 50)),
        (
            partial(torchvision.models.resnext50_32x4d),
            lambda: AttentionResNet(
                attention=AttentionPlan(), num_groups=32, width_per_group=4, norm="FrozenBN"
            ),
        ),
        (partial(timm.create_model, "resnet18"), partial(resnet, 18)),
        (partial(timm.create_model, "seresnet50"), partial(resnet, 50, "se")),
        (
            partial(timm.create_model, "resnet18", block_args={"attn_layer": "eca"}),
            partial(resnet, 18, "eca"),
        ),
        (
            partial(timm.create_model, "resnet18", block_args={"attn_layer": _cbam_with_spread}),
            partial(resnet, 18, "cbam"),
        ),
        (
            partial(
                timm.create_model,
                "resnet18",
                block_args={"attn_layer": partial(_cbam_with_spread, mlp_bias=True)},
            ),
            partial(resnet, 18, "cbam"),
        ),
    ],
)
@torch.no_grad()
def test_features_equal_the_source(
    build: Callable[[], nn.Module], ours: Callable[[], nn.Module], tmp_path: Path
) -> None:
    source = randomise_norms(build()).eval()
    model = _load(source.state_dict(), ours(), tmp_path)
    x = torch.randn(2, 3, 64, 64)
    for feature, expected in zip(model(x).values(), _stages(source, x), strict=True):
        assert (feature - expected).abs().max() <= 1e-5 * expected.abs().max()


def _author_name(name: str) -> str:
    """Our name as the authors of CBAM and ECA-Net have it."""
    for ours, theirs in {
        "stem.conv1.norm.": "bn1.",
        "stem.conv1.": "conv1.",
        "conv1.norm.": "bn1.",
        "conv2.norm.": "bn2.",
        "conv3.norm.": "bn3.",
        "shortcut.norm.": "downsample.1.",
        "shortcut.": "downsample.0.",
        "attention.channel_gate.fc1.": "cbam.ChannelGate.mlp.1.",
        "attention.channel_gate.fc2.": "cbam.ChannelGate.mlp.3.",
        "attention.spatial_gate.": "cbam.SpatialGate.spatial.",
        "attention.": "eca.",
        "linear.": "fc.",
        **{f"res{i}.": f"layer{i - 1}." for i in range(2, 6)},
    }.items():
        name = name.replace(ours, theirs)
    return f"module.{name}"


@pytest.mark.parametrize(
    ("name", "depth", "plan"),
    [("cbam", 50, {}), ("cbam", 18, {}), ("eca", 18, {"kernel_sizes": (3, 5, 7, 7)})],
)
def test_author_checkpoints(name: str, depth: int, plan: dict, tmp_path: Path) -> None:
    source = AttentionResNet(
        attention=AttentionPlan(name=name, **plan), depth=depth, num_classes=10, out_features=None
    )
    expected = clones(randomise_norms(source))
    renamed = {_author_name(key): value for key, value in expected.items()}
    assert "module.layer1.0.conv2.weight" in renamed
    assert any("cbam.ChannelGate.mlp.3.bias" in k or "eca.conv.weight" in k for k in renamed)
    checkpoint = {"epoch": 100, "arch": f"resnet{depth}", "state_dict": renamed}
    model = _load(checkpoint, resnet(depth, name, **plan), tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_other_eca_kernel_sizes_are_named(tmp_path: Path) -> None:
    source = resnet(18, "eca", kernel_sizes=(3, 5, 7, 7))
    renamed = {_author_name(key): value for key, value in source.state_dict().items()}
    with pytest.raises(ValueError, match=r"MODEL.ATTENTION.KERNEL_SIZES to \[3, 5, 7, 7\]"):
        _load(renamed, resnet(18, "eca"), tmp_path)


def test_stride_of_the_caffe_resnet_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torchvision.models.resnet50().state_dict()
    for stride_in_1x1, warns in ((False, False), (True, True)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model = AttentionResNet(
                attention=AttentionPlan(), stride_in_1x1=stride_in_1x1, norm="FrozenBN"
            )
            _load(state, model, tmp_path)
        assert ("STRIDE_IN_1X1" in caplog.text) == warns
