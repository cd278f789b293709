"""Two CPU processes against one."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.modeling.roi_heads import ROIHeads
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from tests.support.roi_heads import (
    CHANNELS,
    EAGER_IA,
    EXT,
    Batch,
    make_batch,
    make_heads,
    train_losses,
)

pytestmark = pytest.mark.slow

MODELS = {
    "plain Double-Head": ("DoubleHeadROIHeads", *EAGER_IA),
    "Double-Head-Ext": ("DoubleHeadROIHeads", *EXT, *EAGER_IA),
    "cascade": ("CascadeDoubleHeadROIHeads", *EXT, *EAGER_IA),
    "single head": ("PluginROIHeads", *EAGER_IA),
}
# The second process has an image without objects, whose RoIs are all background.
SHARDS = (((3, 2), 30, 2), ((0, 2), 30, 5))


class Detector(nn.Module):
    """A backbone of one conv and RoI heads."""

    def __init__(self, heads: ROIHeads) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.backbone = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.heads = heads

    def forward(self, batch: Batch) -> Tensor:
        images, features, *rest = batch
        features = {name: self.backbone(f.detach()) for name, f in features.items()}
        return sum(train_losses(self.heads, (images, features, *rest)).values())


def worker(rank: int, port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    init_process_group("gloo", rank=rank, world_size=2)
    results = {}
    for label, (name, *settings) in MODELS.items():
        model = DistributedDataParallel(Detector(make_heads(name, *settings)))
        for _ in range(2):  # the second forward is where DDP reports unused parameters
            model.zero_grad()
            loss = model(make_batch(*SHARDS[rank]))
            loss.backward()
        grads = {key: p.grad for key, p in model.module.named_parameters()}
        results[label] = (loss.detach(), grads)
    torch.save(results, Path(folder) / f"{rank}.pth")
    destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for label, (name, *settings) in MODELS.items():
        expected: list[dict[str, Tensor]] = []
        for rank, shard in enumerate(SHARDS):
            model = Detector(make_heads(name, *settings))
            for _ in range(2):
                model.zero_grad()
                loss = model(make_batch(*shard))
                loss.backward()
            torch.testing.assert_close(results[rank][label][0], loss.detach())
            expected.append({key: p.grad for key, p in model.named_parameters()})
        for key in expected[0]:
            mean = (expected[0][key] + expected[1][key]) / 2
            for rank in range(2):
                torch.testing.assert_close(results[rank][label][1][key], mean, msg=f"{label} {key}")
