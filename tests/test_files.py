"""Atomic writes: the old content or the new one, never a mixture, never a leftover."""

import json
import os
from pathlib import Path

import pytest

from d2_plugins.files import atomic_open, atomic_write_json


def test_a_failed_write_leaves_the_old_content_and_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.json"
    atomic_write_json(path, {"AP": 1.5})

    def fail_half_way() -> None:
        with atomic_open(path) as file:
            file.write("{")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_half_way()
    assert json.loads(path.read_text()) == {"AP": 1.5}
    assert os.listdir(path.parent) == ["results.json"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with atomic_open(tmp_path / "atomic", "wb") as file:
        file.write(b"x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_numbers_that_json_does_not_have_become_null(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "a.json", {"AP": [1.5, float("nan")], "max": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"AP": [1.5, None], "max": None}
