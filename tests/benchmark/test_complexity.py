"""The counts against closed forms, and against fvcore's counter, which traces the model."""

import pytest
import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn
from torchvision.ops import deform_conv2d, roi_align

from d2_plugins import model_zoo
from d2_plugins.benchmark.complexity import count_costs
from d2_plugins.benchmark.fixed_work import FixedWork, build_fixed_work, random_boxes, typical_size
from d2_plugins.benchmark.model_costs import analyze
from d2_plugins.layers import AdaptiveConv2d
from dev.zoo_page import baseline_cfg


def part_flops(work: FixedWork) -> dict[str, int]:
    report = analyze(work.model, lambda: work(torch.rand(3, *work.size)), repeats=0)
    return {name: part.flops for name, part in report.parts.items() if part.flops}


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), groups=groups)
    costs = count_costs(conv, lambda: conv(torch.rand(2, 4, 10, 12)))
    assert costs.flops == {("", "conv"): 2 * 5 * 6 * 6 * (4 // groups) * 15}
    assert costs.activations == {("", "conv"): 2 * 6 * 5 * 6}

    up = nn.ConvTranspose2d(4, 6, 2, stride=2)
    costs = count_costs(up, lambda: up(torch.rand(2, 4, 10, 12)))
    assert costs.flops == {("", "conv"): 2 * 10 * 12 * 4 * 6 * 4}
    assert costs.activations == {("", "conv"): 2 * 6 * 20 * 24}


def test_linear_layers_and_products() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3, bias=False))
    costs = count_costs(model, lambda: model(torch.rand(4, 5)))
    assert costs.flops == {("0", "linear"): 4 * 5 * 7, ("1", "linear"): 4 * 7 * 3}
    costs = count_costs(model, lambda: torch.rand(2, 3, 5) @ torch.rand(2, 5, 4))
    assert costs.flops == {("", "matmul"): 2 * 3 * 5 * 4}


def test_adaptive_convolution_counts_as_a_convolution_and_its_sampling() -> None:
    layer = AdaptiveConv2d(4, 6)
    height, width = 5, 7
    boxes = torch.rand(2, height * width, 4) * 40
    costs = count_costs(layer, lambda: layer(torch.rand(2, 4, height, width), boxes, stride=8))
    assert costs.by_operator() == {
        "adaptive_conv": 2 * height * width * 4 * 6 * 9,
        "adaptive_conv_sampling": 2 * height * width * 4 * 9 * 4,
    }
    assert sum(costs.activations.values()) == 2 * 6 * height * width


def test_deformable_convolution_counts_like_the_adaptive_one() -> None:
    x, weight, offset = torch.rand(2, 4, 5, 7), torch.rand(6, 4, 3, 3), torch.rand(2, 18, 5, 7)
    costs = count_costs(nn.Module(), lambda: deform_conv2d(x, offset, weight, padding=1))
    assert costs.by_operator() == {
        "deform_conv": 2 * 35 * 4 * 6 * 9,
        "deform_conv_sampling": 2 * 35 * 4 * 9 * 4,
    }


@pytest.mark.parametrize(("ratio", "points"), [(0, 4), (1, 1), (3, 9)])
def test_roi_align(ratio: int, points: int) -> None:
    x, boxes = torch.rand(1, 4, 16, 16), [torch.tensor([[0.0, 0, 9, 9]] * 5)]
    costs = count_costs(nn.Module(), lambda: roi_align(x, boxes, 7, sampling_ratio=ratio))
    assert costs.by_operator() == {"roi_align": 5 * 4 * 7 * 7 * points * 4}
    assert not costs.activations


def test_what_is_counted_is_not_computed_and_hooks_are_gone() -> None:
    conv = nn.Conv2d(3, 2, 1)
    seen = []
    count_costs(conv, lambda: seen.append(conv(torch.rand(1, 3, 4, 4))))
    assert seen[0].shape == (1, 2, 4, 4)
    assert not seen[0].any()
    assert conv(torch.rand(1, 3, 4, 4)).any()
    assert not conv._forward_hooks
    assert not conv._forward_pre_hooks


def resnet50_flops(height: int, width: int) -> int:
    """Of detectron2's R-50, stem to res5: the sum over its convolutions, from the paper's table."""
    cells = height * width // 4
    total = cells * 3 * 64 * 49
    cells //= 4
    inside = 64
    for stage, (blocks, mid) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        cells //= 1 if stage == 0 else 4
        out = 4 * mid
        for block in range(blocks):
            total += cells * (inside * mid + 9 * mid * mid + mid * out)
            if block == 0:
                total += cells * inside * out
            inside = out
    return total


