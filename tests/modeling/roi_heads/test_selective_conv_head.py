"""At inference the conv head of a Double-Head sees only the RoIs that need it."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from tests.support.roi_heads import (
    EXT,
    Batch,
    detect,
    make_batch,
    make_detector_cfg,
    make_heads,
    train_step,
)

MIN_SCORE = "MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE"
SCORE_THRESH = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
DOUBLE_HEADS = ("DoubleHeadROIHeads", "CascadeDoubleHeadROIHeads")


def make(name: str, *overrides: object) -> ROIHeads:
    """Heads whose scores and boxes differ from RoI to RoI, as a trained model's do."""
    heads = make_heads(name, *overrides)
    torch.manual_seed(4)
    for key, parameter in heads.named_parameters():
        if "cls_score" in key and key.endswith("weight"):
            nn.init.normal_(parameter, std=4.0)
        elif "bbox_pred" in key and key.endswith("weight"):
            nn.init.normal_(parameter, std=0.1)
    return heads


def count_rois(heads: ROIHeads) -> list[int]:
    """Record the number of RoIs in each call of a conv head."""
    counts: list[int] = []
    box_heads = heads.box_head if isinstance(heads.box_head, nn.ModuleList) else [heads.box_head]
    for head in box_heads:
        head.conv_head.register_forward_hook(lambda _, args, __: counts.append(len(args[0])))
    return counts


