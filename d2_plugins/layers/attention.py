"""Channel and spatial attention as published: CBAM, ECA and SE; and attention by name.

Each module maps (N, C, H, W) to the same shape by multiplying with gates in (0, 1), and is meant to
stand after the last norm of a residual block and before the shortcut is added.

Every module takes a second, optional argument ``valid``: (N, 1, H, W), 1 on the cells that belong
to each image and 0 on the padding of the batch (:func:`d2_plugins.layers.padding.valid_mask`). With
it the global pooling leaves the padding out, so that the gates of an image do not depend on the
other images of its batch. ``None`` means no padding and is the published module. The result on
padded cells is unspecified: multiply it with ``valid`` before a convolution that should not see the
padding.

Shape shorthand:

    N: number of images
    C: number of channels
    H, W: height and width of the feature map
    k: kernel size of ECA
    r: reduction
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .local_attention import LocalAttentionShortcut
from .padding import masked_max, masked_mean

__all__ = [
    "ATTENTION_NAMES",
    "CBAM",
    "ECA",
    "SE",
    "ChannelGate",
    "SpatialGate",
    "build_attention",
    "eca_kernel_size",
]


def eca_kernel_size(channels: int) -> int:
    """Return ECA's adaptive kernel size, psi(C) = |log2(C) / 2 + 1 / 2|_odd (ECA-Net, equation 12).

    As in the authors' and timm's code, the number is truncated, raised to the next odd number, and
    at least 3. This gives 3 up to 127 channels, 5 from 128 and 7 from 2048 on.
    """
    truncated = int((math.log2(channels) + 1) / 2)
    return max(truncated if truncated % 2 else truncated + 1, 3)


def _hidden_channels(channels: int, reduction: int) -> int:
    """Return floor(C / r), as in the code of SE's and CBAM's authors.

    Raises:
        ValueError: no hidden channel would be left.
    """
    if reduction < 1:
        raise ValueError(f"reduction is {reduction}; allowed: 1 or more")
    if channels < reduction:
        raise ValueError(
            f"reduction is {reduction}; allowed for {channels} channels: 1 to {channels}"
        )
    return channels // reduction


class ECA(nn.Module):
    """Efficient channel attention (ECA-Net, section 3.2): y = x * sigmoid(conv1d_k(GAP(x))).

    The convolution runs along the channel axis, zero-padded, without a bias; it holds the k
    parameters of the module.
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        """Build the convolution.

        Args:
            channels: number of channels C, which only the formula for k uses.
            kernel_size: odd kernel size k; None uses :func:`eca_kernel_size`. Released ECA-Net
                weights have other kernel sizes in some stages.

        Raises:
            ValueError: ``kernel_size`` is even or not positive.
        """
        super().__init__()
        k = eca_kernel_size(channels) if kernel_size is None else kernel_size
        if k < 1 or k % 2 == 0:
            raise ValueError(f"kernel_size is {k}; allowed for ECA: odd and positive")
        self.conv = nn.Conv1d(1, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); ``valid`` as in the module's docstring."""
        gate = self.conv(masked_mean(x, valid)[:, None]).sigmoid()
        return x * gate[:, 0, :, None, None]


class SE(nn.Module):
    """Squeeze-and-excitation (Hu et al., section 3): y = x * sigmoid(W2 relu(W1 GAP(x))).

    Both layers have a bias, as in the authors' released models.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        """Build the two layers.

        Args:
            channels: number of channels C.
            reduction: reduction r; the hidden layer has floor(C / r) channels.

        Raises:
            ValueError: C < r.
        """
        super().__init__()
        hidden = _hidden_channels(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); ``valid`` as in the module's docstring."""
        gate = self.fc2(self.fc1(masked_mean(x, valid)).relu()).sigmoid()
        return x * gate[:, :, None, None]


