"""Write miniature releases in the layouts of the real ones, with the files that macOS and the authors add."""

from pathlib import Path

import numpy as np
import soundfile as sf

from fedexit.data.original.speech_commands import WORDS

JUNK = ("._x.wav", ".DS_Store", "__MACOSX/a.wav", "LICENSE", "README.md")


def tone(file: Path, seconds: float = 0.1, rate: int = 16_000, channels: int = 1) -> None:
    """Write noise that depends on the name of the file, so that no two files are equal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(file.as_posix()[-60:].encode()))
    shape = (round(seconds * rate), channels)
    sf.write(file, rng.uniform(-0.5, 0.5, shape), rate, subtype="PCM_16", format=kind(file))


def kind(file: Path) -> str:
    return "FLAC" if file.suffix.lower() == ".flac" else "WAV"


def text(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def junk(*folders: Path) -> None:
    """Add files that are no part of a release to each folder."""
    for folder in folders:
        for name in JUNK:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"\0\5\x16\7 no audio")


def speech_commands(root: Path) -> Path:
    """Write three speakers of each of the 35 words; b1 is for dev, c2 for test. One file is named in another way."""
    for word in sorted(WORDS):
        for speaker in ("a0", "b1", "c2"):
            tone(root / word / f"{speaker}_nohash_0.wav")
    tone(root / "yes" / "a0_nohash_1.WAV")
    tone(root / "yes" / "a0_copy.wav")
    text(root / "validation_list.txt", *(f"{word}/b1_nohash_0.wav" for word in WORDS))
    text(root / "testing_list.txt", *(f"{word}/c2_nohash_0.wav" for word in WORDS))
    for name in ("running_tap", "exercise_bike", "pink_noise"):
        tone(root / "_background_noise_" / f"{name}.wav", 2.5)
    junk(root, root / "yes", root / "_background_noise_")
    return root


def librispeech(root: Path) -> Path:
    """Write two readers for training, one in each other part. One clip lacks its line, and one line its clip."""
    readers = {"train-clean-100": ("19", "26"), "dev-clean": ("84",), "test-clean": ("61",), "test-other": ("367",)}
    for part, speakers in readers.items():
        for speaker in speakers:
            chapter = root / part / speaker / "198"
            for number in range(3):
                tone(chapter / f"{speaker}-198-{number:04d}.flac")
            lines = [f"{speaker}-198-{number:04d} HE SAID IT'S {number}" for number in range(3)]
            text(chapter / f"{speaker}-198.trans.txt", *lines)
            junk(chapter)
    text(root / "dev-clean" / "84" / "198" / "84-198.trans.txt", "84-198-0000 ONE", "84-198-0001 TWO", "84-198-9999 NO")
    text(root / "SPEAKERS.TXT", "; ID |SEX| SUBSET |MINUTES| NAME")
    junk(root)
    return root


def iemocap(root: Path) -> Path:
    """Write two speakers in each of five sessions; every clip has another emotion. One clip is not rated."""
    emotions = ("neu", "hap", "exc", "ang", "sad", "xxx", "fru", "oth")
    for session in range(1, 6):
        home, dialogue = root / f"Session{session}", f"Ses{session:02d}F_impro01"
        names = [f"{dialogue}_{who}{number:03d}" for who in "FM" for number in range(len(emotions))]
        for name in names:
            tone(home / "sentences" / "wav" / dialogue / f"{name}.wav")
        ratings = (f"[6.2901 - 8.2357]\t{name}\t{emotions[int(name[-3:])]}\t[2.5000, 2.5000, 2.5000]" for name in names)
        heading = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
        text(home / "dialog" / "EmoEvaluation" / f"{dialogue}.txt", heading, "", *ratings, "C-E2:\tNeutral;\t()")
        text(home / "dialog" / "EmoEvaluation" / "Categorical" / f"{dialogue}_e1_cat.txt", f"{names[0]} :Anger; ()")
        said = (f"{name} [006.2901-008.2357]: Excuse me." for name in names)
        text(home / "dialog" / "transcriptions" / f"{dialogue}.txt", *said, "M: Yeah.")
        junk(home / "dialog" / "EmoEvaluation", home / "sentences" / "wav" / dialogue)
    tone(root / "Session1" / "sentences" / "wav" / "Ses01M_script01_1" / "Ses01M_script01_1_F000.wav")
    return root


def voxceleb1(root: Path) -> Path:
    """Write three speakers with one video for each part; the archives are unpacked into two folders."""
    speakers, listed = ("id10001", "id10270", "id10271"), []
    for speaker in speakers:
        folder = root / ("vox1_dev_wav" if speaker == "id10001" else "vox1_test_wav") / "wav"
        for part, video in enumerate(("aaa", "-b_", "ccc"), 1):
            for number in ("00001", "00002"):
                tone(folder / speaker / video / f"{number}.wav")
                listed.append(f"{part} {speaker}/{video}/{number}.wav")
    tone(root / "vox1_dev_wav" / "wav" / "id10001" / "aaa" / "00009.wav")  # in no list
    text(root / "iden_split.txt", *listed)
    pairs = ("1 id10270/aaa/00001.wav id10270/ccc/00001.wav", "0 id10270/aaa/00001.wav id10271/aaa/00001.wav")
    text(root / "meta" / "veri_test.txt", *pairs)
    junk(root, root / "vox1_dev_wav" / "wav")
    return root
