"""Positions of the images in a padded batch, and pooling that leaves the padding out.

detectron2 pads the images of a batch with exact zeros, at the bottom and on the right and after
normalisation, and then calls ``backbone(images.tensor)`` without their sizes. Convolutions see the
padding only near the border, but global pooling sees all of it. These functions recover the sizes
from the batch, without waiting for the device.

Shape shorthand:

    N: number of images
    C: number of channels
    H, W: height and width of a feature map
    Hi, Wi: height and width of the image batch
"""

import math

import torch
from torch import Tensor

__all__ = [
    "masked_max",
    "masked_mean",
    "subsample_mask",
    "valid_extent",
    "valid_mask",
    "zero_padding_",
]

_STEP = 256.0


def valid_extent(images: Tensor) -> Tensor:
    """Return the height and width of every image in a zero-padded batch.

    The extent ends at the last row and the last column that are not zero in every channel. An
    image pixel is exactly zero only if it equals the pixel mean in every channel, so an image is
    cut short only if its whole last row or column has exactly that colour. An image that is zero
    everywhere is assumed to fill the batch.

    Args:
        images: (N, C, Hi, Wi), normalised and padded at the bottom and on the right.

    Returns:
        (N, 2) int64: height and width in pixels, on the device of ``images``.
    """
    filled = (images != 0).any(dim=1)
    return torch.stack([_last_true(filled.any(dim=2)), _last_true(filled.any(dim=1))], dim=1)


def _last_true(flags: Tensor) -> Tensor:
    """(N, L) bool -> (N,) int64: one past the last true entry; L where there is none."""
    return flags.shape[1] - flags.flip(1).to(torch.uint8).argmax(dim=1)


def valid_mask(extent: Tensor, stride: int, like: Tensor) -> Tensor:
    """Return 1 for the cells of a feature map that belong to the image, 0 for the padding.

    A map of stride s over an unpadded image of height h has ceil(h / s) rows, which is what every
    ResNet and CSPNet layer gives. These rows of the padded batch's map are valid.

    Args:
        extent: (N, 2) heights and widths in image pixels, see :func:`valid_extent`.
        stride: stride of the feature map, in image pixels.
        like: feature map (N, C, H, W) whose size, dtype and device the mask gets.

    Returns:
        (N, 1, H, W) of zeros and ones.
    """
    cells = torch.div(extent + (stride - 1), stride, rounding_mode="floor")
    rows = torch.arange(like.shape[2], device=like.device) < cells[:, :1]
    columns = torch.arange(like.shape[3], device=like.device) < cells[:, 1:]
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(like.dtype)


def subsample_mask(valid: Tensor | None, stride: int) -> Tensor | None:
    """Return the mask after a layer of stride s: (N, 1, H, W) -> (N, 1, ceil(H/s), ceil(W/s)).

    Exact, since ceil(ceil(h / a) / b) = ceil(h / (a * b)).
    """
    if valid is None or stride == 1:
        return valid
    return valid[:, :, ::stride, ::stride].contiguous()


def zero_padding_(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the padded cells of ``x`` in place, so that a convolution sees them as a border.

    Apply it to the output of a norm, before an in-place ReLU: the backward pass of the norm does
    not need its output, so this costs no memory.

    Args:
        x: (N, C, H, W).
        valid: (N, 1, H, W) of zeros and ones; None leaves ``x`` unchanged.

    Returns:
        ``x``.
    """
    return x if valid is None else x.mul_(valid.to(x.dtype))


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the spatial mean over the valid cells of each image.

    It is a product with the mask, which reads ``x`` once and stores nothing of its size.

    Args:
        x: (N, C, H, W).
        valid: (N, 1, H, W) of zeros and ones with at least a one per image; None means all ones.

    Returns:
        (N, C).
    """
    if valid is None:
        return x.mean(dim=(2, 3))
    valid = valid.to(x.dtype).flatten(2)
    # Half precision holds neither the sum over a large map nor 1 / its area well: divide in two
    # steps, the first by a power of two, which is exact and near the root of the usual areas.
    part = torch.matmul(x.flatten(2), (valid / _STEP).transpose(1, 2)).squeeze(2)
    return part * (_STEP / valid.sum(dim=2, dtype=torch.float32)).to(part.dtype)


def masked_max(x: Tensor, valid: Tensor | None) -> Tensor:
    """Return the spatial maximum over the valid cells of each image: (N, C, H, W) -> (N, C).

    Args:
        x: (N, C, H, W).
        valid: as in :func:`masked_mean`.
    """
    if valid is not None:
        x = x.masked_fill(valid == 0, -math.inf)
    return x.amax(dim=(2, 3))
