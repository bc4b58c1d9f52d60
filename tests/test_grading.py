"""Test the grader on a class with honest, wrong and hostile submissions."""

import csv
import json
import sys
from pathlib import Path

import pytest

from fedexit import cli
from fedexit.support.errors import FedexitError
from fedexit.teach.checking import RECORDED
from fedexit.teach.grading import Limits, Protection, grade, protection
from fedexit.teach.keys import write_key
from fedexit.teach.student import write_notebooks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the grader needs the limits of Linux")
ANSWERS = Path(__file__).parent / "exercise_answers"
LAYERS = (
    "def trained_by(depths, layers):\n    return [[i for i, d in enumerate(depths) if d > k] for k in range(layers)]\n"
)
RIGHT = "counts[:, :3].sum() / counts[:, [0, 1, 3]].sum()"
HEAD = "import os, sys, time\ndef word_error_rate(counts):\n    "

LOOP = (
    HEAD
    + """e = w = 0
    for s, d, i, h in counts:
        e += s + d + i
        w += s + d + h
    return e / w
"""
)
AVERAGED = (
    HEAD
    + """c = counts[counts[:, [0, 1, 3]].sum(1) > 0]
    return (c[:, :3].sum(1) / c[:, [0, 1, 3]].sum(1)).mean()
"""
)
OVERWRITES = "import fedexit.teach.checking as c\nc.judge = lambda *a: (True, '')\n"


def wer(body: str) -> str:
    """Return a cell with a function of this body that ends with the right answer."""
    return HEAD + body.replace("\n", "\n    ") + f"\n    return {RIGHT}\n"


# name: cell, mark, part of the hint
CLASS = {
    "right": (wer("pass"), 1, ""),
    "right_with_helper": ("def errors(c):\n    return c[:, :3].sum()\n\n" + wer("e = errors(counts)"), 1, ""),
    "right_with_magic": ("%matplotlib inline\n!ls\n" + wer("pass") + "\nprint(check)\n", 1, ""),
    "right_by_loop": (LOOP, 1, ""),
    "right_prints": (wer("print('counts', counts)"), 1, ""),
    "stub": (HEAD + "raise NotImplementedError", 0, "not written yet"),
    "averaged": (AVERAGED, 0, "You average"),
    "insertions": (HEAD + "return counts[:, :2].sum() / counts[:, [0, 1, 3]].sum()", 0, "errors, too"),
    "hypothesis": (HEAD + "return counts[:, :3].sum() / counts[:, [0, 2, 3]].sum()", 0, "predicted words"),
    "not_a_number": (HEAD + "return {1, 2}", 0, "holds a set"),
    "raises": (HEAD + "return counts['wer']", 0, "IndexError"),
    "syntax": ("def word_error_rate(counts:\n    return 1", 0, "SyntaxError"),
    "deleted": ("answers = 1", 0, "No cell defines"),
    "endless": (HEAD + "while True: pass", 0, "computing time"),
    "endless_cell": ("x = [0 for i in iter(int, 1)]\n" + wer("pass"), 0, "computing time"),
    "sleeps": (wer("time.sleep(600)"), 0, "time limit"),
    "memory_bomb": (wer("x = bytearray(1 << 40)"), 0, "MemoryError"),
    "prints_1_GB": (wer("for _ in range(1000): sys.stdout.write('x' * 1000000); sys.stdout.flush()"), 0, "OSError"),
    "large_result": (HEAD + "return ['x' * 1000] * 10000", 0, "too large"),
    "deep_result": (HEAD + "x = []\n    for _ in range(100000): x = [x]\n    return x", 0, "RecursionError"),
    "exits": (wer("sys.exit(0)"), 0, "SystemExit"),
    "exits_at_once": (wer("os._exit(0)"), 0, "without a result"),
    "crashes": (wer("import signal; signal.raise_signal(signal.SIGSEGV)"), 0, "crashed"),
    "forks": (wer("while True: os.fork()"), 0, "os.fork"),
    "threads": (wer("import threading; threading.Thread(target=print).start()"), 0, "raises"),
    "starts_programs": (wer("import subprocess; subprocess.run(['true'])"), 0, "raises"),
    "kills_its_runner": (wer("os.kill(os.getppid(), 9)"), 0, "os.kill"),
    "uses_the_network": (wer("import socket; socket.socket()"), 0, "raises"),
    "writes_outside": (wer("open(OUTSIDE, 'w')"), 0, "PermissionError"),
    "writes_outside_in_silence": (wer("try: open(OUTSIDE, 'w').write('x')\nexcept OSError: pass"), 1, ""),
    "reads_the_key": (HEAD + "return open(KEY).read()", 0, "PermissionError"),
    "reads_the_recorded_results": (HEAD + "return open(RECORDED).read()", 0, "raises"),
    "overwrites_the_check": (OVERWRITES + HEAD + "return 0", 0, "ModuleNotFoundError"),
    "forges_a_result": (wer("os.write(3, b'{\"outputs\": [1, 2, 3]}'); os._exit(0)"), 0, "cannot be read"),
    "forges_a_mark": (wer("os.write(3, b'{\"right\": true, \"mark\": 1}'); os._exit(0)"), 0, "cannot be read"),
    "uses_the_package": (wer("from fedexit.lab import statistics"), 0, "ModuleNotFoundError"),
    "changes_its_inputs": (wer("counts = counts.copy(); counts[:] = counts"), 1, ""),
}  # fmt: skip


