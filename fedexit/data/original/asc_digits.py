"""Read the digits of the Arabic Speech Commands (Ghandoura et al. 2021): `dataset/<word>/<speaker>_NO_<take>.wav`."""

import csv
from pathlib import Path

from fedexit.data.original.release import Note, bare, read_lines, refuse_missing

MARKS = ("train.csv", "val.csv", "test.csv", "dataset/zero")


def read(root: Path, parts: list[str], note: Note) -> list[dict[str, str]]:
    """Return the rows of the prepared manifest: every clip of the words in `parts`, with the official split.

    Compared with the release at GitHub: the manifest and all 3,000 audio files are byte-identical to those of the
    prepared `asc_digits.tar`.

    Raises FedexitError if a listed file is missing.
    """
    rows, missing, listed = [], [], 0
    for split in ("train", "val", "test"):
        for line in csv.DictReader(read_lines(root / f"{split}.csv")):
            path = line["file"]
            if str(Path(path).parent) in parts:
                listed += 1
                missing += [] if (root / path).is_file() else [path]
                word, speaker = line["class"], Path(path).name.split("_")[0]
                rows.append(
                    {"source": path, "path": f"{bare(path)}.flac", "speaker": speaker, "label": word}
                    | {"transcript": word, "split": split}
                )
    refuse_missing(missing, listed, root / "train.csv")
    return rows
