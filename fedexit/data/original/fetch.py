"""Make a corpus folder from a release: from a download, from an archive or from a folder of the user."""

from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree

from fedexit.data.archives import unpack
from fedexit.data.checksums import ClipHashes
from fedexit.data.convert import Report
from fedexit.data.original.build import write_corpus
from fedexit.data.original.catalogue import ORIGINALS, Original
from fedexit.data.original.download import download
from fedexit.data.original.release import release_root
from fedexit.data.original.subset import parts_of, write_subset
from fedexit.data.places import content_checksum, manifest_paths
from fedexit.support.errors import FedexitError
from fedexit.support.files import new_folder
from fedexit.support.locks import owned
from fedexit.support.paths import data_dir


def fetch_release(
    name: str,
    source: Path | None = None,
    url: str = "",
    parts: Sequence[str] = (),
    say: Callable[[str], object] = print,
) -> Path:
    """Make the corpus `name` of its release in the cache, completely or not at all, and return its folder.

    Args:
        name: a name in `ORIGINALS`.
        source: folder or archive of the release. Without it the official archives are downloaded; those that are in the
            downloads already are checked and used.
        url: address of a folder with copies of the archives, in place of the official one.
        parts: names of the archives; default the usual ones.
        say: receives a line for each reason why files were left out or are without a label.

    Raises:
        FedexitError: the release cannot be downloaded, unpacked or found, needs a licence, or is not complete.
    """
    original, report = ORIGINALS[name], Report(skip_bad=False)
    folder = data_dir() / "cache" / (original.subset or name)
    if source is not None:
        _check_source(source, folder, bool(url or parts))
    given = source if source is not None and source.is_dir() else None
    archives = [] if given else [source] if source else _downloaded(original, name, url, parts)
    with owned(folder), new_folder(folder) as part:
        for archive in archives:
            unpack(archive, part / "unpacked")
        root = release_root(given or part / "unpacked", original.marks, original.title)
        if original.subset:
            write_subset(original.read(root, parts_of(name), report.note), root, part)
        else:
            trials = original.trials(root) if original.trials else None
            write_corpus(original.read(root, report.note), root, part, trials)
        rmtree(part / "unpacked", ignore_errors=True)
    for line in report.lines():
        say(line)
    say_checksum(original, folder, say)
    return folder


def say_checksum(original: Original, folder: Path, say: Callable[[str], object]) -> None:
    """Report if the corpus in `folder` differs from the one that published results were made with."""
    if original.checksum and (found := _checksum(folder)) != original.checksum:
        say(f"the checksum of the corpus is {found}; published results were made with {original.checksum}")


def _check_source(source: Path, folder: Path, ignored: bool) -> None:
    if ignored:
        raise FedexitError("--from names the release, so --url and --part have no effect; leave them out")
    if not source.exists():
        raise FedexitError(f"{source}: no such folder or archive; name the folder or the archive of a release")
    if source.resolve().is_relative_to(folder.resolve()):
        raise FedexitError(f"{source}: lies in {folder}, which is made anew; move the release to another place")


def _downloaded(original: Original, name: str, url: str, parts: Sequence[str]) -> list[Path]:
    files = []
    for archive in original.chosen(parts):
        address = f"{url.rstrip('/')}/{Path(archive.url).name}" if url else archive.url
        files.append(download(address, data_dir() / "downloads" / name / archive.file, archive.sha256))
    return files


def _checksum(folder: Path) -> str:
    return content_checksum(folder, manifest_paths(folder), ClipHashes(folder))
