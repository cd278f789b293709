"""The RoI heads as detectron2 builds and calls them."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, ROIHeads
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from d2_plugins.modeling.roi_heads import (
    CascadeDoubleHeadROIHeads,
    DoubleHeadBoxHead,
    DoubleHeadROIHeads,
    InvertedAttention,
    PluginCascadeROIHeads,
    PluginROIHeads,
)
from d2_plugins.modeling.roi_heads.double_head_box_head import NonLocalUnit
from tests.support.roi_heads import (
    EAGER_IA,
    EXT,
    IA,
    OUR_HEADS,
    detect,
    make_batch,
    make_cfg,
    make_detector_cfg,
    make_heads,
    train_losses,
    train_step,
)

ZERO_IA = (
    *IA,
    "MODEL.INVERTED_ATTENTION.FG_FRACTION",
    0.0,
    "MODEL.INVERTED_ATTENTION.BG_FRACTION",
    0.0,
)
MASKS_AND_KEYPOINTS = ("MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True)


def assert_same(a: object, b: object) -> None:
    """Equal bit for bit: dicts, lists, Instances of tensors."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, Instances):
        assert_same(a.get_fields(), b.get_fields())
    elif isinstance(a, Boxes):
        assert_same(a.tensor, b.tensor)
    elif isinstance(a, Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


@pytest.mark.parametrize(
    ("ours", "stock"),
    [("PluginROIHeads", "StandardROIHeads"), ("PluginCascadeROIHeads", "CascadeROIHeads")],
)
def test_all_off_is_detectron2(ours: str, stock: str) -> None:
    a, b = (make_heads(name, *MASKS_AND_KEYPOINTS) for name in (ours, stock))
    assert_same(dict(a.state_dict()), dict(b.state_dict()))
    assert_same(list(train_step(a, make_batch())), list(train_step(b, make_batch())))
    assert_same(detect(a, make_batch()), detect(b, make_batch()))


@pytest.mark.parametrize("name", OUR_HEADS)
def test_inverted_attention_with_nothing_to_mask_is_off(name: str) -> None:
    off, on = make_heads(name, *EXT), make_heads(name, *EXT, *ZERO_IA)
    assert_same(list(train_step(off, make_batch())), list(train_step(on, make_batch())))
    assert_same(dict(off.state_dict()), dict(on.state_dict()))


@pytest.mark.parametrize("name", OUR_HEADS)
def test_inverted_attention_does_not_touch_inference(name: str) -> None:
    off, on = make_heads(name, *EXT), make_heads(name, *EXT, *EAGER_IA)
    assert_same(dict(off.state_dict()), dict(on.state_dict()))
    assert_same(detect(off, make_batch()), detect(on, make_batch()))
    assert not any(head._forward_pre_hooks for head in on.modules())


@pytest.mark.parametrize("name", OUR_HEADS)
def test_inverted_attention_masks_the_box_head_s_input(name: str) -> None:
    heads = make_heads(name, *EXT, *EAGER_IA)
    off = train_losses(make_heads(name, *EXT), make_batch())
    inputs = []
    first = heads.box_head[0] if "Cascade" in name else heads.box_head
    first.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    torch.manual_seed(3)
    heads.train()
    batch = make_batch()
    torch.manual_seed(3)
    with EventStorage() as storage:
        _, losses = heads(*batch)
    assert any(losses[k] != off[k] for k in off if "cls" in k)
    # The last call is the one that trains.
    views = inputs[-1] if "Double" in name else inputs[-1][None]
    masked = (views == 0).all(dim=2).flatten(2).sum(2)  # (H, R) places that are off
    assert set(masked[0].tolist()) == {0, 18}
    scope = "stage0/inverted_attention" if "Cascade" in name else "inverted_attention"
    latest = {key: value for key, (value, _) in storage.latest().items()}
    assert latest[f"{scope}/masked_rois"] == pytest.approx((masked[0] == 18).float().mean().item())
    assert latest[f"{scope}/masked_elements"] > 0
    assert 0 < latest[f"{scope}/prob_after"] < latest[f"{scope}/prob_before"] < 1
    if "Cascade" in name:
        assert "stage2/inverted_attention/masked_rois" in latest


@pytest.mark.parametrize("name", OUR_HEADS)
def test_the_score_is_the_class_logit_of_the_fc_layers(name: str) -> None:
    heads = make_heads(name, *EXT, *IA)
    head, predictor = heads.box_head, heads.box_predictor
    if "Cascade" in name:
        head, predictor = head[1], predictor[1]
    layers = head.fc_head if "Double" in name else head
    fc1, fc2, cls = layers.fc1, layers.fc2, predictor.cls_score
    regions, labels = torch.randn(2, 20, 8, 7, 7), torch.arange(20) % 4
    if "Double" not in name:
        regions = regions[0]
    _, found = heads.invert_regions(regions, labels, head, predictor)
    scored = regions[0] if "Double" in name else regions
    _, expected = heads.inverted_attention(
        scored, labels, lambda x: cls(fc2(fc1(x.flatten(1)).relu()).relu())
    )
    torch.testing.assert_close(found.attention, expected.attention)
    torch.testing.assert_close(found.prob_before, expected.prob_before)
    torch.testing.assert_close(found.prob_after, expected.prob_after)
    assert torch.equal(found.selected, expected.selected)


@pytest.mark.parametrize("scale", [1.0, 1.3])
@pytest.mark.parametrize("apply_to", ["both", "cls"])
def test_which_head_of_a_double_head_is_masked(apply_to: str, scale: float) -> None:
    heads = make_heads(
        "DoubleHeadROIHeads",
        *(*EAGER_IA, "MODEL.INVERTED_ATTENTION.APPLY_TO", apply_to),
        *("MODEL.DOUBLE_HEAD.REG_ROI_SCALE", scale),
    )
    seen = {}
    heads.box_head.fc_head.register_forward_hook(lambda _, args, __: seen.update(fc=args[0]))
    heads.box_head.conv_head.register_forward_hook(lambda _, args, __: seen.update(conv=args[0]))
    train_losses(heads, make_batch())
    fc, conv = ((seen[k] == 0).all(dim=1) for k in ("fc", "conv"))
    assert fc.any()
    if apply_to == "cls":
        assert not conv.any()
    elif scale == 1:
        assert torch.equal(fc, conv)
    else:
        assert conv.any()
        # The rim of the enlarged RoI lies outside the RoI and stays on.
        assert not conv[:, [0, -1]].any()
        assert not conv[:, :, [0, -1]].any()
        assert torch.equal(conv[:, 3, 3], fc[:, 3, 3])


@pytest.mark.parametrize("name", OUR_HEADS)
def test_nothing_leaks_from_the_inner_pass(name: str) -> None:
    on = make_heads(name, *EXT, *EAGER_IA)
    off = make_heads(name, *EXT)
    flags = [m.training for m in on.train().modules()]
    for p in on.parameters():
        p.grad = torch.ones_like(p)
    batch = make_batch()
    losses = train_losses(on, batch)
    rng = torch.get_rng_state()
    train_losses(off, make_batch())
    assert torch.equal(torch.get_rng_state(), rng)
    assert [m.training for m in on.modules()] == flags
    assert all(f.grad is None for f in batch[1].values())
    (sum(losses.values()) * 0).backward()
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in on.parameters())
    # Batch norms counted one pass only.
    counted = {k: v for k, v in on.state_dict().items() if "num_batches" in k}
    assert all(v == 1 for v in counted.values())


