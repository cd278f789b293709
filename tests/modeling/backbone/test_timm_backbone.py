"""TimmBackbone against timm itself, over models that name and wrap their parts differently."""

import logging

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from safetensors.torch import save_file
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from d2_plugins import get_cfg
from d2_plugins.modeling.backbone import TimmBackbone
from tests.support.helpers import randomise_norms, shared_path

LITE0 = "tf_efficientnet_lite0"
# One model of each kind of features_only wrapper: flattened list, list without stem, five features
# of stride 1 to 32, own feature class, channels last, hooks, whole model.
MODELS = (
    "resnet18",
    "convnext_atto",
    "cspdarknet53",
    LITE0,
    "swin_tiny_patch4_window7_224",
    "xception41",
    "hiera_tiny_224",
)


def _cfg(**keys: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.TIMM.NAME = "resnet18"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in keys.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


def _image(size: tuple[int, int] = (224, 224)) -> Tensor:
    return torch.randn(1, 3, *size)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_features_are_timms(name: str, tmp_path: object) -> None:
    """The weights of the whole model fill the backbone, and the features are equal."""
    whole = randomise_norms(timm.create_model(name)).eval()
    checkpoint = f"{tmp_path}/whole.safetensors"
    save_file(whole.state_dict(), checkpoint)
    model = TimmBackbone(name=name, checkpoint=checkpoint).eval()
    x = _image()
    features = model(x)
    assert list(features) == ["res2", "res3", "res4", "res5"]
    for feature, (key, spec) in zip(features.values(), model.output_shape().items(), strict=True):
        stride = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}[key]
        assert spec.stride == stride
        assert feature.shape == (1, spec.channels, 224 // stride, 224 // stride)
    reference = timm.create_model(
        name,
        features_only=True,
        out_indices=[i for i, f in enumerate(_info(whole)) if f["reduction"] >= 4],
        pretrained=True,
        pretrained_cfg_overlay={"file": checkpoint},
    ).eval()
    for feature, expected in zip(features.values(), reference(x), strict=True):
        if expected.shape != feature.shape:
            expected = expected.permute(0, 3, 1, 2)
        assert torch.equal(feature, expected)


def _info(model: nn.Module) -> list[dict]:
    return getattr(model.feature_info, "info", model.feature_info)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("cspresnext50", (256, 512, 1024, 2048)),
        ("cspdarknet53", (128, 256, 512, 1024)),
        ("sedarknet21", (128, 256, 512, 1024)),  # timm's default indices drop its last feature
        ("eca_resnet33ts", (256, 512, 1536, 1280)),
        ("cs3darknet_focus_s", (64, 128, 256, 512)),
        (LITE0, (24, 40, 112, 320)),
        ("vit_tiny_patch16_224", (192,)),
    ],
)
def test_default_features_are_chosen_by_stride(name: str, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        shapes = TimmBackbone(name=name).output_shape()
    assert tuple(shape.channels for shape in shapes.values()) == channels
    names = ["res4"] if name.startswith("vit") else ["res2", "res3", "res4", "res5"]
    assert list(shapes) == names
    assert all(shape.stride == 2 ** int(key[-1]) for key, shape in shapes.items())


@pytest.mark.parametrize("size", [(256, 256), (320, 480)])
@torch.no_grad()
def test_announced_shapes(size: tuple[int, int]) -> None:
    model = TimmBackbone(name="cspresnext50", out_indices=(0, 2, -1)).eval()
    features = model(_image(size))
    assert list(features) == ["res1", "res3", "res5"]
    for key, shape in model.output_shape().items():
        expected = (1, shape.channels, size[0] // shape.stride, size[1] // shape.stride)
        assert features[key].shape == expected


@pytest.mark.parametrize(
    ("name", "activations"),
    [("cspresnext50", 51), ("cspdarknet53", 67), ("cs3darknet_l", 56), ("resnet18", 17)],
)
@torch.no_grad()
def test_frozen_norms_compute_the_same_and_keep_the_activations(
    name: str, activations: int
) -> None:
    plain = randomise_norms(TimmBackbone(name=name, norm="BN")).eval()
    frozen = TimmBackbone(name=name, norm="FrozenBN")
    missing, unexpected = frozen.load_state_dict(plain.state_dict(), strict=False)
    assert not missing
    assert all(key.endswith("num_batches_tracked") for key in unexpected)
    x = _image((96, 96))
    for mode in (True, False):
        for got, expected in zip(frozen.train(mode)(x).values(), plain(x).values(), strict=True):
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    kinds = (nn.LeakyReLU, nn.SiLU, nn.ReLU)
    for model in (plain, frozen):
        assert sum(isinstance(module, kinds) for module in model.modules()) == activations


def test_sync_norms_are_timms() -> None:
    model = TimmBackbone(name="cspresnet50", norm="SyncBN")
    assert any(isinstance(module, SyncBatchNormAct) for module in model.modules())
    assert not any(isinstance(module, BatchNormAct2d) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("cspresnext50", ["stem_", "stages_0.", "stages_1."]),
        ("cspdarknet53", ["stem_conv1. stages_0.", "stages_1.", "stages_2."]),
        ("resnet18", ["conv1. bn1.", "layer1.", "layer2."]),
        (LITE0, ["conv_stem. bn1. blocks.0.", "blocks.1.", "blocks.2."]),
        ("convnext_atto", ["stem_", "stages_0.", "stages_1."]),
        ("regnetx_002", ["stem.", "s1.", "s2."]),
    ],
)
@pytest.mark.parametrize("freeze_at", [0, 1, 2, 3])
def test_freeze_at_freezes_up_to_a_stride(name: str, prefixes: list[str], freeze_at: int) -> None:
    model = TimmBackbone(name=name, freeze_at=freeze_at).features
    frozen = tuple(" ".join(prefixes[:freeze_at]).split())
    for key, parameter in model.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen or ("nothing",)), key
    for key, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not f"{key}.".startswith(frozen or ("nothing",))


