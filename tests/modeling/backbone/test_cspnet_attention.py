"""Attention in CSPNet: parameters by position, equality with timm, padding, freezing, errors."""

from dataclasses import replace

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from torch import nn

from d2_plugins import get_cfg
from d2_plugins.checkpoint.cspnet_weights import convert_timm_cspnet
from d2_plugins.layers import CBAM, ECA
from d2_plugins.modeling.backbone import AttentionPlan, CSPNet
from d2_plugins.modeling.backbone.attention_plan import GATE_POSITIONS
from tests.support.cspnet_cases import RES, SMALL, count, like, on_meta, relative_error, timm_model
from tests.support.helpers import randomise_norms

ARCHS = ("cspresnet50", "cspresnext50", "cspdarknet53")
# Parameters that a position adds to these three.
ADDED = {
    ("eca", "block_mid"): (59, 65, 109),
    ("eca", "block_out"): (65, 65, 109),
    ("eca", "branch"): (20, 20, 21),
    ("eca", "concat"): (22, 22, 25),
    ("eca", "stage_out"): (20, 22, 23),
    ("cbam", "block_mid"): (118_536, 464_124, 222_054),
    ("cbam", "block_out"): (464_124, 464_124, 222_472),
    ("cbam", "branch"): (176_520, 176_520, 45_620),
    ("cbam", "concat"): (700_800, 700_800, 178_804),
    ("cbam", "stage_out"): (176_520, 700_800, 177_200),
}
TIMM_ECA = {
    "cspresnet50": 21_616_227,
    "cspresnext50": 20_569_961,
    "cspdarknet53": 27_642_293,
    "cs3darknet_l": 21_164_267,
}


def plan(
    name: str, position: str = "block_out", arch: str = "", **options: object
) -> AttentionPlan:
    """Return attention in every stage, including res1 if there is one."""
    stages = (True,) * (5 if arch in ("cspdarknet53", "darknet53") else 4)
    return AttentionPlan(name=name, position=position, stages=stages, **options)


def gates(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, CBAM | ECA)}


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_that_each_position_adds(arch: str) -> None:
    plain = on_meta(CSPNet, arch=arch)
    keys = set(plain.state_dict())
    for (name, position), added in ADDED.items():
        model = on_meta(CSPNet, arch=arch, attention=plan(name, position, arch))
        assert count(model) - count(plain) == added[ARCHS.index(arch)], (name, position)
        # No other key is renamed.
        new = set(model.state_dict()) - keys
        assert keys <= set(model.state_dict())
        assert all(".attention." in key for key in new)


@pytest.mark.parametrize("arch", TIMM_ECA)
def test_block_mid_is_timms_attention(arch: str) -> None:
    models = pytest.importorskip("timm.models.cspnet")
    stages = models.model_cfgs[arch].stages
    count_of_stages = len(stages.depth)
    theirs = timm_model(
        arch,
        stages=replace(
            stages, attn_layer=("eca",) * count_of_stages, attn_kwargs=(None,) * count_of_stages
        ),
    )
    ours = like(
        convert_timm_cspnet(theirs.state_dict()),
        arch=arch,
        num_classes=1000,
        attention=plan("eca", "block_mid", arch),
    )
    assert count(ours) == count(theirs) == TIMM_ECA[arch]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(ours(image)["linear"], theirs(image)) < 1e-5


def test_stages_and_kernel_sizes() -> None:
    attention = AttentionPlan(
        name="eca", stages=(True, False, True, False), kernel_sizes=(3, 5, 7, 9)
    )
    model = on_meta(CSPNet, arch="cspdarknet53", attention=attention)
    sizes = {name.split(".")[0]: gate.conv.kernel_size for name, gate in gates(model).items()}
    assert sizes == {"res2": (3,), "res4": (7,)}
    attention = replace(attention, stages=(True, *attention.stages), kernel_sizes=(9, 3, 5, 7, 9))
    model = on_meta(CSPNet, arch="cspdarknet53", attention=attention)
    sizes = {name.split(".")[0]: gate.conv.kernel_size for name, gate in gates(model).items()}
    assert sizes == {"res1": (9,), "res2": (3,), "res4": (7,)}


