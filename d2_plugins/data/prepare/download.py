"""Downloads that resume after a broken connection or a killed process."""

import hashlib
import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from ...errors import UsageError

__all__ = ["check_md5", "check_room", "download"]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 20
# Bytes to leave on the disk by a download of unknown length.
_SPARE_ROOM = 1 << 28


@dataclass(frozen=True, kw_only=True)
class _Partial:
    """Origin of a partial file, kept next to it.

    Attributes:
        url: address of the whole file.
        validator: the server's ETag or Last-Modified, which differs once the file has changed.
    """

    url: str
    validator: str | None


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    attempts: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> None:
    """Download ``url`` to ``path``, which appears only once it is complete and verified.

    Received bytes are kept in ``<path>.part``. After a broken connection, and in a later call,
    the download continues from there if the server supports HTTP ranges and still has the same
    file; otherwise it starts from the beginning.

    Args:
        url: address, http or https.
        path: target file; if it exists, only its checksum is verified.
        md5: hexadecimal checksum, if known.
        attempts: number of consecutive connections without data before giving up.
        wait: seconds before the next attempt; doubled after each attempt without data.
        timeout: seconds without data after which a connection counts as broken.

    Raises:
        UsageError: the server does not have the file, it does not fit the disk, all attempts
            failed, or the checksum is wrong.
    """
    if path.exists():
        check_md5(path, md5)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, timeout)
            break
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                raise UsageError(f"{url}: {error}") from error
            failures = 0 if _size(part) > before else failures + 1
            if failures >= attempts:
                raise UsageError(
                    f"{url}: {error} ({failures} attempts brought nothing; the received part is "
                    f"kept in {part}, and the same command continues from there)"
                ) from error
            logger.warning("%s: %s; continuing at byte %d", url, error, _size(part))
            time.sleep(wait * 2**failures)
    try:
        check_md5(part, md5)
    except UsageError:
        part.unlink()  # continuing from wrong content cannot succeed
        raise
    finally:
        _note(part).unlink(missing_ok=True)
    os.replace(part, path)


def check_md5(path: Path, md5: str | None) -> None:
    """Compare a file with its known checksum.

    Args:
        path: the file.
        md5: hexadecimal checksum; None accepts any content.

    Raises:
        UsageError: they differ.
    """
    if md5 is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != md5:
        raise UsageError(f"{path} has MD5 {digest.hexdigest()}, not {md5}: it is damaged")


def check_room(name: str | Path, folder: Path, needed: int) -> None:
    """Check that a file fits the disk.

    Args:
        name: name of the file, for the message.
        folder: existing folder that the file goes to.
        needed: size in bytes.

    Raises:
        UsageError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"{name} needs {needed / 2**30:.1f} GiB under {folder}, where {free / 2**30:.1f} "
            "GiB are free"
        )


def _fetch(url: str, part: Path, timeout: float) -> None:
    """Append to ``part``, or restart it, over one connection until the end of the file.

    Raises:
        OSError: the connection broke or delivered another range.
    """
    start = _size(part) if _read_note(part).url == url else 0
    request = urllib.request.Request(url, headers={"User-Agent": "d2_plugins"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        validator = _read_note(part).validator
        if validator:
            request.add_header("If-Range", validator)
    try:
        response = urllib.request.build_opener(_HttpOnly).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # longer than the file that the server has now, or just complete
            if error.headers.get("Content-Range") == f"bytes */{start}":
                return
            part.unlink()
        raise
    with response:
        if response.status == 206:
            total = _range_total(response.headers.get("Content-Range"), start)
        else:
            start, total = 0, _integer(response.headers.get("Content-Length"))
            _write_note(part, _Partial(url=url, validator=_validator(response.headers)))
        _append(response, part, start, total)


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """Refuses redirects to other protocols; the standard library follows those to ftp."""

    def redirect_request(  # the base class's signature
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not newurl.lower().startswith(("http://", "https://")):
            raise UsageError(f"{req.full_url} redirects to {newurl}: only http and https are read")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _append(response: http.client.HTTPResponse, part: Path, start: int, total: int | None) -> None:
    name = part.name.removesuffix(".part")
    if total is not None:
        check_room(name, part.parent, total - start)
    with (
        open(part, "ab" if start else "wb") as file,
        tqdm(desc=name, initial=start, total=total, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            if total is None:  # the body may be endless
                check_room(name, part.parent, _SPARE_ROOM)
    # A connection closed early looks like the end of the file.
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection broke at byte {_size(part)} of {total}")


def _range_total(content_range: str | None, start: int) -> int | None:
    """Return the size of the whole file from "bytes start-end/total".

    Raises:
        OSError: the range is not the requested one.
    """
    unit, _, rest = (content_range or "").partition(" ")
    extent, _, total = rest.partition("/")
    if unit != "bytes" or _integer(extent.partition("-")[0]) != start:
        raise ConnectionError(f"asked for bytes from {start} on, got '{content_range}'")
    return _integer(total)


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _validator(headers: http.client.HTTPMessage) -> str | None:
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak ETag does not promise the same bytes
        return etag
    return headers.get("Last-Modified")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _write_note(part: Path, partial: _Partial) -> None:
    part.unlink(missing_ok=True)  # first: a note must never describe another file's bytes
    _note(part).write_text(json.dumps(asdict(partial)))


def _read_note(part: Path) -> _Partial:
    try:
        return _Partial(**json.loads(_note(part).read_text()))
    except (OSError, ValueError, TypeError):
        return _Partial(url="", validator=None)