def assert_same_detections(ours: list[Instances], theirs: list[Instances]) -> None:
    """Equal up to the rounding of a product of another size."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.get_fields().keys() == b.get_fields().keys()
        assert a.pred_classes.tolist() == b.pred_classes.tolist()
        torch.testing.assert_close(a.scores, b.scores)
        torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor)
        if a.has("pred_masks"):
            torch.testing.assert_close(a.pred_masks, b.pred_masks, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
        ("MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True),
        ("MODEL.DOUBLE_HEAD.REG_ROI_SCALE", 1.0),
        ("MODEL.DOUBLE_HEAD.CONV_BLOCKS", "nonlocal"),
        ("MODEL.ROI_HEADS.NUM_CLASSES", 1),
        ("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True),
        ("MODEL.ROI_HEADS.IN_FEATURES", ["p3"]),
        (*EXT, "MODEL.DOUBLE_HEAD.FUSION", "fc"),
    ],
    ids=lambda settings: " ".join(map(str, settings)) or "plain",
)
def test_detections_are_the_same_where_the_fc_head_scores(settings: tuple) -> None:
    settings = (*settings, SCORE_THRESH, 0.5)
    selective = make("DoubleHeadROIHeads", *settings)
    all_rois = make("DoubleHeadROIHeads", *settings, MIN_SCORE, -1.0)
    counts, all_counts = count_rois(selective), count_rois(all_rois)
    found, expected = detect(selective, make_batch()), detect(all_rois, make_batch())
    assert 0 < counts[0] < all_counts[0] == 60
    assert all(len(i) > 0 for i in expected)
    assert_same_detections(found, expected)


@pytest.mark.parametrize("name", DOUBLE_HEADS)
def test_training_does_not_know_the_threshold(name: str) -> None:
    a = train_step(make(name, *EXT, MIN_SCORE, 0.9), make_batch())
    b = train_step(make(name, *EXT, MIN_SCORE, -1.0), make_batch())
    for ours, theirs in zip(a[:2], b[:2], strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("box_fusion", ["conv", "mean"])
def test_an_ext_head_by_hand(box_fusion: str) -> None:
    heads = make(
        "DoubleHeadROIHeads",
        *EXT,
        *(MIN_SCORE, 0.7, "MODEL.DOUBLE_HEAD.BOX_FUSION", box_fusion),
    ).eval()
    _, features, proposals, _ = make_batch()
    head, predictor = heads.box_head, heads.box_predictor
    maps = [features[f] for f in heads.box_in_features]
    regions = heads.box_pooler(maps, [p.proposal_boxes for p in proposals])
    everything = predictor(head(regions))
    scores, deltas, scores_conv, deltas_fc = everything
    fc, conv = scores.softmax(1), scores_conv.softmax(1)
    passes = fc[:, :-1].amax(1, keepdim=True) > 0.7
    assert 0 < passes.sum() < len(passes)
    if box_fusion == "mean":
        deltas = (deltas + deltas_fc) / 2
    probs = torch.where(passes, 1 - (1 - fc) * (1 - conv), fc)[:, :-1]
    boxes = predictor.box2box_transform.apply_deltas(
        torch.where(passes, deltas, deltas_fc),
        torch.cat([p.proposal_boxes.tensor for p in proposals]),
    )
    some = heads.predict_rois(maps, proposals, head, predictor)
    torch.testing.assert_close(torch.cat(predictor.predict_probs(some, proposals))[:, :-1], probs)
    torch.testing.assert_close(torch.cat(predictor.predict_boxes(some, proposals)), boxes)


@pytest.mark.parametrize("name", DOUBLE_HEADS)
@pytest.mark.parametrize("ext", [(), EXT], ids=["plain", "ext"])
@pytest.mark.parametrize("blocks", ["bottleneck", "nonlocal"])
def test_all_rois_or_none_pass(name: str, ext: tuple, blocks: str) -> None:
    settings = (*ext, "MODEL.DOUBLE_HEAD.CONV_BLOCKS", blocks)
    expected = detect(make(name, *settings, MIN_SCORE, -1.0), make_batch())
    heads = make(name, *settings, MIN_SCORE, 0.0)
    counts = count_rois(heads)
    assert_same_detections(detect(heads, make_batch()), expected)
    assert set(counts) == {60}
    heads = make(name, *settings, MIN_SCORE, 1.0)
    counts = count_rois(heads)
    found = detect(heads, make_batch())
    assert set(counts) == {0}
    assert all(len(i) > 0 for i in found)  # with the fc head's scores
    heads = make(name, *settings, MIN_SCORE, 0.5)
    assert [len(i) for i in detect(heads, make_batch(num_proposals=0))] == [0, 0]


def test_without_conv_head_its_weights_do_not_matter() -> None:
    fusion = ("MODEL.DOUBLE_HEAD.FUSION", "fc", "MODEL.DOUBLE_HEAD.BOX_FUSION", "fc")
    heads = make("DoubleHeadROIHeads", *EXT, *fusion)
    expected = detect(make("DoubleHeadROIHeads", *EXT, *fusion, MIN_SCORE, -1.0), make_batch())
    counts = count_rois(heads)
    assert_same_detections(detect(heads, make_batch()), expected)
    assert counts == [0]


def test_a_cascade_selects_in_each_stage() -> None:
    assert not any(p.is_selective for p in make("CascadeDoubleHeadROIHeads", *EXT).box_predictor)
    assert not any(p.is_selective for p in make("CascadeDoubleHeadROIHeads").box_predictor)
    heads = make("CascadeDoubleHeadROIHeads", *EXT, MIN_SCORE, 0.6)
    counts, batch = count_rois(heads), make_batch()
    stages: list[list[Boxes]] = []
    locate = heads.box_pooler.locate
    heads.box_pooler.locate = lambda boxes: stages.append(boxes) or locate(boxes)
    detect(heads, batch)
    assert len(counts) == 3
    assert all(0 < count < 60 for count in counts)
    # The second stage starts from the fc head's box of a RoI that skipped the first conv head.
    head, predictor = heads.box_head[0], heads.box_predictor[0]
    maps = [batch[1][f] for f in heads.box_in_features]
    scores, deltas = predictor.predict_fc(head.fc_head(heads.box_pooler(maps, stages[0])[0]))
    boxes = predictor.box2box_transform.apply_deltas(
        deltas, torch.cat([b.tensor for b in stages[0]])
    )
    moved = Boxes(boxes.detach())
    moved.clip((256, 256))
    skipped = scores.softmax(1)[:, :-1].amax(1) <= 0.6
    second = torch.cat([b.tensor for b in stages[1]])
    torch.testing.assert_close(second[skipped], moved.tensor[skipped])
    assert not torch.allclose(second[~skipped], moved.tensor[~skipped])


def test_a_batch_gives_what_its_images_give() -> None:
    settings = (*EXT, MIN_SCORE, 0.6)
    images, features, proposals, _ = make_batch()
    together = detect(make("DoubleHeadROIHeads", *settings), make_batch())
    for i in range(2):
        alone: Batch = (
            images,
            {name: f[i : i + 1] for name, f in features.items()},
            proposals[i : i + 1],
            [],
        )
        assert_same_detections(
            detect(make("DoubleHeadROIHeads", *settings), alone), together[i : i + 1]
        )


def test_time_augmentation_of_a_plain_head() -> None:
    found = []
    for threshold in (None, -1.0):
        cfg = make_detector_cfg("DoubleHeadROIHeads")
        cfg.MODEL.DOUBLE_HEAD.LAMBDA_CONV = 1.0
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.3
        cfg.MODEL.DOUBLE_HEAD.CONV_HEAD_MIN_SCORE = threshold
        cfg.TEST.AUG.MIN_SIZES = (64, 96)
        cfg.TEST.AUG.MAX_SIZE = 128
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        nn.init.normal_(model.roi_heads.box_predictor.cls_score.weight, std=4.0)
        counts = count_rois(model.roi_heads)
        image = torch.randint(255, (3, 96, 128), dtype=torch.uint8)
        with torch.no_grad():
            (output,) = GeneralizedRCNNWithTTA(cfg, model)(
                [{"image": image, "height": 96, "width": 128}]
            )
        found.append((output["instances"], sum(counts)))
    (ours, some), (theirs, every) = found
    assert 0 < some < every
    assert len(theirs) > 0
    assert_same_detections([ours], [theirs])


class _Predictions(nn.Module):
    """The predictions for one image as a function of tensors."""

    def __init__(self, heads: ROIHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, p2: Tensor, p3: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
        rois = Instances((256, 256), proposal_boxes=Boxes(boxes))
        heads = self.heads
        return heads.predict_rois([p2, p3], [rois], heads.box_head, heads.box_predictor)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("nms_thresh", [1.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_a_traced_head_selects_by_what_it_sees(scale: float, nms_thresh: float) -> None:
    heads = make(
        "DoubleHeadROIHeads",
        *(*EXT, MIN_SCORE, 0.7, "MODEL.DOUBLE_HEAD.REG_ROI_SCALE", scale),
        *("MODEL.DOUBLE_HEAD.CONV_HEAD_NMS_THRESH", nms_thresh),
    )
    counts, module = count_rois(heads), _Predictions(heads).eval()

    def inputs(seed: int, num_rois: int = 30, contrast: float = 1.0) -> tuple[Tensor, ...]:
        _, features, proposals, _ = make_batch((1,), num_rois, seed=seed)
        boxes = proposals[0].proposal_boxes.tensor
        return *(f.detach() * contrast for f in features.values()), boxes

    with torch.no_grad():
        traced = torch.jit.trace(module, inputs(1), check_trace=False)
        counts.clear()
        # Other numbers of RoIs, and maps so flat that none passes.
        for given in (inputs(2), inputs(3, 11), inputs(2, contrast=0.0), inputs(2, 0)):
            for ours, theirs in zip(traced(*given), module(*given), strict=True):
                torch.testing.assert_close(ours, theirs)
    assert len(set(counts)) == 3
    assert counts[2:] == [0, 0]
