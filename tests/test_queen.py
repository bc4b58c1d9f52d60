import csv
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from fedexit.data.audio import read_audio
from fedexit.data.queen import Clip, build_queen, read_clips, sentence_type, split_queen
from fedexit.support.errors import FedexitError

ROOT = Path(__file__).parents[1]
CACHE = Path(os.environ.get("FEDEXIT_DATA", ROOT / "data")) / "cache" / "queen"
SAMPLE = Path(__file__).parents[2] / "shared" / "data" / "queen_sample.csv"
# Published with the text of its neighbour, because its scene opens with a string that is no action (_cut_scene).


def mp3(seconds=0.4):
    time = np.arange(int(11_025 * seconds)) / 11_025
    file = io.BytesIO()
    sf.write(file, 0.5 * np.sin(2 * np.pi * 300 * time), 11_025, format="MP3")
    return file.getvalue()


def string(text, align, position):
    content = bytes([len(text)]) + text.encode("cp437")
    return content + b"\0" * (-(position + len(content)) % align)


def dialogue(key, joe, partner, met, levels=1):
    body = bytearray(32 + 96 * abs(levels))
    struct.pack_into(">5h", body, 0, levels, 0, key, len(joe), len(partner))
    for offset, lines in ((None, joe), (22, partner)):
        if offset:
            struct.pack_into(">H", body, offset, len(body))
        for number, text in lines:
            body += struct.pack(">HH", 0, number)
            body += string(text, 4, len(body))
    struct.pack_into(">H", body, 26, len(body))
    for text in met:
        body += string(text, 2, len(body))
    return bytes(20) + bytes(body)


def cut_scene(entering, actions):
    body = bytearray(struct.pack(">5h", 0, -len(actions), 0, 0, 10))
    body += string(entering, 2, len(body)) if entering else b"\0"
    for text in actions:
        body += string(text, 2, len(body))
    return bytes(20) + bytes(body)


def make_queen_1c(files):
    header = b"QTBLCEM10\0\0\0\x01" + struct.pack(">H", len(files))
    offset, table = len(header) + 21 * len(files), b""
    for name, content in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, offset, len(content))
        offset += len(content)
    return header + table + b"".join(files.values())


@pytest.fixture(scope="module")
def queen_1c():
    names = ["070001J1", "070001J2", "07SSSSJ1", "0700ABP1", "07XXXXP1", "07XXXXJ1"]
    names += ["C1A__021", "C1A__032", "C2___011", "JOE00411", "JOE00421", "NOISE000"]
    script = {
        "BOB2.DOG": dialogue(
            7,
            joe=[(1, "Who's there?*04Tell me!"), (0, "Hi."), (1, "Not said, the number is taken.")],
            partner=[(0xAB, "*XY12345678901")],
            met=["You again...", "It's me."],
            levels=-2,
        ),
        "C1A.CUT": cut_scene("", ["*", "First.", "*FRSecond?", "#comment"]),
        "C2.CUT": cut_scene("*FL", ['He said "no!"']),
        "QUEEN2.JAS": "Just a rope\r\nA \x81ber-rope!".encode("latin-1"),
    }
    return make_queen_1c({**{f"{name}.SB": mp3() for name in names}, **script})


def test_reader_gives_each_clip_its_line(queen_1c):
    clips = {clip.name.removesuffix(".SB"): (clip.source, clip.voice, clip.text) for clip in read_clips(queen_1c)}
    assert clips == {
        "070001J1": ("BOB2.DOG", "JOE", "Who's there?"),
        "070001J2": ("BOB2.DOG", "JOE", "Tell me!"),
        "07SSSSJ1": ("BOB2.DOG", "JOE", "Hi."),
        "0700ABP1": (None, None, None),
        "07XXXXP1": ("BOB2.DOG", "BOB", "You again..."),
        "07XXXXJ1": ("BOB2.DOG", "JOE", "It's me."),
        "C1A__021": ("C1A.CUT", None, "First."),
        "C1A__032": ("C1A.CUT", None, "Second?"),
        "C2___011": ("C2.CUT", None, 'He said "no!"'),
        "JOE00411": ("QUEEN2.JAS", "JOE", "Just a rope"),
        "JOE00421": ("QUEEN2.JAS", "JOE", "A über-rope!"),
        "NOISE000": (None, None, None),
    }


def test_the_reader_gives_the_position_of_each_clip(queen_1c):
    clip = read_clips(queen_1c)[0]
    assert queen_1c[clip.offset : clip.offset + clip.size] == mp3()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda content: b"", "not the talkie"),
        (lambda content: b"PK\3\4" + content[4:], "not the talkie"),
        (lambda content: content[:12] + b"\0" + content[13:], "not the talkie"),
        (lambda content: content[:-1], "cut short"),
        (lambda content: content[: len(content) // 2], "cut short"),
        (lambda content: content[:40], "cannot be read"),
    ],
)
def test_foreign_and_truncated_files_are_refused(queen_1c, damage, says):
    with pytest.raises(FedexitError, match=f"queen.1c: .*{says}"):
        read_clips(damage(queen_1c))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Fine.", "statement"),
        ("Fine...", "ellipsis"),
        ('He said "no!"', "exclamation"),
        ("Why?", "question"),
        ("well,", ""),
        ("", ""),
    ],
)
def test_sentence_type_is_the_last_mark(text, label):
    assert sentence_type(text) == label


