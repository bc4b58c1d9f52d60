"""Download Debian packages by name, without root and without touching the system's state, and read their files."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

from fedexit.data.archives import Limits, refusing_faults
from fedexit.support.errors import FedexitError
from fedexit.support.files import read_bytes, write_bytes

_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60
_MOST = 4_000_000_000  # bytes in a package; the largest one here has 300 million


def is_package(content: bytes) -> bool:
    """Return whether `content` begins as a .deb does."""
    return content.startswith(_AR_MAGIC)


def package_files(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of every regular file in a Debian package, in its order.

    A .deb is an `ar` archive of tars, packed by gzip, xz, bzip2 or Zstandard. Raises FedexitError if `content` is no
    readable .deb.
    """
    limits = Limits(_MOST)
    with refusing_faults("not a readable .deb package", "download it again"), _data_tar(content) as archive:
        for member in archive:
            limits.add(member.name, member.size)
            if member.isfile() and (file := archive.extractfile(member)):
                yield member.name.removeprefix("./"), file.read()


def download_package(package: str, fix: str) -> bytes:
    """Return the newest .deb of `package` by apt-get; raise FedexitError, ending in `fix`, if that fails."""
    if shutil.which("apt-get") is None:
        raise FedexitError(f"no apt-get here to download {package}; {fix}")
    with tempfile.TemporaryDirectory(prefix="fedexit-apt-") as folder:
        _apt_get(folder, "update")
        log = _apt_get(folder, "download", package)
        file = next(Path(folder).glob(f"{package}_*.deb"), None)
        if file is None:
            raise FedexitError(f"apt-get could not download {package} ({log}); check the network, or {fix}")
        return file.read_bytes()


def _data_tar(content: bytes) -> tarfile.TarFile:
    """Return the opened archive of a package's files."""
    packed = io.BytesIO(_ar_member(content, b"data.tar"))
    if packed.getbuffer()[:4] != zstandard.FRAME_HEADER:
        return tarfile.open(fileobj=packed)
    unpacked = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
    return tarfile.open(fileobj=unpacked, mode="r|")


def _ar_member(content: bytes, prefix: bytes) -> bytes:
    position = len(_AR_MAGIC)
    while content.startswith(_AR_MAGIC) and position + _AR_HEADER <= len(content):
        header = content[position : position + _AR_HEADER]
        digits = header[48:58].strip()
        if not digits.isdigit():  # a negative size would make this loop endless
            raise ValueError(f"a member of size {digits.decode(errors='replace')!r}")
        start, size = position + _AR_HEADER, int(digits)
        if header.startswith(prefix):
            return content[start : start + size]
        position = start + size + size % 2
    raise ValueError(f"no {prefix.decode()} inside")


def _apt_get(folder: str, *command: str) -> str:
    """Run apt-get with all its state in `folder`; return its first error, or its exit code in words."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        Path(folder, part).mkdir(parents=True, exist_ok=True)
    Path(folder, "state/status").touch()
    options = {
        "Dir::State": f"{folder}/state",
        "Dir::State::Lists": f"{folder}/state/lists",
        "Dir::State::Status": f"{folder}/state/status",
        "Dir::Cache": f"{folder}/cache",
        "APT::Sandbox::User": "root",  # otherwise apt-get warns root that the user `_apt` cannot write here
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "30",
        "Acquire::https::Timeout": "30",
    }
    arguments = [argument for key, value in options.items() for argument in ("-o", f"{key}={value}")]
    done = subprocess.run(
        ["apt-get", "-q", *arguments, *command], cwd=folder, capture_output=True, text=True, check=False
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return errors[0] if errors else f"exit code {done.returncode}"


PACKAGE = "flight-of-the-amazon-queen"
QUEEN_SHA256 = "cc91960d133fcd4173eda4bac304e80d2bbdbaa085640287ab9e0507bd603f67"
_FIX = "download its .deb elsewhere and run: fedexit data fetch queen --from FILE (a .deb or a queen.1c)"


def fetch_queen(downloads: Path, source: Path | None = None) -> Path:
    """Put a checked queen.1c into `downloads` and return its path.

    It comes from `source` (a queen.1c, or any revision of the package as a .deb), else from an earlier fetch, else from
    the package. Raises FedexitError if that fails or the file is not the version that this project was measured on.
    """
    target = downloads / "queen.1c"
    if source is None and target.is_file() and _sha256(target.read_bytes()) == QUEEN_SHA256:
        return target
    given = read_bytes(source) if source else download_package(PACKAGE, _FIX)
    try:
        content = _queen_in(given)
    except FedexitError as error:
        raise FedexitError(f"{source or PACKAGE}: {error}") from error
    found = _sha256(content)
    if found != QUEEN_SHA256:
        raise FedexitError(
            f"queen.1c in {source or PACKAGE}: sha256 is {found}, expected {QUEEN_SHA256}; "
            f"it is another version of the game, use the one of the Debian package {PACKAGE} 1.0.0"
        )
    write_bytes(target, content)
    return target


def _queen_in(content: bytes) -> bytes:
    """Return the queen.1c in the package `content`, or `content` itself if it is no package."""
    if not is_package(content):
        return content
    for path, file in package_files(content):
        if path.endswith("queen.1c"):
            return file
    raise FedexitError(f"the .deb package holds no queen.1c; use the package {PACKAGE}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
