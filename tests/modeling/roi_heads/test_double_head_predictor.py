import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from d2_plugins.modeling.roi_heads import DoubleHeadOutputLayers, fuse_scores
from tests.support.roi_heads import NUM_CLASSES, random_boxes

EXT = {"lambda_fc": 0.7, "lambda_conv": 0.8}
NAMES = ("loss_cls", "loss_box_reg", "loss_cls_conv", "loss_box_reg_fc")


def make(**kwargs: object) -> DoubleHeadOutputLayers:
    torch.manual_seed(0)
    return DoubleHeadOutputLayers(
        ShapeSpec(channels=12),
        conv_dim=10,
        num_classes=NUM_CLASSES,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        **kwargs,
    )


def vectors(count: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 12), torch.randn(count, 10)


def proposals(count: int = 9) -> list[Instances]:
    p = Instances((256, 256))
    p.proposal_boxes = Boxes(random_boxes(count))
    p.gt_boxes = Boxes(p.proposal_boxes.tensor + torch.randn(count, 4))
    p.gt_classes = torch.arange(count) % (NUM_CLASSES + 1)
    return [p]


class UnitLosses(FastRCNNOutputLayers):
    """Stands in for detectron2's losses: each is 1 before its weight."""

    def losses(self, predictions, proposals):
        return {k: self.loss_weight.get(k, 1.0) for k in ("loss_cls", "loss_box_reg")}


class UnitDoubleHead(DoubleHeadOutputLayers, UnitLosses):
    pass


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (EXT, (1.4, 2.0, 0.5, 0.6)),
        ({}, (2.0, 2.5)),
        ({"loss_weight_fc": 4.0, **EXT}, (2.8, 2.0, 0.5, 1.2)),
        ({"loss_weight_conv": 5.0, **EXT}, (1.4, 4.0, 1.0, 0.6)),
        (
            {"loss_weight": {"loss_cls": 1.5, "loss_box_reg": 10.0}, **EXT},
            (2.1, 20.0, 0.75, 6.0),
        ),
    ],
)
def test_loss_weights(settings: dict, expected: tuple[float, ...]) -> None:
    layers = UnitDoubleHead(
        ShapeSpec(channels=12),
        conv_dim=10,
        num_classes=NUM_CLASSES,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        **settings,
    )
    with EventStorage():
        losses = layers.losses(layers(vectors()), proposals())
    assert losses == pytest.approx(dict(zip(NAMES, expected, strict=False)))


