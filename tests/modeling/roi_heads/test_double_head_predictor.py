import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from d2_plugins.modeling.roi_heads import DoubleHeadOutputLayers, fuse_boxes, fuse_scores
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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (EXT, (1.4, 2.0, 0.5, 0.6)),
        ({}, (2.0, 2.5)),
        ({"lambda_fc": 0.7}, (1.4, 2.5, None, 0.6)),
        ({"lambda_conv": 0.8}, (2.0, 2.0, 0.5, None)),
        ({"loss_weight_fc": 4.0, **EXT}, (2.8, 2.0, 0.5, 1.2)),
        ({"loss_weight_conv": 5.0, **EXT}, (1.4, 4.0, 1.0, 0.6)),
        (
            {"loss_weight": {"loss_cls": 1.5, "loss_box_reg": 10.0}, **EXT},
            (2.1, 20.0, 0.75, 6.0),
        ),
    ],
)
def test_loss_weights(settings: dict, expected: tuple[float | None, ...]) -> None:
    layers, rois = make(**settings), proposals()
    predictions = layers(vectors())
    scores, deltas, scores_conv, deltas_fc = (*predictions, None, None)[:4]
    single = FastRCNNOutputLayers(
        ShapeSpec(channels=12),
        num_classes=NUM_CLASSES,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
    )
    with EventStorage():
        losses = layers.losses(predictions, rois)
        unit = single.losses((scores, deltas), rois)
        if scores_conv is not None:
            unit["loss_cls_conv"] = single.losses((scores_conv, deltas), rois)["loss_cls"]
        if deltas_fc is not None:
            unit["loss_box_reg_fc"] = single.losses((scores, deltas_fc), rois)["loss_box_reg"]
    weights = {name: (losses[name] / unit[name]).item() for name in losses}
    wanted = dict(zip(NAMES, expected, strict=False))
    assert weights == pytest.approx({k: v for k, v in wanted.items() if v is not None})


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
    # The accuracy is that of the fc head, logged once.
    assert {name for name in logged if "cls_accuracy" in name} == {
        "fast_rcnn/cls_accuracy",
        "fast_rcnn/fg_cls_accuracy",
    }


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


def test_fused_boxes_by_hand() -> None:
    fc, conv = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 4.0]])
    for mode, expected in (("conv", [3.0, 4.0]), ("fc", [1.0, -2.0]), ("mean", [2.0, 1.0])):
        assert fuse_boxes(fc, conv, mode).tolist() == [expected]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("box_fusion", ["conv", "fc", "mean"])
def test_boxes_are_fused_wherever_they_are_predicted(box_fusion: str, agnostic: bool) -> None:
    layers = make(box_fusion=box_fusion, cls_agnostic_bbox_reg=agnostic, **EXT)
    for layer in (layers.bbox_pred, layers.bbox_pred_fc):
        torch.nn.init.normal_(layer.weight)
    predictions, rois = layers(vectors()), proposals()
    _, conv, _, fc = predictions
    deltas = {"conv": conv, "fc": fc, "mean": (fc + conv) / 2}[box_fusion]
    expected = layers.box2box_transform.apply_deltas(deltas, rois[0].proposal_boxes.tensor)
    assert torch.equal(layers.predict_boxes(predictions, rois)[0], expected)
    columns = rois[0].gt_classes.clamp(max=NUM_CLASSES - 1) * (not agnostic)
    of_gt_class = expected.unflatten(1, (-1, 4))[torch.arange(len(columns)), columns]
    assert torch.equal(layers.predict_boxes_for_gt_classes(predictions, rois)[0], of_gt_class)


@pytest.mark.parametrize("box_fusion", ["conv", "fc", "mean"])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("fusion", ["complementary", "fc", "conv", "max", "mean"])
def test_rois_that_skip_the_conv_head_are_the_fc_head_s(
    fusion: str, sigmoid: bool, box_fusion: str
) -> None:
    layers = make(fusion=fusion, box_fusion=box_fusion, use_sigmoid_ce=sigmoid, **EXT)
    for layer in (layers.bbox_pred, layers.bbox_pred_fc):
        torch.nn.init.normal_(layer.weight)
    (x_fc, x_conv), rois = vectors(), proposals()
    chosen = torch.tensor([1, 4, 5])
    skipped = torch.tensor([0, 2, 3, 6, 7, 8])
    everything = layers((x_fc, x_conv))
    some = layers((x_fc, x_conv[chosen]), chosen)
    (probs,), (boxes,) = (f(some, rois) for f in (layers.predict_probs, layers.predict_boxes))
    torch.testing.assert_close(probs[chosen], layers.predict_probs(everything, rois)[0][chosen])
    torch.testing.assert_close(boxes[chosen], layers.predict_boxes(everything, rois)[0][chosen])
    scores, _, _, deltas_fc = everything
    of_fc = scores.sigmoid() if sigmoid else scores.softmax(1)
    assert torch.equal(probs[skipped, :-1], of_fc[skipped, :-1])
    fc_boxes = layers.box2box_transform.apply_deltas(deltas_fc, rois[0].proposal_boxes.tensor)
    torch.testing.assert_close(boxes[skipped], fc_boxes[skipped])


