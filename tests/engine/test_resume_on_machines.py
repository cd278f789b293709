"""A run on machines that do not share OUTPUT_DIR: two processes, each with a folder of its own."""

from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from d2_plugins.data import register_coco_json
from d2_plugins.engine import Trainer, launch
from d2_plugins.errors import UsageError
from tests.support.toy import toy_cfg, write_toy_coco

pytestmark = pytest.mark.slow


def trainer_of_rank(folder: Path, *, with_checkpoint: bool) -> Trainer:
    """The trainer of a machine whose folder holds a checkpoint of iteration 4, or nothing."""
    output = folder / f"machine{comm.get_rank()}"
    output.mkdir(parents=True)
    trainer = Trainer(
        toy_cfg(output, ["DATASETS.TRAIN", ("toy_on_machines",), "DATASETS.TEST", ()])
    )
    if with_checkpoint:
        trainer.iter = 4
        trainer.checkpointer.save_to_disk = True  # which only the first process does by itself
        trainer.checkpointer.save("model_0000004")
    return trainer


def resume(folder: Path) -> None:
    torch.set_num_threads(1)
    register_coco_json("toy_on_machines", folder / "annotations.json", folder / "images")
    trainer = trainer_of_rank(folder / "both", with_checkpoint=True)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 5
    trainer = trainer_of_rank(folder / "first", with_checkpoint=comm.get_rank() == 0)
    with pytest.raises(UsageError, match=r"\[5, 0\].*one folder that all machines see"):
        trainer.resume_or_load(resume=True)


def test_processes_that_find_different_checkpoints_are_told(tmp_path: Path) -> None:
    write_toy_coco(tmp_path)
    launch(resume, 2, dist_url="auto", use_cpu=True, args=(tmp_path,))