@pytest.mark.parametrize("position", GATE_POSITIONS)
@pytest.mark.parametrize(
    ("arch", "size"),
    [
        ("cspresnext50", (77, 90)),
        ("cspresnet50d", (77, 90)),
        ("cspdarknet53", (77, 90)),
        ("cs3darknet_focus_s", (78, 90)),
    ],
)
def test_features_of_an_image_do_not_depend_on_its_padding(
    arch: str, size: tuple[int, int], position: str
) -> None:
    """Valid cells are equal up to the border; pooling over the padding changes them clearly."""
    options = {"arch": arch, "out_features": ("stem", *RES), "width_multiplier": 0.5}
    errors = []
    height, width = size
    alone = torch.randn(1, 3, height, width)
    batch = torch.zeros(2, 3, 128, 160)
    batch[1] = torch.randn(3, 128, 160)
    batch[:1, :, :height, :width] = alone
    for ignore in (True, False):
        torch.manual_seed(2)
        attention = plan("cbam", position, arch, ignore_padding=ignore)
        model = randomise_norms(
            CSPNet(**options, depth_multiplier=0.34, attention=attention)
        ).eval()
        with torch.no_grad():
            expected, actual = model(alone), model(batch)
        errors.append(
            max(
                relative_error(actual[name][:1, :, : f.shape[2], : f.shape[3]], f)
                for name, f in expected.items()
            )
        )
    assert errors[0] < 1e-5
    assert errors[1] > 1e-2


@pytest.mark.parametrize("arch", ["cspresnet50", "cs3darknet_s"])
def test_local_attention_replaces_the_shortcut(arch: str) -> None:
    """The stage is that of the plain network, with the attention on the half without blocks."""
    torch.manual_seed(4)
    options = {"arch": arch, "width_multiplier": 0.5, "depth_multiplier": 0.34}
    model = CSPNet(**options, out_features=RES, attention=plan("local", "cross", heads=2))
    randomise_norms(model).eval()
    stage = model.res2
    x = torch.randn(1, stage.conv_down.in_channels if stage.conv_down else 32, 12, 16)
    with torch.no_grad():
        halves = stage.conv_exp(stage._downsample(x)).chunk(2, dim=1)
        blocks, cross = halves if arch == "cs3darknet_s" else reversed(halves)
        for block in stage.blocks:
            blocks = block(blocks)
        cross = stage.attention(cross)
        if arch == "cs3darknet_s":
            both = [blocks, cross]
        else:
            both = [cross, stage.conv_transition_b(blocks)]
        assert relative_error(stage(x), stage.conv_transition(torch.cat(both, 1))) < 1e-6

        alone = torch.randn(1, 3, 78, 90)
        expected = model(alone)
        actual = model(nn.functional.pad(alone, (0, 38, 0, 50)))
    for name, feature in expected.items():
        valid = actual[name][..., : feature.shape[2], : feature.shape[3]]
        assert relative_error(valid, feature) < 1e-5


def test_local_attention_learns_when_all_else_is_frozen() -> None:
    model = CSPNet(
        arch="cspresnet50",
        norm="FrozenBN",
        freeze_at=5,
        out_features=RES,
        attention=plan("local", "cross", heads=2),
        **SMALL,
    )
    features = model.train()(torch.randn(2, 3, 64, 64))
    sum(feature.square().mean() for feature in features.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".attention." in name)
        assert not parameter.requires_grad or parameter.grad.any(), name


