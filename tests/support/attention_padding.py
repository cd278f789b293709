"""Attention on a batch of two images, of which the first is padded with numbers of any size."""

import torch
from torch import Tensor, nn

from d2_plugins.layers.padding import valid_mask


def check_padding_has_no_effect(module: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Check that valid cells depend on valid cells only, forward and backward.

    Args:
        module: attention in eval mode and float64, called with a map and its valid cells.
        channels: number of its channels.

    Returns:
        The first image without padding, (1, C, 5, 6), and the gradient of the sum of its output
        with respect to it, (C, 5, 6).
    """
    small = torch.randn(1, channels, 5, 6, dtype=torch.float64)
    batch = torch.randn(2, channels, 9, 8, dtype=torch.float64) + 3
    batch[0, :, :5, :6] = small[0]
    batch.requires_grad_()
    valid = valid_mask(torch.tensor([[20, 24], [36, 32]]), 4, batch)
    out = module(batch, valid)
    torch.testing.assert_close(out[:1, :, :5, :6], module(small))
    torch.testing.assert_close(out[1:], module(batch[1:]))
    assert (module(batch)[0, :, :5, :6] - out[0, :, :5, :6]).abs().max() > 1e-2

    grad = torch.autograd.grad(out[0, :, :5, :6].sum(), batch)[0][0]
    assert grad[:, 5:].abs().max() == 0
    assert grad[:, :, 6:].abs().max() == 0
    return small, grad[:, :5, :6]
