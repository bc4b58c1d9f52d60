"""Getting queen.1c, the embedded corpus, from its Debian package or from a file."""

import hashlib
import os
from pathlib import Path

from fedexit.debian import download_package, is_package, package_files
from fedexit.errors import FedexitError

PACKAGE = "flight-of-the-amazon-queen"
QUEEN_SHA256 = "cc91960d133fcd4173eda4bac304e80d2bbdbaa085640287ab9e0507bd603f67"
_MEND = "download its .deb elsewhere and run: fedexit data fetch queen --from FILE (a queen.1c will do, too)"


def fetch_queen(downloads: Path, source: Path | None = None) -> Path:
    """Put a checked queen.1c into `downloads` and return its path.

    It comes from `source` (a .deb of the package, of whatever revision, or a queen.1c), else from an earlier fetch,
    else from the package. Raises FedexitError if it cannot be had or is not the version this project was measured on.
    """
    target = downloads / "queen.1c"
    if source is None and target.is_file() and _sha256(target.read_bytes()) == QUEEN_SHA256:
        return target
    content = _queen_in(_content(source) if source else download_package(PACKAGE, _MEND))
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


def _content(source: Path) -> bytes:
    try:
        return source.read_bytes()
    except OSError as error:
        raise FedexitError(f"{source}: cannot be read ({error.strerror}); check the path") from error


def _queen_in(content: bytes) -> bytes:
    """The queen.1c that `content`, itself or a package, is."""
    if not is_package(content):
        return content
    for path, file in package_files(content):
        if path.endswith("queen.1c"):
            return file
    raise FedexitError(f"the .deb package holds no queen.1c; use the package {PACKAGE}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
