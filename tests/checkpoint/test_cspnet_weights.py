"""CSPNet weights of timm and of darknet: what is read, what is refused, equal features."""

import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2_plugins.checkpoint.cspnet_weights import (
    DARKNET_LEAKY_SLOPE,
    convert_darknet_cspnet,
    convert_timm_cspnet,
    read_darknet_weights,
)
from d2_plugins.modeling.backbone import CSPNet
from d2_plugins.modeling.backbone.cspnet_archs import ARCHS

# A layer of a darknet network, in the words of its configuration files: ("conv", filters, size,
# stride), ("route", (offsets)) or ("shortcut", offset).
Layer = tuple


def darknet53() -> list[Layer]:
    layers: list[Layer] = [("conv", 32, 3, 1)]
    for filters, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        layers.append(("conv", filters, 3, 2))
        for _ in range(depth):
            layers += [("conv", filters // 2, 1, 1), ("conv", filters, 3, 1), ("shortcut", -3)]
    return layers


def cspdarknet53() -> list[Layer]:
    """The authors' csdarknet53.cfg."""
    layers: list[Layer] = [("conv", 32, 3, 1)]
    for filters, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        half = filters if filters == 64 else filters // 2
        inner = 32 if filters == 64 else half
        layers += [("conv", filters, 3, 2), ("conv", half, 1, 1)]
        layers += [("route", (-2,)), ("conv", half, 1, 1)]
        for _ in range(depth):
            layers += [("conv", inner, 1, 1), ("conv", half, 3, 1), ("shortcut", -3)]
        # The cross path lies before the route, the way in and the blocks.
        layers += [("conv", half, 1, 1), ("route", (-1, -(3 * depth + 4)))]
        layers.append(("conv", filters, 1, 1))
    return layers


NETWORKS = {"cspdarknet53": cspdarknet53, "darknet53": darknet53}


class Darknet:
    """Executes such a network with random weights, followed by a classifier."""

    def __init__(self, layers: list[Layer], classes: int) -> None:
        self.layers = layers
        self.weights: dict[int, list[Tensor]] = {}
        channels: list[int] = []
        for i, (kind, *spec) in enumerate(layers):
            if kind == "conv":
                before = channels[-1] if channels else 3
                filters, size = spec[:2]
                bias, mean = torch.randn(2, filters) * 0.3
                scale, variance = torch.rand(2, filters) + 0.5
                weight = torch.randn(filters, before, size, size)
                weight *= (2 / weight[0].numel()) ** 0.5
                self.weights[i] = [bias, scale, mean, variance, weight]
                channels.append(filters)
            elif kind == "route":
                channels.append(sum(channels[offset] for offset in spec[0]))
            else:
                channels.append(channels[-1])
        self.head = [torch.randn(classes), torch.randn(classes, channels[-1]) * 0.03]

    def values(self) -> Tensor:
        """All numbers, in the order of darknet's files."""
        tensors = [*(tensor for layer in self.weights.values() for tensor in layer), *self.head]
        return torch.cat([tensor.flatten() for tensor in tensors])

    def run(self, x: Tensor, slope: float) -> Tensor:
        outputs: list[Tensor] = []
        for i, (kind, *spec) in enumerate(self.layers):
            if kind == "conv":
                bias, scale, mean, variance, weight = self.weights[i]
                x = F.conv2d(x, weight, stride=spec[2], padding=spec[1] // 2)
                x = F.batch_norm(x, mean, variance, scale, bias, eps=1e-5)
                x = F.leaky_relu(x, slope)
            elif kind == "route":
                x = torch.cat([outputs[offset] for offset in spec[0]], dim=1)
            else:
                x = outputs[-1] + outputs[spec[0]]
            outputs.append(x)
        return F.linear(x.mean(dim=(2, 3)), self.head[1], self.head[0])


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("arch", "parameters"), [("cspdarknet53", 27_642_184), ("darknet53", 41_609_928)]
)
def test_darknet_weights_give_darknets_outputs(arch: str, parameters: int) -> None:
    reference = Darknet(NETWORKS[arch](), classes=1000)
    trained = [t for layer in reference.weights.values() for t in (*layer[:2], layer[4])]
    assert sum(t.numel() for t in trained + reference.head) == parameters
    image = torch.rand(1, 3, 64, 64)
    expected = reference.run(image, slope=0.1)

    state = convert_darknet_cspnet(reference.values(), arch)
    errors = []
    for slope in (DARKNET_LEAKY_SLOPE, 0.01):
        with torch.device("meta"):
            model = CSPNet(arch=arch, num_classes=1000, leaky_slope=slope, norm="FrozenBN")
        model.load_state_dict(state, strict=True, assign=True)
        with torch.no_grad():
            errors.append(relative_error(model.eval()(image)["linear"], expected))
    assert errors[0] < 1e-5
    assert errors[1] > 0.1  # with timm's slope these weights are worth little


@pytest.mark.parametrize(
    ("version", "counter"), [((0, 1), "<i"), ((0, 2), "<q"), ((0, 3), "<q"), ((1, 0), "<q")]
)
def test_darknet_header(version: tuple[int, int], counter: str, tmp_path: Path) -> None:
    """The counter of images grew from 4 to 8 bytes in version 0.2."""
    expected = torch.randn(7)
    path = tmp_path / "small.weights"
    header = struct.pack("<3i", *version, 5) + struct.pack(counter, 32_013_312)
    path.write_bytes(header + expected.numpy().astype("<f4").tobytes())
    assert torch.equal(read_darknet_weights(path), expected)


@pytest.mark.parametrize("content", [b"", b"\0" * 15, struct.pack("<4i", 0, 1, 0, 7) + b"abc"])
def test_files_that_are_no_darknet_weights(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.weights"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.weights"):
        read_darknet_weights(path)


def meta(**options: object) -> CSPNet:
    with torch.device("meta"):
        return CSPNet(**options)


def test_darknet_files_of_other_networks() -> None:
    state = meta(arch="darknet53", norm="FrozenBN").state_dict()
    body = sum(value.numel() for value in state.values())
    backbone_only = convert_darknet_cspnet(torch.zeros(body), "darknet53")
    assert set(backbone_only) == set(state)
    with pytest.raises(ValueError, match=f"ends after {body - 1} numbers"):
        convert_darknet_cspnet(torch.zeros(body - 1), "darknet53")
    with pytest.raises(ValueError, match="3 numbers of the darknet file are left over"):
        convert_darknet_cspnet(torch.zeros(body + 3), "darknet53")
    with pytest.raises(ValueError, match="negative variance"):
        convert_darknet_cspnet(torch.full((body,), -1.0), "cspdarknet53")
    with pytest.raises(ValueError, match=r"not 'cspresnext50'.*partial shortcut"):
        convert_darknet_cspnet(torch.zeros(0), "cspresnext50")


def timm_state(name: str, **options: object) -> dict[str, Tensor]:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        return timm.create_model(name, **options).state_dict()


def shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


@pytest.mark.parametrize("arch", ARCHS)
def test_timm_names_and_shapes_are_ours(arch: str) -> None:
    """Nothing is lost, nothing is left over; with ``features_only`` names as well."""
    model = meta(arch=arch, num_classes=1000)
    assert shapes(convert_timm_cspnet(timm_state(arch))) == shapes(model.state_dict())
    features = convert_timm_cspnet(timm_state(arch, features_only=True))
    assert shapes(features) == shapes(meta(arch=arch).state_dict())


def test_checkpoints_of_other_models() -> None:
    with pytest.raises(ValueError, match=r"'conv1.weight' is not an entry of a timm CSPNet"):
        convert_timm_cspnet({"conv1.weight": torch.zeros(1)})
    state = timm_state("cspresnet50")
    with pytest.raises(ValueError, match="same name"):
        convert_timm_cspnet({**state, "stages_0.conv_exp.conv.weight": torch.zeros(1)})
