"""The whole proposal generator: training, inference, corner cases and config."""

import itertools
import re

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, ImageList, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_plugins import get_cfg
from d2_plugins.modeling.proposal_generator import CascadeRPN, CascadeRPNLoss, CascadeRPNStage
from tests.support.cascade_rpn import (
    LEVELS,
    crpn,
    crpn_cfg,
    image_list,
    instances,
    random_boxes,
    random_features,
)

SIZE = (96, 128)
BOXES = [[16.0, 16, 60, 56], [40, 20, 120, 90], [5, 70, 20, 90]]


def assert_gradients_everywhere(model: nn.Module, losses: dict[str, Tensor]) -> None:
    """DistributedDataParallel needs a gradient for every parameter, if only a zero one."""
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.isfinite(), name
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def assert_proposals(proposals: list[Instances], sizes: list[tuple[int, int]]) -> None:
    for p, (height, width) in zip(proposals, sizes, strict=True):
        boxes, logits = p.proposal_boxes.tensor, p.objectness_logits
        assert boxes.isfinite().all()
        assert logits.isfinite().all()
        assert p.proposal_boxes.nonempty().all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (logits.diff() <= 0).all()


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("loss", ["iou", "giou"])
@pytest.mark.parametrize("gt", [BOXES, [], [[8, 8, 8, 8]], [[127.0, 40, 129, 44]]])
def test_training_pass(stages: int, loss: str, gt: list[list[float]]) -> None:
    """With boxes, without, with an empty one, and with one whose region has no cell."""
    model = crpn(NUM_STAGES=stages, BBOX_REG_LOSS_TYPE=loss).train()
    sizes = [SIZE, (64, 64)]
    features = random_features(SIZE, images=2)
    proposals, losses = model(
        image_list(*sizes), features, [instances(sizes[0], gt), instances(sizes[1], [])]
    )
    regressed = {f"loss_rpn_stage{i}_loc" for i in range(1, stages + 1)}
    assert set(losses) == regressed | {f"loss_rpn_stage{stages}_cls"}
    assert_proposals(proposals, sizes)
    assert_gradients_everywhere(model, losses)
    assert (losses["loss_rpn_stage1_loc"] > 0) == (gt == BOXES)
    assert all(x.grad is not None for x in features.values())


def test_gradient_flow_between_stages() -> None:
    """The second stage trains the first one's convolution, but not its deltas."""
    model = crpn().train()
    _, losses = model(image_list(SIZE), random_features(SIZE), [instances(SIZE, BOXES)])
    (losses["loss_rpn_stage2_loc"] + losses["loss_rpn_stage2_cls"]).backward()
    assert model.stages[0].conv.weight.grad.any()
    assert model.stages[0].bbox_deltas.weight.grad is None


def test_single_cell_and_tiny_images() -> None:
    cfg = crpn_cfg()
    cfg.MODEL.RPN.IN_FEATURES = ["p5"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[256]]
    model = CascadeRPN(cfg, {"p5": ShapeSpec(channels=8, stride=32)}).train()
    for size, gt in itertools.product([(32, 32), (1, 1)], [[[0, 0, 1, 1]], []]):
        features = random_features(size, levels=["p5"])
        assert features["p5"].shape[-2:] == (1, 1)
        proposals, losses = model(image_list(size), features, [instances(size, gt)])
        assert_proposals(proposals, [size])
        assert_gradients_everywhere(model, losses)


def test_five_thousand_boxes() -> None:
    size = (256, 320)
    model = crpn().train()
    gt = instances(size, random_boxes(5000, size))
    proposals, losses = model(image_list(size), random_features(size), [gt])
    assert_proposals(proposals, [size])
    assert_gradients_everywhere(model, losses)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_that_are_not_numbers(bad: float) -> None:
    model = crpn()
    features = {name: x.detach() for name, x in random_features(SIZE).items()}
    features["p3"][0, 2, 4:, 5] = bad
    with pytest.raises(FloatingPointError, match=r"features on p3 are not finite"):
        model.train()(image_list(SIZE), features, [instances(SIZE, BOXES)])
    proposals, _ = model.eval()(image_list(SIZE), features)
    assert len(proposals[0]) > 0
    assert_proposals(proposals, [SIZE])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("stages.0.bbox_deltas", "deltas of stage 1 on p2, p3, p4, p5, p6"),
        ("stages.1.bbox_deltas", "deltas of stage 2 on p2"),
        ("stages.1.objectness", "logits of stage 2 on p2"),
    ],
)
def test_weights_that_are_not_numbers(layer: str, message: str) -> None:
    model = crpn().train()
    model.get_submodule(layer).bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=message):
        model(image_list(SIZE), random_features(SIZE), [instances(SIZE, BOXES)])