class ChannelGate(nn.Module):
    """CBAM's channel attention: x * sigmoid(MLP(GAP(x)) + MLP(GMP(x))) (CBAM, equation 2).

    One MLP, with biases and without a norm, serves both pooled vectors.
    """

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        """Build the MLP.

        Args:
            channels: number of channels C.
            reduction: reduction r; the hidden layer has floor(C / r) channels.

        Raises:
            ValueError: C < r.
        """
        super().__init__()
        hidden = _hidden_channels(channels, reduction)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        nn.init.zeros_(self.fc1.bias)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); ``valid`` as in the module's docstring."""
        pooled = torch.stack([masked_mean(x, valid), masked_max(x, valid)])
        gate = self.fc2(self.fc1(pooled).relu()).sum(dim=0).sigmoid()
        return x * gate[:, :, None, None]


class SpatialGate(nn.Module):
    """CBAM's spatial attention: x * sigmoid(BN(conv7x7([max_c x; mean_c x]))) (CBAM, equation 3).

    The paper's formula lists the mean first and has no norm. The authors' code, and so their
    weights, have the maximum first and a BatchNorm of momentum 0.01. Its weight starts at zero, so
    that the gate starts at 0.5 everywhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.bn = nn.BatchNorm2d(1, momentum=0.01)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W).

        With ``valid``, padded cells enter the convolution as zeros, like cells beyond the border.
        """
        pooled = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        if valid is not None:
            pooled = pooled * valid.to(pooled.dtype)
        return x * self.bn(self.conv(pooled)).sigmoid()


class CBAM(nn.Module):
    """Convolutional block attention module: the channel gate, then the spatial gate."""

    def __init__(self, channels: int, *, reduction: int = 16) -> None:
        """Build both gates.

        Args:
            channels: number of channels C.
            reduction: reduction r of the channel gate.

        Raises:
            ValueError: C < r.
        """
        super().__init__()
        self.channel_gate = ChannelGate(channels, reduction=reduction)
        self.spatial_gate = SpatialGate()

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); ``valid`` as in the module's docstring."""
        return self.spatial_gate(self.channel_gate(x, valid), valid)


@dataclass(frozen=True, kw_only=True)
class _Options:
    reduction: int
    kernel_size: int | None
    window: int
    heads: int


_BUILDERS: dict[str, Callable[[int, _Options], nn.Module]] = {
    "eca": lambda channels, options: ECA(channels, kernel_size=options.kernel_size),
    "cbam": lambda channels, options: CBAM(channels, reduction=options.reduction),
    "se": lambda channels, options: SE(channels, reduction=options.reduction),
    "local": lambda channels, options: LocalAttentionShortcut(
        channels, window=options.window, heads=options.heads
    ),
}

ATTENTION_NAMES: tuple[str, ...] = tuple(_BUILDERS)
"""Names that :func:`build_attention` accepts."""


def build_attention(
    name: str,
    channels: int,
    *,
    reduction: int = 16,
    kernel_size: int | None = None,
    window: int = 7,
    heads: int = 8,
) -> nn.Module:
    """Build an attention module by name; ``forward(x, valid=None)`` keeps the shape of ``x``.

    Args:
        name: "eca", "cbam", "se" or "local"
            (:class:`~d2_plugins.layers.local_attention.LocalAttentionShortcut`, which replaces
            ``x`` where the others multiply it with a gate).
        channels: number of channels C of its input.
        reduction: reduction r of CBAM and SE.
        kernel_size: odd kernel size k of ECA; None uses the paper's formula.
        window: odd window k of local attention.
        heads: number of heads of local attention.

    Raises:
        ValueError: the name is unknown or an option is not allowed; the message says what is.
    """
    if name not in _BUILDERS:
        raise ValueError(f"attention is '{name}'; allowed: {', '.join(ATTENTION_NAMES)}")
    options = _Options(reduction=reduction, kernel_size=kernel_size, window=window, heads=heads)
    return _BUILDERS[name](channels, options)
