"""The heads against the reference implementations' numbers."""

import re

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn

from d2_plugins.modeling.roi_heads import DoubleHeadBoxHead, DoubleHeadOutputLayers
from d2_plugins.modeling.roi_heads.double_head_box_head import (
    ConvHead,
    NonLocalUnit,
    WideningBlock,
    append_coordinates,
)
from tests.support.helpers import shared_path


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_predictor(head: DoubleHeadBoxHead, conv_dim: int, **kwargs: object):
    return DoubleHeadOutputLayers(
        head.output_shape,
        conv_dim=conv_dim,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        **kwargs,
    )


def load_oracle(name: str) -> dict[str, Tensor]:
    with np.load(shared_path(f"oracles/{name}.npz"), allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def state_from(oracle: dict[str, Tensor], prefix: str, rules: list[tuple[str, str]]) -> dict:
    """The oracle's weights under our names, by the first rule that matches each."""
    state = {}
    for key, value in oracle.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        for pattern, replacement in rules:
            if re.search(pattern, name):
                state[re.sub(pattern, replacement, name)] = value
                break
        else:
            raise AssertionError(f"no rule for {name}")
    return state


def double_head_from_oracle(
    oracle: dict[str, Tensor],
) -> tuple[DoubleHeadBoxHead, DoubleHeadOutputLayers]:
    shape = ShapeSpec(channels=32, height=7, width=7)
    head = DoubleHeadBoxHead(shape, num_fc=2, fc_dim=48, num_conv=4, conv_dim=64)
    predictor = make_predictor(head, 64, num_classes=5)
    rules = [
        (r"^fc_cls\.", "predictor.cls_score."),
        (r"^fc_reg\.", "predictor.bbox_pred."),
        (r"^fc_branch\.0\.", "head.fc_head.fc1."),
        (r"^fc_branch\.1\.", "head.fc_head.fc2."),
        (r"^res_block\.conv_identity\.conv\.", "head.conv_head.0.shortcut."),
        (r"^res_block\.conv_identity\.bn\.", "head.conv_head.0.shortcut.norm."),
        (r"^res_block\.(conv\d)\.conv\.", r"head.conv_head.0.\1."),
        (r"^res_block\.(conv\d)\.bn\.", r"head.conv_head.0.\1.norm."),
        (r"^conv_branch\.0\.bn(\d)\.", r"head.conv_head.1.conv\1.norm."),
        (r"^conv_branch\.1\.bn(\d)\.", r"head.conv_head.2.conv\1.norm."),
        (r"^conv_branch\.2\.bn(\d)\.", r"head.conv_head.3.conv\1.norm."),
        (r"^conv_branch\.3\.bn(\d)\.", r"head.conv_head.4.conv\1.norm."),
        (r"^conv_branch\.0\.", "head.conv_head.1."),
        (r"^conv_branch\.1\.", "head.conv_head.2."),
        (r"^conv_branch\.2\.", "head.conv_head.3."),
        (r"^conv_branch\.3\.", "head.conv_head.4."),
    ]
    both = nn.ModuleDict({"head": head, "predictor": predictor})
    both.load_state_dict(state_from(oracle, "state/", rules))
    return head, predictor


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_equals_the_reference(mode: str) -> None:
    oracle = load_oracle("double_head")
    head, predictor = double_head_from_oracle(oracle)
    head.train(mode == "train")
    regions = torch.stack([oracle["x_cls"], oracle["x_reg"]]).requires_grad_()
    scores, deltas = predictor(head(regions))
    torch.testing.assert_close(scores, oracle[f"{mode}_cls"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deltas, oracle[f"{mode}_reg"], rtol=1e-5, atol=1e-5)
    if mode == "train":
        (scores.square().sum() + deltas.square().sum()).backward()
        for grad, name in zip(regions.grad, ("grad_x_cls", "grad_x_reg"), strict=True):
            expected = oracle[name]
            torch.testing.assert_close(
                grad, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item()
            )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nonlocal_block_equals_the_authors(mode: str) -> None:
    oracle = load_oracle("nonlocal_block")
    block = nn.Sequential(
        NonLocalUnit(32, groups=4, norm="BN"),
        BottleneckBlock(32, 32, bottleneck_channels=8, norm="BN"),
    )
    rules = [
        (r"^(theta|phi|g)\.", r"0.\1."),
        (r"^W\.0\.", "0.out."),
        (r"^W\.bn\.", "0.out.norm."),
        (r"^ffconv\.bottleneck\.0\.", "1.conv1."),
        (r"^ffconv\.bottleneck\.1\.", "1.conv1.norm."),
        (r"^ffconv\.bottleneck\.3\.", "1.conv2."),
        (r"^ffconv\.bottleneck\.4\.", "1.conv2.norm."),
        (r"^ffconv\.bottleneck\.6\.", "1.conv3."),
        (r"^ffconv\.bottleneck\.7\.", "1.conv3.norm."),
    ]
    block.load_state_dict(state_from(oracle, "sd/", rules))
    block.train(mode == "train")
    out = block(oracle["x"])
    torch.testing.assert_close(out, oracle[f"out_{mode}"], rtol=1e-5, atol=1e-5)


def test_nonlocal_unit_is_the_loop_over_groups_and_places() -> None:
    unit = NonLocalUnit(8, groups=2, norm="BN").eval()
    nn.init.normal_(unit.out.weight)
    x = torch.randn(2, 8, 3, 3)
    theta, phi, g = (layer(x).flatten(2) for layer in (unit.theta, unit.phi, unit.g))
    y = torch.zeros(2, 4, 9)
    for r in range(2):
        for group in (slice(0, 2), slice(2, 4)):
            for i in range(9):
                for j in range(9):
                    affinity = (theta[r, group, i] @ phi[r, group, j]) / 9
                    y[r, group, i] += affinity * g[r, group, j]
    expected = torch.relu(unit.out(y.view(2, 4, 3, 3)) + x)
    torch.testing.assert_close(unit(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_fresh_nonlocal_unit_is_the_identity(training: bool) -> None:
    x = torch.randn(3, 16, 7, 7).relu()
    assert torch.equal(NonLocalUnit(16, groups=4, norm="BN").train(training)(x), x)


def test_parameter_counts_of_the_parts() -> None:
    assert count(WideningBlock(256, 1024, norm="BN")) == 1_118_720
    assert count(BottleneckBlock(1024, 1024, bottleneck_channels=256, norm="BN")) == 1_117_184
    assert count(NonLocalUnit(1024, groups=4, norm="BN")) == 2_101_760


EXT = {"lambda_fc": 0.7, "lambda_conv": 0.8}
NONLOCAL = {"num_conv": 2, "conv_blocks": "nonlocal"}


@pytest.mark.parametrize(
    ("head_kwargs", "predictor_kwargs", "expected"),
    [
        ({}, {"num_classes": 80}, 19_894_161),
        ({}, {"num_classes": 80, "cls_agnostic_bbox_reg": True}, 19_570_261),
        ({}, {"num_classes": 20}, 19_586_661),
        (NONLOCAL, {"num_classes": 80}, 21_863_313),
        (NONLOCAL, {"num_classes": 80, **EXT}, 22_274_338),
        (NONLOCAL, {"num_classes": 20, **EXT}, 21_659_338),
    ],
)
def test_parameter_counts(head_kwargs: dict, predictor_kwargs: dict, expected: int) -> None:
    with torch.device("meta"):
        head = DoubleHeadBoxHead(ShapeSpec(channels=256, height=7, width=7), **head_kwargs)
        predictor = make_predictor(head, 1024, **predictor_kwargs)
    assert count(head) + count(predictor) == expected
    if expected == 19_894_161:
        assert count(head.fc_head) + count(predictor.cls_score) == 13_978_705
        assert count(head.conv_head) + count(predictor.bbox_pred) == 5_915_456


def test_initialisation() -> None:
    head = DoubleHeadBoxHead(
        ShapeSpec(channels=32, height=7, width=7), fc_dim=256, conv_dim=256, num_conv=1
    )
    predictor = make_predictor(head, 256, num_classes=80, **EXT)
    fc = head.fc_head.fc1.weight
    assert fc.abs().max() <= (3 / fc.shape[1]) ** 0.5  # Kaiming uniform, a = 1
    assert fc.std().item() == pytest.approx((1 / fc.shape[1]) ** 0.5, rel=0.02)
    conv = head.conv_head[1].conv2.weight  # Kaiming normal, fan-out
    assert conv.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    for layer, std in (
        (predictor.cls_score, 0.01),
        (predictor.cls_score_conv, 0.01),
        (predictor.bbox_pred, 0.001),
        (predictor.bbox_pred_fc, 0.001),
    ):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert not layer.bias.any()


@pytest.mark.parametrize("norm", ["BN", "GN", "LN", "SyncBN", "naiveSyncBN"])
def test_norms(norm: str) -> None:
    head = ConvHead(32, conv_dim=128, num_blocks=1, blocks="nonlocal", nonlocal_groups=4, norm=norm)
    assert head.eval()(torch.randn(2, 32, 7, 7)).shape == (2, 128)
    assert not any(m.bias is not None for m in head[0].modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_fresh_residual_blocks_with_a_zero_norm_are_their_shortcut(norm: str) -> None:
    settings = {"conv_dim": 128, "num_blocks": 2, "blocks": "bottleneck", "nonlocal_groups": 4}
    head = ConvHead(32, norm=norm, zero_init_residual=True, **settings).eval()
    x = torch.randn(3, 32, 7, 7)
    shortcut = head[0].shortcut(x).relu()
    assert torch.equal(head(x), shortcut.mean(dim=(2, 3)))
    head(x).sum().backward()
    assert head[2].conv3.norm.weight.grad.any()  # from which the block starts to learn
    usual = ConvHead(32, norm=norm, **settings).eval()
    assert not torch.equal(usual(x), usual[0].shortcut(x).relu().mean(dim=(2, 3)))


def test_coordinates_by_hand() -> None:
    x = torch.randn(2, 5, 3, 3)
    out = append_coordinates(x)
    assert torch.equal(out[:, :5], x)
    row = [-1.0, 0.0, 1.0]
    for region in out:
        assert region[5].tolist() == [row] * 3
        assert region[6].tolist() == [[v] * 3 for v in row]
    assert append_coordinates(x[:0]).shape == (0, 7, 3, 3)


def test_with_coordinates_the_conv_head_tells_a_place_from_its_mirror_image() -> None:
    settings = {"conv_dim": 64, "num_blocks": 0, "blocks": "bottleneck", "nonlocal_groups": 4}
    flat = torch.ones(1, 32, 7, 7)
    for coordinates in (False, True):
        head = ConvHead(32, norm="GN", coordinates=coordinates, **settings)
        assert head[0].conv1.weight.shape == (32, 34 if coordinates else 32, 3, 3)
        inner = head[0].conv1(append_coordinates(flat) if coordinates else flat)[..., 2:-2, 2:-2]
        differs = not torch.allclose(inner, inner.flip(-1), atol=1e-5)
        assert differs == coordinates
        assert head(flat).shape == (1, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"norm": "FrozenBN"},
            r"NORM is 'FrozenBN'; allowed: .*starts untrained",
        ),
        ({"norm": ""}, r"MODEL.DOUBLE_HEAD.NORM is ''; allowed: BN, SyncBN"),
        ({"conv_blocks": "basic"}, r"CONV_BLOCKS is 'basic'; allowed: bottleneck, nonlocal"),
        ({"conv_blocks": "nonlocal", "nonlocal_groups": 5}, r"NL_GROUPS is 5; allowed: divisors"),
        ({"conv_dim": 30}, r"MODEL.DOUBLE_HEAD.CONV_DIM is 30"),
        ({"num_fc": 0}, r"MODEL.DOUBLE_HEAD.NUM_FC is 0"),
        ({"num_conv": -1}, r"MODEL.DOUBLE_HEAD.NUM_CONV is -1"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    shape = ShapeSpec(channels=8, height=7, width=7)
    with pytest.raises(ValueError, match=message):
        DoubleHeadBoxHead(shape, **{"fc_dim": 8, "conv_dim": 64, **settings})


def test_refuses_features_of_an_ordinary_pooler() -> None:
    head = DoubleHeadBoxHead(ShapeSpec(channels=8, height=7, width=7), fc_dim=8, conv_dim=16)
    with pytest.raises(ValueError, match=r"MODEL.ROI_HEADS.NAME"):
        head(torch.zeros(2, 8, 7, 7))
