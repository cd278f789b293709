"""Accumulated gradients: one step on the parts of a batch against one step on the whole batch."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from d2_plugins.config_schema import check_config
from d2_plugins.engine import Trainer
from d2_plugins.engine.train_step import StepTrainer
from d2_plugins.errors import UsageError
from tests.support.toy import toy_cfg
from tests.support.training import train

STEPS, BATCH = 3, 8


class Network(nn.Module):
    """Two losses that are means over the images, and no norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.sizes: list[int] = []

    def forward(self, batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        images, targets = (torch.stack([d[key] for d in batch]) for key in ("image", "target"))
        features = self.conv(images).relu()
        output = self.linear(features.mean((2, 3)))
        return {"loss_a": mse_loss(output, targets), "loss_b": 0.1 * features.square().mean()}


def batches(dtype: torch.dtype) -> list[list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(1)

    def image() -> dict[str, Tensor]:
        pixels, target = (
            torch.rand(3, 6, 6, generator=generator),
            torch.rand(2, generator=generator),
        )
        return {"image": pixels.to(dtype), "target": 3 * target.to(dtype)}

    return [[image() for _ in range(BATCH)] for _ in range(STEPS)]


def step(
    network: nn.Module, dtype: torch.dtype, *, parts: int, **settings: Any
) -> tuple[StepTrainer, dict[str, float]]:
    """Take all steps; return the trainer and what the last one wrote."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9, weight_decay=0.01)
    trainer = StepTrainer(network, batches(dtype), optimizer, accumulate=parts, **settings)
    with EventStorage() as storage:
        for _ in range(STEPS):
            trainer.run_step()
        return trainer, {name: value for name, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("clip_norm", [None, 0.2])
@pytest.mark.parametrize("parts", [2, 8])
def test_parts_take_the_step_of_the_whole_batch(parts: int, clip_norm: float | None) -> None:
    whole, split = Network().double(), Network().double()
    _, expected = step(whole, torch.float64, parts=1, clip_norm=clip_norm)
    _, written = step(split, torch.float64, parts=parts, clip_norm=clip_norm)
    assert split.sizes == [BATCH // parts] * parts * STEPS
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(split.get_parameter(name), weight, rtol=1e-12, atol=1e-13)
    for name in ("loss_a", "loss_b", "total_loss", *(["grad_norm"] if clip_norm else [])):
        assert written[name] == pytest.approx(expected[name], rel=1e-12), name
    if clip_norm:
        assert expected["grad_norm"] > clip_norm


def test_gradient_scaler_steps_once_per_batch() -> None:
    exact, rounded = Network(), Network()
    step(exact, torch.float32, parts=1, clip_norm=0.2)
    # In parts, the scaled gradients stay within the range of float16.
    trainer, _ = step(rounded, torch.float32, parts=4, clip_norm=0.2, amp_dtype=torch.float16)
    assert trainer.grad_scaler.state_dict()["_growth_tracker"] == STEPS
    for name, weight in exact.named_parameters():
        torch.testing.assert_close(rounded.get_parameter(name), weight, rtol=0, atol=1e-4)


@contextlib.contextmanager
def one_process_group(folder: Path) -> Iterator[None]:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def test_processes_exchange_gradients_once_per_batch(tmp_path: Path) -> None:
    exchanged: list[Tensor] = []

    def exchange(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.append(bucket.buffer().clone())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    alone, network = Network().double(), Network().double()
    with one_process_group(tmp_path):
        parallel = DistributedDataParallel(network)
        parallel.register_comm_hook(None, exchange)
        step(parallel, torch.float64, parts=4)
    step(alone, torch.float64, parts=4)
    assert len(exchanged) == STEPS
    # The last exchange holds the mean over all the parts, not the gradient of the last one.
    gradients = torch.cat([p.grad.flatten() for p in alone.parameters() if p.grad is not None])
    torch.testing.assert_close(exchanged[-1].sum(), gradients.sum(), rtol=1e-9, atol=1e-12)


def test_batch_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ValueError, match="8 images cannot be split into 3 equal parts"):
        step(Network(), torch.float32, parts=3)


def test_number_of_parts_divides_the_images_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opts = ["SOLVER.IMS_PER_BATCH", 16, "SOLVER.ACCUMULATE", 4]
    with pytest.raises(UsageError, match=r"SOLVER\.ACCUMULATE is 4; .*divisors of 2"):
        check_config(toy_cfg(tmp_path, [*opts, "SOLVER.REFERENCE_WORLD_SIZE", 8]))
    check_config(toy_cfg(tmp_path, [*opts, "SOLVER.REFERENCE_WORLD_SIZE", 4]))
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 8)
    with pytest.raises(UsageError, match=r"SOLVER\.ACCUMULATE is 4; .*divisors of 2.*8 processes"):
        Trainer(toy_cfg(tmp_path, opts))


def test_resumed_run_with_everything_on_ends_with_the_same_weights(
    toy_data: list[Any], tmp_path: Path
) -> None:
    opts = [*toy_data, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE", 2, "SOLVER.MAX_ITER", 4]
    opts += ["SOLVER.AMP.ENABLED", True, "SOLVER.EMA.ENABLED", True, "DATASETS.TEST", ()]
    opts += ["SOLVER.STEPS", (3,), "SOLVER.CHECKPOINT_PERIOD", 2]
    opts += ["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"]
    whole = train(tmp_path / "whole", opts)
    # The schedule counts optimizer steps: the rate has fallen after three of them.
    assert whole.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * whole.cfg.SOLVER.BASE_LR)
    train(tmp_path / "halves", opts, stop_after=2)
    assert train(tmp_path / "halves", opts).start_iter == 2
    whole_state, halves_state = (
        torch.load(tmp_path / run / "model_final.pth", weights_only=True)
        for run in ("whole", "halves")
    )
    for name, value in whole_state["model"].items():
        assert torch.equal(halves_state["model"][name], value), name
