"""Pictures of what the stages of Cascade RPN do to a few cells of a photo.

Side by side: the anchors of the cells, their boxes after each stage, and the points that the last
adaptive convolution samples for them.

Shape shorthand: K chosen cells, R cells of all levels, H and W of the image as the network sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.ops import nms

from ..layers.adaptive_conv.geometry import sampling_points
from ..modeling.proposal_generator import CascadeRPN

__all__ = ["ChosenCells", "choose_cells", "draw_cells", "trace_cells"]


@dataclass(frozen=True)
class ChosenCells:
    """Cells of one image and what the stages made of them.

    Attributes:
        names: K names of cells, e.g. "p3 (12, 40)": level, row and column.
        boxes: per stage (K, 4), clipped to the image: the anchors first, the final boxes last.
        sampled: (K, 4), the boxes whose nine points the last adaptive convolution sampled; None
            if there is only one stage.
        scores: (K,), the final objectness in 0..1.
    """

    names: list[str]
    boxes: list[Tensor]
    sampled: Tensor | None
    scores: Tensor


@torch.no_grad()
def trace_cells(
    model: nn.Module, image: Tensor, *, num_cells: int = 5, cells: Sequence[str] | None = None
) -> ChosenCells:
    """Run a detector on one image and follow a few cells through the stages.

    Args:
        model: a detector in evaluation mode whose ``proposal_generator`` is a CascadeRPN.
        image: (C, H, W) in the model's channel order and range.
        num_cells: number of the best cells to follow, no two of them on one object.
        cells: follow these instead, as "LEVEL:ROW:COLUMN".

    Raises:
        ValueError: another proposal generator, or a cell that does not exist.
    """
    generator = getattr(model, "proposal_generator", None)
    if not isinstance(generator, CascadeRPN):
        raise ValueError(
            "MODEL.PROPOSAL_GENERATOR.NAME must be 'CascadeRPN', this model has "
            f"{type(generator).__name__}"
        )
    seen: list[Any] = []
    handle = generator.register_forward_pre_hook(lambda _, args: seen.extend(args[:2]))
    try:
        model([{"image": image}])
    finally:
        handle.remove()
    images, features = seen
    outputs = generator.run_stages(images, features)
    sizes = {name: tuple(features[name].shape[-2:]) for name in generator.in_features}
    stages = [torch.cat([b[0] for b in output.boxes]) for output in outputs]
    stages.append(torch.cat(generator.stages[-1].refine(outputs[-1], images.image_sizes), dim=1)[0])
    scores = torch.cat([x[0] for x in outputs[-1].pred_objectness_logits]).sigmoid()
    if cells:
        chosen = torch.tensor([_number(cell, sizes) for cell in cells], device=scores.device)
    else:
        chosen = choose_cells(stages[-1], scores, num_cells)
    return ChosenCells(
        names=[_name(k, sizes) for k in chosen.tolist()],
        boxes=[_clip(boxes[chosen], image).cpu() for boxes in stages],
        sampled=stages[-2][chosen].cpu() if len(outputs) > 1 else None,
        scores=scores[chosen].cpu(),
    )


def choose_cells(boxes: Tensor, scores: Tensor, number: int) -> Tensor:
    """Choose the cells with the best scores whose boxes do not overlap much.

    Args:
        boxes: (R, 4) final boxes.
        scores: (R,) scores of the boxes.
        number: largest number of cells to choose.

    Returns:
        Indices, best first.
    """
    usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
    best = usable[scores[usable].topk(min(1000, len(usable))).indices]
    return best[nms(boxes[best], scores[best], 0.2)[:number]]


def _clip(boxes: Tensor, image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def _number(cell: str, sizes: dict[str, tuple[int, int]]) -> int:
    """Number of "LEVEL:ROW:COLUMN" among the cells of all levels."""
    level, *rest = cell.split(":")
    if level in sizes and len(rest) == 2 and all(x.isdecimal() for x in rest):
        row, column = map(int, rest)
        height, width = sizes[level]
        if row < height and column < width:
            before = list(sizes).index(level)
            return sum(h * w for h, w in list(sizes.values())[:before]) + row * width + column
    raise ValueError(
        f"there is no cell '{cell}'; LEVEL:ROW:COLUMN with these numbers of rows and columns: "
        + ", ".join(f"{name} {h} x {w}" for name, (h, w) in sizes.items())
    )


def _name(number: int, sizes: dict[str, tuple[int, int]]) -> str:
    for name, (height, width) in sizes.items():
        if number < height * width:
            return f"{name} ({number // width}, {number % width})"
        number -= height * width
    raise AssertionError("no such cell")


def draw_cells(photo: np.ndarray, chosen: ChosenCells) -> Figure:
    """Draw a panel for the anchors, one for each stage, and one for the sampling points.

    Args:
        photo: (H, W, 3), RGB.
        chosen: cells of this photo.
    """
    titles = ["regular anchors"] + [f"stage {i}" for i in range(1, len(chosen.boxes))]
    if chosen.sampled is not None:
        titles.append(f"sampling points of stage {len(chosen.boxes) - 1}")
    height, width = photo.shape[:2]
    figure = Figure(figsize=(4.5 * len(titles), 4.5 * height / width + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(titles)))
    for axis, title in zip(axes, titles, strict=True):
        axis.imshow(photo)
        axis.set(title=title, xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    for axis, boxes in zip(axes, chosen.boxes, strict=False):
        for k, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            frame = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, lw=2, ec=f"C{k % 10}")
            axis.add_patch(frame)
    if chosen.sampled is not None:
        # With a stride of 1 the points are in pixels.
        for k, points in enumerate(sampling_points(chosen.sampled, 1.0)):
            y, x = points.T.numpy()
            axes[-1].scatter(x, y, s=60, c=f"C{k % 10}", edgecolors="white", linewidths=1)
    labels = [f"{n}: {s:.2f}" for n, s in zip(chosen.names, chosen.scores.tolist(), strict=True)]
    handles = [Rectangle((0, 0), 1, 1, fc=f"C{k % 10}") for k in range(len(labels))]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
