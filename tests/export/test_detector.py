"""The detector as a function of tensors gives what the model gives; what it refuses."""

from collections.abc import Sequence

import pytest
import torch
from detectron2.modeling import build_model

from d2_plugins import model_zoo
from d2_plugins.export import ExportableDetector, compare, detect, pad_input
from tests.support.export_models import FLAGSHIP, MASK, PLAIN, SELECTIVE, image, small_model

CASCADE = (
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    *("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", (0.5, 0.6)),
    *("MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS", ((10.0,) * 2 + (5.0,) * 2,) * 2),
)
LOCAL = (
    *("MODEL.ATTENTION.NAME", "local", "MODEL.ATTENTION.POSITION", "cross"),
    *("MODEL.ATTENTION.HEADS", 4, "MODEL.ATTENTION.WINDOW", 3),
)
MODELS = {
    "plain": (PLAIN, ()),
    "local attention": (PLAIN, LOCAL),
    "flagship with masks": (FLAGSHIP, MASK),
    "selective conv head": (FLAGSHIP, (*MASK, *SELECTIVE)),
    "cascade": (PLAIN, ("MODEL.ROI_HEADS.NAME", "PluginCascadeROIHeads", *CASCADE)),
    "cascade of double heads": (
        FLAGSHIP,
        ("MODEL.ROI_HEADS.NAME", "CascadeDoubleHeadROIHeads", *CASCADE),
    ),
    "cbam, sigmoid, one mask for all classes": (
        PLAIN,
        (
            *("MODEL.ATTENTION.NAME", "cbam", "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
            *(*MASK, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True),
        ),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_same_as_the_model(name: str) -> None:
    model = small_model(*MODELS[name])
    detector = ExportableDetector(model)
    for height, width in ((96, 128), (120, 101)):
        found = image(height, width)
        difference = compare(detect(model, found), detector(*detector.pad_input(found)))
        assert difference.detections > 20
        assert difference.within(box=1e-3, score=1e-6), difference


def test_what_the_padding_holds_does_not_matter() -> None:
    detector = ExportableDetector(small_model(FLAGSHIP))
    padded, size = detector.pad_input(image(100, 110))
    expected = detector(padded, size)
    padded[:, 100:] = 200
    padded[:, :, 110:] = -3
    for ours, theirs in zip(detector(padded, size), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_the_model_itself_is_left_as_it_is() -> None:
    model = small_model(PLAIN).train()
    detector = ExportableDetector(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.roi_heads.parameters())
    assert not detector.model.training
    assert not any(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize(
    ("size", "padded"),
    [((96, 128), (96, 128)), ((97, 127), (128, 128)), ((1, 300), (96, 320))],
)
def test_pad_input(size: tuple[int, int], padded: tuple[int, int]) -> None:
    given = image(*size)
    ours, before = pad_input(given, divisor=32, least_side=96)
    assert ours.shape == (3, *padded)
    assert before.tolist() == list(size)
    assert torch.equal(ours[:, : size[0], : size[1]], given)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (("MODEL.META_ARCHITECTURE", "ProposalNetwork"), r"META_ARCHITECTURE: ProposalNetwork"),
        (("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"), r"PROPOSAL_GENERATOR\.NAME: RRPN"),
        (("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"), r"GENERATOR\.NAME: NoneType"),
        (("MODEL.KEYPOINT_ON", True, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"), r"KEYPOINT_ON"),
        (("TEST.DETECTIONS_PER_IMAGE", -1), r"TEST\.DETECTIONS_PER_IMAGE: -1"),
    ],
)
def test_refusals(opts: Sequence[object], message: str) -> None:
    cfg = model_zoo.get_config(PLAIN)
    cfg.merge_from_list(list(opts))
    cfg.MODEL.DEVICE = "cpu"
    if "RRPN" in opts:
        cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
        cfg.MODEL.ANCHOR_GENERATOR.ANGLES = [[0]]
        cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0,) * 5
    with pytest.raises(ValueError, match=f"{message}.* cannot be exported, only "):
        ExportableDetector(build_model(cfg))
