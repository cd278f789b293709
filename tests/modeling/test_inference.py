"""The inference form of a detector detects what the detector does."""

import copy

import pytest
import timm
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn import functional as F

from d2_plugins.export import compare, detect
from d2_plugins.modeling import inference, inference_form
from d2_plugins.modeling.backbone.timm_backbone import TimmBackbone
from tests.support.export_models import FLAGSHIP, MASK, PLAIN, SELECTIVE, image, small_model
from tests.support.helpers import randomise_norms

RESNET = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
ALL_LEVELS = (
    *("MODEL.FPN.IN_FEATURES", ("res4", "res5"), "MODEL.RESNETS.OUT_FEATURES", ("res4", "res5")),
    *("MODEL.TIMM.NAME", "resnet10t", "MODEL.TIMM.CHECKPOINT", "", "MODEL.TIMM.NORM", "BN"),
    *("MODEL.TIMM.OUT_INDICES", (3, 4), "MODEL.WEIGHTS", ""),
)
MODELS = {
    "cspnet": (PLAIN, ("MODEL.CSPNET.NORM", "BN")),
    "flagship, frozen norms, masks": (FLAGSHIP, ("MODEL.CSPNET.NORM", "FrozenBN", *MASK)),
    "selective conv head": (FLAGSHIP, SELECTIVE),
    "double head without ext": (
        FLAGSHIP,
        (
            *("MODEL.DOUBLE_HEAD.LAMBDA_FC", 1.0, "MODEL.DOUBLE_HEAD.LAMBDA_CONV", 1.0),
            *("MODEL.DOUBLE_HEAD.BOX_FUSION", "conv", "MODEL.DOUBLE_HEAD.CONV_BLOCKS", "nonlocal"),
        ),
    ),
    "group norm": (
        FLAGSHIP,
        (
            *("MODEL.CSPNET.NORM", "GN", "MODEL.DOUBLE_HEAD.NORM", "GN"),
            *("MODEL.DOUBLE_HEAD.CONV_DIM", 128, "MODEL.FPN.OUT_CHANNELS", 32),
        ),
    ),
    "cbam, padding ignored": (PLAIN, ("MODEL.ATTENTION.NAME", "cbam")),
    "resnet": (PLAIN, (*ALL_LEVELS, *RESNET, "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")),
    "attention resnet": (
        PLAIN,
        (*ALL_LEVELS, *RESNET, "MODEL.BACKBONE.NAME", "build_attention_resnet_fpn_backbone"),
    ),
    "timm": (PLAIN, (*ALL_LEVELS, "MODEL.BACKBONE.NAME", "build_timm_fpn_backbone")),
}


@pytest.mark.parametrize("name", MODELS)
def test_same_detections(name: str) -> None:
    model = small_model(*MODELS[name])
    form = inference_form(model)
    # The one of CBAM has a single channel.
    assert count_norms(form) == ("cbam" in name)
    assert name == "group norm" or count_norms(model) > 5
    for size in ((96, 128), (120, 101)):
        found = detect(form, image(*size)).get_fields()
        outputs = [found["pred_boxes"].tensor, found["scores"], found["pred_classes"]]
        masks = [found["pred_masks"]] if "pred_masks" in found else []
        difference = compare(detect(model, image(*size)), [*outputs, *masks])
        assert difference.detections > 20
        assert difference.within(box=5e-3, score=1e-4), difference


def count_norms(model: nn.Module) -> int:
    kinds = (FrozenBatchNorm2d, nn.BatchNorm2d)
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("resnet10t", 0),  # norm and activation are separate
        ("mobilenetv3_small_050", 0),  # BatchNormAct2d
        ("tf_mobilenetv3_small_minimal_100", 0),  # Conv2dSame
        ("regnetx_002", 0),
    ],
)
def test_timm_backbones_have_the_same_features(name: str, rest: int, norm: str) -> None:
    torch.manual_seed(0)
    backbone = randomise_norms(TimmBackbone(name=name, norm=norm)).eval()
    form = inference_form(backbone, channels_last=False)
    left = [n for n, m in form.named_modules() if inference._is_foldable(m)]
    assert len(left) == rest, left
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, found = backbone(x), form(x)
    for key, feature in expected.items():
        torch.testing.assert_close(found[key], feature, rtol=1e-4, atol=1e-4 * feature.abs().max())


class PreActivation(nn.Module):
    """Nothing to fold: outputs that are read twice, shared norms, standardised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm, self.shared, self.tail = (nn.BatchNorm2d(3) for _ in range(3))
        self.standardised = timm.layers.StdConv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y = y + self.norm(y)
        y = self.shared(F.relu(self.shared(self.last(y))))
        return self.tail(self.standardised(y))


def test_only_a_convolution_that_the_norm_alone_reads_is_a_pair() -> None:
    assert inference._find_pairs(PreActivation().eval()) == []
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    assert inference._find_pairs(plain.eval()) == [("0", "1")]


def test_a_model_that_cannot_be_probed_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("this model takes 64 x 64 pixels")

    features = Fixed(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    inference._fold_timm(features)
    assert isinstance(features[1], nn.BatchNorm2d)
    assert "64 x 64" in caplog.text


def test_the_model_itself_is_left_as_it_is() -> None:
    model = small_model(FLAGSHIP)
    before = copy.deepcopy(model.state_dict())
    form = inference_form(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in form.parameters())
    assert form.roi_heads.inverted_attention is None


def test_layers_that_inference_does_not_read_are_dropped() -> None:
    key = "MODEL.DOUBLE_HEAD."
    options = (
        *(f"{key}FUSION", "fc", f"{key}BOX_FUSION", "conv"),
        *(f"{key}CONV_HEAD_MIN_SCORE", -1.0, f"{key}CONV_HEAD_NMS_THRESH", 1.0),
    )
    predictor = inference_form(small_model(FLAGSHIP, options)).roi_heads.box_predictor
    assert predictor.cls_score_conv is None
    assert predictor.bbox_pred_fc is None


@pytest.mark.parametrize(
    ("config", "choice", "expected"),
    [(PLAIN, None, True), (PLAIN, True, True), (PLAIN, False, False), (FLAGSHIP, None, False)],
)
def test_channels_last_is_a_choice(config: str, choice: bool | None, expected: bool) -> None:
    form = inference_form(small_model(config), channels_last=choice)
    convs = [m.weight for m in form.modules() if type(m) is Conv2d and m.kernel_size == (3, 3)]
    wide = [w for w in convs if w.shape[1] > 1]
    assert wide
    assert {w.is_contiguous(memory_format=torch.channels_last) for w in wide} == {expected}


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        inference_form(small_model(PLAIN).train())
