"""List the corpora that come from public releases: archives, checksums, licences and readers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedexit.data.original import asc_digits, emodb, iemocap, librispeech, speech_commands, speechocean, voxceleb1
from fedexit.support.errors import FedexitError


class Archive(NamedTuple):
    """An archive of a release.

    part: its name for `--part`, and the name of the file in the downloads, to which the ending of `url` is added.
    url: the official address.
    sha256: its checksum; "" if the publisher states none (GitHub makes its archives anew).
    usual: whether it is fetched when no part is named.
    """

    part: str
    url: str
    sha256: str = ""
    usual: bool = True

    @property
    def file(self) -> str:
        """Return the name of the file in the downloads."""
        return self.part + (".tar.gz" if self.url.endswith(".tar.gz") else Path(self.url).suffix)


@dataclass(frozen=True)
class Original:
    """A corpus that is made of a public release.

    title: name of the release, for messages.
    licence: of the audio.
    home: where the release is.
    marks: patterns of files that tell a folder with the release (see `release_root`).
    read: the reader. It returns `Clip`s, or for a subset the rows of its prepared manifest.
    archives: what can be downloaded; empty if a licence must be asked for at `home`.
    size: of the usual download, in words.
    trials: reader of the official verification trials.
    subset: name of the folder and of the prepared .tar, if the corpus is a part of the release.
    checksum: of the corpus of the prepared .tar, which published results state.
    """

    title: str
    licence: str
    home: str
    marks: tuple[str, ...]
    read: Callable[..., Any]
    archives: tuple[Archive, ...] = ()
    size: str = ""
    trials: Callable[[Path], pd.DataFrame | None] | None = None
    subset: str = ""
    checksum: str = ""

    def how_to_fetch(self, name: str) -> str:
        """Return the commands that make the corpus `name` of this release."""
        command = f"fedexit data fetch {name}"
        if not self.archives:
            return f"{command} --from FOLDER (ask for {self.title} at {self.home})"
        prepared = f", or {command} --from {self.subset}.tar" if self.subset else ""
        return f"{command} ({self.size}){prepared}"

    def chosen(self, parts: Sequence[str]) -> list[Archive]:
        """Return the archives with the names `parts`, or the usual ones if there are no names.

        Raises FedexitError for another name, or if the release cannot be downloaded.
        """
        if not self.archives:
            raise FedexitError(
                f"{self.title} needs a licence: ask for it at {self.home}, then give the folder of the release with "
                "--from FOLDER"
            )
        known = [archive.part for archive in self.archives]
        for part in parts:
            if part not in known:
                raise FedexitError(f"{self.title} has no part {part!r}; parts: {', '.join(known)}")
        return [archive for archive in self.archives if (archive.part in parts if parts else archive.usual)]


_LIBRISPEECH_SHA256 = {
    "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
    "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
    "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
    "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
    "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
    "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
}
ORIGINALS = {
    "asc_digits": Original(
        "Arabic Speech Commands",
        "CC BY 4.0",
        "abdulkaderghandoura/arabic-speech-commands-dataset on GitHub",
        asc_digits.MARKS,
        asc_digits.read,
        (
            Archive(
                "arabic-speech-commands",
                "https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset/archive/refs/tags/v1.0.zip",
            ),
        ),
        "about 0.4 GB",
        subset="asc_digits",
        checksum="ce8770e0f71f3002ecdb82435f4609712d6bd1104bd62602adb50104dc99dbdc",
    ),
    "speechocean": Original(
        "speechocean762",
        "CC BY 4.0",
        "jimbozhang/speechocean762 on GitHub, OpenSLR 101",
        speechocean.MARKS,
        speechocean.read,
        (Archive("speechocean762", "https://www.openslr.org/resources/101/speechocean762.tar.gz"),),
        "0.5 GB",
        subset="speechocean60",
        checksum="f6d70a01c63ec341ee50f37d583d6c502554b93756ed36399ea224f8da121ce6",
    ),
    "emodb": Original(
        "EMO-DB",
        "CC0 1.0",
        "audEERING's release of EMO-DB",
        emodb.MARKS,
        emodb.read,
        (Archive("emodb", "http://emodb.bilderbar.info/download/download.zip"),),
        "40 MB",
        subset="emodb4",
        checksum="e2613b14b6b801c367b1a9df9ecf17b8a64cd6513df7ca148f57a6a3d0837ae3",
    ),
    "speech_commands": Original(
        "Speech Commands v0.02",
        "CC BY 4.0",
        "https://www.tensorflow.org/datasets/catalog/speech_commands",
        speech_commands.MARKS,
        speech_commands.read,
        (
            Archive(
                "speech_commands_v0.02",
                "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
                "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
            ),
        ),
        "2.4 GB",
    ),
    "librispeech": Original(
        "LibriSpeech",
        "CC BY 4.0",
        "https://www.openslr.org/12",
        librispeech.MARKS,
        librispeech.read,
        tuple(
            Archive(
                part,
                f"https://www.openslr.org/resources/12/{part}.tar.gz",
                _LIBRISPEECH_SHA256[part],
                usual=part not in ("train-clean-360", "train-other-500"),
            )
            for part in librispeech.PARTS
        ),
        "7.7 GB without train-clean-360 (23 GB) and train-other-500 (30 GB)",
    ),
    "iemocap": Original(
        "IEMOCAP",
        "licence of USC, on request",
        "https://sail.usc.edu/iemocap/iemocap_release.htm",
        iemocap.MARKS,
        iemocap.read,
    ),
    "voxceleb1": Original(
        "VoxCeleb1",
        "CC BY 4.0 for the annotations, access on request",
        "https://mm.kaist.ac.kr/datasets/voxceleb",
        voxceleb1.MARKS,
        voxceleb1.read,
        trials=voxceleb1.trials,
    ),
}
