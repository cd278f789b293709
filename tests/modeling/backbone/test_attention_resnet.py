"""Attention ResNets: published sizes, padding, freezing, and equality with detectron2's ResNet."""

import pytest
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import build_resnet_backbone
from detectron2.structures import ImageList
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from d2_plugins import get_cfg, model_zoo
from d2_plugins.layers import CBAM, ECA
from d2_plugins.modeling.backbone import AttentionPlan, AttentionResNet
from d2_plugins.modeling.backbone.pixel_statistics import IMAGENET_STATISTICS
from tests.support.helpers import randomise_norms

RGB = ShapeSpec(channels=3)
RX = {"num_groups": 32, "width_per_group": 4}


def _eca(*kernel_sizes: int) -> AttentionPlan:
    return AttentionPlan(name="eca", kernel_sizes=kernel_sizes)


CBAM_PLAN = AttentionPlan(name="cbam")


def _cfg(**attention: object) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_attention_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    for key, value in attention.items():
        cfg.MODEL.ATTENTION[key] = value
    return cfg


@pytest.mark.parametrize(
    ("plan", "options", "count"),
    [
        (CBAM_PLAN, {"depth": 18}, 11_779_392),
        (CBAM_PLAN, {"depth": 34}, 21_960_468),
        (CBAM_PLAN, {"depth": 50}, 28_089_624),
        (CBAM_PLAN, {"depth": 101}, 49_330_172),
        (CBAM_PLAN, {"depth": 50, **RX}, 27_561_496),
        (CBAM_PLAN, {"depth": 101, **RX}, 48_958_716),
        (CBAM_PLAN, {"depth": 50, "num_classes": None}, 26_040_624),
        (AttentionPlan(name="se"), {"depth": 50}, 28_088_024),
        (_eca(3, 5, 7, 7), {"depth": 18}, 11_689_556),
        (_eca(3, 3, 5, 7), {"depth": 34}, 21_797_744),
        (_eca(3, 5, 5, 7), {"depth": 50}, 25_557_112),
        (_eca(3, 3, 3, 3), {"depth": 50}, 25_557_080),
        (_eca(), {"depth": 50}, 25_557_118),
        (_eca(3, 3, 5, 7), {"depth": 101}, 44_549_317),
        (_eca(), {"depth": 101}, 44_549_331),
        (_eca(3, 3, 5, 7), {"depth": 152}, 60_193_042),
        (_eca(), {"depth": 50, **RX}, 25_028_990),
    ],
)
def test_parameters_are_the_published_ones(plan: AttentionPlan, options: dict, count: int) -> None:
    with torch.device("meta"):
        model = AttentionResNet(
            attention=plan, out_features=None, **{"num_classes": 1000, **options}
        )
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize(
    ("plan", "stride_in_1x1", "gmacs"),
    [
        (AttentionPlan(), False, 4.0892),
        (AttentionPlan(), True, 3.8580),
        (CBAM_PLAN, False, 4.0956),
        (_eca(3, 5, 5, 7), False, 4.0893),
    ],
)
def test_multiply_adds_at_224(plan: AttentionPlan, stride_in_1x1: bool, gmacs: float) -> None:
    model = AttentionResNet(
        attention=plan, stride_in_1x1=stride_in_1x1, num_classes=1000, out_features=None
    ).eval()
    counts = FlopCountAnalysis(model, torch.zeros(1, 3, 224, 224))
    counts.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    by_operator = counts.by_operator()
    total = by_operator["conv"] + by_operator["linear"]
    assert total == pytest.approx(gmacs * 1e9, rel=2e-5)


