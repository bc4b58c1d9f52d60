"""Getting queen.1c from the Debian package by its name, without root and apart from the system's package state."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from fedexit.errors import FedexitError

PACKAGE = "flight-of-the-amazon-queen"
QUEEN_SHA256 = "cc91960d133fcd4173eda4bac304e80d2bbdbaa085640287ab9e0507bd603f67"
_AR_MAGIC, _AR_HEADER = b"!<arch>\n", 60


def fetch_queen(downloads: Path, source: Path | None = None) -> Path:
    """Put a checked queen.1c into `downloads` and return its path.

    It comes from `source` (a .deb of the package, of whatever revision, or a queen.1c), else from an earlier fetch,
    else from the package. Raises FedexitError if it cannot be had or is not the version this project was measured on.
    """
    target = downloads / "queen.1c"
    if source is None and target.is_file() and _sha256(target.read_bytes()) == QUEEN_SHA256:
        return target
    content = _queen_in(source) if source else _download()
    found = _sha256(content)
    if found != QUEEN_SHA256:
        raise FedexitError(
            f"queen.1c in {source or PACKAGE}: sha256 is {found}, expected {QUEEN_SHA256}; "
            f"another version of the game, use the one of the Debian package {PACKAGE} 1.0.0"
        )
    downloads.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_bytes(content)
    os.replace(part, target)
    return target


def unpack_deb(content: bytes, ending: str) -> bytes:
    """Content of the first file in a Debian package whose path ends in `ending`; a .deb is an `ar` archive of tars.

    Raises FedexitError if `content` is no readable .deb or has no such file.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(_ar_member(content, "data.tar"))) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(ending):
                    return archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise FedexitError(f"not a readable .deb package ({error}); download it again") from error
    raise FedexitError(f"the .deb package holds no {ending}; use the package {PACKAGE}")


def _ar_member(content: bytes, prefix: str) -> bytes:
    position = len(_AR_MAGIC)
    while content.startswith(_AR_MAGIC) and position + _AR_HEADER <= len(content):
        header = content[position : position + _AR_HEADER]
        start, size = position + _AR_HEADER, int(header[48:58])
        if header.startswith(prefix.encode()):
            return content[start : start + size]
        position = start + size + size % 2
    raise ValueError(f"no {prefix} inside")


def _queen_in(source: Path) -> bytes:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise FedexitError(f"{source}: cannot be read ({error.strerror}); check the path") from error
    return unpack_deb(content, "queen.1c") if content.startswith(_AR_MAGIC) else content


def _download() -> bytes:
    if shutil.which("apt-get") is None:
        raise FedexitError(
            f"no apt-get here to download {PACKAGE}; get its .deb from Debian, or the freeware game's queen.1c, "
            "and run: fedexit data fetch queen --from FILE"
        )
    with tempfile.TemporaryDirectory(prefix="fedexit-apt-") as folder:
        _apt_get(folder, "update")
        log = _apt_get(folder, "download", PACKAGE)
        package = next(Path(folder).glob(f"{PACKAGE}_*.deb"), None)
        if package is None:
            raise FedexitError(
                f"apt-get could not download {PACKAGE} ({log}); check the network, or download its .deb elsewhere "
                "and run: fedexit data fetch queen --from FILE"
            )
        return unpack_deb(package.read_bytes(), "queen.1c")


def _apt_get(folder: str, *command: str) -> str:
    """Run apt-get with all its state in `folder` and return its first error; a failing third-party source is none."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        Path(folder, part).mkdir(parents=True, exist_ok=True)
    Path(folder, "state/status").touch()
    options = {
        "Dir::State": f"{folder}/state",
        "Dir::State::Lists": f"{folder}/state/lists",
        "Dir::State::Status": f"{folder}/state/status",
        "Dir::Cache": f"{folder}/cache",
        "APT::Sandbox::User": "root",  # else root is warned that the user `_apt` cannot write here
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


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
