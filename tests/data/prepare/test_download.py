"""Downloads from a server that breaks connections, ignores ranges or changes the file."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from d2_plugins.data.prepare.download import download
from d2_plugins.errors import UsageError
from tests.support.file_server import Files, serve

BODY = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(BODY).hexdigest()


def fetch(files: Files, path: Path, **options: Any) -> None:
    with serve(files) as url:
        download(f"{url}/file", path, **{"md5": MD5, "wait": 0.0, **options})


def test_whole_file_and_nothing_else(tmp_path: Path) -> None:
    files = Files({"/file": BODY})
    path = tmp_path / "deep" / "file"
    fetch(files, path)
    assert path.read_bytes() == BODY
    assert os.listdir(path.parent) == ["file"]
    fetch(files, path)  # there already: no request
    assert len(files.requests) == 1


def test_a_broken_connection_is_resumed_where_it_broke(tmp_path: Path) -> None:
    files = Files({"/file": BODY}, break_after=[1_000_000, 700_000])
    fetch(files, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    asked = [range_ for _, range_, _ in files.requests]
    assert asked == [None, "bytes=1000000-", "bytes=1700000-"]
    assert sum(sent for _, _, sent in files.requests) == len(BODY)


def test_without_ranges_it_starts_again(tmp_path: Path) -> None:
    files = Files({"/file": BODY}, break_after=[1_000_000], ranges=False)
    fetch(files, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_later_call_goes_on_with_what_an_earlier_one_got(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files = Files({"/file": BODY}, break_after=[2_000_000, 0, 0])
    with serve(files) as url:
        with pytest.raises(UsageError, match=r"connection broke at byte 2000000 .*continues"):
            download(f"{url}/file", path, md5=MD5, attempts=2, wait=0.0)
        assert not path.exists()
        download(f"{url}/file", path, md5=MD5)
    assert path.read_bytes() == BODY
    assert files.requests[-1] == ("/file", "bytes=2000000-", len(BODY) - 2_000_000)


@pytest.mark.parametrize("size", [len(BODY), len(BODY) + 5])
def test_a_complete_or_too_long_part_is_recognised(size: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    files = Files({"/file": BODY}, break_after=[2_000_000, 0, 0])
    with serve(files) as url:
        with pytest.raises(UsageError):
            download(f"{url}/file", path, attempts=2, wait=0.0)
        (tmp_path / "file.part").write_bytes((BODY + b"x" * 5)[:size])
        download(f"{url}/file", path, md5=MD5, wait=0.0)
    assert path.read_bytes() == BODY


def test_a_file_that_changed_meanwhile_is_not_mixed(tmp_path: Path) -> None:
    files = Files({"/file": b"x" * len(BODY)}, break_after=[1_000_000, 0, 0])
    path = tmp_path / "file"
    with serve(files) as url:
        with pytest.raises(UsageError):
            download(f"{url}/file", path, attempts=2, wait=0.0)
        files.content["/file"], files.etag = BODY, '"second"'
        download(f"{url}/file", path)  # no checksum to save it
    assert path.read_bytes() == BODY


def test_the_part_of_another_url_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files = Files({"/file": BODY, "/other": b"y" * 2_000_000}, break_after=[1_000_000, 0, 0])
    with serve(files) as url:
        with pytest.raises(UsageError):
            download(f"{url}/other", path, attempts=2, wait=0.0)
        download(f"{url}/file", path)
    assert path.read_bytes() == BODY


def test_a_range_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    files = Files({"/file": BODY}, break_after=[1_000_000], wrong_range=True)
    with pytest.raises(UsageError, match="asked for bytes from 1000000 on, got 'bytes 1000001-"):
        fetch(files, tmp_path / "file", attempts=3)
    assert not (tmp_path / "file").exists()


def test_a_wrong_checksum_leaves_nothing_behind(tmp_path: Path) -> None:
    files = Files({"/file": BODY[:-1] + b"!"})
    with pytest.raises(UsageError, match=f"not {MD5}: it is damaged"):
        fetch(files, tmp_path / "file")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(UsageError, match="damaged"):
        fetch(files, tmp_path / "file")


def test_errors_of_the_server(tmp_path: Path) -> None:
    files = Files({"/file": BODY}, status=[503, 500])
    fetch(files, tmp_path / "file")
    assert len(files.requests) == 3
    gone = Files({})
    with pytest.raises(UsageError, match=r"/file: HTTP Error 404"):
        fetch(gone, tmp_path / "gone")
    assert len(gone.requests) == 1, "asking again would not help"


def test_without_a_length_the_checksum_decides(tmp_path: Path) -> None:
    fetch(Files({"/file": BODY}, with_length=False), tmp_path / "file")
    with pytest.raises(UsageError, match="damaged"):
        fetch(Files({"/file": BODY}, with_length=False, break_after=[99]), tmp_path / "cut")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:9/file"])
def test_redirects_to_other_protocols_are_refused(target: str, tmp_path: Path) -> None:
    files = Files({"/file": BODY}, redirect=target)
    with pytest.raises(UsageError, match=r"redirects to ftp://.* only http and https"):
        fetch(files, tmp_path / "file", attempts=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("with_length", [True, False])
def test_a_body_that_would_fill_the_disk_is_refused(
    with_length: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    with pytest.raises(UsageError, match=r"file needs .* GiB are free"):
        fetch(Files({"/file": BODY}, with_length=with_length), tmp_path / "file")
    assert not (tmp_path / "file").exists()
