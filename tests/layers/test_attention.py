"""CBAM, ECA and SE against the authors' numbers, timm's modules and brute force."""

import math

import pytest
import torch
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from d2_plugins.layers import CBAM, ECA, SE, build_attention
from d2_plugins.layers.attention import ChannelGate, eca_kernel_size
from d2_plugins.layers.padding import masked_max, masked_mean, valid_extent, valid_mask
from tests.support.attention_padding import check_padding_has_no_effect


def _wave(shape: tuple[int, ...], step: float, scale: float = 1.0, phase: str = "cos") -> Tensor:
    flat = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * getattr(torch, phase)(step * flat)).reshape(shape)


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def golden_input() -> Tensor:
    return _wave((2, 32, 5, 7), 0.37, phase="sin")


@torch.no_grad()
def test_cbam_golden_values(golden_input: Tensor) -> None:
    """Figures from the authors' code in float64, with every weight a known wave."""
    cbam = CBAM(32).double().eval()
    channel, spatial = cbam.channel_gate, cbam.spatial_gate
    channel.fc1.weight.copy_(_wave((2, 32), 0.11, 0.5))
    channel.fc1.bias.copy_(_wave((2,), 0.5, 0.1))
    channel.fc2.weight.copy_(_wave((32, 2), 0.23, 0.5))
    channel.fc2.bias.copy_(_wave((32,), 0.7, 0.1))
    spatial.conv.weight.copy_(_wave((1, 2, 7, 7), 0.31, 0.2))
    for name, value in {
        "weight": 1.3,
        "bias": -0.2,
        "running_mean": 0.05,
        "running_var": 0.8,
    }.items():
        getattr(spatial.bn, name).fill_(value)

    gated = channel(golden_input)
    assert gated.sum().item() == pytest.approx(-10.4749809556, abs=1e-9)
    assert gated.abs().sum().item() == pytest.approx(747.9852785042, abs=1e-9)
    out = cbam(golden_input)
    assert out.sum().item() == pytest.approx(0.2065291935, abs=1e-9)
    assert out.abs().sum().item() == pytest.approx(358.6272102956, abs=1e-9)
    assert out[0, 0, 0, :3].tolist() == pytest.approx([0, 0.1291172982, 0.2669617656], abs=1e-9)
    assert out[1, 31, 4, 6].item() == pytest.approx(-0.1453638290, abs=1e-9)


@pytest.mark.parametrize(
    ("kernel_size", "total", "magnitude"),
    [
        (3, 0.6864613389, 713.5499034552),
        (5, 0.2532289924, 713.7849137327),
        (7, 0.1140604219, 714.1264826866),
    ],
)
@torch.no_grad()
def test_eca_golden_values(
    golden_input: Tensor, kernel_size: int, total: float, magnitude: float
) -> None:
    eca = ECA(32, kernel_size=kernel_size).double()
    eca.conv.weight.copy_(_wave((1, 1, kernel_size), 0.9))
    out = eca(golden_input)
    assert out.sum().item() == pytest.approx(total, abs=1e-9)
    assert out.abs().sum().item() == pytest.approx(magnitude, abs=1e-9)


@pytest.mark.parametrize("channels", [64, 128, 512, 2048])
def test_eca_equals_timm_bitwise(channels: int) -> None:
    ours, theirs = ECA(channels), EcaModule(channels)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, channels, 9, 11)
    assert torch.equal(ours(x), theirs(x))


