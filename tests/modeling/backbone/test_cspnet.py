"""CSPNet: published sizes, equality with timm, norms, freezing, multipliers, errors."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from d2_plugins import get_cfg
from d2_plugins.checkpoint.cspnet_weights import convert_timm_cspnet
from d2_plugins.modeling.backbone import AttentionPlan, CSPNet
from d2_plugins.modeling.backbone.cspnet_archs import ARCHS, scale_arch
from tests.support.cspnet_cases import RES, SMALL, count, like, on_meta, relative_error, timm_model
from tests.support.helpers import randomise_norms

DARK = ("cspdarknet53", "darknet53")

# Parameters with a classifier of 1000 classes, and without.
PARAMETERS = {
    "cspresnet50": (21_616_168, 20_591_168),
    "cspresnet50d": (21_635_400, 20_610_400),
    "cspresnet50w": (28_118_216, 26_069_216),
    "cspresnext50": (20_569_896, 18_520_896),
    "cspdarknet53": (27_642_184, 26_617_184),
    "darknet53": (41_609_928, 40_584_928),
    "cs3darknet_s": (3_276_344, 2_763_344),
    "cs3darknet_m": (9_310_240, 8_541_240),
    "cs3darknet_l": (21_164_168, 20_139_168),
    "cs3darknet_x": (35_046_320, 33_765_320),
    "cs3darknet_focus_s": (3_274_728, 2_761_728),
    "cs3darknet_focus_m": (9_304_360, 8_535_360),
    "cs3darknet_focus_l": (21_151_720, 20_126_720),
    "cs3darknet_focus_x": (35_025_000, 33_744_000),
}
# Parameters of the stages of the three architectures of the paper.
STAGE_PARAMETERS = {
    "cspresnet50": (9_536, 227_840, 1_053_952, 5_913_088, 13_386_752),
    "cspresnext50": (9_536, 214_016, 933_376, 4_920_320, 12_443_648),
    "cspdarknet53": (928, 60_224, 193_920, 1_758_976, 7_024_128, 17_579_008),
}
# Multiply-adds of convolutions and classifier, and of everything, at 224 and 256 pixels (1e9).
GMACS = {
    "cspresnet50": (3.459, 3.476, 4.517, 4.540),
    "cspresnext50": (3.074, 3.099, 4.015, 4.047),
    "cspdarknet53": (5.003, 5.028, 6.534, 6.567),
    "darknet53": (7.109, 7.128, 9.285, 9.310),
    "cs3darknet_l": (3.711, 3.724, 4.847, 4.864),
    "cs3darknet_focus_l": (3.556, 3.568, 4.644, 4.660),
}
ACTIVATIONS = {"cspresnet50": 51, "cspresnext50": 51, "cspdarknet53": 67, "cs3darknet_l": 56}


def activations(model: nn.Module) -> int:
    return sum(isinstance(module, nn.LeakyReLU | nn.SiLU) for module in model.modules())


def test_every_architecture_has_its_published_size() -> None:
    assert set(PARAMETERS) == set(ARCHS)
    for arch, (with_classifier, without) in PARAMETERS.items():
        model = on_meta(CSPNet, arch=arch, num_classes=1000)
        assert (count(model), count(model) - count(model.linear)) == (with_classifier, without)
        if arch in STAGE_PARAMETERS:
            parts = [count(part) for name, part in model.named_children() if name != "linear"]
            assert tuple(parts) == STAGE_PARAMETERS[arch]


@pytest.mark.parametrize("arch", GMACS)
def test_multiply_adds_are_the_published_ones(arch: str) -> None:
    model = CSPNet(arch=arch, num_classes=1000).eval()
    figures = []
    for size in (224, 256):
        counter = FlopCountAnalysis(model, torch.zeros(1, 3, size, size))
        counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        parts = counter.by_operator()
        figures += [parts["conv"] + parts["linear"], counter.total()]
    assert [figure / 1e9 for figure in figures] == pytest.approx(GMACS[arch], rel=1e-3)


def timm_taps(model: nn.Module, image: Tensor) -> list[Tensor]:
    """Return the outputs of the stem (with pooling), of every stage and of the classifier."""
    taps = [model.stem(image)]
    for stage in model.stages:
        taps.append(stage(taps[-1]))
    return [*taps, model.forward_head(taps[-1])]


@pytest.mark.parametrize("arch", ARCHS)
def test_equals_timm_and_stays_so_when_frozen(arch: str) -> None:
    theirs = timm_model(arch)
    names = ("stem", *(("res1",) if arch in DARK else ()), *RES, "linear")
    ours = like(
        convert_timm_cspnet(theirs.state_dict()), arch=arch, num_classes=1000, out_features=names
    )
    image = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        before = ours(image)
        for name, reference in zip(names, timm_taps(theirs, image), strict=True):
            assert relative_error(before[name], reference) < 1e-5
        kept = activations(ours)
        assert kept == ACTIVATIONS.get(arch, kept)
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(ours).train()
        after = frozen(image)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    assert activations(frozen) == kept
    assert all(relative_error(after[name], before[name]) < 1e-5 for name in names)


def test_the_same_freezing_of_timms_own_model_loses_activations() -> None:
    """Negative control: norm and activation in one module do not survive the conversion."""
    theirs = timm_model("cspresnext50")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = theirs.forward_features(image)
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(theirs)
        assert activations(frozen) < ACTIVATIONS["cspresnext50"]
        assert relative_error(frozen.forward_features(image), before) > 0.1


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "SyncBN", "GN"])
@pytest.mark.parametrize(
    "arch", ["cspresnext50", "cspdarknet53", "darknet53", "cs3darknet_focus_m"]
)
def test_shapes(arch: str, norm: str) -> None:
    model = CSPNet(arch=arch, norm=norm, out_features=RES, **SMALL).eval()
    shapes = model.output_shape()
    assert [shape.stride for shape in shapes.values()] == [4, 8, 16, 32]
    assert model.size_divisibility == 32
    for height, width in ((128, 96), (160, 224)):
        with torch.no_grad():
            features = model(torch.randn(1, 3, height, width))
        assert {name: feature.shape[1:] for name, feature in features.items()} == {
            name: (shape.channels, height // shape.stride, width // shape.stride)
            for name, shape in shapes.items()
        }
    # Sizes that are not a multiple of the stride are rounded up.
    if "focus" not in arch:
        with torch.no_grad():
            sizes = [f.shape[2:] for f in model(torch.randn(1, 3, 125, 83)).values()]
        assert sizes == [(32, 21), (16, 11), (8, 6), (4, 3)]


def test_only_the_stages_that_are_needed_are_built() -> None:
    model = on_meta(CSPNet, arch="cspdarknet53", out_features=("res3", "stem"))
    assert [name for name, _ in model.named_children()] == ["stem", "res1", "res2", "res3"]
    assert {name: (s.channels, s.stride) for name, s in model.output_shape().items()} == {
        "res3": (256, 8),
        "stem": (32, 1),
    }
    classifier = on_meta(CSPNet, arch="cs3darknet_s", num_classes=7)
    assert classifier.output_shape()["linear"].channels == 7
    assert on_meta(CSPNet, arch="cspresnet50").output_shape().keys() == {"res5"}


def test_initial_weights() -> None:
    """Kaiming in fan-out mode, and residuals that start at zero."""
    for arch, last in (("cspresnet50", "conv3"), ("cs3darknet_l", "conv2")):
        model = CSPNet(arch=arch, num_classes=10, width_multiplier=0.5)
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels // module.groups * module.kernel_size[0] ** 2
                if module.weight.numel() > 10_000:
                    assert module.weight.std().item() == pytest.approx(
                        (2 / fan_out) ** 0.5, rel=0.05
                    )
                residual = ".blocks." in name and name.endswith(last)
                assert torch.all(module.norm.weight == (0 if residual else 1))
        assert model.linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not model.linear.bias.any()
    # A frozen norm must not start at zero, because it cannot be trained.
    frozen = CSPNet(arch="cspresnet50", norm="FrozenBN", **SMALL)
    assert all(m.weight.all() for m in frozen.modules() if isinstance(m, FrozenBatchNorm2d))


def test_multipliers() -> None:
    small = scale_arch(ARCHS["cspresnext50"], width=0.3, depth=0.5)
    assert small.stem.channels == (16,)  # 19.2
    assert [spec.channels for spec in small.stages] == [80, 152, 304, 616]  # 76.8, 153.6, 307.2 ...
    assert [spec.depth for spec in small.stages] == [2, 2, 3, 1]
    assert scale_arch(ARCHS["cspresnext50"], width=0.001, depth=0.01).stages[0].channels == 8
    assert scale_arch(ARCHS["cspdarknet53"]) == ARCHS["cspdarknet53"]
    # Groups are reduced to a divisor of the channels: 40 in the blocks of res2, then 76, 152, 308.
    model = on_meta(CSPNet, arch="cspresnext50", width_multiplier=0.3, norm="GN")
    groups = [getattr(model, name).blocks[0].conv2.groups for name in RES]
    assert groups == [8, 4, 8, 4]
    assert [getattr(model, name).conv_down.groups for name in RES[1:]] == [16, 8, 16]
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    assert all(norm.num_groups <= 32 for norm in norms)
    # At full width GN has detectron2's 32 groups.
    full = on_meta(CSPNet, arch="cspresnext50", norm="GN")
    assert {m.num_groups for m in full.modules() if isinstance(m, nn.GroupNorm)} == {32}


def test_leaky_slope_reaches_every_activation() -> None:
    model = on_meta(CSPNet, arch="cspdarknet53", leaky_slope=0.1)
    slopes = [m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.1] * ACTIVATIONS["cspdarknet53"]


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    """Outputs, gradients and running statistics stay the same; far less memory is used."""
    torch.manual_seed(1)
    options = {"arch": "cs3darknet_s", "out_features": RES, "width_multiplier": 0.5}
    options |= {"freeze_at": 1, "attention": AttentionPlan(name="cbam", reduction=8)}
    plain = randomise_norms(CSPNet(**options)).train()
    saving = CSPNet(**options, gradient_checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    image = torch.randn(2, 3, 64, 64)
    kept = []
    outputs = []
    for model in (plain, saving):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            features = model(image)
        kept.append(sum(sizes))
        sum(feature.square().mean() for feature in features.values()).backward()
        outputs.append(features)
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in RES)
    for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (not ours.requires_grad) == (theirs.grad is None)
        assert ours.grad is None or torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)
    state = plain.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in saving.state_dict().items())
    assert kept[1] < kept[0] / 4


@pytest.mark.parametrize(
    ("arch", "freeze_at", "frozen"),
    [
        ("cspresnext50", 0, ()),
        ("cspresnext50", 1, ("stem",)),
        ("cs3darknet_l", 2, ("stem", "res2")),
        ("cspdarknet53", 1, ("stem", "res1")),
        ("darknet53", 2, ("stem", "res1", "res2")),
        ("cspresnet50", 3, ("stem", "res2", "res3")),
    ],
)
def test_freezing(arch: str, freeze_at: int, frozen: tuple[str, ...]) -> None:
    model = CSPNet(arch=arch, freeze_at=freeze_at, out_features=RES, **SMALL).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = model(torch.randn(2, 3, 64, 64))
    sum(feature.mean() for feature in features.values()).backward()
    for name, value in model.state_dict().items():
        if "running" in name:
            assert torch.equal(value, before[name]) == (name.split(".")[0] in frozen)
    for name, module in model.named_modules():
        top = name.split(".")[0]
        assert not (isinstance(module, nn.BatchNorm2d) and top in frozen)
        assert not (isinstance(module, FrozenBatchNorm2d) and top not in frozen)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[0] not in frozen)
        assert (parameter.grad is not None) == parameter.requires_grad


def test_config_builds_what_it_says() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_cspnet_backbone"
    cfg.MODEL.CSPNET.ARCH = "cspresnet50"
    cfg.MODEL.CSPNET.NORM = "GN"
    cfg.MODEL.CSPNET.WIDTH_MULTIPLIER = 0.5
    cfg.MODEL.CSPNET.DEPTH_MULTIPLIER = 0.4
    cfg.MODEL.CSPNET.LEAKY_SLOPE = 0.2
    cfg.MODEL.CSPNET.OUT_FEATURES = ["res3", "res4"]
    cfg.MODEL.CSPNET.GRADIENT_CHECKPOINTING = True
    cfg.MODEL.BACKBONE.FREEZE_AT = 1
    with torch.device("meta"):
        model = build_backbone(cfg, ShapeSpec(channels=1))
    assert {name: (s.channels, s.stride) for name, s in model.output_shape().items()} == {
        "res3": (128, 8),
        "res4": (256, 16),
    }
    assert model.stem.conv1.weight.shape == (32, 1, 7, 7)
    assert [len(getattr(model, name).blocks) for name in model.stage_names] == [1, 1, 2]
    assert isinstance(model.res4.conv_exp.norm, nn.GroupNorm)
    assert model.res4.conv_down.act.negative_slope == 0.2
    assert model.gradient_checkpointing
    assert [p.requires_grad for p in (model.stem.conv1.weight, model.res2.conv_exp.weight)] == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CSPNET.ARCH", "cspresnet5O", "MODEL.CSPNET.ARCH is 'cspresnet5O'; nearest: cspresnet50,"),
        ("CSPNET.NORM", "bn", "MODEL.CSPNET.NORM is 'bn'; allowed: FrozenBN, BN, SyncBN, GN"),
        ("CSPNET.WIDTH_MULTIPLIER", 0.0, "MODEL.CSPNET.WIDTH_MULTIPLIER is 0.0"),
        ("CSPNET.DEPTH_MULTIPLIER", -1.0, "MODEL.CSPNET.DEPTH_MULTIPLIER is -1.0"),
        ("CSPNET.LEAKY_SLOPE", -0.1, "MODEL.CSPNET.LEAKY_SLOPE is -0.1"),
        ("CSPNET.OUT_FEATURES", ["res1"], "MODEL.CSPNET.OUT_FEATURES.*stem, res2, res3"),
        ("CSPNET.OUT_FEATURES", [], "MODEL.CSPNET.OUT_FEATURES"),
        ("BACKBONE.FREEZE_AT", 6, "MODEL.BACKBONE.FREEZE_AT is 6; allowed: 0 to 5"),
    ],
)
def test_config_errors_name_the_key(key: str, value: object, message: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_cspnet_backbone"
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)


def test_frozen_norms_of_a_scaled_network_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    cfg = get_cfg()
    cfg.MODEL.CSPNET.WIDTH_MULTIPLIER = 0.25
    with caplog.at_level("WARNING", logger="d2_plugins"):
        CSPNet(cfg, ShapeSpec(channels=3))
    assert "no published weights fit" in caplog.text