def test_without_boxes_of_the_fc_head_skipped_rois_stay_where_they_are() -> None:
    layers, (x_fc, x_conv), rois = make(), vectors(), proposals()
    boxes = layers.predict_boxes(layers((x_fc, x_conv[:0]), torch.tensor([]).long()), rois)[0]
    given = rois[0].proposal_boxes.tensor
    torch.testing.assert_close(boxes, given.repeat(1, NUM_CLASSES))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"test_score_thresh": 0.2}, 0.2),
        ({"test_score_thresh": 0.2, "fusion": "fc", **EXT}, 0.2),
        ({"test_score_thresh": 0.2, **EXT}, 0.05),
        ({"fusion": "fc", "box_fusion": "fc", **EXT}, 1.0),
        ({"conv_head_min_score": -1.0}, -1.0),
        ({"conv_head_min_score": 0.3, **EXT}, 0.3),
    ],
)
def test_least_score_for_the_conv_head(settings: dict, expected: float) -> None:
    layers = make(**settings)
    assert layers.conv_head_min_score == expected
    assert layers.is_selective == (expected >= 0)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_rois_are_chosen_by_their_best_foreground_score(sigmoid: bool) -> None:
    layers = make(conv_head_min_score=0.4, use_sigmoid_ce=sigmoid)
    probs = torch.tensor([[0.3, 0.1, 0.2, 0.4], [0.1, 0.45, 0.0, 0.45], [0.4, 0.4, 0.1, 0.1]])
    logits = probs.logit() if sigmoid else probs.log()
    # Just below and just above the threshold; the background's score does not count.
    logits[2, 0] -= 1e-3
    logits[2, 1] -= 1e-3
    rois = torch.cat([torch.zeros(3, 1), random_boxes(3)], dim=1)
    assert layers.choose(logits, None, rois).tolist() == [1]
    assert layers.choose(logits[:0], None, rois[:0]).tolist() == []


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("with_deltas", [False, True])
def test_near_duplicates_are_dropped_by_class_and_image(with_deltas: bool, agnostic: bool) -> None:
    layers = make(
        conv_head_min_score=0.1,
        conv_head_nms_thresh=0.8,
        cls_agnostic_bbox_reg=agnostic,
        **(EXT if with_deltas else {}),
    )
    box = [0.0, 0.0, 100.0, 100.0]
    near, far = [0.0, 0.0, 100.0, 90.0], [0.0, 0.0, 100.0, 70.0]  # IoU 0.9 and 0.7
    # image, box, class, score
    table = [
        (0, near, 0, 0.5),  # worse than the next one and close to it
        (0, box, 0, 0.6),
        (0, box, 1, 0.5),  # another class
        (1, box, 0, 0.5),  # another image
        (0, far, 0, 0.5),  # not close
        (0, [150.0, 0.0, 200.0, 100.0], 2, 0.05),  # no good score
    ]
    boxes = torch.tensor([row[1] for row in table])
    logits = torch.full((len(table), NUM_CLASSES + 1), 1e-6)
    for i, (_, _, label, score) in enumerate(table):
        logits[i, label], logits[i, -1] = score, 1 - score
    deltas = None
    if with_deltas:
        # The fc head's boxes count: RoIs far apart that it moves to the boxes above.
        given = boxes + torch.arange(len(table))[:, None] * 1000
        deltas = layers.box2box_transform.get_deltas(given, boxes)
        if not agnostic:
            own = torch.nn.functional.one_hot(torch.tensor([r[2] for r in table]), NUM_CLASSES)
            deltas = (own[:, :, None] * deltas[:, None]).flatten(1)
        boxes = given
    rois = torch.cat([torch.tensor([[float(row[0])] for row in table]), boxes], dim=1)
    assert sorted(layers.choose(logits.log(), deltas, rois).tolist()) == [1, 2, 3, 4]
    layers.conv_head_nms_thresh = 1.0
    assert layers.choose(logits.log(), deltas, rois).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_fc": 0.0}, "MODEL.DOUBLE_HEAD.LAMBDA_FC is 0.0; allowed: above 0, at most 1"),
        ({"lambda_conv": 1.2}, r"MODEL.DOUBLE_HEAD.LAMBDA_CONV is 1.2"),
        ({"fusion": "sum", **EXT}, r"MODEL.DOUBLE_HEAD.FUSION is 'sum'.*complementary"),
        ({"box_fusion": "max", **EXT}, r"DOUBLE_HEAD.BOX_FUSION is 'max'; allowed: conv, fc, mean"),
        ({"box_fusion": "mean"}, r"BOX_FUSION is 'mean', but with MODEL.DOUBLE_HEAD.LAMBDA_FC 1"),
        ({"box_fusion": "fc", "lambda_conv": 0.8}, "LAMBDA_FC 1 the fc head has no boxes"),
        ({"conv_head_nms_thresh": 0.0}, "CONV_HEAD_NMS_THRESH is 0.0; allowed: above 0"),
        ({"fusion": "conv"}, r"FUSION is 'conv', but with MODEL.DOUBLE_HEAD.LAMBDA_CONV 1"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)
