"""Test the exercises, their checks, the notebooks of students and the key."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedexit import cli
from fedexit.support.errors import FedexitError
from fedexit.teach.checking import RECORDED, check, judge, read_key
from fedexit.teach.exercises import BY_NAME, EXERCISES
from fedexit.teach.keys import answers_to, write_key
from fedexit.teach.runner import function_in, outputs_of, plain
from fedexit.teach.student import write_notebooks

ANSWERS = Path(__file__).parent / "exercise_answers"


@pytest.fixture(scope="module")
def key(tmp_path_factory) -> dict:
    return read_key(write_key(ANSWERS, tmp_path_factory.mktemp("key") / "key.json", seed=71))


@pytest.mark.parametrize("name", BY_NAME)
def test_checks_accept_right_answers_and_reject_the_stub_and_each_wrong_answer_with_its_hint(name, key):
    exercise = BY_NAME[name]
    right, wrong = answers_to(exercise, ANSWERS)
    assert len(right) >= 2 and len(wrong) >= 3
    assert len({*exercise.hints.values(), exercise.hint}) == len(wrong) + 1
    stub = function_in([exercise.stub], exercise.function)
    for cases in (read_key(RECORDED)[name], key[name]):

        def verdict(function, cases=cases):
            return judge(exercise, outputs_of(function, [case["inputs"] for case in cases]), cases)

        assert [verdict(function) for function in right] == [(True, "")] * len(right)
        assert verdict(stub) == (False, "The function is not written yet.")
        for wrong_name, function in wrong.items():
            assert verdict(function) == (False, exercise.hints[wrong_name]), wrong_name
        assert verdict(lambda *inputs: [0]) == (False, exercise.hint)
        assert "ZeroDivisionError" in verdict(lambda *inputs: 1 / 0).hint


def test_there_are_enough_exercises_and_their_texts_are_short():
    assert len(EXERCISES) >= 10
    assert max(len(exercise.text.split()) for exercise in EXERCISES) <= 120


def test_the_recorded_results_are_those_of_the_answers(tmp_path):
    assert write_key(ANSWERS, tmp_path / "key.json", seed=0).read_text() == RECORDED.read_text(encoding="utf-8")


def test_keys_differ_are_private_and_hold_no_result(tmp_path, capsys):
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for file in files:
        assert cli.main(["key", "--answers", str(ANSWERS), "--out", str(file)]) == 0
        assert file.stat().st_mode & 0o077 == 0
    one, two = map(read_key, files)
    assert all(one[name][0]["inputs"] != two[name][0]["inputs"] for name in BY_NAME)
    for name, cases in one.items():
        right = answers_to(BY_NAME[name], ANSWERS)[0][0]
        for case in cases:
            assert set(case) == {"inputs", "salt", "right", "hints"}
            [output] = outputs_of(right, [case["inputs"]])
            assert len(case["right"]) == 32 and json.dumps(output["value"]) not in json.dumps(case)


def test_what_students_get_is_the_same_each_time_and_holds_no_answer(tmp_path, capsys):
    assert len(write_notebooks(tmp_path)) == 3
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert write_notebooks(tmp_path) == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before
    text = "".join(path.read_text(encoding="utf-8") for path in before)
    for exercise in EXERCISES:
        assert f'check(\\"{exercise.name}\\", {exercise.function});' in text
        assert not any(hint in text for hint in exercise.hints.values())
    assert text.count("raise NotImplementedError") == len(EXERCISES)
    worked_on = tmp_path / "1_model.ipynb"
    worked_on.write_text(worked_on.read_text().replace("raise NotImplementedError", "return 0"))
    assert cli.main(["exercises", "--out", str(tmp_path)]) == 2
    assert "perhaps answers" in capsys.readouterr().err


def test_student_notebooks_replace_no_file_of_another_kind(tmp_path):
    (tmp_path / "1_model.ipynb").write_bytes(b"\xff\xfe")
    with pytest.raises(FedexitError, match=r"1_model\.ipynb has other content, perhaps answers; [^\n]*$"):
        write_notebooks(tmp_path)
    (tmp_path / "folder" / "2_federation.ipynb").mkdir(parents=True)
    for folder, why in (("folder", "Is a directory"), ("1_model.ipynb", "Not a directory")):
        with pytest.raises(FedexitError, match=rf"cannot be written \({why}\); choose another place$"):
            write_notebooks(tmp_path / folder)
    assert len([*tmp_path.rglob("*")]) == 3


def test_a_student_checks_without_torch_and_without_the_answers():
    code = (
        "import sys; from fedexit.teach import check; check('wer', lambda c: c[:, :3].sum() / c[:, [0, 2, 3]].sum());"
        "assert not {'torch', 'pandas', 'fedexit.teach.keys'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("wer: not yet: You divide by the number of predicted words.\n", "")


def test_a_check_refuses_other_names_and_values():
    with pytest.raises(FedexitError, match="known: pooling, head"):
        check("pool", len)
    with pytest.raises(FedexitError, match="without parentheses"):
        check("wer", 0.5)


def test_equal_numbers_of_other_types_are_equal():
    assert plain({3: (np.float32(0.5), np.array([True]))}) == {"3": [0.5, [True]]}
    with pytest.raises(TypeError, match="set"):
        plain({1, 2})
    exercise, cases = BY_NAME["layers"], read_key(RECORDED)["layers"]
    right = answers_to(exercise, ANSWERS)[0][0]
    inputs = [case["inputs"] for case in cases]
    floats = outputs_of(lambda *own: [[float(i) for i in one] for one in right(*own)], inputs)
    assert judge(exercise, floats, cases).right
    assert not judge(exercise, floats[:1], cases).right


def test_bad_folders_of_answers_are_refused(tmp_path):
    with pytest.raises(FedexitError, match=r"pooling\.py is not there"):
        write_key(tmp_path, tmp_path / "key.json")
    for path in ANSWERS.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = (tmp_path / "wer.py").read_text()
    for change, message in (
        (("errors / words", "errors"), "wer: the right answers disagree"),
        (("def right_loop", "def loop"), "needs two right answers"),
        (("counts[:, :3].sum() / counts.sum()", "wrong_insertions(counts)"), "wer: no inputs separate"),
    ):
        (tmp_path / "wer.py").write_text(source.replace(*change))
        with pytest.raises(FedexitError, match=message):
            write_key(tmp_path, tmp_path / "key.json", seed=0)
