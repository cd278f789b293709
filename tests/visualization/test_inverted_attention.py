"""Pictures of Inverted Attention: the regions that are explained, and what is drawn of them."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from matplotlib.figure import Figure

from d2_plugins.visualization.inverted_attention import (
    RegionAttention,
    attention_config,
    draw_regions,
    explain_regions,
    shade,
)
from tests.support.roi_heads import make_detector_cfg


@pytest.mark.parametrize(
    "name",
    ["StandardROIHeads", "CascadeROIHeads", "DoubleHeadROIHeads", "CascadeDoubleHeadROIHeads"],
)
def test_explained_regions_are_the_detections(name: str) -> None:
    cfg = make_detector_cfg(name)
    torch.manual_seed(0)
    stock = build_model(cfg).eval()
    model = build_model(attention_config(cfg)).eval()
    model.load_state_dict(stock.state_dict())
    image = torch.rand(3, 96, 128) * 255
    regions = explain_regions(model, image, num_regions=5)
    with torch.no_grad():
        (detections,) = stock.inference([{"image": image}], do_postprocess=False)
    assert len(regions) == 5
    for region, box, label in zip(
        regions, detections.pred_boxes.tensor, detections.pred_classes.tolist(), strict=False
    ):
        assert torch.equal(region.box, box)
        assert region.label == label
        threshold = region.attention.flatten().sort(descending=True).values[18]
        assert torch.equal(region.hidden, (region.attention > threshold).float())
        assert region.hidden.any()
        assert region.prob_before != region.prob_after
        assert 0 < region.prob_after < 1
    # Nothing was left behind in the model.
    with torch.no_grad():
        (after,) = model.inference([{"image": image}], do_postprocess=False)
    assert torch.equal(after.scores, detections.scores)


def test_shade_veils_hidden_places_only() -> None:
    pixels = np.full((14, 21, 3), 200, np.uint8)
    hidden = torch.zeros(7, 7)
    hidden[2, 5] = 1
    hidden[6, 0] = 0.5
    expected = pixels.copy()
    expected[4:6, 15:18] = 139
    expected[12:14, 0:3] = 169
    assert np.array_equal(shade(pixels, hidden), expected)


def drawn(names: list[str] | None) -> tuple[np.ndarray, list[RegionAttention], Figure]:
    """A photo and two regions of it, drawn."""
    photo = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    first, second = torch.zeros(2, 7, 7)
    first[2, 5] = second[6, 0] = 1  # the place that matters most
    hidden = (torch.rand(7, 7) > 0.6).float()
    regions = [
        RegionAttention(torch.tensor([10.4, 5.0, 40.2, 29.9]), 1, first, hidden, 0.75, 0.25),
        RegionAttention(torch.tensor([0.0, 30, 80, 60]), 0, second, 1 - hidden, 0.5, 0.625),
    ]
    return photo, regions, draw_regions(photo, regions, names)


def test_each_row_shows_a_region_its_attention_and_what_is_hidden() -> None:
    photo, regions, figure = drawn(["cat", "dog"])
    crops = [photo[5:30, 10:41], photo[30:60, 0:80]]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        *("dog", "attention M", "p 0.75 \N{RIGHTWARDS ARROW} 0.25"),
        *("cat", "attention M", "p 0.50 \N{RIGHTWARDS ARROW} 0.62"),
    ]
    for row, (crop, region) in enumerate(zip(crops, regions, strict=True)):
        plain, attention, hidden = figure.axes[3 * row : 3 * row + 3]
        assert np.array_equal(plain.images[0].get_array(), crop)
        assert np.array_equal(hidden.images[0].get_array(), shade(crop, region.hidden))
        assert not np.array_equal(hidden.images[0].get_array(), crop)
        below, overlay = attention.images
        assert np.array_equal(below.get_array(), crop)
        assert overlay.get_visible()
        assert 0.3 < overlay.get_alpha() < 0.9, "both the attention and the region can be seen"
        assert overlay.get_cmap().name == "inferno"
        # The map in the region's size, the highest value at the same place.
        values = np.asarray(overlay.get_array())
        assert values.shape == crop.shape[:2]
        peak = np.unravel_index(values.argmax(), values.shape)
        expected = np.unravel_index(int(region.attention.argmax()), (7, 7))
        for place, size, cell in zip(peak, values.shape, expected, strict=True):
            assert abs((place + 0.5) / size * 7 - (cell + 0.5)) < 1


def test_classes_without_names() -> None:
    _, _, figure = drawn(None)
    assert [figure.axes[i].get_title() for i in (0, 3)] == ["class 1", "class 0"]