def test_darknet_stages_ignore_padding_too() -> None:
    torch.manual_seed(3)
    model = CSPNet(arch="darknet53", out_features=RES, attention=plan("eca", "block_out"), **SMALL)
    randomise_norms(model).eval()
    alone = torch.randn(1, 3, 70, 50)
    with torch.no_grad():
        expected = model(alone)
        actual = model(nn.functional.pad(alone, (0, 14, 0, 26)))
    for name, feature in expected.items():
        valid = actual[name][..., : feature.shape[2], : feature.shape[3]]
        assert relative_error(valid, feature) < 1e-5


@pytest.mark.parametrize("arch", ["cspresnext50", "cspdarknet53", "cs3darknet_s"])
@pytest.mark.parametrize("position", GATE_POSITIONS)
def test_new_attention_is_never_frozen(arch: str, position: str) -> None:
    """Every attention parameter still learns when all layers and norms are frozen."""
    model = CSPNet(
        arch=arch,
        norm="FrozenBN",
        freeze_at=5,
        out_features=RES,
        attention=plan("cbam", position, arch, reduction=4),
        width_multiplier=0.5,
        depth_multiplier=0.34,
    )
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".attention." in name}
    assert not any(
        isinstance(m, FrozenBatchNorm2d) for g in gates(model).values() for m in g.modules()
    )
    reached = dict.fromkeys(trainable, False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    # CBAM's spatial norm starts at 0 and lets the gradient reach its convolution from step 2 on.
    for _ in range(2):
        optimizer.zero_grad()
        features = model.train()(torch.randn(2, 3, 64, 64))
        sum(feature.square().mean() for feature in features.values()).backward()
        optimizer.step()
        for name in trainable:
            reached[name] |= bool(model.get_parameter(name).grad.any())
    assert all(reached.values()), [name for name, hit in reached.items() if not hit]


@pytest.mark.parametrize(
    ("arch", "keys", "message"),
    [
        ("cspresnet50", {"NAME": "ecca"}, "MODEL.ATTENTION .NAME 'ecca'.*eca, cbam, se"),
        ("cspresnet50", {"POSITION": "inside"}, "POSITION is 'inside'.*block_mid.*stage_out"),
        ("darknet53", {"POSITION": "concat"}, "POSITION is 'concat'.*block_out, stage_out"),
        ("cspresnet50", {"POSITION": "cross"}, "POSITION is 'cross'.*NAME 'eca': block_mid"),
        ("cspresnet50", {"NAME": "local"}, "POSITION is 'block_out'.*NAME 'local': cross"),
        (
            "darknet53",
            {"NAME": "local", "POSITION": "cross"},
            "NAME is 'local'; allowed in this backbone, which has no cross-stage shortcut: '', eca",
        ),
        (
            "cspresnet50",
            {"NAME": "local", "POSITION": "cross", "HEADS": 48},
            "HEADS 48. for 128 channels: heads is 48; allowed",
        ),
        ("cspresnet50", {"STAGES": [True] * 5}, "STAGES.*5 entries.*4 .res2..res5"),
        ("cspdarknet53", {"STAGES": [True] * 3}, "STAGES.*3 entries.*5 .res1..res5"),
        (
            "cspresnet50",
            {"KERNEL_SIZES": [3, 5]},
            "is .3, 5., 2 entries; allowed: none, or 4",
        ),
        (
            "cspresnet50",
            {"KERNEL_SIZES": [3, 4, 5, 5]},
            "kernel_size is 4; allowed for ECA: odd",
        ),
        (
            "cspresnet50",
            {"NAME": "cbam", "REDUCTION": 4096},
            "reduction is 4096; allowed .*: 1 to 128",
        ),
    ],
)
def test_config_errors_name_the_key(arch: str, keys: dict[str, object], message: str) -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_cspnet_backbone"
    cfg.MODEL.CSPNET.ARCH = arch
    cfg.MODEL.ATTENTION.NAME = "eca"
    for key, value in keys.items():
        cfg.MODEL.ATTENTION[key] = value
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_backbone(cfg)
