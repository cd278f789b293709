"""RoI features for the two heads of a Double-Head.

Shape shorthand: R RoIs of the whole batch, C channels, P pooled resolution, H pooled views of a
RoI (1 or 2).

The conv head sees the RoI enlarged about its centre by 1.3 in width and height. That factor is in
the authors' code and in mmdetection, not in the paper. The enlarged box is not clipped to the
image and is pooled from the FPN level of the original box.
"""

import torch
from detectron2.modeling.poolers import (
    ROIPooler,
    assign_boxes_to_levels,
    convert_boxes_to_pooler_format,
)
from detectron2.structures import Boxes
from torch import Tensor, nn

__all__ = ["DoubleHeadPooler", "enlarge_boxes"]


def enlarge_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Scale boxes about their own centres (``Boxes.scale`` does it about the image's origin).

    Args:
        boxes: (R, 4) XYXY in image pixels.
        scale: factor of the width and of the height.

    Returns:
        (R, 4), not clipped to any image.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half_sizes = (boxes[:, 2:] - boxes[:, :2]) * (scale / 2)
    return torch.cat([centers - half_sizes, centers + half_sizes], dim=1)


class DoubleHeadPooler(nn.Module):
    """Pools each RoI as it is (for the fc head) and enlarged (for the conv head).

    It has the interface of :class:`detectron2.modeling.poolers.ROIPooler` and returns one tensor
    (H, R, C, P, P): the RoI itself first, the enlarged one last. With scale 1 the two are the same
    and H is 1. One tensor rather than a pair goes through detectron2's heads, Cascade R-CNN's
    gradient scaling included, as a pooled feature always does.

    :meth:`locate`, :meth:`pool` and :meth:`enlarge` are its parts, for callers that pool the views
    one after the other.
    """

    _cells: Tensor
    _outside: Tensor

    def __init__(self, pooler: ROIPooler, scale: float) -> None:
        """Wrap a pooler.

        Args:
            pooler: pools the RoIs of both heads.
            scale: enlargement of the conv head's RoIs, positive.

        Raises:
            ValueError: if the scale is not positive.
        """
        super().__init__()
        if scale <= 0:
            raise ValueError(f"MODEL.DOUBLE_HEAD.REG_ROI_SCALE is {scale}; allowed: above 0")
        self.pooler = pooler
        self.scale = scale
        # Where the cells of an enlarged RoI have their centre in the RoI itself, for align_mask.
        size = pooler.output_size[0]
        centers = (torch.arange(size) + 0.5) / size
        cells = torch.floor(((centers - 0.5) * scale + 0.5) * size).long()
        outside = (cells < 0) | (cells >= size)
        self.register_buffer("_cells", cells.clamp(0, size - 1), persistent=False)
        self.register_buffer("_outside", outside[:, None] | outside, persistent=False)

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool both views of every RoI.

        Args:
            x: feature maps (N, C, Hi, Wi), one per level.
            box_lists: the RoIs of each of the N images.

        Returns:
            (H, R, C, P, P).
        """
        rois, levels = self.locate(box_lists)
        if self.scale == 1:
            return self.pool(x, rois, levels)[None]
        both = torch.cat([rois, self.enlarge(rois)])
        return self.pool(x, both, levels.repeat(2)).unflatten(0, (2, rois.shape[0]))

    def locate(self, box_lists: list[Boxes]) -> tuple[Tensor, Tensor]:
        """Return the RoIs of a batch as rows, and their FPN levels.

        Args:
            box_lists: the RoIs of each image.

        Returns:
            (R, 5) image index and XYXY, and (R,) indices into the levels, by the size of the RoIs
            as they are.
        """
        pooler = self.pooler
        rois = convert_boxes_to_pooler_format(box_lists)
        levels = assign_boxes_to_levels(
            [Boxes(rois[:, 1:])],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        return rois, levels

    def enlarge(self, rois: Tensor) -> Tensor:
        """Return the conv head's view of (R, 5) RoIs, in the same form."""
        return torch.cat([rois[:, :1], enlarge_boxes(rois[:, 1:], self.scale)], dim=1)

    def pool(self, x: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
        """Pool one view of each RoI.

        ``ROIPooler.forward`` does the same but takes the level from the box it pools, and boxes
        only by image.

        Args:
            x: feature maps (N, C, Hi, Wi), one per level.
            rois: (R, 5) as from :meth:`locate` or :meth:`enlarge`.
            levels: (R,) as from :meth:`locate`.

        Returns:
            (R, C, P, P).
        """
        poolers = self.pooler.level_poolers
        if len(poolers) == 1:
            return poolers[0](x[0], rois)
        regions = x[0].new_zeros(rois.shape[0], x[0].shape[1], *self.pooler.output_size)
        in_level = levels == torch.arange(len(poolers), device=levels.device)[:, None]
        for level, pooler in enumerate(poolers):
            (rows,) = in_level[level].nonzero(as_tuple=True)
            regions.index_put_((rows,), pooler(x[level], rois[rows]))
        return regions

    def align_mask(self, mask: Tensor) -> Tensor:
        """Carry a mask over RoIs to the enlarged RoIs, to hide the same places of the image.

        A cell of the enlarged RoI takes the mask of the cell its centre falls into; cells whose
        centre lies outside the original RoI stay on.

        Args:
            mask: (R, C or 1, P, P), or (R, C, 1, 1) for a mask that is the same everywhere.

        Returns:
            A mask of the same shape; for scale 1 the same mask.
        """
        if self.scale == 1 or mask.shape[-1] == 1:
            return mask
        aligned = mask[..., self._cells, :][..., self._cells]
        return aligned.masked_fill(self._outside, 1)
