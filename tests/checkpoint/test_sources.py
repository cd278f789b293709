"""Weights by name, from caches as the hubs lay them out; nothing is downloaded."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from d2_plugins.checkpoint import PluginCheckpointer, find_source
from d2_plugins.modeling.backbone import CSPNet, TimmBackbone
from tests.support.checkpoint_models import clones, detector, resnet
from tests.support.helpers import randomise_norms


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of huggingface_hub, in offline mode, and no package that carries weights."""
    monkeypatch.setattr("d2_plugins.checkpoint.sources.find_packaged", lambda arch: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.fixture
def torch_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch.hub, which cannot download."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def _put(cache: Path, name: str, model: nn.Module) -> None:
    """Store a model as huggingface_hub would have after downloading it."""
    repository = cache / f"models--timm--{name}"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    save_file(model.state_dict(), snapshot / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("cspresnet50.ra_in1k", lambda: CSPNet(arch="cspresnet50")),
        ("resnet18.a1_in1k", resnet),
        ("tf_efficientnet_lite0.in1k", lambda: TimmBackbone(name="tf_efficientnet_lite0")),
        ("convnext_atto.d2_in1k", lambda: TimmBackbone(name="convnext_atto")),
    ],
)
@torch.no_grad()
def test_timm_weights_fill_the_backbone(name: str, build: object, hub_cache: Path) -> None:
    source = randomise_norms(timm.create_model(name)).eval()
    _put(hub_cache, name, source)
    model = build()
    PluginCheckpointer(model).load(f"timm://{name}", checkpointables=[])
    x = torch.randn(1, 3, 64, 64)
    features = list(model.eval()(x).values())
    last = source.forward_intermediates(x, indices=1, intermediates_only=True)[0]
    assert (features[-1] - last).abs().max() <= 1e-5 * last.abs().max()


def test_a_name_without_a_tag_is_timms_default(hub_cache: Path) -> None:
    source = timm.create_model("tf_efficientnet_lite0")
    _put(hub_cache, "tf_efficientnet_lite0.in1k", source)
    found = find_source("timm://tf_efficientnet_lite0")
    assert found == find_source("timm://tf_efficientnet_lite0.in1k")
    assert found.pixels.mean == (0.5, 0.5, 0.5)


def test_timm_weights_that_are_not_on_the_hub(torch_cache: Path) -> None:
    (torch_cache / "seresnet18-4bb0ce65.pth").touch()
    found = find_source("timm://legacy_seresnet18.in1k")
    assert found.path == str(torch_cache / "seresnet18-4bb0ce65.pth")


@pytest.mark.parametrize("name", ["resnet18", "ResNet18_Weights.IMAGENET1K_V1"])
def test_torchvision_weights_fill_the_backbone_of_a_detector(
    name: str, torch_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = randomise_norms(resnet18())
    filename = ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(source.state_dict(), torch_cache / filename)
    model = detector("cbam")
    heads = {k: v for k, v in clones(model).items() if "bottom_up" not in k or "attention" in k}
    PluginCheckpointer(model).load(f"torchvision://{name}", checkpointables=[])
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in heads.items())
    bottom_up = "backbone.bottom_up"
    assert torch.equal(state[f"{bottom_up}.stem.conv1.weight"], source.conv1.weight)
    assert torch.equal(
        state[f"{bottom_up}.res5.1.conv2.norm.running_var"], source.layer4[1].bn2.running_var
    )
    # The default pixels of detectron2 are not those of torchvision.
    assert "set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53]" in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm://cspresnext50.ra_in2k", "it has cspresnext50.ra_in1k"),
        ("timm://cspresnesxt50.ra_in1k", "nearest: cspresnext50.ra_in1k"),
        ("timm://cspresnet50d", "no weights 'cspresnet50d'"),
        ("torchvision://resnet19", "nearest: .*resnet18"),
        ("torchvision://ResNet18_Weights.V3", "no weights 'ResNet18_Weights.V3'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(
    name: str, message: str, hub_cache: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        find_source(name)


def test_unreachable_weights_say_where_to_put_the_file(hub_cache: Path, torch_cache: Path) -> None:
    with pytest.raises(OSError, match=r"(?s)huggingface.co/timm/resnet18.a1_in1k/.*MODEL.WEIGHTS"):
        find_source("timm://resnet18")
    with pytest.raises(OSError, match=rf"(?s)no route to host.*put it at {torch_cache}/resnet18-"):
        find_source("torchvision://resnet18")


def test_other_names_pass(tmp_path: Path) -> None:
    file = tmp_path / "model.pth"
    file.touch()
    query = f"{file}?matching_heuristics=True"
    for name in ("", str(file), query, "detectron2://ImageNetPretrained/MSRA/R-50.pkl"):
        assert find_source(name).path == name


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*none\.pth'"):
        find_source(f"{tmp_path}/none.pth?matching_heuristics=True")