def test_a_training_step_leaves_frozen_statistics_alone() -> None:
    model = randomise_norms(TimmBackbone(name="cspresnext50", freeze_at=2)).train()
    assert any(isinstance(module, FrozenBatchNormAct2d) for module in model.modules())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sum(feature.square().mean() for feature in model(_image((64, 64))).values()).backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    for key, value in model.state_dict().items():
        frozen = key.startswith(("features.stem", "features.stages_0"))
        if frozen or key.endswith("num_batches_tracked"):
            assert not frozen or torch.equal(value, before[key]), key
        elif "running" in key or value.dim() > 1:
            assert not torch.equal(value, before[key]), key


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain = TimmBackbone(name="resnet18", norm="FrozenBN")
    saving = TimmBackbone(name="resnet18", norm="FrozenBN", gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = _image((64, 64))
    for model in (plain, saving):
        sum(feature.square().mean() for feature in model.train()(x).values()).backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"NAME": "cspresnest50"},
            r"TIMM.NAME is 'cspresnest50'; nearest in timm .*cspresnet50",
        ),
        ({"NAME": "sequencer2d_s"}, r"OUT_INDICES is empty, but 'sequencer2d_s'.*\{0: 7, 1: 14"),
        ({"NORM": "GN"}, "MODEL.TIMM.NORM is 'GN'; allowed: FrozenBN, BN, SyncBN"),
        ({"OUT_INDICES": [1, 7]}, r"MODEL.TIMM.OUT_INDICES is \[1, 7\]; .*\{0: 2, 1: 4"),
        (
            {"NAME": "vit_tiny_patch16_224", "OUT_INDICES": [3, 7]},
            r"OUT_INDICES select the strides \[16, 16\].*allowed: different powers of two",
        ),
        ({"NAME": "sequencer2d_s", "OUT_INDICES": [1]}, r"strides \[14\].*powers of two"),
    ],
)
def test_config_errors_name_the_key(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(_cfg(**keys))


def test_attention_has_no_place_in_a_timm_model() -> None:
    cfg = _cfg()
    cfg.MODEL.ATTENTION.NAME = "eca"
    with pytest.raises(ValueError, match=r"MODEL.ATTENTION.NAME is 'eca'.*ON_FPN"):
        build_backbone(cfg)
    cfg.MODEL.ATTENTION.ON_FPN = True
    cfg.MODEL.BACKBONE.NAME = "build_timm_fpn_backbone"
    assert len(build_backbone(cfg).attention) == 5


@pytest.mark.parametrize(
    ("builder", "names"),
    [
        ("build_timm_fpn_backbone", ["p2", "p3", "p4", "p5", "p6"]),
        ("build_retinanet_timm_fpn_backbone", ["p3", "p4", "p5", "p6", "p7"]),
    ],
)
@torch.no_grad()
def test_pyramids(builder: str, names: list[str]) -> None:
    cfg = _cfg()
    cfg.MODEL.BACKBONE.NAME = builder
    if "retinanet" in builder:
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    model = build_backbone(cfg).eval()
    features = model(_image((128, 128)))
    assert list(features) == names
    for name, shape in model.output_shape().items():
        assert features[name].shape == (1, 256, 128 // shape.stride, 128 // shape.stride)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: object) -> None:
    path = f"{tmp_path}/resnet34.pth"
    torch.save(timm.create_model("resnet26").state_dict(), path)
    with pytest.raises(ValueError, match=rf"MODEL.TIMM.CHECKPOINT is '{path}'.*another model"):
        build_backbone(_cfg(CHECKPOINT=path))


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK half", b"\x80\x02cos\nsystem\n."])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_and_unsafe_checkpoints_are_named(
    content: bytes, suffix: str, tmp_path: object
) -> None:
    path = f"{tmp_path}/weights.{suffix}"
    with open(path, "wb") as file:
        file.write(content)
    with pytest.raises(ValueError, match=rf"^MODEL.TIMM.CHECKPOINT is '{path}', which is missing"):
        build_backbone(_cfg(CHECKPOINT=path))


def test_no_weights_are_looked_for_where_model_weights_is_set() -> None:
    cfg = _cfg(CHECKPOINT="nowhere.pth", PRETRAINED=True)
    cfg.MODEL.WEIGHTS = "output/model_final.pth"
    build_backbone(cfg)


def test_unreachable_weights_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)
    with pytest.raises(OSError, match=r"PRETRAINED.*no route to host\n.*MODEL.TIMM.CHECKPOINT"):
        build_backbone(_cfg(PRETRAINED=True))