def test_an_exception_in_the_inner_pass_leaves_the_heads_as_they_were() -> None:
    heads = make_heads("DoubleHeadROIHeads", *IA)
    heads.train()
    handle = heads.box_head.fc_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_losses(heads, make_batch())
    handle.remove()
    assert all(m.training for m in heads.modules())
    assert not any(m._forward_pre_hooks for m in heads.modules())


def test_start_iter() -> None:
    heads = make_heads("PluginROIHeads", *EAGER_IA, "MODEL.INVERTED_ATTENTION.START_ITER", 10)
    off = make_heads("PluginROIHeads")
    expected = train_losses(off, make_batch())
    assert_same(train_losses(heads, make_batch(), start_iter=9), expected)
    later = train_losses(heads, make_batch(), start_iter=10)
    assert later["loss_cls"] != expected["loss_cls"]


@pytest.mark.parametrize("ia", [(), EAGER_IA], ids=["off", "on"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "DoubleHeadROIHeads",
            ("MODEL.DOUBLE_HEAD.FUSION", "fc", "MODEL.DOUBLE_HEAD.REG_ROI_SCALE", 1.0),
        ),
        ("DoubleHeadROIHeads", (*EXT, *MASKS_AND_KEYPOINTS)),
        (
            "DoubleHeadROIHeads",
            (*EXT, "MODEL.DOUBLE_HEAD.CONV_BLOCKS", "nonlocal", "MODEL.DOUBLE_HEAD.NORM", "BN"),
        ),
        ("DoubleHeadROIHeads", ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True)),
        ("DoubleHeadROIHeads", (*EXT, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 14)),
        ("DoubleHeadROIHeads", (*EXT, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou")),
        ("DoubleHeadROIHeads", (*EXT, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True)),
        ("DoubleHeadROIHeads", (*EXT, "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True)),
        ("CascadeDoubleHeadROIHeads", (*EXT, "MODEL.MASK_ON", True)),
        ("PluginROIHeads", ()),
        ("PluginCascadeROIHeads", ()),
    ],
)
def test_every_parameter_learns(name: str, settings: tuple, ia: tuple) -> None:
    heads = make_heads(name, *settings, *ia)
    for module in heads.modules():
        if isinstance(module, NonLocalUnit):  # starts at zero, and its inner layers with it
            torch.nn.init.normal_(module.out.weight)
    losses, grads, feature_grads = train_step(heads, make_batch())
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(key.startswith("loss_") for key in losses)
    for key, grad in grads.items():
        assert grad is not None, key
        assert grad.any() or key.endswith(".out.bias"), key  # a bias before a batch norm
    assert all(grad.any() for grad in feature_grads)
    instances = detect(heads, make_batch())
    assert all(len(i) > 0 for i in instances)
    assert instances[0].has("pred_masks") == heads.mask_on


@pytest.mark.parametrize("ia", [(), EAGER_IA], ids=["off", "on"])
@pytest.mark.parametrize("name", OUR_HEADS)
@pytest.mark.parametrize(
    ("num_gt", "num_proposals"), [((0, 2), 10), ((0, 0), 10), ((0, 0), 0), ((2, 0), 0)]
)
def test_images_without_objects_or_rois(
    name: str, num_gt: tuple[int, ...], num_proposals: int, ia: tuple
) -> None:
    heads = make_heads(name, *EXT, *ia)
    losses, grads, feature_grads = train_step(heads, make_batch(num_gt, num_proposals))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values())
    assert all(grad is not None for grad in feature_grads)
    assert all(torch.isfinite(v).all() for v in heads.state_dict().values())
    instances = detect(heads, make_batch(num_gt, num_proposals))
    assert [len(i) > 0 for i in instances] == [num_proposals > 0] * 2


def test_a_double_head_on_one_feature_level() -> None:
    heads = make_heads("DoubleHeadROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p3"])
    batch = make_batch()
    pooled = heads.box_pooler([batch[1]["p3"]], [p.proposal_boxes for p in batch[2]])
    assert not torch.equal(pooled[0], pooled[1])  # enlarged here too
    assert len(detect(heads, batch)[0]) > 0


