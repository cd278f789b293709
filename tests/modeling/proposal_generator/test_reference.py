"""Cascade RPN against mmdetection's, number by number, on its stored outputs."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
from detectron2.layers import batched_nms
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from d2_plugins.modeling.proposal_generator import CascadeRPN, StageOutput
from d2_plugins.modeling.proposal_generator import cascade_rpn_loss as losses
from d2_plugins.modeling.proposal_generator.cascade_rpn_loss import StageTargets
from d2_plugins.modeling.proposal_generator.matching import IGNORED, CellGrid, valid_cells
from tests.support.cascade_rpn import crpn
from tests.support.cascade_rpn_reference import LOSSES, Reference, deviation, deviations
from tests.support.matching_loops import region_match_loop

STRIDES = (4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture
def model(reference: Reference) -> CascadeRPN:
    return reference.model()


@pytest.fixture
def outputs(model: CascadeRPN, reference: Reference) -> list[StageOutput]:
    return model.run_stages(reference.images, reference.features())


def feature_sizes(reference: Reference) -> list[tuple[int, int]]:
    return [tuple(x.shape[-2:]) for x in reference.levels("feat")]


def our_matches(reference: Reference, key: str) -> Tensor:
    """Return the reference's matches (-1 ignored, 0 negative, k + 1 matched) in our code."""
    return torch.where(reference[key] == -1, IGNORED, reference[key] - 1)


def test_anchors_and_valid_flags(model: CascadeRPN, reference: Reference) -> None:
    anchors = model.anchor_generator(list(reference.features().values()))
    for ours, theirs in zip(anchors, reference.levels("anchor"), strict=True):
        assert torch.equal(ours.tensor, theirs)
    valid = valid_cells(reference.images.image_sizes, feature_sizes(reference), STRIDES)
    for n in (0, 1):
        assert torch.equal(valid[n], torch.cat(reference.levels(f"valid/img{n}")))


def test_stages(model: CascadeRPN, reference: Reference, outputs: list[StageOutput]) -> None:
    first, second = model.stages
    maps = list(reference.features().values())
    hidden, _ = first(maps, outputs[0].boxes, STRIDES)
    sizes = feature_sizes(reference)
    for i, stride in enumerate(STRIDES):
        before_relu = first.conv(maps[i])
        assert deviation(before_relu, reference[f"s0/conv_pre_relu/{i}"]) <= 1e-5
        before_relu = second.conv(hidden[i], outputs[1].boxes[i], stride=stride)
        assert deviation(before_relu, reference[f"s1/conv_pre_relu/{i}"]) <= 1e-4
        for s, output in enumerate(outputs):
            deltas = output.pred_deltas[i].transpose(1, 2).unflatten(2, sizes[i])
            assert deviation(deltas, reference[f"s{s}/reg/{i}"]) <= 1e-4
        logits = outputs[1].pred_objectness_logits[i].unflatten(1, sizes[i])[:, None]
        assert deviation(logits, reference[f"s1/cls/{i}"]) <= 1e-4


def test_refined_boxes(reference: Reference, outputs: list[StageOutput]) -> None:
    for i, boxes in enumerate(outputs[1].boxes):
        for n in (0, 1):
            assert deviation(boxes[n], reference[f"s0/refined/img{n}/{i}"]) <= 1e-5


def test_region_matches(
    model: CascadeRPN, reference: Reference, outputs: list[StageOutput]
) -> None:
    grid = model.grid(reference.images, reference.features())
    for n in (0, 1):
        matches = region_matches(model, outputs[0], reference.gt_boxes, grid)[n]
        theirs = our_matches(reference, f"s0/assign_gt_inds/img{n}")
        assert torch.equal(matches, theirs)
        # The second image is smaller than the batch: without its flags it would not be equal.
        all_valid = dataclasses.replace(grid, valid=torch.ones_like(grid.valid))
        matches = region_matches(model, outputs[0], reference.gt_boxes, all_valid)[n]
        assert torch.equal(matches, theirs) == (n == 0)


def region_matches(
    model: CascadeRPN, output: StageOutput, gt_boxes: list[Boxes], grid: CellGrid
) -> Tensor:
    return model.criterion.targets(1).match(output, gt_boxes, grid)


