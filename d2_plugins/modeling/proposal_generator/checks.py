"""What Cascade RPN asks of its config and of its predictions, with the errors that say so."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from .cascade_rpn_stage import CascadeRPNStage, StageOutput

__all__ = ["anchor_scale", "check_finite", "check_stages", "input_shapes"]


def input_shapes(names: Sequence[str], input_shape: Mapping[str, ShapeSpec]) -> list[ShapeSpec]:
    """The shapes of the named features.

    Raises:
        ValueError: no names, an unknown one, or different numbers of channels.
    """
    missing = [name for name in names if name not in input_shape]
    if missing or not names:
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES is {list(names)}; the backbone has {list(input_shape)}"
        )
    shapes = [input_shape[name] for name in names]
    if len({s.channels for s in shapes}) > 1:
        raise ValueError(
            f"MODEL.RPN.IN_FEATURES {list(names)} must all have the same number of channels, "
            f"not {[s.channels for s in shapes]}"
        )
    return shapes


def check_stages(stages: Sequence[CascadeRPNStage]) -> None:
    """Raise ValueError unless the stages make a cascade."""
    if not stages:
        raise ValueError("CascadeRPN needs at least one stage")
    if [stage.adaptive for stage in stages] != [i > 0 for i in range(len(stages))]:
        raise ValueError("the first stage of CascadeRPN must not be adaptive, all others must")
    if stages[-1].objectness is None:
        raise ValueError("the last stage of CascadeRPN needs with_objectness=True")


def anchor_scale(generator: Any) -> float:
    """Side of the anchors in cells, the same on all levels.

    Raises:
        ValueError: not one anchor per cell, or anchors that are not centred on the cells' corners,
            or of another scale on another level.
    """
    key = "MODEL.ANCHOR_GENERATOR."
    if generator.box_dim != 4 or set(generator.num_anchors) != {1}:
        raise ValueError(
            f"CascadeRPN needs one upright anchor per cell, but {key}SIZES and {key}ASPECT_RATIOS "
            f"give {generator.num_anchors} per level: use e.g. SIZES [[32], [64], [128], [256], "
            "[512]] and ASPECT_RATIOS [[1.0]]"
        )
    if getattr(generator, "offset", 0.0) != 0.0:
        raise ValueError(f"CascadeRPN needs {key}OFFSET 0.0, not {generator.offset}")
    areas = [(a[0, 2:] - a[0, :2]).prod().item() for a in generator.cell_anchors]
    scales = [area**0.5 / stride for area, stride in zip(areas, generator.strides, strict=True)]
    if max(scales) > 1.001 * min(scales):
        raise ValueError(
            f"CascadeRPN needs {key}SIZES that grow with the strides of MODEL.RPN.IN_FEATURES, "
            f"{list(generator.strides)}; the sizes are {scales} times the strides"
        )
    return scales[0]


def check_finite(
    maps: Sequence[Tensor], outputs: Sequence[StageOutput], names: Sequence[str]
) -> None:
    """Raise FloatingPointError unless all predictions are finite, naming where it began.

    Args:
        maps: the features of the L levels.
        outputs: of all stages.
        names: of the levels.
    """
    predicted = [t for output in outputs for t in (*output.deltas, *output.logits)]
    if torch.stack([t.isfinite().all() for t in predicted]).all():
        return
    groups = [("features", maps)]
    for i, output in enumerate(outputs):
        groups += [
            (f"deltas of stage {i + 1}", output.deltas),
            (f"logits of stage {i + 1}", output.logits),
        ]
    for what, tensors in groups:
        levels = [n for n, t in zip(names, tensors, strict=False) if not t.isfinite().all()]
        if levels:
            raise FloatingPointError(
                f"Cascade RPN: the {what} on {', '.join(levels)} are not finite: training has "
                "diverged. A lower SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS may help."
            )
