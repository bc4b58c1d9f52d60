"""Download large files: an interrupted download resumes, and a file takes its name only when it is complete."""

import http.client
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from fedexit.support.errors import FedexitError, reason
from fedexit.support.files import file_hash, flush_to_disk
from fedexit.support.locks import owned
from fedexit.support.progress import progress

_BLOCK = 1 << 20
_TIMEOUT = 60  # seconds without any data
_NOT_SATISFIABLE = 416


def download(url: str, target: Path, sha256: str = "") -> Path:
    """Download `url` to `target` and check it; a complete `target` is checked and not downloaded again.

    The data arrive in `<target>.part`. After an interruption the next call asks the server for the rest (HTTP Range);
    if the server sends the whole file instead, the download starts anew.

    Args:
        url: an address that begins with http:// or https://.
        target: the file to make.
        sha256: checksum of the file; "" if the publisher states none.

    Raises:
        FedexitError: the address cannot be read, the connection ended early (the part stays, so that the same call
            resumes), the disk is too small, or the checksum differs (the wrong file is removed).

    Example:
        >>> download("https://www.openslr.org/resources/12/dev-clean.tar.gz", Path("dev-clean.tar.gz"))
    """
    if not url.startswith(("http://", "https://")):
        raise FedexitError(f"{url!r} is no web address; give one that begins with https://")
    part = target.with_name(f"{target.name}.part")
    with owned(target, wait=True):
        if not target.is_file():
            _transfer(url, part)
            try:
                _check(part, url, sha256)
            except FedexitError:
                part.unlink()
                raise
            flush_to_disk(part)
            os.replace(part, target)
            flush_to_disk(target.parent)
        else:
            _check(target, url, sha256)
    return target


def _check(file: Path, url: str, sha256: str) -> None:
    if sha256 and (found := file_hash(file)) != sha256:
        raise FedexitError(
            f"{file}: the checksum is {found}, but that of {url} is {sha256}; remove the file if it is still there, "
            "then run the command again"
        )


def _transfer(url: str, part: Path) -> None:
    """Append to `part` what is missing of `url`."""
    have = part.stat().st_size if part.is_file() else 0
    rest = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers={"User-Agent": "fedexit", **rest})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            begin = _begin(answer)
            if begin not in (0, have):
                raise FedexitError(
                    f"{url}: the server sent the part from byte {begin} instead of {have}; remove {part}"
                )
            length = answer.headers.get("Content-Length")
            _save(answer, part, begin, None if length is None else begin + int(length), url)
    except urllib.error.HTTPError as error:
        if error.code != _NOT_SATISFIABLE:
            raise FedexitError(f"{url}: the server answers {error.code} {error.reason}; check the address") from error
        if error.headers.get("Content-Range", "") != f"bytes */{have}":  # else nothing is missing
            part.unlink()
            _transfer(url, part)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else reason(error)
        raise FedexitError(f"{url}: no connection ({cause}); check the network, then run the command again") from error


def _begin(answer: http.client.HTTPResponse) -> int:
    """Return the position of the first byte that the server sends."""
    if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
        return 0
    return int(answer.headers["Content-Range"].removeprefix("bytes ").split("-")[0])


def _save(answer: http.client.HTTPResponse, part: Path, begin: int, total: int | None, url: str) -> None:
    free, left = shutil.disk_usage(part.parent).free, 0 if total is None else total - begin
    if left > free:
        raise FedexitError(f"{url}: {left / 1e9:.1f} GB do not fit, {free / 1e9:.1f} GB are free; free space")
    cause: Exception | None = None
    with part.open("ab" if begin else "wb") as file:
        blocks = iter(lambda: answer.read(_BLOCK), b"")
        try:
            for block in progress(blocks, url.rsplit("/", 1)[-1], None if total is None else -(-left // _BLOCK)):
                file.write(block)
        except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
            cause = error
        size = file.tell()
    if cause is not None or (total is not None and size != total):
        of = "" if total is None else f" of {total:,}"
        raise FedexitError(f"{url}: interrupted after {size:,}{of} bytes; run the command again to resume") from cause