def test_cascade_stages_fuse_before_they_average() -> None:
    heads = make_heads("CascadeDoubleHeadROIHeads", *EXT)
    proposals = make_batch()[2][:1]
    stages = []
    for predictor in heads.box_predictor:
        vectors = torch.randn(30, 16), torch.randn(30, 16)
        stages.append((predictor, predictor(vectors)))
    fused = [p.predict_probs(x, proposals)[0] for p, x in stages]
    for probs, (_, x) in zip(fused, stages, strict=True):
        a, b = x[0].softmax(1), x[2].softmax(1)
        torch.testing.assert_close(probs, 1 - (1 - a) * (1 - b))
    assert [p.box2box_transform.weights for p, _ in stages] == [
        tuple(w) for w in make_cfg("CascadeROIHeads").MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
    ]


def test_cascade_detections_average_the_fused_scores() -> None:
    heads = make_heads("CascadeDoubleHeadROIHeads", *EXT, "TEST.DETECTIONS_PER_IMAGE", 10_000)
    heads.eval()
    images, features, proposals, _ = make_batch((1,), 12)
    scores = []
    for predictor in heads.box_predictor:
        predictor.test_nms_thresh = 1.0
        original = predictor.predict_probs

        def record(predictions: object, rois: object, original=original) -> list[Tensor]:
            scores.append(original(predictions, rois)[0])
            return [scores[-1]]

        predictor.predict_probs = record
    with torch.no_grad():
        (found,), _ = heads(images, features, proposals)
    expected = (sum(scores) / 3)[:, :-1].flatten().sort(descending=True).values
    torch.testing.assert_close(found.scores, expected)


