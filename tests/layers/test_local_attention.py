"""Local attention against a loop over cells, torch's unfold, and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2_plugins.layers import LocalAttention, build_attention, local_attention
from d2_plugins.layers.local_attention import LocalAttentionShortcut
from tests.support.attention_padding import check_padding_has_no_effect


def tensors(
    channels: int, heads: int, window: int, size: tuple[int, int], **options: object
) -> list[Tensor]:
    """Return query, key, value, rows and columns."""
    head = channels // heads
    shapes = [(2, channels, *size)] * 3 + [(head // 2, window), (head - head // 2, window)]
    return [torch.randn(shape, dtype=torch.float64, **options) for shape in shapes]


def by_loop(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, heads: int
) -> Tensor:
    """Equation 3 of the paper, cell by cell; keys and values beyond the border are zero."""
    images, channels, height, width = query.shape
    head, reach = channels // heads, rows.shape[1] // 2
    out = torch.zeros_like(query)
    zeros = torch.zeros(head, dtype=query.dtype)
    for n in range(images):
        for first in range(0, channels, head):
            part = slice(first, first + head)
            for i in range(height):
                for j in range(width):
                    logits, values = [], []
                    for a in range(i - reach, i + reach + 1):
                        for b in range(j - reach, j + reach + 1):
                            inside = 0 <= a < height and 0 <= b < width
                            near = key[n, part, a, b] if inside else zeros
                            offset = (a - i + reach, b - j + reach)
                            r = torch.cat([rows[:, offset[0]], columns[:, offset[1]]])
                            logits.append(query[n, part, i, j] @ (near + r))
                            values.append(value[n, part, a, b] if inside else zeros)
                    weights = torch.stack(logits).softmax(0)
                    out[n, part, i, j] = weights @ torch.stack(values)
    return out


def by_unfold(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor, heads: int
) -> Tensor:
    """The same from k * k copies of the maps."""
    window = rows.shape[1]
    n, channels, height, width = query.shape

    def copies(x: Tensor) -> Tensor:
        x = F.unfold(x, window, padding=window // 2)
        return x.view(n, heads, channels // heads, window**2, height * width)

    position = torch.cat(
        [
            rows[:, :, None].expand(-1, window, window),
            columns[:, None].expand(-1, window, window),
        ]
    ).flatten(1)
    query = query.view(n, heads, channels // heads, 1, height * width)
    weights = (query * (copies(key) + position[..., None])).sum(2, keepdim=True).softmax(3)
    return (weights * copies(value)).sum(3).view(n, channels, height, width)


def test_equals_the_loop_over_cells() -> None:
    inputs = tensors(10, heads=2, window=3, size=(4, 5))  # an odd number of channels per head
    expected = by_loop(*inputs, heads=2)
    torch.testing.assert_close(local_attention(*inputs, heads=2, window=3), expected)
    torch.testing.assert_close(by_unfold(*inputs, heads=2), expected)


@pytest.mark.parametrize("size", [(9, 11), (3, 2)])
def test_window_of_7_and_8_heads_equal_unfold_and_its_gradients(size: tuple[int, int]) -> None:
    inputs = tensors(32, heads=8, window=7, size=size, requires_grad=True)
    ours, theirs = local_attention(*inputs, heads=8, window=7), by_unfold(*inputs, heads=8)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(theirs, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_gradients_are_those_of_finite_differences() -> None:
    inputs = tensors(4, heads=2, window=3, size=(2, 3), requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: local_attention(*args, heads=2, window=3), inputs)


def test_a_window_of_one_cell_is_the_value() -> None:
    inputs = tensors(8, heads=2, window=1, size=(3, 4))
    torch.testing.assert_close(local_attention(*inputs, heads=2, window=1), inputs[2])


def test_kept_for_the_backward_pass() -> None:
    """No copies of the maps per offset: three maps, and k * k weights for each cell and head."""
    inputs = [t.float().requires_grad_() for t in tensors(64, heads=2, window=7, size=(16, 24))]
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // 4
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        local_attention(*inputs, heads=2, window=7)
    maps = 2 * 64 * (16 * 24 + 2 * (16 + 6) * (24 + 6))
    weights = 2 * 2 * 49 * 16 * 24
    assert sum(kept.values()) < 1.2 * (maps + weights) < 0.1 * (2 * 49 * maps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    inputs = [t.to(dtype) for t in tensors(16, heads=2, window=5, size=(6, 7))]
    exact = local_attention(*(t.double() for t in inputs), heads=2, window=5)
    ours = local_attention(*inputs, heads=2, window=5)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-3)
    layer = LocalAttention(16, heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(torch.randn(1, 16, 5, 5))
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_layer_and_shortcut() -> None:
    layer = LocalAttention(32, window=5, heads=4).double()
    x = torch.randn(1, 32, 6, 7, dtype=torch.float64)
    maps = [F.conv2d(x, m.weight, groups=4) for m in (layer.query, layer.key, layer.value)]
    expected = by_unfold(*maps, layer.rows, layer.columns, heads=4)
    torch.testing.assert_close(layer(x), expected)
    shortcut = build_attention("local", 32, window=5, heads=4).double().eval()
    between = F.conv2d(x, shortcut.conv.weight).div(math.sqrt(1 + 1e-5)).relu()
    expected = shortcut.local(between).div(math.sqrt(1 + 1e-5)).relu()
    torch.testing.assert_close(shortcut(x), expected)


def test_initial_scale() -> None:
    """Keys, values and logits of unit variance, for inputs of unit variance."""
    layer = LocalAttention(512)
    x = torch.randn(1, 512, 12, 12)
    assert layer.key(x).std().item() == pytest.approx(1, rel=0.1)
    assert layer.value(x).std().item() == pytest.approx(1, rel=0.1)
    query, key = (m(x).unflatten(1, (8, 64)) for m in (layer.query, layer.key))
    assert (query * key).sum(2).std().item() == pytest.approx(1, rel=0.15)


def test_padding_is_beyond_the_border() -> None:
    """Padding of any content changes neither the valid cells nor their gradient."""
    module = LocalAttentionShortcut(16, window=5, heads=2).double().eval()
    with torch.no_grad():
        for norm in (module.conv_norm, module.local_norm):
            norm.bias.uniform_(0.2, 0.5)
    check_padding_has_no_effect(module, 16)


def test_parameter_count() -> None:
    for channels in (128, 1024):
        count = sum(p.numel() for p in LocalAttentionShortcut(channels).parameters())
        embeddings = 7 * channels // 8
        assert count == channels**2 + 3 * channels**2 // 8 + embeddings + 4 * channels


@pytest.mark.parametrize(
    ("channels", "options", "message"),
    [
        (64, {"window": 4}, "window is 4; allowed: odd, 3 or more"),
        (64, {"window": 1}, "window is 1; allowed: odd, 3 or more"),
        (60, {}, "heads is 8; allowed for 60 channels: divisors that leave each head 2"),
        (8, {}, "heads is 8; allowed for 8 channels"),
        (8, {"heads": 0}, "heads is 0"),
    ],
)
def test_impossible_options_raise(channels: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_attention("local", channels, **options)


def test_traced_and_exported_programs_fit_other_sizes() -> None:
    module = LocalAttentionShortcut(16, window=3, heads=2).eval()
    small, large = torch.randn(1, 16, 5, 6), torch.randn(1, 16, 9, 8)
    traced = torch.jit.trace(module, small)
    torch.testing.assert_close(traced(large), module(large))
    size = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    program = torch.export.export(module, (small,), dynamic_shapes=(size,))
    torch.testing.assert_close(program.module()(large), module(large))
