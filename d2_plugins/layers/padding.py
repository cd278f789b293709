"""Where in a padded batch the images are.

detectron2 pads the images of a batch, at the bottom and on the right and after normalisation, with
exact zeros, and then calls ``backbone(images.tensor)`` without their sizes. Convolutions see that
padding near the border only, but everything that pools over the whole map sees all of it. The sizes
can be read off the batch again, and these functions do so, without waiting for the device.

Shapes: N images, C channels, H, W of a feature map, Hi, Wi of the image batch.
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
    """Height and width of every image in a zero-padded batch.

    The extent ends at the last row and the last column that are not zero in every channel. An
    image pixel is exactly zero only where it equals the pixel mean in every channel, so an image is
    cut short only if its whole last row or column is of that very colour. An image of nothing but
    zeros is taken to fill the batch.

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
    """1 where a cell of a feature map belongs to the image, 0 where it belongs to the padding.

    A map of stride s over an unpadded image of height h has ceil(h / s) rows, which is what every
    ResNet and CSPNet layer gives; those rows of the padded batch's map are valid.

    Args:
        extent: (N, 2) heights and widths in image pixels, see :func:`valid_extent`.
        stride: of the feature map, in image pixels.
        like: (N, C, H, W) map whose size, dtype and device the mask takes.

    Returns:
        (N, 1, H, W) of zeros and ones.
    """
    cells = torch.div(extent + (stride - 1), stride, rounding_mode="floor")
    rows = torch.arange(like.shape[2], device=like.device) < cells[:, :1]
    columns = torch.arange(like.shape[3], device=like.device) < cells[:, 1:]
    return (rows[:, None, :, None] & columns[:, None, None, :]).to(like.dtype)


def subsample_mask(valid: Tensor | None, stride: int) -> Tensor | None:
    """The mask behind a layer of the given stride: (N, 1, H, W) -> (N, 1, ceil(H/s), ceil(W/s)).

    Exact, since ceil(ceil(h / a) / b) = ceil(h / (a * b)).
    """
    if valid is None or stride == 1:
        return valid
    return valid[:, :, ::stride, ::stride].contiguous()


def zero_padding_(x: Tensor, valid: Tensor | None) -> Tensor:
    """Zero the padded cells of ``x`` in place, so that a convolution sees them as a border.

    Meant for the output of a norm, ahead of its in-place ReLU: neither needs its result in the
    backward pass of what came before, so this costs no memory.

    Args:
        x: (N, C, H, W).
        valid: (N, 1, H, W) of zeros and ones; None leaves ``x`` as it is.

    Returns:
        ``x``.
    """
    return x if valid is None else x.mul_(valid.to(x.dtype))


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Spatial mean over the valid cells of each image.

    Written as a product with the mask, so that ``x`` is read once and nothing of its size is
    stored.

    Args:
        x: (N, C, H, W).
        valid: (N, 1, H, W) of zeros and ones with at least a one per image; None is all ones.

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
    """Spatial maximum over the valid cells of each image: (N, C, H, W) -> (N, C).

    Args:
        x: (N, C, H, W).
        valid: as in :func:`masked_mean`.
    """
    if valid is not None:
        x = x.masked_fill(valid == 0, -math.inf)
    return x.amax(dim=(2, 3))
