"""Local self-attention (Ramachandran et al., Stand-Alone Self-Attention, arXiv 1906.05909).

Every cell attends to the k x k cells around it (section 3.1). With query q, key k and value v, each
a linear map of the features of one head, the output of a head is

    y(i, j) = sum over (a, b) of softmax_ab( q(i, j) . (k(a, b) + r(a - i, b - j)) ) v(a, b)

where r, the relative position, is an embedding of the row offset in the first half of the channels
and one of the column offset in the second half (equations 2 and 3). The heads split the channels,
and each maps its own part only. There is no factor 1 / sqrt(channels).

The paper leaves two points open. Here cells beyond the border have zero key and value, as in a
zero-padded convolution, and take part in the softmax by their relative position; and all heads of a
layer share the embeddings.

Shape shorthand:

    N: number of images
    C: number of channels
    H, W: height and width of the feature map
    G: number of heads
    D: channels of a head, C / G
    k: window, the number of rows and of columns that a cell attends to
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .padding import zero_padding_

__all__ = ["LocalAttention", "LocalAttentionShortcut", "local_attention"]


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Tensor,
    columns: Tensor,
    *,
    heads: int,
    window: int,
) -> Tensor:
    """Attend from each cell to the k x k cells around it.

    Keys and values are read in place, one offset of the window after the other. What has k * k
    times the size of a map with one channel per head are the weights of the softmax; they are kept
    for the backward pass with the three inputs. Half-precision inputs are computed in float32.

    Args:
        query: (N, C, H, W).
        key: (N, C, H, W).
        value: (N, C, H, W).
        rows: (D // 2, k), embedding of the row offsets -(k // 2)..k // 2.
        columns: (D - D // 2, k), embedding of the column offsets.
        heads: number of heads G, a divisor of C.
        window: odd window k.

    Returns:
        (N, C, H, W).
    """
    dtype = query.dtype
    if dtype in (torch.float16, torch.bfloat16):
        query, key, value, rows, columns = (t.float() for t in (query, key, value, rows, columns))
    border = [window // 2] * 4
    with torch.autocast(query.device.type, enabled=False):
        split = query.unflatten(1, (heads, -1))
        middle = rows.shape[0]
        row_logits = torch.einsum("ngdhw,dk->knghw", split[:, :, :middle], rows)
        column_logits = torch.einsum("ngdhw,dk->knghw", split[:, :, middle:], columns)
        inputs = (
            split,
            F.pad(key, border).unflatten(1, (heads, -1)),
            F.pad(value, border).unflatten(1, (heads, -1)),
            (row_logits[:, None] + column_logits[None]).flatten(0, 1),
            window,
        )
        # Exported programs hold plain operators, which the Function would hide.
        recorded = torch.is_grad_enabled() and not (
            torch.jit.is_tracing() or torch.compiler.is_compiling()
        )
        out = _Attend.apply(*inputs) if recorded else _attend(*inputs)[0]
    return out.flatten(1, 2).to(dtype)


def _parts(padded: Tensor, like: Tensor, window: int) -> Iterator[Tensor]:
    """Yield a view of a padded map for each offset, of the size of ``like``, row by row."""
    height, width = like.shape[-2:]
    for row, column in itertools.product(range(window), repeat=2):
        yield padded[..., row : row + height, column : column + width]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, position: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """Return the output and the weights.

    Args:
        query: (N, G, D, H, W).
        key: (N, G, D, H + k - 1, W + k - 1).
        value: as ``key``.
        position: (k * k, N, G, H, W), logits of the relative positions.
        window: k.

    Returns:
        (N, G, D, H, W), and (k * k, N, G, H, W).
    """
    logits = torch.stack([(query * part).sum(dim=2) for part in _parts(key, query, window)])
    weights = (logits + position).softmax(dim=0)
    out = torch.zeros_like(query)
    for weight, part in zip(weights.unbind(), _parts(value, query, window), strict=True):
        out = out.addcmul_(weight[:, :, None], part)
    return out, weights


class _Attend(torch.autograd.Function):
    """:func:`_attend` with a backward pass that adds up in place.

    Autograd would make a tensor of the whole map for every offset, twice.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, position: Tensor, window: int
    ) -> Tensor:
        out, weights = _attend(query, key, value, position, window)
        ctx.save_for_backward(query, key, value, weights)
        ctx.window = window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        query, key, value, weights = ctx.saved_tensors
        window = ctx.window
        grad_query, grad_key, grad_value = map(torch.zeros_like, (query, key, value))
        grad_weights = torch.empty_like(weights)
        for index, (part, grad_part) in enumerate(
            zip(_parts(value, query, window), _parts(grad_value, query, window), strict=True)
        ):
            torch.sum(grad * part, dim=2, out=grad_weights[index])
            grad_part.addcmul_(weights[index][:, :, None], grad)
        # The softmax: dl = p (dp - sum p dp).
        grad_logits = grad_weights.sub_((grad_weights * weights).sum(dim=0)).mul_(weights)
        for grad_logit, part, grad_part in zip(
            grad_logits.unbind(),
            _parts(key, query, window),
            _parts(grad_key, query, window),
            strict=True,
        ):
            grad_query.addcmul_(grad_logit[:, :, None], part)
            grad_part.addcmul_(grad_logit[:, :, None], query)
        return grad_query, grad_key, grad_value, grad_logits, None


class LocalAttention(nn.Module):
    """Local self-attention as a layer: linear maps to query, key and value, and the attention.

    A window of 1 is a 1x1 convolution, the map to the value: the softmax over one cell is 1.
    """

    def __init__(self, channels: int, *, window: int = 7, heads: int = 8) -> None:
        """Build the maps and the embeddings.

        All weights are drawn so that, for inputs of unit variance, keys, values and logits have
        unit variance too.

        Args:
            channels: number of channels C of the input and the output.
            window: odd window k, 3 or more.
            heads: number of heads G.

        Raises:
            ValueError: an option is not allowed.
        """
        super().__init__()
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window is {window}; allowed: odd, 3 or more")
        if heads < 1 or channels % heads or channels // heads < 2:
            raise ValueError(
                f"heads is {heads}; allowed for {channels} channels: divisors that leave each head "
                "2 channels or more"
            )
        self.heads, self.window = heads, window
        size = channels // heads
        self.query = nn.Conv2d(channels, channels, 1, groups=heads, bias=False)
        self.key = nn.Conv2d(channels, channels, 1, groups=heads, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, groups=heads, bias=False)
        self.rows = nn.Parameter(torch.empty(size // 2, window))
        self.columns = nn.Parameter(torch.empty(size - size // 2, window))
        nn.init.normal_(self.query.weight, std=1 / size)
        nn.init.normal_(self.key.weight, std=size**-0.5)
        nn.init.normal_(self.value.weight, std=size**-0.5)
        nn.init.normal_(self.rows)
        nn.init.normal_(self.columns)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W).

        Args:
            x: feature map. With ``valid`` its padded cells must be zero, which makes them cells
                beyond the border.
            valid: (N, 1, H, W) of zeros and ones, not read: it is here because every attention
                module takes it.
        """
        maps = self.query(x), self.key(x), self.value(x)
        return local_attention(*maps, self.rows, self.columns, heads=self.heads, window=self.window)


class LocalAttentionShortcut(nn.Module):
    """Local attention for the shortcut of a cross stage: a 1x1 convolution, then the attention.

    A BatchNorm and a ReLU follow each of both. It is the form of the torchvision fork whose
    components this package has. There the 1x1 convolution is an attention with a window of 1, whose
    queries, keys and positions have no effect; and the logits of all heads are added up before the
    softmax, where the paper (and this) has one softmax per head.
    """

    def __init__(self, channels: int, *, window: int = 7, heads: int = 8) -> None:
        """Build both layers.

        Args:
            channels: number of channels C of the input and the output.
            window: odd window k of the attention, 3 or more.
            heads: number of heads G.

        Raises:
            ValueError: an option is not allowed.
        """
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv_norm = nn.BatchNorm2d(channels)
        self.local = LocalAttention(channels, window=window, heads=heads)
        self.local_norm = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); ``valid`` as in :mod:`d2_plugins.layers.attention`."""
        x = F.relu_(zero_padding_(self.conv_norm(self.conv(x)), valid))
        return F.relu_(self.local_norm(self.local(x, valid)))