def test_iou_matches(model: CascadeRPN, reference: Reference, outputs: list[StageOutput]) -> None:
    grid = model.grid(reference.images, reference.features())
    matches = model.criterion.targets(2).match(outputs[1], reference.gt_boxes, grid)
    for n, gt_boxes in enumerate(reference.gt_boxes):
        assert torch.equal(matches[n], our_matches(reference, f"s1/assign_gt_inds/img{n}"))
        boxes = Boxes(torch.cat([b[n] for b in outputs[1].boxes]))
        iou = pairwise_iou(gt_boxes, boxes).amax(dim=0)[grid.valid[n]]
        theirs = reference[f"s1/assign_max_iou/img{n}"][grid.valid[n]]
        torch.testing.assert_close(iou, theirs, atol=1e-6, rtol=0)


def targets_of(model: CascadeRPN, reference: Reference, number: int) -> StageTargets:
    """Return the targets of a stage, given the reference's matches."""
    key = f"s{number - 1}/assign_gt_inds"
    matches = torch.stack([our_matches(reference, f"{key}/img{n}") for n in (0, 1)])
    return model.criterion.targets(number).targets(
        matches, reference.gt_boxes, with_scores=number == 2
    )


@pytest.mark.parametrize("number", [1, 2])
def test_targets(model: CascadeRPN, reference: Reference, number: int) -> None:
    ours = targets_of(model, reference, number)
    key = f"s{number - 1}/target"
    weights = torch.cat(reference.levels(f"{key}/bbox_weights"), dim=1).flatten(0, 1)
    targets = torch.cat(reference.levels(f"{key}/bbox_targets"), dim=1).flatten(0, 1)
    positives, order = ours.positives.sort()
    assert torch.equal(positives, weights[:, 0].nonzero()[:, 0])
    assert torch.equal(ours.gt_boxes[order], targets[positives])
    assert ours.normalizer == reference[f"s{number - 1}/avg_factor"].item()
    if number == 2:
        label_weights = torch.cat(reference.levels(f"{key}/label_weights"), dim=1).flatten()
        labels = torch.cat(reference.levels(f"{key}/labels"), dim=1).flatten()
        sampled, order = ours.sampled.sort()
        assert torch.equal(sampled, label_weights.nonzero()[:, 0])
        assert torch.equal(ours.gt_labels[order], 1.0 - labels[sampled])  # theirs: 0 is an object
        assert ours.score_normalizer == reference["s1/avg_factor"].item()


def test_sample_sizes(model: CascadeRPN, reference: Reference) -> None:
    for n in (0, 1):
        matches = our_matches(reference, f"s1/assign_gt_inds/img{n}")
        ours = losses.CascadeRPNLoss().targets(2).sample(matches)
        theirs = reference[f"s1/pos_inds/img{n}"], reference[f"s1/neg_inds/img{n}"]
        assert list(map(len, ours)) == list(map(len, theirs))
        assert (matches[ours[0]] >= 0).all()
        assert (matches[ours[1]] == -1).all()


def of_level(targets: StageTargets, reference: Reference, level: int) -> StageTargets:
    """Return the targets of one level, with the normalizers of all levels."""
    sizes = [h * w for h, w in feature_sizes(reference)]
    cells = torch.arange(sum(sizes))
    chosen = ((cells >= sum(sizes[:level])) & (cells < sum(sizes[: level + 1]))).repeat(2)
    positive, sampled = chosen[targets.positives], chosen[targets.sampled]
    return dataclasses.replace(
        targets,
        positives=targets.positives[positive],
        gt_boxes=targets.gt_boxes[positive],
        sampled=targets.sampled[sampled],
        gt_labels=targets.gt_labels[sampled],
    )


@pytest.mark.parametrize("number", [1, 2])
def test_losses_per_level(
    model: CascadeRPN, reference: Reference, outputs: list[StageOutput], number: int
) -> None:
    targets = targets_of(model, reference, number)
    stage, output = model.stages[number - 1], outputs[number - 1]
    for level in range(5):
        part = of_level(targets, reference, level)
        for name, ours in model.criterion.stage_losses(number, stage, output, part).items():
            theirs = reference[LOSSES[f"loss_rpn_stage{number}_{name}"]][level]
            assert deviation(ours, theirs) <= 1e-5


def test_whole_training_pass(model: CascadeRPN, reference: Reference) -> None:
    found = deviations(model, reference)
    assert max(found.values()) <= 1e-4, found
    assert max(v for k, v in found.items() if k.startswith(("loss", "proposals"))) <= 1e-5, found


