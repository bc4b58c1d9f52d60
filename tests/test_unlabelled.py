"""Test packages of unlabelled speech, from a .deb to a corpus; a stand-in for apt-get serves invented packages."""

import io
import tarfile

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import zstandard
from test_corpora import make_deb

from fedexit import FedexitError, open_corpus
from fedexit.data import corpora, unlabelled
from fedexit.data.packages import package_files
from fedexit.data.unlabelled import Source, build_unlabelled

SOURCES = {"talk-one": Source(r".*/talk/(?!silence).*\.wav", "CC0"), "talk-two": Source(r".*\.ogg", "GPL-2+")}


def sound(seconds, rate=8_000, form="WAV", level=0.3):
    file = io.BytesIO()
    samples = np.random.default_rng(int(seconds * 100)).uniform(-level, level, int(seconds * rate))
    sf.write(file, samples, rate, format=form)
    return file.getvalue()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Serve two packages by name and list the requests."""
    files = {
        "talk-one": {
            "./usr/talk/a.wav": sound(1.0),
            "./usr/talk/b.wav": sound(0.5),
            "./usr/talk/silence.wav": sound(2.0),
            "./usr/talk/short.wav": sound(0.2),
            "./usr/talk/empty.wav": sound(0),
            "./usr/talk/mute.wav": sound(1.0, level=0),
            "./usr/talk/cut.wav": sound(1.0)[:9000],
            "./usr/talk/README": b"hello",
        },
        "talk-two": {"./usr/c.ogg": sound(1.5, 44_100, "OGG")},
    }
    asked = []

    def download(package, fix):
        asked.append(package)
        if package not in files:
            raise FedexitError(f"no {package}; {fix}")
        return make_deb(tmp_path / f"{package}.deb", files[package]).read_bytes()

    monkeypatch.setattr(unlabelled, "download_package", download)
    return files, asked


def test_speech_of_all_packages_becomes_one_corpus_at_16_khz(tmp_path, packages):
    build_unlabelled(tmp_path / "out", SOURCES)
    corpus = open_corpus(tmp_path / "out")
    table = corpus.manifest
    assert list(table.id) == ["usr/talk/a.wav", "usr/talk/b.wav", "usr/c.ogg"]
    assert list(table.group) == ["talk-one", "talk-one", "talk-two"] and set(table.speaker) == {""}
    assert [len(corpus.waveform(clip)) for clip in table.id] == [16_000, 8_000, 24_000]
    np.testing.assert_allclose(table.seconds, [1.0, 0.5, 1.5])


def test_one_clip_in_fifty_is_for_development(tmp_path, packages):
    files, _ = packages
    files["talk-one"] = {f"./usr/talk/{number:03d}.wav": sound(0.5) for number in range(101)}
    build_unlabelled(tmp_path / "out", {"talk-one": SOURCES["talk-one"]})
    split = pd.read_csv(tmp_path / "out" / "manifest.csv").split
    assert set(split.index[split == "dev"]) == {0, 50, 100} and set(split) == {"train", "dev"}


def test_an_interrupted_build_keeps_complete_packages(tmp_path, packages):
    files, asked = packages
    second = files.pop("talk-two")
    with pytest.raises(FedexitError, match=r"no talk-two; .* decoded already stay"):
        build_unlabelled(tmp_path / "out", SOURCES)
    with pytest.raises(FedexitError, match=r"no manifest\.csv"):
        open_corpus(tmp_path / "out")
    files["talk-two"] = second
    build_unlabelled(tmp_path / "out", SOURCES)
    assert asked == ["talk-one", "talk-two", "talk-two"] and len(open_corpus(tmp_path / "out").dataset) == 3


def test_the_corpus_is_fetched_by_name(tmp_path, packages, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path / "data"))
    with pytest.raises(FedexitError, match="fedexit data fetch unlabelled"):
        open_corpus("unlabelled")
    monkeypatch.setattr(corpora, "build_unlabelled", lambda folder: build_unlabelled(folder, SOURCES))
    assert len(corpora.fetch_corpus("unlabelled").dataset) == 3
    assert corpora.list_corpora().set_index("name").state["unlabelled"] == "ready"


@pytest.mark.parametrize("source", unlabelled.SOURCES.values())
def test_patterns_of_whole_paths_select_speech(source):
    """The patterns leave out music, noises and silence of the same packages."""
    import re

    for path in (
        "usr/share/games/fillets-ng/music/menu.ogg",
        "usr/share/games/fillets-ng/sound/share/sp-impact_light_01.ogg",
        "usr/share/asterisk/sounds/en_US_f_Allison/silence/9.wav",
        "usr/share/tuxpaint/stamps/animals/birds/duck.ogg",
        "usr/share/klettres/ar/sounds.xml",
    ):
        assert not re.fullmatch(source.speech, path)


# ---- the package format ------------------------------------------------------------------------------------------


def member(name, content, size=None):
    size = len(content) if size is None else size
    return f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{size:<10}`\n".encode() + content + b"\n" * (len(content) % 2)


def package(ending="tar", pack=lambda content: content):
    """Return a .deb that holds a file, a folder, links and a device."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for name, kind in (("./a", tarfile.REGTYPE), ("./b", tarfile.DIRTYPE), ("./c", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "./a", 5 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"hello"))
        device = tarfile.TarInfo("./d")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    return b"!<arch>\n" + member("debian-binary", b"2.0\n") + member(f"data.{ending}", pack(inner.getvalue()))


def test_a_zstandard_package_is_read_and_gives_only_regular_files():
    for content in (package(), package("tar.zst", zstandard.ZstdCompressor().compress)):
        assert list(package_files(content)) == [("a", b"hello")]


@pytest.mark.parametrize(
    "content",
    [
        b"!<arch>\n" + member("debian-binary", b"", -60) * 2,  # a size that leads back to its own header
        b"!<arch>\n" + member("debian-binary", b"2.0\n"),
        b"!<arch>\n" + member("data.tar.zst", zstandard.FRAME_HEADER + bytes(40)),
        package("tar.zst", zstandard.ZstdCompressor().compress)[:-30],
        b"no package",
    ],
)
def test_broken_packages_are_refused_in_one_line(content):
    with pytest.raises(FedexitError, match=r"^not a readable \.deb package .+; download it again$"):
        list(package_files(content))
