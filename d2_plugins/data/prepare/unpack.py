"""Unpacking of archives from the internet into a folder, without anything outside it."""

import gzip
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ...errors import UsageError
from .download import check_room

__all__ = ["unpack"]

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    gzip.BadGzipFile,
    RuntimeError,  # zipfile's for encryption and unknown compression
)
# Absolute, or upwards, on this system or another one.
_UNSAFE_NAME = re.compile(r"^/|(^|/)\.\.(/|$)|[\\:]|^$")

_Info = TypeVar("_Info", zipfile.ZipInfo, tarfile.TarInfo)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar file (plain, gz, bz2, xz) into an empty folder.

    Only plain files and folders are made: no links, devices, owners or permissions. A member
    whose path would leave the folder stops everything.

    Args:
        archive: the file.
        folder: target folder, empty or missing.

    Raises:
        UsageError: the archive is damaged, is not an archive, holds a member that is refused, or
            needs more room than the disk has; the message names the archive and the member.
        OSError: a file cannot be written; the message names the archive and the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        else:
            _unpack_tar(archive, folder)
    except _DAMAGED as error:
        raise UsageError(f"{archive} cannot be unpacked: {error}") from error
    except OSError as error:
        reason = f"{archive} cannot be unpacked: {error.strerror or error}"
        raise OSError(error.errno, reason, error.filename) from error


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        check_room(archive, folder, sum(info.file_size for info in members))
        for info in _progress(archive, members):
            kind = stat.S_IFMT(info.external_attr >> 16)
            _check_member(archive, info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR))
            file.extract(info, folder)


def _unpack_tar(archive: Path, folder: Path) -> None:
    def plain(info: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
        _check_member(archive, info.name, info.isreg() or info.isdir())
        return tarfile.data_filter(info, path).replace(mode=0o644 if info.isreg() else 0o755)

    with tarfile.open(archive) as file:
        for info in _progress(archive, file):  # a tar has no list of its members
            check_room(archive, folder, info.size)
            file.extract(info, folder, filter=plain)


def _progress(archive: Path, members: Iterable[_Info]) -> Iterable[_Info]:
    return tqdm(members, desc=f"unpacking {archive.name}", unit=" files", disable=None)


def _check_member(archive: Path, name: str, is_plain: bool) -> None:
    if not is_plain:
        raise UsageError(f"{archive}: '{name}' is not a plain file")
    if _UNSAFE_NAME.search(name):
        raise UsageError(f"{archive}: '{name}' is not a path inside the archive's folder")
