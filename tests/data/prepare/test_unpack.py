"""Archives are unpacked completely, and hostile archives are refused."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from d2_plugins.data.prepare.unpack import unpack
from d2_plugins.errors import UsageError


def write_zip(path: Path, names: list[str], mode: int = 0) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, "" if name.endswith("/") else f"content of {name}")


def write_tar(path: Path, names: list[str], kind: bytes = tarfile.REGTYPE) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name in names:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.type = tarfile.DIRTYPE if name.endswith("/") else kind
            info.linkname = "../../outside"
            content = f"content of {name}".encode()
            info.size = len(content) if info.isreg() else 0
            info.mode = 0o4777  # neither this nor an owner is taken over
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)


@pytest.mark.parametrize(
    ("name", "write"), [("a.zip", write_zip), ("a.tar", write_tar), ("a.tar.gz", write_tar)]
)
def test_files_and_folders(
    name: str, write: Callable[[Path, list[str]], None], tmp_path: Path
) -> None:
    archive, folder = tmp_path / name, tmp_path / "out"
    write(archive, ["top/", "top/a.txt", "top/deep/b.txt", "./c.txt"])
    unpack(archive, folder)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    assert files == ["c.txt", "top/a.txt", "top/deep/b.txt"]
    assert (folder / "top/deep/b.txt").read_text() == "content of top/deep/b.txt"
    assert not (folder / "top/a.txt").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


@pytest.mark.parametrize("write", [write_zip, write_tar])
@pytest.mark.parametrize(
    "evil", ["../evil.txt", "top/../../evil.txt", "/evil.txt", "C:/evil.txt", "..\\evil.txt"]
)
def test_paths_that_leave_the_folder(
    evil: str, write: Callable[[Path, list[str]], None], tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    write(archive, ["good.txt", evil])
    with pytest.raises(UsageError, match=r"evil\.txt"):
        unpack(archive, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.rglob("*.txt")] == ["good.txt"]
    assert not Path("/evil.txt").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar(kind: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ["top/link"], kind)
    with pytest.raises(UsageError, match="'top/link' is not a plain file"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not os.path.lexists(tmp_path / "out" / "top" / "link")


def test_links_in_a_zip(tmp_path: Path) -> None:
    write_zip(tmp_path / "a.zip", ["link"], stat.S_IFLNK | 0o777)
    with pytest.raises(UsageError, match="'link' is not a plain file"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_damaged_archives_are_named(name: str, damage: str, tmp_path: Path) -> None:
    archive = tmp_path / name
    (write_zip if name.endswith("zip") else write_tar)(archive, ["a.txt", "b.txt"])
    content = bytearray(archive.read_bytes())
    if damage == "cut":
        content = content[: 520 if name == "a.tar" else len(content) // 3]
    elif damage == "flipped":
        content[40] ^= 0xFF
    else:
        content = bytearray(b"<html>please log in</html>")
    archive.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name} cannot be unpacked|{name}: "):
        unpack(archive, tmp_path / "out")


def test_what_does_not_fit_the_disk_is_refused_at_once(tmp_path: Path) -> None:
    archive = tmp_path / "big.zip"
    with zipfile.ZipFile(archive, "w") as big:
        big.writestr("a.txt", "x")
        big.infolist()[0].file_size = 1 << 50  # as its list of members will claim
    with pytest.raises(UsageError, match=r"big\.zip needs 1048576\.0 GiB"):
        unpack(archive, tmp_path / "out")


def test_a_tar_member_that_does_not_fit_the_disk_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("huge.bin")
    info.size = 1 << 50  # the header claims it; no content follows
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UsageError, match=r"a\.tar needs 1048576\.0 GiB"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(("name", "write"), [("a.zip", write_zip), ("a.tar", write_tar)])
def test_a_file_where_a_folder_is_needed_is_reported_in_one_line(
    name: str, write: Callable[[Path, list[str]], None], tmp_path: Path
) -> None:
    write(tmp_path / name, ["top", "top/below.txt"])
    with pytest.raises(OSError, match=rf"{name} cannot be unpacked: .*top"):
        unpack(tmp_path / name, tmp_path / "out")