def spoken(source, voice, count):
    return [Clip(f"{source}{number}", source, voice, "Hi.", 0, 1) for number in range(count)]


def test_split_holds_out_whole_dialogues_and_trains_on_the_largest_of_each_voice():
    sizes = {"A1": 30, "A2": 12, "A3": 20, "A4": 25, "A5": 4, "B1": 40, "B2": 15, "C1": 50, "D1": 30, "D2": 5}
    clips = [clip for name, size in sizes.items() for clip in spoken(f"{name}.DOG", name[0], size)]
    clips += spoken("QUEEN2.JAS", "JOE", 9) + spoken("A2.DOG", "JOE", 99) + spoken("C1A.CUT", None, 3)
    assert split_queen(clips) == {"A2.DOG": "test", "A3.DOG": "dev", "B2.DOG": "test", "C1A.CUT": "train"}


def test_cache_holds_audio_and_manifest_and_is_the_same_when_built_again(queen_1c, tmp_path):
    (tmp_path / "queen.1c").write_bytes(queen_1c)
    for name in ("one", "two"):
        build_queen(tmp_path / "queen.1c", tmp_path / name)
    contents = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    ]
    assert contents[0] == contents[1] and len(contents[0]) == 13
    table = pd.read_csv(tmp_path / "one" / "manifest.csv", keep_default_na=False)
    assert list(table.columns) == ["id", "path", "speaker", "group", "text", "label", "seconds", "split"]
    row = table.set_index("id").loc["07XXXXP1.SB"]
    assert list(row) == ["clips/07XXXXP1.SB.flac", "BOB", "BOB2.DOG", "You again...", "ellipsis", row.seconds, "train"]
    assert len(read_audio(tmp_path / "one" / row.path)) / 16_000 == pytest.approx(row.seconds, abs=5e-4)
    assert 0.3 < row.seconds < 0.6


def test_a_failed_build_leaves_no_files(queen_1c, tmp_path):
    first = read_clips(queen_1c)[3]
    broken = bytearray(queen_1c)
    broken[first.offset : first.offset + first.size] = bytes(first.size)
    (tmp_path / "queen.1c").write_bytes(broken)
    with pytest.raises(FedexitError, match=first.name):
        build_queen(tmp_path / "queen.1c", tmp_path / "queen")
    assert [path.name for path in tmp_path.iterdir()] == ["queen.1c"]


def test_a_killed_build_leaves_no_corpus(queen_1c, tmp_path):
    (tmp_path / "queen.1c").write_bytes(queen_1c)
    code = (
        "import os; from pathlib import Path; import fedexit.data.queen as q\n"
        "q.save_manifest = lambda *_: os._exit(9)\n"
        f"q.build_queen(Path({str(tmp_path / 'queen.1c')!r}), Path({str(tmp_path / 'queen')!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 9
    assert not (tmp_path / "queen").exists()


@pytest.fixture(scope="module")
def real():
    if not (CACHE / "manifest.csv").is_file():
        pytest.skip("queen is not fetched here (fedexit data fetch queen)")
    return pd.read_csv(CACHE / "manifest.csv", keep_default_na=False)


def test_real_counts(real):
    voices = real[real.speaker != ""].speaker.value_counts()
    assert len(real) == 6745 and real.id.is_unique
    assert (real.text != "").sum() == 6544  # 133 more than published; data/README.md explains them
    assert voices.sum() == 4504 and len(voices) == 30 and (voices >= 36).sum() == 25


def test_real_clips_agree_with_the_published_sample(real):
    if not SAMPLE.is_file():
        pytest.skip("the published sample of queen is not here")
    rows = list(csv.DictReader(SAMPLE.open(newline="")))
    table = real.set_index("id")
    differ = {row["file"] for row in rows if table.text[row["file"]] != row["text"]}
    assert len(rows) == 80 and differ == set()
    for row in rows:
        found = table.loc[row["file"]]
        assert (found.speaker, found.group) == (row["speaker"], row["where"])
        assert found.seconds == pytest.approx(float(row["seconds"]), abs=0.05)


def test_texts_fit_the_length_of_their_clips_in_every_cut_scene_that_opens_with_a_string(real):
    """Check `_cut_scene`: with the texts of the neighbours the correlation would be near 0."""
    scenes = ["18A", "18D", "18E", "21L", "21N", "35A", "36A", "39A", "3A", "40A", "42B", "73A"]
    lines = real[real.group.isin([f"C{scene}.CUT" for scene in scenes])]
    assert len(lines) > 200
    assert np.corrcoef(np.log(lines.text.str.len()), np.log(lines.seconds))[0, 1] > 0.8


def test_the_real_split_keeps_sources_apart_and_tests_22_of_25_voices(real):
    known = real[real.group != ""]
    assert known.groupby("group").split.nunique().max() == 1
    table = pd.crosstab(real[real.speaker != ""].speaker, real.split)
    large = table[table.sum(axis=1) >= 36]
    assert set(large.index[large.test == 0]) == {"CHEF", "FRANK", "LOLA"}
    assert (large.test >= 10).sum() == 22 and (large.train >= 30).all()
    shares = known.split.value_counts(normalize=True)
    assert abs(shares["train"] - 0.70) < 0.05 and abs(shares["dev"] - 0.15) < 0.05 and abs(shares["test"] - 0.15) < 0.05
