"""Pyramids on CSPNet: published sizes, RetinaNet's levels, attention on the outputs."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_plugins import get_cfg
from d2_plugins.modeling.backbone import AttentionFPN
from tests.support.cspnet_cases import RES, count, relative_error
from tests.support.helpers import randomise_norms


def config(arch: str, *, retinanet: bool = False, width: float = 1.0) -> CfgNode:
    cfg = get_cfg()
    kind = "retinanet_cspnet" if retinanet else "cspnet"
    cfg.MODEL.BACKBONE.NAME = f"build_{kind}_fpn_backbone"
    cfg.MODEL.CSPNET.ARCH = arch
    cfg.MODEL.CSPNET.NORM = "BN"
    cfg.MODEL.CSPNET.WIDTH_MULTIPLIER = width
    cfg.MODEL.FPN.IN_FEATURES = list(RES[1:] if retinanet else RES)
    return cfg


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("cspdarknet53", 2_852_864), ("cspresnext50", 3_344_384), ("cs3darknet_x", 2_975_744)],
)
def test_fpn_has_its_published_size(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        fpn = build_backbone(config(arch))
    assert count(fpn) - count(fpn.bottom_up) == parameters
    assert list(fpn.output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    assert fpn.size_divisibility == 32


@pytest.mark.parametrize(("arch", "channels"), [("cspresnext50", 512), ("cs3darknet_s", 128)])
def test_retinanet_levels_come_from_the_last_feature(arch: str, channels: int) -> None:
    fpn = build_backbone(config(arch, retinanet=True, width=0.25)).eval()
    assert fpn.top_block.p6.in_channels == channels
    with torch.no_grad():
        features = fpn(torch.randn(1, 3, 128, 256))
    assert {name: f.shape[1:] for name, f in features.items()} == {
        f"p{level}": (256, 128 // 2**level, 256 // 2**level) for level in range(3, 8)
    }


def test_pyramid_may_end_early() -> None:
    """Pyramid levels are named after their stride, for any choice of input features."""
    cfg = config("cspresnext50", width=0.25)
    cfg.MODEL.CSPNET.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4"]
    fpn = build_backbone(cfg).eval()
    assert not hasattr(fpn.bottom_up, "res5")
    with torch.no_grad():
        features = fpn(torch.randn(1, 3, 64, 64))
    assert {name: f.shape[-1] for name, f in features.items()} == {"p3": 8, "p4": 4, "p5": 2}


def test_attention_on_the_pyramid() -> None:
    """Each output is scaled; the pyramid itself and its keys do not change."""
    image = torch.randn(2, 3, 64, 96)
    cfg = config("cspresnext50", retinanet=True, width=0.25)
    plain = randomise_norms(build_backbone(cfg)).eval()
    cfg.MODEL.ATTENTION.NAME = "eca"
    cfg.MODEL.ATTENTION.STAGES = [False] * 4
    cfg.MODEL.ATTENTION.ON_FPN = True
    with_attention = build_backbone(cfg).eval()
    assert isinstance(with_attention, AttentionFPN)
    missing = with_attention.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys == [f"attention.p{i}.conv.weight" for i in range(3, 8)]
    with torch.no_grad():
        expected, actual = plain(image), with_attention(image)
        for name, feature in expected.items():
            scaled = with_attention.attention[name](feature)
            assert relative_error(actual[name], scaled) < 1e-5
            assert relative_error(actual[name], feature) > 0.1


@pytest.mark.parametrize("ignore", [True, False])
def test_attention_on_the_pyramid_leaves_padding_out(ignore: bool) -> None:
    """Compare the gates only: the pyramid's own features depend on the padding at the border."""
    cfg = config("cs3darknet_s", width=0.5)
    cfg.MODEL.ATTENTION.NAME = "eca"
    cfg.MODEL.ATTENTION.STAGES = [False] * 4
    cfg.MODEL.ATTENTION.ON_FPN = True
    cfg.MODEL.ATTENTION.IGNORE_PADDING = ignore
    fpn = build_backbone(cfg).eval()
    masks: dict[str, tuple[Tensor, ...]] = {}
    for name, gate in fpn.attention.items():
        gate.register_forward_pre_hook(lambda _, args, name=name: masks.update({name: args[1:]}))
    with torch.no_grad():
        fpn(nn.functional.pad(torch.randn(1, 3, 70, 40), (0, 24, 0, 58)))
    for name, stride in (("p2", 4), ("p3", 8), ("p4", 16), ("p5", 32), ("p6", 64)):
        expected = torch.zeros(1, 1, 128 // stride, 64 // stride)
        expected[:, :, : -(-70 // stride), : -(-40 // stride)] = 1
        assert len(masks[name]) == int(ignore)
        assert all(torch.equal(mask, expected) for mask in masks[name])


def test_unknown_input_feature() -> None:
    cfg = config("cspresnext50")
    cfg.MODEL.CSPNET.OUT_FEATURES = ["res4", "res5"]
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"MODEL.FPN.IN_FEATURES is .*returns, res4, res5"),
    ):
        build_backbone(cfg)


def test_a_detector_trains_and_predicts() -> None:
    """Every parameter gets a gradient, and the features fit detectron2's heads."""
    cfg = config("cspresnext50", width=0.25)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.CSPNET.DEPTH_MULTIPLIER = 0.3
    cfg.MODEL.ATTENTION.NAME = "eca"
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model = build_model(cfg)
    instances = Instances((60, 90))
    instances.gt_boxes = Boxes(torch.tensor([[5.0, 5.0, 40.0, 50.0]]))
    instances.gt_classes = torch.tensor([1])
    image = {"image": torch.randint(0, 255, (3, 60, 90)), "instances": instances}
    with EventStorage():
        sum(model([image, image]).values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    with torch.no_grad():
        (result,) = model.eval()([{"image": image["image"], "height": 120, "width": 180}])
    assert result["instances"].image_size == (120, 180)