@pytest.mark.parametrize("depth", [18, 50])
def test_without_attention_it_is_detectron2s_resnet_bit_for_bit(depth: int) -> None:
    cfg = _cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    ours, stock = build_backbone(cfg).eval(), build_resnet_backbone(cfg, RGB).eval()
    assert list(ours.state_dict()) == list(stock.state_dict())
    ours.load_state_dict(stock.state_dict())
    # The same with our own class: in a stage without attention its blocks are detectron2's.
    plain = AttentionResNet(
        attention=AttentionPlan(ignore_padding=False),
        depth=depth,
        stride_in_1x1=cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        norm="FrozenBN",
        freeze_at=2,
    ).eval()
    assert list(plain.state_dict()) == list(stock.state_dict())
    assert plain.output_shape() == stock.output_shape()
    plain.load_state_dict(stock.state_dict())
    x = torch.randn(2, 3, 64, 96)
    expected = stock(x)
    for model in (ours, plain):
        features = model(x)
        assert list(features) == list(expected)
        assert all(torch.equal(features[name], expected[name]) for name in expected)


def test_attention_adds_keys_and_renames_none() -> None:
    with torch.device("meta"):
        stock = AttentionResNet(attention=AttentionPlan())
        model = AttentionResNet(
            attention=AttentionPlan(name="cbam", stages=(False, True, False, True))
        )
    added = set(model.state_dict()) - set(stock.state_dict())
    assert set(stock.state_dict()) < set(model.state_dict())
    assert {key.split(".")[0] for key in added} == {"res3", "res5"}
    assert all(key.split(".")[2] == "attention" for key in added)


def test_kernel_sizes_go_to_their_stages() -> None:
    with torch.device("meta"):
        model = AttentionResNet(attention=_eca(3, 5, 7, 9), depth=18)
    sizes = {name: m.conv.kernel_size[0] for name, m in model.named_modules() if isinstance(m, ECA)}
    assert {name[:4]: size for name, size in sizes.items()} == dict(
        zip(("res2", "res3", "res4", "res5"), (3, 5, 7, 9), strict=True)
    )


@pytest.mark.parametrize("depth", [18, 50])
def test_attention_stands_between_the_last_norm_and_the_shortcut(depth: int) -> None:
    """A block's output is relu(attention(norm) + shortcut)."""
    model = randomise_norms(AttentionResNet(attention=CBAM_PLAN, depth=depth)).eval()
    block = model.res3[0]
    x = torch.randn(1, block.in_channels, 12, 12)
    seen: dict[str, Tensor] = {}
    block.attention.register_forward_hook(
        lambda _, inputs, output: seen.update(before=inputs[0].clone(), after=output.clone())
    )
    shortcut = block.shortcut(x)
    torch.testing.assert_close(block(x), (seen["after"] + shortcut).relu())
    last = block.conv2 if depth == 18 else block.conv3
    norms: list[Tensor] = []
    last.norm.register_forward_hook(lambda _, inputs, output: norms.append(output.clone()))
    block(x)
    assert torch.equal(norms[0], seen["before"])


@pytest.mark.parametrize("name", ["eca", "cbam", "se"])
@pytest.mark.parametrize(("depth", "stride_in_1x1"), [(18, False), (50, False), (50, True)])
@torch.no_grad()
def test_features_do_not_depend_on_the_padding(name: str, depth: int, stride_in_1x1: bool) -> None:
    def build(ignore_padding: bool) -> nn.Module:
        torch.manual_seed(1)
        model = AttentionResNet(
            attention=AttentionPlan(name=name, ignore_padding=ignore_padding),
            depth=depth,
            stride_in_1x1=stride_in_1x1,
        )
        return randomise_norms(model).eval()

    images = [torch.randn(3, 69, 101), torch.randn(3, 128, 90), torch.randn(3, 64, 64)]
    batch = ImageList.from_tensors(images, 32).tensor
    aware, naive = build(True), build(False)
    padded, padded_naively = aware(batch), naive(batch)
    leaks = []
    for index, image in enumerate(images):
        alone = aware(image[None])
        for key, feature in alone.items():
            height, width = feature.shape[-2:]
            scale = feature.abs().max()
            got = padded[key][index : index + 1, :, :height, :width]
            assert (got - feature).abs().max() <= 1e-5 * scale
            # Without padding, the option changes only the rounding.
            torch.testing.assert_close(naive(image[None])[key], feature, rtol=1e-4, atol=1e-5)
            leak = padded_naively[key][index : index + 1, :, :height, :width] - feature
            leaks.append(leak.abs().max() / scale)
    assert max(leaks) > 1e-2, "the control: without the option the padding must matter"