class TestEfficientNetLite0:
    """Real ImageNet weights: RGB, mean and deviation 127.5 on the 0..255 scale."""

    @pytest.fixture(scope="class")
    def checkpoint(self) -> str:
        return str(shared_path("data/weights/timm_tf_efficientnet_lite0.pth"))

    @pytest.fixture(scope="class")
    def model(self, checkpoint: str) -> TimmBackbone:
        return TimmBackbone(name=LITE0, checkpoint=checkpoint, norm="FrozenBN").eval()

    @torch.no_grad()
    def test_features_are_those_of_timms_own_load(
        self, checkpoint: str, model: TimmBackbone
    ) -> None:
        whole = timm.create_model(LITE0)
        whole.load_state_dict(torch.load(checkpoint, weights_only=True))
        x = _image((160, 192))
        ours, last = model(x), whole.eval().forward_features(x)
        assert [feature.shape[1] for feature in ours.values()] == [24, 40, 112, 320]
        head = whole.bn2(whole.conv_head(ours["res5"]))
        assert (head - last).abs().max() <= 1e-4 * last.abs().max()

    @torch.no_grad()
    def test_wrong_pixels_give_other_features(self, model: TimmBackbone) -> None:
        """Negative control: common mistakes change the last feature far more than rounding."""
        ramp = torch.linspace(0, 255, 160)
        rgb = torch.stack(
            [ramp.expand(160, 160), ramp[:, None].expand(160, 160), ramp.flip(0).expand(160, 160)]
        )
        right = model(((rgb - 127.5) / 127.5)[None])["res5"]
        mistakes = {
            "BGR": (rgb.flip(0) - 127.5) / 127.5,
            "no division": rgb - 127.5,
            "ImageNet statistics": (rgb - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1))
            / torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
        }
        for mistake, pixels in mistakes.items():
            wrong = model(pixels[None])["res5"]
            assert (wrong - right).norm() > 0.1 * right.norm(), mistake

    @pytest.mark.parametrize(
        ("image_format", "mean", "std", "warns"),
        [
            ("RGB", 127.5, 127.5, False),
            ("RGB", 127.0, 128.0, False),
            ("BGR", 127.5, 127.5, True),
            ("RGB", 127.5, 1.0, True),
            ("RGB", 123.7, 127.5, True),
        ],
    )
    def test_config_is_checked_against_the_weights(
        self,
        checkpoint: str,
        caplog: pytest.LogCaptureFixture,
        image_format: str,
        mean: float,
        std: float,
        warns: bool,
    ) -> None:
        cfg = _cfg(NAME=LITE0, CHECKPOINT=checkpoint)
        cfg.INPUT.FORMAT = image_format
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [mean] * 3, [std] * 3
        with caplog.at_level(logging.INFO):
            build_backbone(cfg)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == warns
        if warns:
            assert "set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [127.5, 127.5, 127.5]" in warnings[0]
        assert "entries of the backbone filled; not used: bn2." in caplog.text


def test_frozen_random_weights_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    build_backbone(_cfg(NORM="FrozenBN"))
    assert "random weights with frozen parts" in caplog.text
    caplog.clear()
    build_backbone(_cfg(NORM="BN"))
    assert not caplog.text