@pytest.mark.parametrize("name", OUR_HEADS)
def test_weight_of_the_classification_loss(name: str) -> None:
    plain = train_losses(make_heads(name, *EXT), make_batch())
    heavier = train_losses(
        make_heads(name, *EXT, "MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT", 1.5), make_batch()
    )
    for key, loss in plain.items():
        torch.testing.assert_close(heavier[key], loss * (1.5 if "cls" in key else 1.0))


def test_python_arguments_suffice() -> None:
    # Built without a config: another head's parts and an InvertedAttention of one's own.
    parts = make_heads("DoubleHeadROIHeads")
    heads = DoubleHeadROIHeads(
        num_classes=parts.num_classes,
        batch_size_per_image=16,
        positive_fraction=0.25,
        proposal_matcher=parts.proposal_matcher,
        box_in_features=parts.box_in_features,
        box_pooler=parts.box_pooler,
        box_head=parts.box_head,
        box_predictor=parts.box_predictor,
        inverted_attention=InvertedAttention(roi_choice="all"),
    )
    assert_same(
        train_losses(heads, make_batch()),
        train_losses(
            make_heads("DoubleHeadROIHeads", *IA, "MODEL.INVERTED_ATTENTION.ROI_CHOICE", "all"),
            make_batch(),
        ),
    )


def test_the_standard_box_head_s_name_is_not_needed() -> None:
    for name, cls in (
        ("DoubleHeadROIHeads", DoubleHeadROIHeads),
        ("CascadeDoubleHeadROIHeads", CascadeDoubleHeadROIHeads),
    ):
        heads = make_heads(name, "MODEL.ROI_BOX_HEAD.NAME", "")
        assert type(heads) is cls
        head = heads.box_head[-1] if "Cascade" in name else heads.box_head
        assert isinstance(head, DoubleHeadBoxHead)
    assert type(make_heads("PluginROIHeads")) is PluginROIHeads
    assert type(make_heads("PluginCascadeROIHeads")) is PluginCascadeROIHeads