@pytest.mark.parametrize("loss_type", ["smooth_l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_losses_are_detectron2s_of_each_head(loss_type: str, agnostic: bool) -> None:
    settings = {
        "box_reg_loss_type": loss_type,
        "cls_agnostic_bbox_reg": agnostic,
        "smooth_l1_beta": 1.0,
    }
    layers = make(**settings, **EXT)
    rois = proposals()
    predictions = layers(vectors())
    scores, deltas, scores_conv, deltas_fc = predictions
    single = FastRCNNOutputLayers(
        ShapeSpec(channels=12),
        num_classes=NUM_CLASSES,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        **settings,
    )
    with EventStorage() as storage:
        losses = layers.losses(predictions, rois)
        logged = set(storage.latest())
        fc = single.losses((scores, deltas_fc), rois)
        conv = single.losses((scores_conv, deltas), rois)
    torch.testing.assert_close(losses["loss_cls"], fc["loss_cls"] * 1.4)
    torch.testing.assert_close(losses["loss_box_reg_fc"], fc["loss_box_reg"] * 0.6)
    torch.testing.assert_close(losses["loss_box_reg"], conv["loss_box_reg"] * 2.0)
    torch.testing.assert_close(losses["loss_cls_conv"], conv["loss_cls"] * 0.5)
    assert {"fast_rcnn/cls_accuracy", "unfocused/fast_rcnn/cls_accuracy"} <= logged


def test_smooth_l1_by_hand() -> None:
    layers = make(smooth_l1_beta=1.0, cls_agnostic_bbox_reg=True)
    rois = proposals(1)
    rois[0].gt_boxes = rois[0].proposal_boxes
    rois[0].gt_classes[:] = 0
    for delta, expected in ((0.5, 0.125), (2.0, 1.5)):
        deltas = torch.tensor([[delta, 0.0, 0.0, 0.0]])
        with EventStorage():
            losses = layers.losses((torch.zeros(1, NUM_CLASSES + 1), deltas), rois)
        assert losses["loss_box_reg"].item() == pytest.approx(2.5 * expected)


def test_layers_exist_only_where_they_are_trained() -> None:
    focused = {"cls_score", "bbox_pred"}
    for settings, extra in (
        ({}, set()),
        ({"lambda_conv": 0.8}, {"cls_score_conv"}),
        ({"lambda_fc": 0.7}, {"bbox_pred_fc"}),
        (EXT, {"cls_score_conv", "bbox_pred_fc"}),
    ):
        layers = make(**settings)
        assert {name.split(".")[0] for name in layers.state_dict()} == focused | extra
        with EventStorage():
            losses = layers.losses(layers(vectors()), proposals())
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.any() for p in layers.parameters())
        assert len(losses) == 2 + len(extra)


def test_a_plain_double_head_predicts_detectron2s_pair() -> None:
    layers = make()
    x_fc, x_conv = vectors()
    scores, deltas = layers((x_fc, x_conv))
    assert torch.equal(scores, layers.cls_score(x_fc))
    assert torch.equal(deltas, layers.bbox_pred(x_conv))


def test_fusion_by_hand() -> None:
    fc, conv = torch.tensor([0.6]), torch.tensor([0.5])
    for mode, expected in (
        ("complementary", 0.8),
        ("fc", 0.6),
        ("conv", 0.5),
        ("max", 0.6),
        ("mean", 0.55),
    ):
        assert fuse_scores(fc, conv, mode).item() == pytest.approx(expected)


def test_complementary_fusion_keeps_its_bounds() -> None:
    fc, conv = torch.rand(2, 50, 4)
    fused = fuse_scores(fc, conv)
    torch.testing.assert_close(fused, fuse_scores(conv, fc))
    torch.testing.assert_close(fused, 1 - (1 - fc) * (1 - conv), atol=1e-6, rtol=0)
    assert (fused >= torch.maximum(fc, conv)).all()
    assert (fused <= 1).all()
    zero = torch.zeros_like(fc)
    assert torch.equal(fuse_scores(fc, zero), fc)
    assert torch.equal(fuse_scores(zero, fc), fc)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("fusion", ["complementary", "fc", "conv", "max", "mean"])
def test_predicted_probabilities_are_fused(fusion: str, sigmoid: bool) -> None:
    layers = make(fusion=fusion, use_sigmoid_ce=sigmoid, **EXT)
    predictions = layers(vectors())
    to_prob = torch.sigmoid if sigmoid else lambda x: x.softmax(1)
    (probs,) = layers.predict_probs(predictions, proposals())
    expected = fuse_scores(to_prob(predictions[0]), to_prob(predictions[2]), fusion)
    assert torch.equal(probs, expected)


def test_ext_with_fc_scores_detects_what_the_plain_head_detects() -> None:
    ext, plain = make(fusion="fc", **EXT), make()
    plain.load_state_dict(ext.state_dict(), strict=False)
    x, rois = vectors(), proposals()
    for a, b in zip(
        ext.inference(ext(x), rois)[0], plain.inference(plain(x), rois)[0], strict=True
    ):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores)
    boxes = ext.predict_boxes(ext(x), rois)
    torch.nn.init.normal_(ext.bbox_pred_fc.weight)
    assert torch.equal(ext.predict_boxes(ext(x), rois)[0], boxes[0])
    gt = ext.predict_boxes_for_gt_classes(ext(x), rois)[0]
    columns = torch.arange(len(gt)).remainder(NUM_CLASSES + 1).clamp(max=NUM_CLASSES - 1)
    assert torch.equal(gt, boxes[0].view(len(gt), -1, 4)[torch.arange(len(gt)), columns])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_fc": 0.0}, r"MODEL.DOUBLE_HEAD.LAMBDA_FC is 0.0.*\(0, 1\]"),
        ({"lambda_conv": 1.2}, r"MODEL.DOUBLE_HEAD.LAMBDA_CONV is 1.2"),
        ({"fusion": "sum", **EXT}, r"MODEL.DOUBLE_HEAD.FUSION is 'sum'.*complementary"),
        ({"fusion": "conv"}, r"FUSION is 'conv', but with MODEL.DOUBLE_HEAD.LAMBDA_CONV 1"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