def submission(folder: Path, name: str, cell: str) -> Path:
    """Write a notebook as a student hands it in, with this cell and a right answer to the exercise `layers`."""
    template = json.loads((folder / "student" / "3_evidence.ipynb").read_text(encoding="utf-8"))
    for own in template["cells"]:
        if own["id"] == "wer-answer":
            own["source"] = cell
    template["cells"].append({"cell_type": "code", "source": LAYERS.splitlines(keepends=True)})
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(template), encoding="utf-8")
    return path


def test_a_class_with_hostile_submissions_gets_the_right_marks_in_bounded_time(tmp_path):
    write_notebooks(tmp_path / "student")
    key = write_key(ANSWERS, tmp_path / "key.json", seed=5)
    before, outside = key.read_bytes(), tmp_path / "outside"
    where = {"OUTSIDE": outside, "KEY": key, "RECORDED": RECORDED}
    files = []
    for name, (cell, _, _) in CLASS.items():
        for word, path in where.items():
            cell = cell.replace(f"({word}", f"({str(path)!r}")
        files.append(submission(tmp_path, name, cell))
    garbage = {
        "empty": b"",
        "list": b"[1]",
        "deep": b"[" * 100_000,
        "binary": bytes(range(256)),
        "large": b" " * 5_000_001,
    }
    for name, content in garbage.items():
        files.append(tmp_path / f"{name}.ipynb")
        files[-1].write_bytes(content)
    assert len(files) >= 30
    limits = Limits(cpu=1, wall=6, memory=512)
    grades = grade(files, tmp_path / "grades.csv", key, ["wer", "layers"], limits)
    of_wer = {one.submission: one for one in grades if one.exercise == "wer"}
    for name, (_, mark, hint) in CLASS.items():
        assert of_wer[name].mark == mark and hint in of_wer[name].hint, of_wer[name]
        assert mark == (of_wer[name].hint == ""), of_wer[name]
    # one bad answer does not cost the others; a notebook that cannot be read has none
    assert {one.submission for one in grades if one.exercise == "layers" and one.mark} == set(CLASS)
    assert not any(one.mark for one in grades if one.submission in garbage)
    assert not outside.exists() and key.read_bytes() == before
    with (tmp_path / "grades.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["submission", "exercise", "mark", "hint"], *([s, e, str(m), h] for s, e, m, h in grades)]


def test_a_folder_is_one_submission_and_the_command_says_what_protects(tmp_path, capsys):
    write_notebooks(tmp_path / "student")
    student = tmp_path / "ana"
    student.mkdir()
    submission(tmp_path, "ana/3", wer("pass"))
    cells = [{"cell_type": "code", "source": "def head_logits(*a):\n    return 1"}]
    (student / "2.ipynb").write_text(json.dumps({"cells": cells}))
    out = tmp_path / "grades.csv"
    command = ["grade", str(student), "--out", str(out), "--cpu", "2", "--memory", "800"]
    assert cli.main([*command, "--exercise", "wer", "--exercise", "head", "--exercise", "layers"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("submissions run with") and printed.endswith("2 of 3 answers are right\n")
    with out.open(newline="") as file:
        assert {row["exercise"]: row["mark"] for row in csv.DictReader(file)} == {
            "wer": "1",
            "head": "0",
            "layers": "1",
        }


def test_names_and_texts_that_are_no_unicode_do_not_stop_the_grading(tmp_path):
    """A file name from another system, and an error that a submission raises, may hold half of a character."""
    write_notebooks(tmp_path / "student")
    file = submission(tmp_path, "b\udce9n", HEAD + r"raise ValueError('\ud800')")
    [found] = grade([file], tmp_path / "grades.csv", exercises=["wer"], limits=Limits(cpu=2, wall=20, memory=800))
    assert found.mark == 0 and "ValueError" in found.hint
    assert (tmp_path / "grades.csv").read_text(encoding="utf-8").splitlines() == [
        "submission,exercise,mark,hint",
        r"b\udce9n,wer,0,Your function raises ValueError: \ud800",
    ]


def test_missing_protection_is_said(monkeypatch):
    assert str(Protection(["unshare"], True)) == "submissions run with no network and with a user without rights"
    assert "NETWORK OPEN" in str(Protection([], False)) and "YOUR OWN RIGHTS" in str(Protection([], False))
    monkeypatch.setenv("PATH", "")
    assert protection().prefix == []


def test_marks_do_not_depend_on_the_protection(tmp_path, monkeypatch):
    """Without namespaces and another user, the limits and the audit hook still hold."""
    write_notebooks(tmp_path / "student")
    monkeypatch.setattr("fedexit.teach.grading.protection", lambda: Protection([], False))
    outside = tmp_path / "outside"
    names = ["right", "endless", "memory_bomb", "forks", "reads_the_recorded_results", "writes_outside_in_silence"]
    cells = {name: CLASS[name][0].replace("(OUTSIDE", f"({str(outside)!r}") for name in names}
    files = [submission(tmp_path, name, cell.replace("(RECORDED", "('/etc/passwd'")) for name, cell in cells.items()]
    grades = grade(files, tmp_path / "grades.csv", exercises=["wer"], limits=Limits(cpu=1, wall=6, memory=512))
    assert [one.mark for one in grades] == [CLASS[name][1] for name in names]
    assert not outside.exists()


def test_wrong_uses_are_refused(tmp_path):
    one, other = tmp_path / "ana.ipynb", tmp_path / "group" / "ana.ipynb"
    other.parent.mkdir()
    for path in (one, other):
        path.write_text('{"cells": []}')
    (tmp_path / "key.json").write_text('{"pooling": []}')
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for files, named, message in (
        ([], {}, "nothing to grade"),
        ([one, other], {}, "several submissions have the name ana"),
        ([tmp_path / "ben.ipynb"], {}, "cannot be read"),
        ([one], {"exercises": ["poling"]}, "known: pooling"),
        ([one], {"key": tmp_path / "key.json"}, "not a key of these exercises"),
        ([one], {"key": tmp_path / "no.json"}, "not there"),
        ([one], {"key": tmp_path / "deep.json"}, "not JSON"),
    ):
        with pytest.raises(FedexitError, match=message):
            grade(files, tmp_path / "grades.csv", **named)
    assert not (tmp_path / "grades.csv").exists()