@torch.no_grad()
def test_cbam_equals_timm_after_swapping_the_two_pooled_channels() -> None:
    ours, theirs = CBAM(64).eval(), CbamModule(64, mlp_bias=True).eval()
    for gate in (ours.channel_gate, theirs.channel):
        for layer in (gate.fc1, gate.fc2):
            nn.init.normal_(layer.bias)
    nn.init.normal_(ours.spatial_gate.bn.weight)
    for mine, other in ((ours.channel_gate.fc1, "fc1"), (ours.channel_gate.fc2, "fc2")):
        getattr(theirs.channel, other).weight.copy_(mine.weight[:, :, None, None])
        getattr(theirs.channel, other).bias.copy_(mine.bias)
    theirs.spatial.conv.bn.load_state_dict(ours.spatial_gate.bn.state_dict())
    x = torch.randn(2, 64, 13, 9)
    theirs.spatial.conv.conv.weight.copy_(ours.spatial_gate.conv.weight.flip(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=2e-6)
    theirs.spatial.conv.conv.weight.copy_(ours.spatial_gate.conv.weight)
    assert (ours(x) - theirs(x)).abs().max() > 1e-3, "the order of the channels must matter"


@torch.no_grad()
def test_se_equals_timm() -> None:
    ours, theirs = SE(64), SEModule(64, rd_channels=4)
    for name in ("fc1", "fc2"):
        mine, other = getattr(ours, name), getattr(theirs, name)
        other.weight.copy_(mine.weight[:, :, None, None])
        other.bias.copy_(mine.bias)
    x = torch.randn(2, 64, 13, 9)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cbam_starts_as_published() -> None:
    cbam = CBAM(64)
    spatial = cbam.spatial_gate
    assert spatial.bn.momentum == 0.01
    assert spatial.bn.eps == 1e-5
    x = torch.randn(2, 64, 8, 8)
    assert torch.equal(spatial(x), x * 0.5)
    cbam(x).sum().backward()
    assert spatial.bn.weight.grad.abs().sum() > 0, "the zero weight must be able to leave zero"


@pytest.mark.parametrize(
    ("channels", "count"), [(256, 8564), (512, 33412), (1024, 132260), (2048, 526564)]
)
def test_parameter_counts(channels: int, count: int) -> None:
    assert _num_parameters(CBAM(channels)) == count
    assert _num_parameters(SE(channels)) == count - 100, "all but the spatial gate"
    assert _num_parameters(ECA(channels)) == eca_kernel_size(channels)


def test_eca_kernel_sizes() -> None:
    expected = {16: 3, 64: 3, 96: 3, 128: 5, 160: 5, 256: 5, 512: 5, 1024: 5, 1536: 5, 2048: 7}
    assert {c: eca_kernel_size(c) for c in expected} == expected


@pytest.mark.parametrize(
    ("name", "channels", "options", "message"),
    [
        ("ecam", 64, {}, "attention is 'ecam'; allowed: eca, cbam, se, local"),
        ("eca", 64, {"kernel_size": 4}, "kernel_size is 4; allowed for ECA: odd and positive"),
        ("eca", 64, {"kernel_size": -1}, "kernel_size is -1; allowed for ECA: odd and positive"),
        ("cbam", 8, {}, "reduction is 16; allowed for 8 channels: 1 to 8"),
        ("se", 8, {"reduction": 9}, "1 to 8"),
        ("se", 8, {"reduction": 0}, "reduction is 0; allowed: 1 or more"),
    ],
)
def test_impossible_options_raise(name: str, channels: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_attention(name, channels, **options)


@pytest.mark.parametrize("name", ["eca", "cbam", "se"])
def test_valid_mask_gives_what_the_unpadded_map_gives(name: str) -> None:
    """Padding of any content must not reach the valid cells, forward or backward."""
    module = build_attention(name, 32).double().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    small, grad = check_padding_has_no_effect(module, 32)
    torch.testing.assert_close(grad, torch.func.grad(lambda x: module(x).sum())(small)[0])


def test_valid_extent_reads_sizes_off_a_padded_batch() -> None:
    sizes = [(37, 50), (64, 20), (64, 64), (1, 1)]
    batch = torch.zeros(5, 3, 64, 64)
    for image, (height, width) in zip(batch, sizes, strict=False):
        image[:, :height, :width] = torch.randn(3, height, width)
        # Zeros inside an image, and zero in some channels at its end, are not padding.
        image[:, height // 2, : width // 2] = 0
        image[:2, height - 1, width - 1] = 0
    assert valid_extent(batch).tolist() == [*map(list, sizes), [64, 64]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_masked_pooling_against_slices(dtype: torch.dtype) -> None:
    x = (torch.randn(3, 4, 40, 60) * 10 + 50).to(dtype)
    extent = torch.tensor([[155, 100], [160, 240], [1, 1]])
    valid = valid_mask(extent, 4, x)
    for index, (height, width) in enumerate([(39, 25), (40, 60), (1, 1)]):
        part = x[index, :, :height, :width]
        expected = part.double().mean(dim=(1, 2))
        tolerance = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            masked_mean(x, valid)[index].double(), expected, rtol=tolerance + 1e-6, atol=0
        )
        assert torch.equal(masked_max(x, valid)[index], part.amax(dim=(1, 2)))


def test_gates_of_several_images_do_not_mix() -> None:
    gate = ChannelGate(32)
    x = torch.randn(3, 32, 4, 4)
    torch.testing.assert_close(gate(x), torch.cat([gate(image[None]) for image in x]))