@pytest.mark.parametrize("name", OUR_HEADS)
def test_bf16_autocast(name: str) -> None:
    heads = make_heads(name, *EXT, *EAGER_IA)
    expected = train_losses(heads, make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        losses = train_losses(make_heads(name, *EXT, *EAGER_IA), make_batch())
    for key, loss in losses.items():
        torch.testing.assert_close(loss.float(), expected[key], rtol=0.05, atol=0.02)
    sum(losses.values()).backward()


@pytest.mark.parametrize("name", ["DoubleHeadROIHeads", "CascadeDoubleHeadROIHeads"])
def test_time_augmentation(name: str) -> None:
    cfg = make_detector_cfg(name)
    cfg.TEST.AUG.MIN_SIZES = (64, 96)
    cfg.TEST.AUG.MAX_SIZE = 128
    model = GeneralizedRCNNWithTTA(cfg, build_model(cfg).eval())
    image = torch.randint(255, (3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        (found,) = model([{"image": image, "height": 96, "width": 128}])
    assert len(found["instances"]) > 0


class CheckpointedHead(FastRCNNConvFCHead):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


class CheckpointedDoubleHead(DoubleHeadBoxHead):
    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(super().forward, regions, use_reentrant=False)


@pytest.mark.parametrize("name", OUR_HEADS)
def test_activation_checkpointing_of_the_box_head(name: str) -> None:
    settings = ("MODEL.DOUBLE_HEAD.NORM", "LN")  # a recomputed BatchNorm would count twice
    expected = train_step(make_heads(name, *EXT, *EAGER_IA, *settings), make_batch())
    heads = make_heads(name, *EXT, *EAGER_IA, *settings)
    for head in heads.box_head if "Cascade" in name else [heads.box_head]:
        head.__class__ = CheckpointedDoubleHead if "Double" in name else CheckpointedHead
    assert_same(list(train_step(heads, make_batch())), list(expected))


def test_activation_checkpointing_of_everything() -> None:
    class Checkpointed(DoubleHeadROIHeads):
        def _forward_box(self, features: dict, proposals: list) -> dict:
            return checkpoint(super()._forward_box, features, proposals, use_reentrant=False)

    settings = (*EXT, *EAGER_IA, "MODEL.DOUBLE_HEAD.NORM", "LN")
    expected = train_step(make_heads("DoubleHeadROIHeads", *settings), make_batch())
    heads = make_heads("DoubleHeadROIHeads", *settings)
    heads.__class__ = Checkpointed
    batch = make_batch()
    with EventStorage(0):  # the recomputation logs too
        losses = train_losses(heads, batch)
        sum(losses.values()).backward()
        assert get_event_storage().iter == 0
    assert_same(losses, expected[0])
    assert_same([f.grad for f in batch[1].values()], expected[2])
    assert_same({k: p.grad for k, p in heads.named_parameters()}, expected[1])


class _BoxBranch(torch.nn.Module):
    """Inference of the box branch on plain tensors, one image."""

    def __init__(self, heads: ROIHeads) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, p2: Tensor, p3: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        rois = Instances((256, 256))
        rois.proposal_boxes = Boxes(boxes)
        regions = self.heads.box_pooler([p2, p3], [rois.proposal_boxes])
        predictions = self.heads.box_predictor(self.heads.box_head(regions))
        predictor = self.heads.box_predictor
        return predictor.predict_probs(predictions, [rois])[0], predictor.predict_boxes(
            predictions, [rois]
        )[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing() -> None:
    branch = _BoxBranch(make_heads("DoubleHeadROIHeads", *EXT, *IA)).eval()

    def inputs(seed: int) -> tuple[Tensor, ...]:
        _, features, proposals, _ = make_batch((1,), 12, seed=seed)
        return *(f.detach() for f in features.values()), proposals[0].proposal_boxes.tensor

    with torch.no_grad():
        traced = torch.jit.trace(branch, inputs(1), check_trace=False)
        for a, b in zip(traced(*inputs(2)), branch(*inputs(2)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("ia", [(), EAGER_IA], ids=["off", "on"])
@pytest.mark.parametrize(
    "ext", [(), ("MODEL.DOUBLE_HEAD.LAMBDA_FC", 0.7)], ids=["plain", "fc boxes"]
)
def test_conv_head_on_foreground_rois_only(ext: tuple, ia: tuple) -> None:
    # Exact with a norm that sees each RoI alone.
    settings = (*ext, *ia, "MODEL.DOUBLE_HEAD.NORM", "LN", "MODEL.MASK_ON", True)
    settings += ("MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", True)
    only = ("MODEL.DOUBLE_HEAD.CONV_HEAD_FOREGROUND_ONLY", True)
    heads, counts = make_heads("DoubleHeadROIHeads", *settings, *only), []
    heads.box_head.conv_head.register_forward_hook(lambda _, x, __: counts.append(len(x[0])))
    ours = train_step(heads, make_batch())
    theirs = train_step(make_heads("DoubleHeadROIHeads", *settings), make_batch())
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        for key in b:
            torch.testing.assert_close(a[key], b[key], msg=key)
    torch.testing.assert_close(ours[2], theirs[2])
    assert 0 < counts[0] < 16
    # Without any foreground every parameter still has a gradient.
    heads.zero_grad()
    losses, grads, _ = train_step(heads, make_batch((0, 0)))
    assert losses["loss_box_reg"] == 0
    assert all(grad is not None for grad in grads.values())


@pytest.mark.parametrize(
    ("name", "ext", "message"),
    [
        ("DoubleHeadROIHeads", EXT, "LAMBDA_CONV 0.8 the conv head learns classes"),
        ("CascadeDoubleHeadROIHeads", (), "CONV_HEAD_FOREGROUND_ONLY is True; allowed: False in a"),
    ],
)
def test_foreground_only_is_refused_where_it_would_not_be_exact(
    name: str, ext: tuple, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_heads(name, *ext, "MODEL.DOUBLE_HEAD.CONV_HEAD_FOREGROUND_ONLY", True)
