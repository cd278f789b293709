"""Files of precomputed proposals: the numbers of detectron2's reader, and no code from the file."""

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import Boxes, Instances

from d2_plugins.data.loader import build_test_loader, build_train_loader
from d2_plugins.data.mapper import PluginDatasetMapper
from d2_plugins.data.proposals import add_proposals
from d2_plugins.errors import UsageError
from d2_plugins.evaluation.proposal_recall import save_proposals
from tests.support.toy import toy_cfg


class Marker:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def proposals_of(image_ids: list[Any], protocol: int = 4) -> bytes:
    rng = np.random.default_rng(0)
    content = {
        "ids": image_ids,
        "boxes": [rng.random((n + 1, 4)).astype(np.float32) for n in range(len(image_ids))],
        "objectness_logits": [rng.random(n + 1).astype(np.float32) for n in range(len(image_ids))],
        "bbox_mode": 0,
    }
    return pickle.dumps(content, protocol)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_what_detectron2_reads(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "p.pkl"
    file.write_bytes(proposals_of([3, "b", 5], protocol))
    dataset: list[dict[str, Any]] = [{"image_id": i} for i in ("b", 5)]
    expected = load_proposals_into_dataset(copy.deepcopy(dataset), str(file))
    add_proposals(dataset, [str(file)])
    for ours, stock in zip(dataset, expected, strict=True):
        assert ours.keys() == stock.keys()
        np.testing.assert_array_equal(ours["proposal_boxes"], stock["proposal_boxes"])
        key = "proposal_objectness_logits"
        np.testing.assert_array_equal(ours[key], stock[key])
        assert ours["proposal_bbox_mode"] == stock["proposal_bbox_mode"]


def test_reads_what_save_proposals_writes(tmp_path: Path) -> None:
    found = Instances((8, 8))
    found.proposal_boxes = Boxes(torch.tensor([[0.0, 0, 4, 4], [1, 1, 2, 2]]))
    found.objectness_logits = torch.tensor([0.5, 2.0])
    save_proposals(tmp_path / "p.pkl", [(7, found)])
    dataset: list[dict[str, Any]] = [{"image_id": 7}]
    add_proposals(dataset, [str(tmp_path / "p.pkl")])
    assert dataset[0]["proposal_boxes"].tolist() == [[1, 1, 2, 2], [0, 0, 4, 4]]


@pytest.mark.parametrize("test_set", [False, True])
@pytest.mark.parametrize("sampler", ["TrainingSampler", "WeightedTrainingSampler"])
def test_loaders_run_no_code_from_a_file(
    toy_data: list[Any], tmp_path: Path, test_set: bool, sampler: str
) -> None:
    file, marker = tmp_path / "p.pkl", tmp_path / "marker"
    file.write_bytes(pickle.dumps({"ids": [], "boxes": [], "objectness_logits": Marker(marker)}))
    files = ["DATASETS.PROPOSAL_FILES_TRAIN", (str(file),)]
    files += ["DATASETS.PROPOSAL_FILES_TEST", (str(file),)]
    opts = [*toy_data, *files, "MODEL.LOAD_PROPOSALS", True, "DATALOADER.SAMPLER_TRAIN", sampler]
    cfg = toy_cfg(tmp_path, opts)
    mapper = PluginDatasetMapper(cfg, is_train=not test_set)
    with pytest.raises(UsageError):
        _ = build_test_loader(cfg, "toy", mapper) if test_set else build_train_loader(cfg, mapper)
    assert not marker.exists()
    with file.open("rb") as opened:
        pickle.load(opened)  # noqa: S301 - negative control: the file does run code
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps(Marker(Path("x"))), "is refused: reading it would call posix.mkdir"),
        (b"not a pickle", "is not a readable pickle"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({"ids": [1]}), "does not hold box proposals: KeyError"),
        (proposals_of([1])[:-20], "is not a readable pickle"),
        (proposals_of([2]), "no proposals for image 1"),
        (
            pickle.dumps({"ids": [1], "boxes": [np.zeros((2, 4))], "scores": [np.zeros(3)]}),
            "do not belong together",
        ),
        (
            pickle.dumps({"ids": [1], "boxes": [np.full((1, 4), np.nan)], "scores": [[0.0]]}),
            "not finite",
        ),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "p.pkl"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        add_proposals([{"image_id": 1}], [str(file)])
    assert str(file) in str(error.value)


@pytest.mark.parametrize("file", ["http://host/p.pkl", "https://host/p.pkl", "detectron2://p.pkl"])
def test_downloads_are_refused(file: str) -> None:
    with pytest.raises(UsageError, match="allowed: local files"):
        add_proposals([{"image_id": 1}], [file])


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.pkl: No such file"):
        add_proposals([{"image_id": 1}], [str(tmp_path / "missing.pkl")])
