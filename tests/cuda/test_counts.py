"""Launches and waits of a training step, which must not creep back.

Two images of 64 x 80 pixels with 3 and 2 objects. The counts do not depend on the sizes, as long as
an image has few objects. Stock detectron2 is counted in the same way.
"""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from d2_plugins import get_cfg, model_zoo
from d2_plugins.engine.train_step import StepTrainer
from tests.support.simulated_device import Counts, SimulatedCuda
from tests.support.stock import make_stock, small_batch
from tests.support.tiny_flagship import SHRINK

# Upper bounds of launches and waits in the forward pass of the flagship.
BOUNDS = {
    "preprocess": (16, 8),  # stock: 16 and 8
    "backbone": (220, 0),  # at the depth of SHRINK; stock: 171 and 0
    "proposal_generator": (600, 32),  # stock: 505 and 42
    "roi_heads": (420, 24),  # stock: 228 and 22
}
TOTAL_LAUNCHES_OVER_STOCK = 1.35
TOTAL_WAITS_OVER_STOCK = 0


def count(gpu: SimulatedCuda, cfg: CfgNode, train: bool = True) -> Counts:
    """Count one forward pass, in an iteration that does not write statistics."""
    cfg.MODEL.DEVICE = "cuda"
    torch.manual_seed(0)
    model = build_model(cfg).train(train)
    gpu.name_parts(**{name: getattr(model, name) for name in list(BOUNDS)[1:]})
    with gpu.count("preprocess") as counts, EventStorage(1), torch.set_grad_enabled(train):
        model(small_batch(0, (3, 2)))
    return counts


def flagship() -> CfgNode:
    cfg = model_zoo.get_config("csp_cascade.yaml")
    cfg.merge_from_list(list(SHRINK))
    return cfg


def stock() -> CfgNode:
    return make_stock(get_cfg(), "StandardROIHeads", mask=False)


def test_training_step_within_bounds(gpu: SimulatedCuda) -> None:
    ours, theirs = count(gpu, flagship()), count(gpu, stock())
    launches, waits = ours.by("launches", 0), ours.by("waits", 0)
    assert launches.keys() == BOUNDS.keys()
    for part, (most_launches, most_waits) in BOUNDS.items():
        assert launches[part] <= most_launches, (part, ours.by("launches", 2).most_common(20))
        assert waits[part] <= most_waits, (part, ours.by("waits", 2).most_common(20))
    assert launches.total() <= TOTAL_LAUNCHES_OVER_STOCK * theirs.launches.total()
    assert waits.total() <= theirs.waits.total() + TOTAL_WAITS_OVER_STOCK


def test_stock_detector_is_counted_as_before(gpu: SimulatedCuda) -> None:
    """A change here means that the counting changed, or detectron2 did."""
    counts = count(gpu, stock())
    assert counts.by("launches", 0)["proposal_generator"] == pytest.approx(505, abs=15)
    assert counts.by("waits", 0) == {"preprocess": 8, "proposal_generator": 42, "roi_heads": 22}


def test_inference_waits_as_often_as_the_stock_detector(gpu: SimulatedCuda) -> None:
    ours, theirs = count(gpu, flagship(), train=False), count(gpu, stock(), train=False)
    assert ours.waits.total() <= theirs.waits.total() + 1
    assert ours.launches.total() <= 1.7 * theirs.launches.total()


def test_the_gradient_norm_is_logged_every_20th_iteration_only(gpu: SimulatedCuda) -> None:
    layer = nn.Linear(2, 1).to("cuda")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": self.layer(x).sum()}

    batch = torch.ones(1, 2, device="cuda")
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    trainer = StepTrainer(Model().train(), [batch] * 3, optimizer, clip_norm=1.0)
    waits = []
    for iteration in (0, 1, 20):
        trainer.iter = iteration
        with gpu.count() as counts, EventStorage(iteration) as storage:
            trainer.run_step()
        waits.append(counts.waits.total())
        assert ("grad_norm" in storage.latest()) == (iteration % 20 == 0)
    assert waits[0] == waits[2] == waits[1] + 1