def test_gradients_ignore_the_padding_too() -> None:
    model = randomise_norms(AttentionResNet(attention=CBAM_PLAN, depth=18, norm="FrozenBN"))
    image = torch.randn(1, 3, 64, 32)
    padded = nn.functional.pad(image, (0, 32, 0, 64))
    parameters = [p for p in model.parameters() if p.requires_grad]
    # In training mode the batch statistics of CBAM's own BatchNorm count the padding.
    model.eval()
    alone = torch.autograd.grad(model(image)["res5"].square().sum(), parameters)
    cropped = model(padded)["res5"][:, :, :2, :1]
    for a, b in zip(alone, torch.autograd.grad(cropped.square().sum(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("name", ["eca", "cbam"])
def test_freezing_leaves_out_the_attention(name: str, norm: str) -> None:
    cfg = _cfg(NAME=name)
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_backbone(cfg).train()
    frozen = nn.ModuleList([model.stem, model.res2])
    for key, parameter in model.named_parameters():
        new = ".attention." in key
        assert parameter.requires_grad == (new or key.startswith(("res3", "res4", "res5"))), key
    for key, module in frozen.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert ".attention." in key
    statistics = {k: v.clone() for k, v in frozen.state_dict().items() if "attention" not in k}

    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):  # CBAM's convolution gets its gradient once its norm's weight has left zero
        optimizer.zero_grad()
        sum(f.square().mean() for f in model(torch.randn(2, 3, 64, 64)).values()).backward()
        optimizer.step()
    for key, value in statistics.items():
        assert torch.equal(frozen.state_dict()[key], value), key
    attention = {k: p for k, p in model.named_parameters() if ".attention." in k}
    assert len({key.split(".attention")[0] for key in attention}) == 8
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in attention.values())


@pytest.mark.parametrize("size", [(256, 256), (320, 480)])
@torch.no_grad()
def test_shapes_are_the_announced_ones(size: tuple[int, int]) -> None:
    model = build_backbone(_cfg(NAME="eca")).eval()
    features = model(torch.randn(1, 3, *size))
    for name, spec in model.output_shape().items():
        expected = (1, spec.channels, size[0] // spec.stride, size[1] // spec.stride)
        assert features[name].shape == expected


@pytest.mark.parametrize(
    ("builder", "names", "count"),
    [
        ("build_attention_resnet_fpn_backbone", ["p2", "p3", "p4", "p5", "p6"], None),
        ("build_retinanet_attention_resnet_fpn_backbone", ["p3", "p4", "p5", "p6", "p7"], None),
        ("build_attention_resnet_fpn_backbone", ["p2", "p3", "p4", "p5", "p6"], 3_344_384),
    ],
)
def test_pyramids(builder: str, names: list[str], count: int | None) -> None:
    cfg = _cfg(NAME="cbam")
    cfg.MODEL.BACKBONE.NAME = builder
    if "retinanet" in builder:
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    if count is not None:
        cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 256
    model = build_backbone(cfg).eval()
    assert sum(isinstance(m, CBAM) for m in model.modules()) == (8 if count is None else 16)
    features = model(torch.randn(1, 3, 128, 128))
    assert list(features) == names
    for name, spec in model.output_shape().items():
        assert features[name].shape == (1, 256, 128 // spec.stride, 128 // spec.stride)
    if count is not None:
        added = sum(p.numel() for k, p in model.named_parameters() if "bottom_up" not in k)
        assert added == count


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ATTENTION.NAME", "ecam", "MODEL.ATTENTION.*'ecam'.*allowed: eca, cbam, se"),
        ("ATTENTION.NAME", "local", "NAME is 'local'; allowed .*: '', eca, cbam, se"),
        ("ATTENTION.POSITION", "concat", "MODEL.ATTENTION.POSITION.*'concat'.*block_out"),
        ("ATTENTION.KERNEL_SIZES", [3, 5], "MODEL.ATTENTION.KERNEL_SIZES"),
        (
            "ATTENTION.KERNEL_SIZES",
            [3, 5, 4, 3],
            "kernel_size is 4; allowed for ECA: odd",
        ),
        ("ATTENTION.STAGES", [True, False], "MODEL.ATTENTION.STAGES"),
        ("RESNETS.DEPTH", 26, "MODEL.RESNETS.DEPTH is 26; allowed: 18, 34"),
        ("RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.RES5_DILATION is 2; allowed at depth 18: 1"),
        ("RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.NUM_GROUPS is 32; allowed at depth 18: 1"),
        ("RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True], "DEFORM_ON_PER_STAGE"),
    ],
)
def test_config_errors_name_the_key(key: str, value: object, message: str) -> None:
    cfg = _cfg(NAME="eca")
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=message):
        build_backbone(cfg)


def test_reduction_too_large_for_a_narrow_stage_raises() -> None:
    cfg = _cfg(NAME="cbam", REDUCTION=128)
    with pytest.raises(ValueError, match=r"reduction is 128; allowed for 64 channels: 1 to 64"):
        build_backbone(cfg)


@pytest.mark.parametrize("name", ["eca", "cbam", "se"])
def test_mixed_precision_and_empty_batches(name: str) -> None:
    model = randomise_norms(
        AttentionResNet(attention=AttentionPlan(name=name), depth=18, norm="FrozenBN")
    ).eval()
    batch = nn.functional.pad(torch.randn(2, 3, 64, 64), (0, 0, 0, 32))
    exact = model(batch)["res3"][:, :, :8]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)["res3"][:, :, :8]
        rounded.float().square().mean().backward()
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()
    assert all(p.grad.isfinite().all() for p in model.res2.parameters())
    empty = model(torch.zeros(0, 3, 64, 64))
    assert empty["res5"].shape == (0, 512, 2, 2)


