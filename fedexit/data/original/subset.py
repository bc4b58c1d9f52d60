"""Write the parts of three open releases that this project uses, with the manifests of its prepared .tar files."""

import csv
import io
from pathlib import Path

import soundfile as sf

from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.folder import MANIFEST
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.progress import progress

_PARTS = Path(__file__).with_name("subsets.csv")  # which folders or clips of a release belong to the corpus


def parts_of(name: str) -> list[str]:
    """Return the parts of the release that the corpus `name` has: folders, or files without their ending."""
    with _PARTS.open(encoding="utf-8", newline="") as file:
        return [row["part"] for row in csv.DictReader(file) if row["corpus"] == name]


def write_subset(rows: list[dict[str, str]], root: Path, folder: Path) -> None:
    """Write the clips of `rows` as FLAC files and the manifest into `folder`.

    With libFLAC 1.4.3 the files are byte-identical to those of the prepared .tar. Other versions may compress in
    another way: then the samples are identical, and the checksum of the corpus differs.

    Args:
        rows: `source` is a file relative to `root`; the others are columns of the manifest.
        root: the release.
        folder: the new corpus.

    Raises:
        FedexitError: a file is not 16 kHz mono audio of 16 bits, or cannot be decoded.
    """
    written = []
    for row in progress(sorted(rows, key=lambda row: row["path"]), "converting"):
        source, target = root / row["source"], folder / row["path"]
        try:
            info = sf.info(source)
            if (info.samplerate, info.channels, info.subtype) != (SAMPLE_RATE, 1, "PCM_16"):
                raise FedexitError(
                    f"{source}: {info.samplerate} Hz, {info.channels} channel(s), {info.subtype}, but the release has "
                    f"{SAMPLE_RATE} Hz, 1 channel, PCM_16; get the original release"
                )
            samples = sf.read(source, dtype="int16")[0]
        except sf.LibsndfileError as error:
            raise FedexitError(
                f"{source}: cannot be decoded ({error.error_string}); fetch the release again"
            ) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        sf.write(target, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
        facts = {"seconds": round(len(samples) / SAMPLE_RATE, 3), "sample_rate": SAMPLE_RATE}
        first = {key: row[key] for key in ("path", "speaker", "label", "transcript")}
        last = {key: value for key, value in row.items() if key not in (*first, "source")}
        written.append(first | facts | {"bytes": source.stat().st_size} | last)
    write_text(folder / MANIFEST, _as_csv(written))


def _as_csv(rows: list[dict]) -> str:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, rows[0])
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
