"""Unpacking archives that may have been made to harm."""

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ...errors import UsageError

__all__ = ["unpack"]

# A member's name and its content.
_Member = tuple[str, IO[bytes]]

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,  # zipfile's, for encryption and unknown compression
)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file (plain, gz, bz2, xz) into an empty folder.

    Only plain files and folders are made: no links, devices, owners or permissions. A member
    whose path would leave the folder stops the whole.

    Args:
        archive: the file.
        folder: must be empty or missing.

    Raises:
        UsageError: the archive is damaged, not an archive, holds something that is refused, or
            needs more room than the disk has; the message names the archive and the member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zip_file:
                _check_room(archive, folder, sum(info.file_size for info in zip_file.infolist()))
                _write_all(archive, folder, _zip_members(zip_file))
        else:
            with tarfile.open(archive) as tar_file:
                # A tar has no list of its members; it is at least as big as the file.
                _check_room(archive, folder, archive.stat().st_size)
                _write_all(archive, folder, _tar_members(tar_file))
    except _DAMAGED as error:
        raise UsageError(f"{archive} cannot be unpacked: {error}") from error


def _check_room(archive: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"{archive} needs {needed / 2**30:.1f} GiB under {folder}, where {free / 2**30:.1f} "
            "GiB are free"
        )


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        if info.is_dir():
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            raise UsageError(f"{archive.filename}: '{info.filename}' is no plain file")
        with archive.open(info) as content:
            yield info.filename, content


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        if info.isdir():
            continue
        content = archive.extractfile(info) if info.isreg() else None
        if content is None:
            raise UsageError(f"{archive.name!s}: '{info.name}' is no plain file")
        with content:
            yield info.name, content


def _write_all(archive: Path, folder: Path, members: Iterator[_Member]) -> None:
    with tqdm(desc=f"unpacking {archive.name}", unit=" files", disable=None) as bar:
        for name, content in members:
            path = folder / _safe_path(archive, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
            bar.update()


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """The member's relative path.

    Raises:
        UsageError: it is absolute or climbs up, here or on another system.
    """
    path = PurePosixPath(name)
    climbs = path.is_absolute() or ".." in path.parts or not path.parts
    if climbs or "\\" in name or ":" in name:
        raise UsageError(f"{archive}: '{name}' is no path inside the archive's folder")
    return path
