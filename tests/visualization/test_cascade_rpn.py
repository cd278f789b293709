"""Pictures of Cascade RPN's stages: the cells that are followed, and what is drawn of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from d2_plugins.visualization.cascade_rpn import ChosenCells, choose_cells, draw_cells, trace_cells
from tests.support.proposal_models import crpn_cfg, lively
from tests.support.toy import toy_cfg


def test_cells_are_followed_through_the_stages(tmp_path: Path) -> None:
    model = lively(crpn_cfg(tmp_path))
    image = torch.rand(3, 64, 96) * 255
    chosen = trace_cells(model, image, num_cells=3)
    assert len(chosen.names) == 3
    assert len(chosen.boxes) == 3
    # The last boxes are proposals, of the scores shown.
    (proposals,) = model([{"image": image}])
    found = proposals["proposals"]
    for box, score in zip(chosen.boxes[-1], chosen.scores, strict=True):
        distance = (found.proposal_boxes.tensor - box).abs().amax(dim=1)
        assert distance.min() < 1e-3
        logit = found.objectness_logits[distance.argmin()]
        assert logit.sigmoid().item() == pytest.approx(score.item(), abs=1e-5)
    assert torch.equal(chosen.sampled, chosen.boxes[1])
    assert not torch.equal(chosen.boxes[0], chosen.boxes[1])


def test_chosen_by_name(tmp_path: Path) -> None:
    cfg = crpn_cfg(tmp_path, stages=1)
    level = cfg.MODEL.RPN.IN_FEATURES[1]
    stride = 2 ** int(level[1:])
    model = lively(cfg)
    image = torch.rand(3, 64, 96) * 255
    chosen = trace_cells(model, image, cells=[f"{level}:2:1"])
    assert chosen.names == [f"{level} (2, 1)"]
    side = 4 * stride
    centre = (1 * stride, 2 * stride)
    anchor = [*(c - side for c in centre), *(c + side for c in centre)]
    limits = [96, 64, 96, 64]
    assert chosen.boxes[0].tolist() == [
        [min(max(a, 0), m) for a, m in zip(anchor, limits, strict=True)]
    ]
    assert chosen.sampled is None
    for wrong in ("p9:0:0", f"{level}:99:0", f"{level}:0:99", level, f"{level}:-1:0"):
        with pytest.raises(ValueError, match=f"no cell '{wrong}'.*{level} "):
            trace_cells(model, image, cells=[wrong])


def test_choose_cells() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 0, 29, 9], [5, 5, 5, 9]])
    scores = torch.tensor([0.5, 0.9, 0.2, 1.0])
    # Neither the empty one, best as it is, nor the second on the same place.
    assert choose_cells(boxes, scores, 5).tolist() == [1, 2]
    assert choose_cells(boxes, scores, 1).tolist() == [1]


def test_other_proposal_generators_are_refused(tmp_path: Path) -> None:
    model = build_model(toy_cfg(tmp_path, ["MODEL.DEVICE", "cpu"]))
    with pytest.raises(ValueError, match=r"MODEL\.PROPOSAL_GENERATOR\.NAME.*has RPN"):
        trace_cells(model, torch.zeros(3, 64, 64))


def drawn() -> tuple[np.ndarray, ChosenCells, Figure]:
    """A photo and two cells, drawn."""
    boxes = [
        torch.tensor([[10.0, 20, 30, 40], [50, 10, 70, 30]]),
        torch.tensor([[12.0, 18, 40, 44], [44, 12, 80, 36]]),
        torch.tensor([[14.0, 16, 42, 46], [45, 13, 81, 37]]),
    ]
    photo = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    chosen = ChosenCells(["p3 (1, 2)", "p4 (0, 5)"], boxes, boxes[1], torch.tensor([0.75, 0.5]))
    return photo, chosen, draw_cells(photo, chosen)


def test_boxes_are_drawn_in_their_panel() -> None:
    photo, chosen, figure = drawn()
    titles = ["regular anchors", "stage 1", "stage 2", "sampling points of stage 2"]
    assert [axes.get_title() for axes in figure.axes] == titles
    for axes in figure.axes:
        assert np.array_equal(axes.images[0].get_array(), photo)
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 90), (60, 0))
    for axes, boxes in zip(figure.axes, chosen.boxes, strict=False):
        corners = [[*patch.get_xy(), patch.get_x() + patch.get_width(),
                    patch.get_y() + patch.get_height()] for patch in axes.patches]  # fmt: skip
        assert corners == boxes.tolist()
        assert all(patch.get_visible() and patch.get_linewidth() > 1 for patch in axes.patches)
        assert not any(patch.get_fill() for patch in axes.patches)
    assert not figure.axes[3].patches


def test_sampling_points_are_corners_edges_and_centre_of_the_box() -> None:
    _, chosen, figure = drawn()
    collections = figure.axes[-1].collections
    assert len(collections) == 2
    for points, (x0, y0, x1, y1) in zip(collections, chosen.sampled.tolist(), strict=True):
        expected = {(x, y) for x in (x0, (x0 + x1) / 2, x1) for y in (y0, (y0 + y1) / 2, y1)}
        assert {tuple(point) for point in points.get_offsets().tolist()} == expected
        assert points.get_sizes()[0] >= 10
        assert points.get_alpha() in (None, 1)
    assert not any(axes.collections for axes in figure.axes[:3])


def test_a_cell_has_one_colour_in_all_panels_and_in_the_legend() -> None:
    _, _, figure = drawn()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "p3 (1, 2): 0.75",
        "p4 (0, 5): 0.50",
    ]
    colours = [to_hex(patch.get_facecolor()) for patch in legend.get_patches()]
    assert len(set(colours)) == 2
    for axes in figure.axes[:3]:
        assert [to_hex(patch.get_edgecolor()) for patch in axes.patches] == colours
    points = figure.axes[3].collections
    assert [to_hex(collection.get_facecolor()[0]) for collection in points] == colours
