"""The adaptive convolution against torchvision, grid_sample, plain convolutions and mmdet."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from d2_plugins.layers import AdaptiveConv2d, adaptive_conv2d
from d2_plugins.layers.adaptive_conv import gather_cpu, operators
from d2_plugins.layers.adaptive_conv.geometry import deform_offsets, sampling_points
from tests.support.adaptive_conv import (
    cell_boxes,
    jittered_boxes,
    non_finite_boxes,
    with_gradients,
)
from tests.support.helpers import shared_path

BACKENDS = ("reference", "gather")


def spec_offsets(boxes: Tensor, stride: float, height: int, width: int) -> Tensor:
    """Centre and shape offsets as Cascade RPN has them, one cell and tap at a time."""
    offsets = boxes.new_empty(len(boxes), 18, height, width)
    for n, image_boxes in enumerate(boxes):
        for cell, (x1, y1, x2, y2) in enumerate(image_boxes):
            j, i = divmod(cell, width)
            dx, dy = (x1 + x2) / 2 / stride - i, (y1 + y2) / 2 / stride - j
            gx, gy = (x2 - x1) / (2 * stride) - 1, (y2 - y1) / (2 * stride) - 1
            taps = [(dy + gy * ky, dx + gx * kx) for ky in (-1, 0, 1) for kx in (-1, 0, 1)]
            offsets[n, :, j, i] = torch.stack([v for tap in taps for v in tap])
    return offsets


CASES = {
    "jittered": lambda n, h, w: jittered_boxes(n, h, w, 4),
    "own cell": lambda n, h, w: cell_boxes(n, h, w, 4, 0),
    "all in one point": lambda n, h, w: torch.full((n, h * w, 4), 9.5).double(),
    "outside": lambda n, h, w: jittered_boxes(n, h, w, 4) + 1e5,
    "half outside": lambda n, h, w: jittered_boxes(n, h, w, 4) - 4.0 * h,
    "huge": lambda n, h, w: jittered_boxes(n, h, w, 4) * 1e30,
}
SIZES = [(2, 6, 9), (1, 1, 1), (3, 1, 5), (2, 7, 1)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("images", "height", "width"), SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_equals_torchvision(
    case: str, images: int, height: int, width: int, dtype: torch.dtype, tolerance: float
) -> None:
    channels, out_channels = 5, 3
    boxes = CASES[case](images, height, width).to(dtype)
    feature = torch.randn(images, channels, height, width, dtype=dtype)
    weight = torch.randn(out_channels, channels, 3, 3, dtype=dtype) / 7
    bias = torch.randn(out_channels, dtype=dtype)
    grad = torch.randn(images, out_channels, height, width, dtype=dtype)

    offsets = spec_offsets(boxes, 4, height, width)
    expected = with_gradients(
        lambda x, w, b: deform_conv2d(x, offsets, w, b, padding=1), grad, feature, weight, bias
    )
    for backend in BACKENDS:
        actual = with_gradients(
            lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend=backend),  # noqa: B023
            grad,
            feature,
            weight,
            bias,
        )
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


def test_equals_grid_sample() -> None:
    """Independent of deformable convolutions: bilinear samples of the points, then a product."""
    boxes = jittered_boxes(2, 6, 9, 8)
    feature, weight = torch.randn(2, 5, 6, 9).double(), torch.randn(3, 5, 3, 3).double()
    points = sampling_points(boxes, 8)
    grid = points.flip(-1) * 2 / torch.tensor([9 - 1, 6 - 1]) - 1
    samples = F.grid_sample(feature, grid, align_corners=True, padding_mode="zeros")
    expected = torch.einsum("ncpt,oct->nop", samples, weight.flatten(2)).view(2, 3, 6, 9)
    for backend in BACKENDS:
        actual = adaptive_conv2d(feature, boxes, weight, stride=8, backend=backend)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("side", "dilation"), [(2, 1), (8, 4)])
def test_box_centred_on_its_cell_is_a_plain_convolution(
    backend: str, side: int, dilation: int
) -> None:
    feature, weight, bias = torch.randn(2, 6, 7, 9), torch.randn(4, 6, 3, 3), torch.randn(4)
    boxes = cell_boxes(2, 7, 9, 16, side * 16)
    actual = adaptive_conv2d(feature, boxes, weight, bias, stride=16, backend=backend)
    expected = F.conv2d(feature, weight, bias, padding=dilation, dilation=dilation)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", range(5))
def test_equals_mmdet(level: int) -> None:
    """Offsets and outputs of mmdet's second stage, from its first stage's boxes and features."""
    stride = 4 * 2**level
    with np.load(shared_path("oracles/crpn_c32.npz"), allow_pickle=False) as oracle:
        feature = torch.from_numpy(oracle[f"s0/conv_pre_relu/{level}"]).relu()
        boxes = np.stack([oracle[f"s0/refined/img{i}/{level}"] for i in range(2)])
        weight = torch.from_numpy(oracle["state/stages.1.rpn_conv.conv.weight"])
        offsets = torch.from_numpy(oracle[f"s1/offset/{level}"])
        expected = torch.from_numpy(oracle[f"s1/conv_pre_relu/{level}"])
    boxes = torch.from_numpy(boxes)
    size = (feature.shape[2], feature.shape[3])
    ours = deform_offsets(boxes, stride, size).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(ours, offsets, rtol=0, atol=1e-5)
    for backend in BACKENDS:
        actual = adaptive_conv2d(feature, boxes, weight, stride=stride, backend=backend)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_gradients_by_finite_differences() -> None:
    boxes = jittered_boxes(2, 3, 4, 4)
    inputs = [torch.randn(2, 2, 3, 4), torch.randn(3, 2, 3, 3), torch.randn(3)]
    inputs = [x.double().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(
        lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend="gather"), inputs
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_get_no_gradient(backend: str) -> None:
    boxes = jittered_boxes(1, 3, 4, 4).float().requires_grad_()
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    adaptive_conv2d(
        torch.randn(1, 2, 3, 4), boxes, weight, stride=4, backend=backend
    ).sum().backward()
    assert boxes.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_asked_for(needed: tuple[int, ...]) -> None:
    boxes = jittered_boxes(1, 4, 5, 4)
    inputs = [torch.randn(1, 2, 4, 5), torch.randn(3, 2, 3, 3), torch.randn(3)]
    expected = with_gradients(
        lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend="reference"),
        None,
        *inputs,
    )[1:]
    for i in needed:
        inputs[i].requires_grad_()
    feature, weight, bias = inputs
    adaptive_conv2d(feature, boxes, weight, bias, stride=4, backend="gather").sum().backward()
    for i, x in enumerate(inputs):
        assert (x.grad is not None) == (i in needed)
        if i in needed:
            torch.testing.assert_close(x.grad, expected[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_box_that_is_not_finite_samples_nothing(backend: str) -> None:
    boxes, bad = non_finite_boxes(4, 5)
    bias = torch.randn(3)
    inputs = (torch.randn(1, 2, 4, 5), torch.randn(3, 2, 3, 3), bias)

    def convolve(boxes: Tensor) -> list[Tensor]:
        return with_gradients(
            lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend=backend),
            None,
            *inputs,
        )

    actual = convolve(boxes)
    assert torch.equal(actual[0].flatten(2)[0, :, bad], bias[:, None].expand(3, 4))
    boxes[0, bad] = -1e4
    for a, e in zip(actual, convolve(boxes), strict=True):
        torch.testing.assert_close(a, e)


FORMATS = {
    "contiguous": lambda x: x.contiguous(),
    "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every other": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("memory", FORMATS)
@pytest.mark.parametrize("block_cells", [1, 10, 10**6])
def test_memory_formats_and_blocks(
    memory: str, block_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any strides of feature and gradient, and maps of one block or of many."""
    monkeypatch.setattr(gather_cpu, "_MIN_BLOCK_CELLS", block_cells)
    monkeypatch.setattr(gather_cpu, "_BLOCK_BYTES", 0)
    images, channels, height, width = 3, 4, 9, 11
    boxes = jittered_boxes(images, height, width, 4)
    feature = FORMATS[memory](torch.randn(images, channels, height, width))
    grad = FORMATS[memory](torch.randn(images, channels, height, width))
    weight = torch.randn(channels, channels, 3, 3)
    expected = with_gradients(
        lambda x, w: adaptive_conv2d(x, boxes, w, stride=4, backend="reference"),
        grad,
        feature,
        weight,
    )
    actual = with_gradients(
        lambda x, w: adaptive_conv2d(x, boxes, w, stride=4, backend="gather"), grad, feature, weight
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)
    if memory in ("contiguous", "channels-last"):
        assert actual[1].stride() == feature.stride()