def test_training_needs_ground_truth() -> None:
    with pytest.raises(ValueError, match="gt_instances"):
        crpn().train()(image_list(SIZE), random_features(SIZE))


def test_an_image_is_not_affected_by_its_batch() -> None:
    """Beyond the border each image ends: the same proposals alone and next to a larger one."""
    model = crpn().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    size = (64, 64)
    alone = {name: x.detach() for name, x in random_features(size).items()}
    padded = {name: torch.zeros(2, *x.shape[1:]) for name, x in random_features(SIZE).items()}
    for name, x in alone.items():
        padded[name][0, :, : x.shape[2], : x.shape[3]] = x
    # Without biases the padding stays zero in the first stage, as it is for the image alone.
    for name, parameter in model.named_parameters():
        if name.endswith("conv.bias"):
            nn.init.zeros_(parameter)
    (expected,), _ = model(image_list(size), alone)
    boxes = model.run_stages(image_list(size, SIZE, padded=SIZE), padded)[1].boxes
    single = model.run_stages(image_list(size), alone)[1].boxes
    for level, (ours, theirs) in enumerate(zip(boxes, single, strict=True)):
        rows, columns = alone[LEVELS[level]].shape[-2:]
        width = padded[LEVELS[level]].shape[-1]
        inside = ours[0].view(-1, width, 4)[:rows, :columns].reshape(-1, 4)
        torch.testing.assert_close(inside, theirs[0], atol=1e-3, rtol=1e-4)
    assert_proposals([expected], [size])


def test_stage_proposals() -> None:
    model = crpn().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    images, features = image_list(SIZE, (64, 64), padded=SIZE), random_features(SIZE, images=2)
    found = model.stage_proposals(images, features)
    assert list(found) == ["anchors", "stage1", "stage2"]
    for proposals in found.values():
        assert_proposals(proposals, images.image_sizes)
    expected, _ = model(images, features)
    for ours, theirs in zip(found["stage2"], expected, strict=True):
        assert torch.equal(ours.proposal_boxes.tensor, theirs.proposal_boxes.tensor)
        assert torch.equal(ours.objectness_logits, theirs.objectness_logits)
    # Anchors are anchors, clipped; the boxes of the first stage are those the second one saw.
    outputs = model.run_stages(images, features)
    for name, output in (("anchors", outputs[0]), ("stage1", outputs[1])):
        for n, p in enumerate(found[name]):
            cells = Boxes(torch.cat([b[n] for b in output.boxes]))
            cells.clip(images.image_sizes[n])
            known = {tuple(b) for b in cells.tensor.tolist()}
            assert all(tuple(b) in known for b in p.proposal_boxes.tensor.tolist())
            # Ranked by the final objectness: the best box is the best cell's, if it is not empty.
            logits = torch.cat([x[n] for x in outputs[-1].pred_objectness_logits])
            logits[~cells.nonempty()] = -torch.inf
            assert p.proposal_boxes.tensor[0].tolist() == cells.tensor[logits.argmax()].tolist()


def test_it_learns() -> None:
    """Two boxes from fixed random features."""
    torch.manual_seed(3)
    model = crpn(channels=32).train()
    features = {name: x.detach() for name, x in random_features(SIZE, channels=32).items()}
    images, gt = image_list(SIZE), instances(SIZE, BOXES[:2])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        _, losses = model(images, features, [gt])
        model.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    best = {
        name: pairwise_iou(gt.gt_boxes, found.proposal_boxes[:10]).amax(dim=1).mean().item()
        for name, (found,) in model.eval().stage_proposals(images, features).items()
    }
    assert best["stage1"] > best["anchors"] + 0.15, best
    assert best["stage2"] > 0.85, best


def test_the_second_stage_learns_by_itself() -> None:
    torch.manual_seed(3)
    model = crpn(channels=32).train()
    model.stages[0].conv.weight.data.mul_(10)  # features worth learning from
    features = {name: x.detach() for name, x in random_features(SIZE, channels=32).items()}
    optimizer = torch.optim.Adam(model.stages[1].parameters(), lr=5e-3)
    for _ in range(80):
        with EventStorage() as storage:
            _, losses = model(image_list(SIZE), features, [instances(SIZE, BOXES[:2])])
        model.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    before, after = (storage.latest()[f"rpn_stage2/mean_iou_{k}"][0] for k in ("before", "after"))
    assert after > before + 0.15


def test_mixed_precision() -> None:
    model = crpn().train()
    with torch.autocast("cpu", torch.bfloat16):
        proposals, losses = model(image_list(SIZE), random_features(SIZE), [instances(SIZE, BOXES)])
        outputs = model.run_stages(image_list(SIZE), random_features(SIZE))
    assert all(
        x.dtype == torch.float32
        for o in outputs
        for x in (*o.boxes, *o.pred_deltas, *o.pred_objectness_logits)
    )
    assert_proposals(proposals, [SIZE])
    assert_gradients_everywhere(model, losses)