@pytest.mark.parametrize(("name", "topk"), [("test", (1000, 300)), ("tight", (200, 100))])
def test_proposals(
    model: CascadeRPN, reference: Reference, name: str, topk: tuple[int, int]
) -> None:
    model.eval()
    model.pre_nms_topk[False], model.post_nms_topk[False] = topk
    proposals, no_losses = model(reference.images, reference.features())
    assert no_losses == {}
    for n, p in enumerate(proposals):
        theirs = {k: reference[f"proposals/{name}/img{n}/{k}"] for k in ("boxes", "scores")}
        assert deviation(p.proposal_boxes.tensor, theirs["boxes"]) <= 1e-5
        assert deviation(p.objectness_logits.sigmoid(), theirs["scores"]) <= 1e-5
        assert not p.proposal_boxes.tensor.requires_grad


def _swap_axes(model: CascadeRPN, _: pytest.MonkeyPatch) -> None:
    conv = model.stages[1].conv
    conv.register_forward_pre_hook(lambda _, args: (args[0], args[1][..., [1, 0, 3, 2]]))


def _half_cell_shift(model: CascadeRPN, _: pytest.MonkeyPatch) -> None:
    model.anchor_generator.offset = 0.5


def _no_clip(model: CascadeRPN, patch: pytest.MonkeyPatch) -> None:
    refine = model.stages[0].refine
    patch.setattr(model.stages[0], "refine", lambda output, _: refine(output, [(10**6, 10**6)] * 2))


def _no_bridge(model: CascadeRPN, _: pytest.MonkeyPatch) -> None:
    model.stages[0].register_forward_hook(lambda _, args, result: (args[0], result[1]))


def _no_detach(model: CascadeRPN, patch: pytest.MonkeyPatch) -> None:
    stage = model.stages[0]
    refine = type(stage).refine.__wrapped__  # without torch.no_grad
    patch.setattr(stage, "refine", lambda *args: refine(stage, *args))


def _no_neighbours(_: CascadeRPN, patch: pytest.MonkeyPatch) -> None:
    def wrong(gt_boxes: list[Boxes], *args: object, **kwargs: object) -> Tensor:
        images = [region_match_loop(b.tensor, *args, **kwargs, neighbours=False) for b in gt_boxes]
        return torch.stack(images)

    patch.setattr(losses, "region_match_images", wrong)


def _other(**changes: object) -> Callable[[CascadeRPN, pytest.MonkeyPatch], None]:
    def mutate(model: CascadeRPN, _: pytest.MonkeyPatch) -> None:
        model.criterion = dataclasses.replace(model.criterion, **changes)

    return mutate


def _smaller_clamp(model: CascadeRPN, _: pytest.MonkeyPatch) -> None:
    for stage in model.stages:
        stage.box2box_transform.scale_clamp = 0.3


def _no_dilation(model: CascadeRPN, _: pytest.MonkeyPatch) -> None:
    model.stages[0].conv.dilation = model.stages[0].conv.padding = (1, 1)


def _nms_across_levels(_: CascadeRPN, patch: pytest.MonkeyPatch) -> None:
    def wrong(boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float) -> Tensor:
        return batched_nms(boxes, scores, torch.zeros_like(levels), threshold)

    patch.setattr(proposal_utils, "batched_nms", wrong)


@pytest.mark.parametrize(
    "mutate",
    [
        _swap_axes,
        _half_cell_shift,
        _no_clip,
        _no_bridge,
        _no_detach,
        _no_neighbours,
        _other(cells_per_positive=100.0),
        _other(low_quality_iou=0.7),
        _other(regression_loss="giou"),
        _smaller_clamp,
        _no_dilation,
        _nms_across_levels,
    ],
)
def test_the_comparison_notices(
    model: CascadeRPN,
    reference: Reference,
    mutate: Callable[[CascadeRPN, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(model, monkeypatch)
    assert max(deviations(model, reference).values()) > 1e-3


def test_initialisation(reference: Reference) -> None:
    # The reference's own statistics are of 32 channels; more channels make the estimate sharp.
    model = crpn(channels=128)
    assert set(model.state_dict()) == set(reference.named("state"))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            few = parameter.numel() < 1000
            assert parameter.std().item() == pytest.approx(0.01, rel=0.25 if few else 0.05)
            assert abs(parameter.mean().item()) < 0.003