@pytest.mark.parametrize("cells", [1, 7, 64, 500])
@pytest.mark.parametrize(("lines", "width"), [(1, 1), (1, 130), (130, 1), (23, 31), (0, 5)])
def test_tiles_cover_the_map_once(lines: int, width: int, cells: int) -> None:
    count = torch.zeros(lines, width)
    for tile in gather_cpu._tiles(lines, width, cells):
        count[tile] += 1
        assert count[tile].numel() <= cells
    assert (count == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_image(backend: str) -> None:
    result = with_gradients(
        lambda x, w, b: adaptive_conv2d(x, torch.zeros(0, 20, 4), w, b, stride=4, backend=backend),
        None,
        torch.randn(0, 2, 4, 5),
        torch.randn(3, 2, 3, 3),
        torch.randn(3),
    )
    assert [tuple(x.shape) for x in result] == [(0, 3, 4, 5), (0, 2, 4, 5), (3, 2, 3, 3), (3,)]
    assert all((x == 0).all() for x in result)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision(backend: str, dtype: torch.dtype, tolerance: float) -> None:
    """Positions keep float32, also at coordinates that half precision cannot tell apart."""
    width = 1200  # x up to 4800: bfloat16 steps there by 32 pixels, float16 by 4
    boxes = jittered_boxes(1, 2, width, 4).float()
    inputs = (torch.randn(1, 3, 2, width), torch.randn(2, 3, 3, 3) / 5, torch.randn(2))
    inputs = tuple(x.to(dtype) for x in inputs)
    grad = torch.randn(1, 2, 2, width).to(dtype)
    expected = with_gradients(
        lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend="reference"),
        grad,
        *[x.double() for x in inputs],
    )
    actual = with_gradients(
        lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend=backend), grad, *inputs
    )
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        scale = e.abs().max().item()
        torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_like_a_convolution(backend: str, dtype: torch.dtype) -> None:
    boxes = jittered_boxes(1, 5, 6, 4)
    feature, weight, bias = torch.randn(1, 3, 5, 6), torch.randn(2, 3, 3, 3), torch.randn(2)
    with torch.autocast("cpu", dtype):
        actual = with_gradients(
            lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend=backend),
            None,
            feature,
            weight,
            bias,
        )
        double = adaptive_conv2d(
            feature.double(), boxes, weight.double(), stride=4, backend=backend
        )
    assert [x.dtype for x in actual] == [dtype, *[torch.float32] * 3]
    assert double.dtype == torch.float64
    expected = adaptive_conv2d(
        feature.to(dtype), boxes, weight.to(dtype), bias.to(dtype), stride=4, backend=backend
    )
    assert torch.equal(actual[0], expected)