class _Traceable(nn.Module):
    """Feature maps of one image -> boxes and logits."""

    def __init__(self, model: CascadeRPN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor]:
        images = ImageList.from_tensors([image])
        (proposals,), _ = self.model(images, dict(zip(LEVELS, maps, strict=True)))
        return proposals.proposal_boxes.tensor, proposals.objectness_logits


def test_tracing() -> None:
    model = crpn().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    wrapper = _Traceable(model)

    def inputs(size: tuple[int, int]) -> tuple[Tensor, ...]:
        return torch.zeros(3, *size), *(x.detach() for x in random_features(size).values())

    with torch.no_grad():
        traced = torch.jit.trace(wrapper, inputs(SIZE), check_trace=False)
        other = inputs((70, 200))  # the trace is not bound to the size it was made with
        for ours, theirs in zip(traced(*other), wrapper(*other), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def small_detector(architecture: str) -> CfgNode:
    cfg = crpn_cfg()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    return cfg


@pytest.mark.parametrize("architecture", ["ProposalNetwork", "GeneralizedRCNN"])
def test_trains_and_infers_in_a_detector(architecture: str) -> None:
    # Through YAML and back, as a run saves it and an evaluation loads it.
    written = small_detector(architecture).dump()
    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode.load_cfg(written))
    assert yaml.safe_load(cfg.dump()) == yaml.safe_load(written)
    model = build_model(cfg).train()
    assert isinstance(model.proposal_generator, CascadeRPN)
    sizes = [(96, 128), (64, 100)]
    batch = [
        {"image": torch.rand(3, *sizes[0]) * 255, "instances": instances(sizes[0], BOXES)},
        {"image": torch.rand(3, *sizes[1]) * 255, "instances": instances(sizes[1], [])},
    ]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with EventStorage():
        for _ in range(2):
            losses = model(batch)
            optimizer.zero_grad()
            assert_gradients_everywhere(model, losses)
            optimizer.step()
    model.eval()
    with torch.no_grad():
        results = model([{"image": x["image"], "height": 200, "width": 300} for x in batch])
    for result in results:
        found = result["proposals" if architecture == "ProposalNetwork" else "instances"]
        assert found.image_size == (200, 300)
    if architecture == "ProposalNetwork":
        assert len(results[0]["proposals"]) > 0


def test_from_python() -> None:
    """No config needed."""
    strides = (8, 16)
    weights = ((10.0, 10.0, 2.0, 2.0), (20.0, 20.0, 10.0, 10.0))
    model = CascadeRPN(
        in_features=["p3", "p4"],
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[8 * s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.0
        ),
        stages=[
            CascadeRPNStage(
                in_channels=8, adaptive=i > 0, with_objectness=i == 1, bbox_reg_weights=weights[i]
            )
            for i in (0, 1)
        ],
        criterion=CascadeRPNLoss(),
    )
    assert model.anchor_scale == 8
    proposals, _ = model.eval()(image_list(SIZE), random_features(SIZE, levels=["p3", "p4"]))
    assert_proposals(proposals, [SIZE])


def test_parameters_of_the_paper() -> None:
    """1,182,217 of them at 256 channels; two stages, shared by all levels."""
    model = crpn(channels=256)
    assert sum(p.numel() for p in model.parameters()) == 1_182_217
    criterion = model.criterion
    assert (criterion.regression_weight, criterion.score_weight) == (10.0, 1.0)
    assert criterion == CascadeRPNLoss()
    assert [s.box2box_transform.weights for s in crpn(NUM_STAGES=3).stages] == [
        (10, 10, 2, 2),
        (20, 20, 10, 10),
        (20, 20, 10, 10),
    ]