def test_faster_rcnn_by_part_equals_closed_forms() -> None:
    size = (64, 96)
    work = build_fixed_work(baseline_cfg(), size)
    work.num_proposals = 20
    parts = part_flops(work)
    # The stride is in the 1x1 convolutions of res3 to res5 (MSRA's form), so all of a stage's
    # convolutions are at its own size.
    assert parts["backbone"] == resnet50_flops(*size)
    cells = [size[0] * size[1] // s**2 for s in (4, 8, 16, 32)]
    channels = (256, 512, 1024, 2048)
    assert parts["FPN"] == sum(
        n * (c * 256 + 9 * 256 * 256) for n, c in zip(cells, channels, strict=True)
    )
    cells.append(1 * 2)  # p6: 2 x 3 cells subsampled
    assert parts["proposal generator"] == sum(cells) * (9 * 256 * 256 + 256 * 3 * 5)
    assert parts["box head"] == 20 * (256 * 49 * 1024 + 1024 * 1024)
    assert parts["box predictor"] == 20 * 1024 * (81 + 4 * 80)
    assert set(parts) == {
        *("backbone", "FPN", "proposal generator", "box pooler", "box head", "box predictor")
    }


def test_the_default_is_the_most_rois_that_the_config_tests_with() -> None:
    work = build_fixed_work(baseline_cfg(), (64, 64))
    parts = part_flops(work)
    assert work.num_proposals == 1000
    assert parts["box head"] == 1000 * (256 * 49 * 1024 + 1024 * 1024)


def test_mask_head_runs_on_the_detections() -> None:
    cfg = baseline_cfg()
    cfg.MODEL.MASK_ON = True
    work = build_fixed_work(cfg, (64, 64))
    work.num_proposals, work.num_detections = 8, 5
    parts = part_flops(work)
    convs = 4 * 14 * 14 * 9 * 256 * 256
    assert parts["mask head"] == 5 * (convs + 14 * 14 * 256 * 256 * 4 + 28 * 28 * 256 * 80)
    assert work.model.roi_heads.mask_on


def test_semantic_head_of_a_panoptic_fpn_equals_closed_forms() -> None:
    cfg = baseline_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    work = build_fixed_work(cfg, (64, 64))
    work.num_proposals, work.num_detections = 8, 5
    cells = {stride: 64 * 64 // stride**2 for stride in (4, 8, 16, 32)}
    # Each feature is brought to stride 4 by convolutions with a doubling of the size after each.
    first = 9 * 256 * 128 * (cells[4] + cells[8] + cells[16] + cells[32])
    later = 9 * 128 * 128 * (cells[8] + cells[16] + cells[8])
    assert part_flops(work)["semantic head"] == first + later + 128 * 54 * cells[4]


@pytest.mark.filterwarnings("ignore")
def test_equals_fvcores_traced_count() -> None:
    cfg = model_zoo.get_config("Demo/csp_cascade.yaml")
    cfg.MODEL.MASK_ON = True
    work = build_fixed_work(cfg, (64, 96))
    image = torch.rand(3, 64, 96) * 255
    ours = count_costs(work.model, lambda: work(image)).by_operator()
    traced = FlopCountAnalysis(work, (image,))
    traced.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    theirs = traced.by_operator()
    assert ours["conv"] == theirs["conv"]
    assert ours["matmul"] == theirs["matmul"]
    assert ours["linear"] == theirs["linear"]
    assert ours["adaptive_conv"] == sum(
        h * w * 9 * 64 * 64 for h, w in [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    )


def test_all_stages_of_a_cascade_are_one_part() -> None:
    cfg = baseline_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "CascadeDoubleHeadROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    work = build_fixed_work(cfg, (64, 64))
    work.num_proposals = 4
    assert part_flops(work)["fc head"] == 3 * 4 * (256 * 49 * 1024 + 1024 * 1024)


def test_random_boxes_are_within_the_image_and_have_an_area() -> None:
    boxes = random_boxes(1000, (80, 120))
    assert (boxes >= 0).all()
    assert (boxes[:, 2] <= 120).all()
    assert (boxes[:, 3] <= 80).all()
    assert ((boxes[:, 2:] - boxes[:, :2]) > 0).all()


@pytest.mark.parametrize(
    ("shortest", "longest", "size"),
    [(800, 1333, (800, 1216)), (128, 128, (128, 128)), (288, 480, (288, 448))],
)
def test_typical_size(shortest: int, longest: int, size: tuple[int, int]) -> None:
    cfg = baseline_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = shortest, longest
    assert typical_size(cfg) == size