@pytest.mark.filterwarnings("ignore:TF32")
def test_without_onednn() -> None:
    """The products with the library that torch.mm calls, as on machines without oneDNN."""
    boxes = jittered_boxes(2, 6, 7, 4)
    inputs = (torch.randn(2, 5, 6, 7), torch.randn(3, 5, 3, 3), torch.randn(3))

    def convolve() -> list[Tensor]:
        return with_gradients(
            lambda x, w, b: adaptive_conv2d(x, boxes, w, b, stride=4, backend="gather"),
            None,
            *inputs,
        )

    expected = convolve()
    with torch.backends.mkldnn.flags(enabled=False):
        actual = convolve()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


def test_repeats_bit_for_bit() -> None:
    boxes = jittered_boxes(2, 20, 30, 4) // 8 * 8  # many taps of the same cells
    inputs = (torch.randn(2, 16, 20, 30), torch.randn(16, 16, 3, 3))

    def convolve() -> list[Tensor]:
        return with_gradients(
            lambda x, w: adaptive_conv2d(x, boxes, w, stride=4, backend="gather"), None, *inputs
        )

    for a, b in zip(convolve(), convolve(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(4, 5), (1, 1)])
def test_result_may_be_changed_in_place(backend: str, size: tuple[int, int]) -> None:
    boxes = jittered_boxes(2, *size, 4)
    inputs = (torch.randn(2, 3, *size), torch.randn(4, 3, 3, 3))

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return adaptive_conv2d(x, boxes, w, stride=4, backend=backend)

    actual = with_gradients(lambda x, w: F.relu_(convolve(x, w)), None, *inputs)
    expected = with_gradients(lambda x, w: F.relu(convolve(x, w)), None, *inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("memory", ["contiguous", "channels-last"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_operator_is_registered_properly(memory: str, with_bias: bool) -> None:
    feature = FORMATS[memory](torch.randn(2, 3, 4, 5)).requires_grad_()
    weight = torch.randn(2, 3, 3, 3, requires_grad=True)
    bias = torch.randn(2, requires_grad=True) if with_bias else None
    boxes = jittered_boxes(2, 4, 5, 4).float()
    torch.library.opcheck(operators.gather, (feature, boxes, weight, bias, 4.0))


class Scaled(nn.Module):
    """A little model around the module under test."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = AdaptiveConv2d(3, 4, bias=True)
        nn.init.normal_(self.conv.weight)

    def forward(self, feature: Tensor, boxes: Tensor) -> Tensor:
        return self.conv(feature * 2, boxes, stride=8).relu()


def model_and_inputs() -> tuple[Scaled, tuple[Tensor, Tensor]]:
    return Scaled(), (torch.randn(2, 3, 5, 6), jittered_boxes(2, 5, 6, 8).float())


def test_compiles_to_one_graph() -> None:
    model, inputs = model_and_inputs()
    expected = with_gradients(lambda x: model(x, inputs[1]), None, inputs[0])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual = with_gradients(lambda x: compiled(x, inputs[1]), None, inputs[0])
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("strict", [False, True])
def test_export_lowers_to_torchvision(strict: bool) -> None:
    model, inputs = model_and_inputs()
    program = torch.export.export(model, inputs, strict=strict)
    operators = [str(node.target) for node in program.graph.nodes]
    assert sum("torchvision.deform_conv2d" in name for name in operators) == 1
    assert not any("d2_plugins" in name for name in operators)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)


def test_tracing_lowers_to_torchvision() -> None:
    model, inputs = model_and_inputs()
    traced = torch.jit.trace(model, inputs)
    graph = str(traced.inlined_graph)
    assert graph.count("torchvision::deform_conv2d") == 1
    assert "d2_plugins::" not in graph
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    other = (torch.randn(1, 3, 9, 4), jittered_boxes(1, 9, 4, 8).float())
    torch.testing.assert_close(traced(*other), model(*other), rtol=1e-5, atol=1e-5)


def test_onnx_runtime_gives_the_same(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, inputs = model_and_inputs()
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model.eval(), inputs, path, dynamo=True, opset_version=19, verbose=False)
    session = onnxruntime.InferenceSession(path)
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    (actual,) = session.run(None, feeds)
    torch.testing.assert_close(torch.from_numpy(actual), model(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feature": torch.zeros(3, 4, 5)}, r"feature must have shape \(N, C, H, W\)"),
        ({"feature": torch.zeros(2, 3, 0, 5), "boxes": torch.zeros(2, 0, 4)}, "no C, H, W of 0"),
        ({"boxes": torch.zeros(2, 19, 4)}, r"\(2, 20, 4\)"),
        ({"boxes": torch.zeros(20, 4)}, "boxes must have shape"),
        ({"weight": torch.zeros(2, 4, 3, 3)}, r"\(C_out, 3, 3, 3\)"),
        ({"weight": torch.zeros(2, 3, 5, 5)}, r"\(C_out, 3, 3, 3\)"),
        ({"bias": torch.zeros(3)}, r"\(2,\)"),
        ({"weight": torch.zeros(2, 3, 3, 3).double()}, "dtype of feature"),
        ({"bias": torch.zeros(2).half()}, "dtype of feature"),
        ({"stride": 0}, "stride must be positive, not 0"),
        ({"backend": "cuda"}, "backend is 'cuda'; allowed: auto, reference"),
    ],
)
def test_wrong_arguments(change: dict[str, object], message: str) -> None:
    arguments = {
        "feature": torch.zeros(2, 3, 4, 5),
        "boxes": torch.zeros(2, 20, 4),
        "weight": torch.zeros(2, 3, 3, 3),
        "bias": torch.zeros(2),
        "stride": 4,
    }
    adaptive_conv2d(**arguments)
    with pytest.raises(ValueError, match=message):
        adaptive_conv2d(**{**arguments, **change})


def test_backend_that_cannot_run() -> None:
    meta = {"device": "meta"}
    arguments = (
        torch.zeros(1, 2, 3, 4, **meta),
        torch.zeros(1, 12, 4, **meta),
        torch.zeros(2, 2, 3, 3, **meta),
    )
    with pytest.raises(ValueError, match="for CPU tensors, not for meta"):
        adaptive_conv2d(*arguments, stride=4, backend="gather")
    assert adaptive_conv2d(*arguments, stride=4).shape == (1, 2, 3, 4)  # by the reference


def test_module() -> None:
    torch.manual_seed(3)
    module = AdaptiveConv2d(64, 64, bias=True)
    assert list(module.state_dict()) == ["weight", "bias"]
    assert abs(module.weight.std().item() - 0.01) < 2e-4
    assert (module.bias == 0).all()
    assert list(AdaptiveConv2d(4, 5).state_dict()) == ["weight"]
    assert repr(AdaptiveConv2d(4, 5)) == "AdaptiveConv2d(4, 5, bias=False)"
    assert "backend='gather'" in repr(AdaptiveConv2d(4, 5, backend="gather"))
    with pytest.raises(ValueError, match="backend is 'fast'; allowed: auto"):
        AdaptiveConv2d(4, 5, backend="fast")
    boxes, feature = jittered_boxes(1, 3, 4, 8), torch.randn(1, 64, 3, 4)
    expected = adaptive_conv2d(feature, boxes, module.weight, module.bias, stride=8)
    assert torch.equal(module(feature, boxes, stride=8), expected)