def test_smaller_anchors() -> None:
    cfg = crpn_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    assert crpn(cfg=cfg).anchor_scale == 2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CASCADE_RPN.NUM_STAGES", 0, "CASCADE_RPN.NUM_STAGES is 0; allowed: 1 to 3"),
        ("CASCADE_RPN.NUM_STAGES", 4, "CASCADE_RPN.NUM_STAGES is 4; allowed: 1 to 3"),
        ("CASCADE_RPN.DILATION", 0, "CASCADE_RPN.DILATION is 0; allowed: 1 or more"),
        ("CASCADE_RPN.BBOX_REG_WEIGHTS", (), "CASCADE_RPN.BBOX_REG_WEIGHTS is empty; allowed: "),
        (
            "CASCADE_RPN.BBOX_REG_WEIGHTS",
            ((1.0, 1.0),),
            "CASCADE_RPN.BBOX_REG_WEIGHTS has the entry (1.0, 1.0); allowed: four positive numbers",
        ),
        (
            "CASCADE_RPN.BBOX_REG_LOSS_TYPE",
            "l1",
            "CASCADE_RPN.BBOX_REG_LOSS_TYPE is 'l1'; allowed: iou, giou",
        ),
        ("CASCADE_RPN.CENTER_RATIO", 0.6, "CENTER_RATIO is 0.6; allowed: 0 to IGNORE_RATIO (0.5)"),
        ("CASCADE_RPN.IGNORE_RATIO", 1.5, "CASCADE_RPN.IGNORE_RATIO is 1.5; allowed: 0 to 1"),
        ("CASCADE_RPN.IOU_THRESHOLD", 1.2, "IOU_THRESHOLD is 1.2; allowed: above 0, up to 1"),
        (
            "CASCADE_RPN.IOU_THRESHOLD",
            0.2,
            "LOW_QUALITY_IOU is 0.3; allowed: above 0, up to IOU_THRESHOLD (0.2)",
        ),
        ("CASCADE_RPN.LOW_QUALITY_IOU", 0.0, "CASCADE_RPN.LOW_QUALITY_IOU is 0.0; allowed: above"),
        ("CASCADE_RPN.CELLS_PER_POSITIVE", 0.0, "CELLS_PER_POSITIVE is 0.0; allowed: above 0"),
        ("CASCADE_RPN.SIZE_DIVISIBILITY", 0, "SIZE_DIVISIBILITY is 0; allowed: 1 or more"),
        (
            "ANCHOR_GENERATOR.ASPECT_RATIOS",
            [[0.5, 1.0, 2.0]],
            "ANCHOR_GENERATOR.ASPECT_RATIOS give [3, 3, 3, 3, 3] anchors",
        ),
        ("ANCHOR_GENERATOR.SIZES", [[32, 64]], "ASPECT_RATIOS give [2, 2, 2, 2, 2] anchors"),
        ("ANCHOR_GENERATOR.SIZES", [[32]], "ANCHOR_GENERATOR.SIZES are [8.0, 4.0, 2.0, 1.0, 0.5]"),
        ("ANCHOR_GENERATOR.OFFSET", 0.5, "OFFSET is 0.5; allowed for CascadeRPN: 0.0"),
        ("ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "anchors of 5 numbers per cell"),
        (
            "RPN.IN_FEATURES",
            ["p2", "p9"],
            "RPN.IN_FEATURES is ['p2', 'p9']; allowed: one or more of p2, p3, p4, p5, p6",
        ),
        ("RPN.IN_FEATURES", [], "RPN.IN_FEATURES is []; allowed: "),
    ],
)
def test_config_errors(key: str, value: object, message: str) -> None:
    cfg = crpn_cfg()
    cfg.merge_from_list([f"MODEL.{key}", value])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        crpn(cfg=cfg)
    assert "MODEL." in str(error.value)


@pytest.mark.parametrize(
    ("features", "sizes"),
    [
        (["p2", "p4"], [[32], [128]]),
        (["p3", "p2"], [[64], [32]]),
        (["p3", "p3"], [[64], [64]]),
        (["p2", "p3", "p5"], [[32], [64], [256]]),
    ],
)
def test_levels_whose_strides_do_not_double_are_refused(
    features: list[str], sizes: list[list[int]]
) -> None:
    cfg = crpn_cfg()
    cfg.MODEL.RPN.IN_FEATURES = features
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    with pytest.raises(ValueError, match=r"MODEL\.RPN\.IN_FEATURES has the strides .*; allowed"):
        crpn(cfg=cfg)


def test_other_construction_errors() -> None:
    shapes = {n: ShapeSpec(channels=8 + i, stride=2 ** (i + 2)) for i, n in enumerate(LEVELS)}
    with pytest.raises(
        ValueError, match=r"MODEL\.RPN\.IN_FEATURES is .* with \[8, 9.* same number of channels"
    ):
        CascadeRPN(crpn_cfg(), shapes)
    anchors = DefaultAnchorGenerator(sizes=[32], aspect_ratios=[1.0], strides=[4], offset=0.0)
    stage = CascadeRPNStage(
        in_channels=8, adaptive=False, with_objectness=False, bbox_reg_weights=(1, 1, 1, 1)
    )
    for stages, message in (([], "one stage"), ([stage], "objectness"), ([stage] * 2, "adaptive")):
        with pytest.raises(ValueError, match=message):
            CascadeRPN(
                in_features=["p2"],
                anchor_generator=anchors,
                stages=stages,
                criterion=CascadeRPNLoss(),
            )