@torch.no_grad()
def test_tracing_keeps_the_mask_dynamic() -> None:
    """A traced model reads the padding of its input and does not store the example's."""
    model = randomise_norms(AttentionResNet(attention=CBAM_PLAN, depth=18)).eval()
    image = torch.randn(1, 3, 64, 64)
    traced = torch.jit.trace(model, torch.randn(1, 3, 96, 96), strict=False)
    padded = nn.functional.pad(image, (0, 32, 0, 32))
    expected = model(image)["res5"]
    torch.testing.assert_close(traced(padded)["res5"][:, :, :2, :2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["ECA", "CBAM"])
@pytest.mark.parametrize(("depth", "count"), [(50, 23_508_032), (101, 42_500_160)])
def test_configs_fit_their_weights(attention: str, depth: int, count: int) -> None:
    for kind in ("COCO-Detection/faster", "COCO-InstanceSegmentation/mask"):
        cfg = model_zoo.get_config(f"{kind}_rcnn_R_{depth}_{attention}_FPN_1x.yaml")
        weights = torchvision.models.get_weight(cfg.MODEL.WEIGHTS.removeprefix("torchvision://"))
        assert f"resnet{depth}-" in weights.url
        pixels = (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.INPUT.FORMAT)
        assert IMAGENET_STATISTICS.mismatch(*pixels) is None
        assert cfg.MODEL.MASK_ON == kind.endswith("mask")
        cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN"])
        with torch.device("meta"):
            model = build_backbone(cfg).bottom_up
        assert {block.conv1.stride for block in model.res3} == {(1, 1)}
        new = sum(p.numel() for k, p in model.named_parameters() if ".attention." in k)
        assert sum(p.numel() for p in model.parameters()) == count + new
        assert new > 0
