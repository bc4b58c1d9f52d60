"""Where corpora lie. Light on purpose: `fedexit status` asks for their checksums without importing torch."""

import hashlib
import tarfile
from pathlib import Path

from fedexit.data.folder import MANIFEST, new_folder
from fedexit.data.packages import PACKAGE
from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir

QUEEN, UNLABELLED = "queen", "unlabelled"
TARS = {  # corpus: (name of its folder or tar, licence, public home)
    "asc_digits": ("asc_digits", "CC BY 4.0", "abdulkaderghandoura/arabic-speech-commands-dataset on GitHub"),
    "speechocean": ("speechocean60", "CC BY 4.0", "jimbozhang/speechocean762 on GitHub, OpenSLR 101"),
    "emodb": ("emodb4", "CC0 1.0", "audEERING's release of EMO-DB"),
}


def known(name: str) -> bool:
    """Whether the project knows a corpus of this name."""
    return name in (QUEEN, UNLABELLED) or name in TARS


def found(name: str) -> Path | None:
    """Folder or tar of a known corpus, if it is there."""
    stem = TARS[name][0] if name in TARS else name
    cache, downloads = data_dir() / "cache", data_dir() / "downloads"
    for folder in (cache / stem, downloads / stem):
        if (folder / MANIFEST).is_file():
            return folder
    tar = downloads / f"{stem}.tar"
    return tar if tar.is_file() else None


def place_of(name: str) -> Path:
    """Where the corpus called or lying at `name` is."""
    if name == QUEEN:
        place, mend = found(name), f"run: fedexit data fetch {QUEEN} (Debian package {PACKAGE}, 35 MB)"
    elif name == UNLABELLED:
        place, mend = found(name), f"run: fedexit data fetch {UNLABELLED} (speech in 13 Debian packages, 600 MB)"
    elif name in TARS:
        place, mend = found(name), f"run: fedexit data fetch {name} --from {TARS[name][0]}.tar"
    else:
        place, mend = (
            Path(name),
            f"expected {', '.join([QUEEN, UNLABELLED, *TARS])}, or a folder or .tar with a {MANIFEST}",
        )
        place = place if place.exists() else None
    if place is None:
        raise FedexitError(f"corpus {name!r} is not there; {mend}")
    return place


def unpacked(tar: Path) -> Path:
    """Folder of a tar's corpus in the cache, unpacked on first use; another content of the tar gets another folder."""
    checksum = hashlib.sha256(tar.read_bytes()).hexdigest()
    folder = data_dir() / "cache" / f"{tar.stem}-{checksum[:12]}"
    if not folder.is_dir():
        with new_folder(folder) as part:
            try:
                with tarfile.open(tar) as archive:
                    archive.extractall(part, filter="data")
            except (tarfile.TarError, EOFError) as error:
                raise FedexitError(f"{tar}: cannot be unpacked ({error}); get it again") from error
    inside = sorted(folder.glob(f"*/{MANIFEST}"))
    return inside[0].parent if inside else folder


def folder_of(name: str) -> Path:
    """Folder of the corpus called or lying at `name`, with its `manifest.csv`. Raises FedexitError with the mend."""
    place = place_of(name)
    folder = unpacked(place) if place.is_file() else place
    if not (folder / MANIFEST).is_file():
        raise FedexitError(f"{folder}: no {MANIFEST} in it; make a corpus of it with `fedexit data convert FOLDER OUT`")
    return folder


def manifest_checksum(folder: Path) -> str:
    """SHA-256 of the content of manifest.csv: what a result says it was measured on."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
