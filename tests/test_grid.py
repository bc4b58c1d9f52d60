import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from small_corpus import write_small_corpus

from fedexit.clients import LocalTraining
from fedexit.grid import Cell, Setting, run_grid

CELLS = [Cell("voice", "homogeneous", 0, 3), Cell("voice", "stale", 0), Cell("voice", "layerwise", 0)]


def setting(folder, rounds=2):
    by_task = dict(rounds={"voice": rounds}, partition={"voice": "group"}, max_seconds={"voice": 0.25})
    return Setting(
        str(folder), "nano", (3, 6), **by_task, fraction=0.5, training=LocalTraining(), min_clips=4, evaluations=1
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_corpus(tmp_path_factory.mktemp("corpus") / "small", clips=10)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    return run_grid(CELLS, setting(folder), tmp_path_factory.mktemp("state"), workers=1)


def test_tables_hold_every_exit_tier_and_method(whole):
    errors, traffic, _ = whole
    test = errors[errors["split"] == "test"]
    assert set(test.query("method == 'layerwise'")["exit"]) == {3, 6}
    assert set(test.query("method == 'homogeneous'")["exit"]) == {3}
    assert set(test["tier"]) == {"all", "depth 3", "depth 6"}
    counts = test.query("method == 'stale' and exit == 3").set_index("tier")["n"]
    assert counts["all"] == counts["depth 3"] + counts["depth 6"] == 40
    assert set(errors.query("split == 'dev' and method == 'stale'")["round"]) == {0, 2}
    assert set(traffic["method"]) == {"homogeneous", "stale", "layerwise"}


def test_the_number_of_workers_changes_no_bit(whole, folder, tmp_path):
    assert_same(run_grid(CELLS, setting(folder), tmp_path, workers=2), whole)


def assert_same(ours, theirs):
    for left, right in zip(ours, theirs, strict=True):
        left, right = (table.drop(columns="seconds", errors="ignore") for table in (left, right))  # wall time differs
        pd.testing.assert_frame_equal(left, right, check_exact=True)


def test_another_setting_does_not_get_stored_cells(whole, folder, tmp_path):
    """In JupyterLab the state folder stays the same when a parameter is changed."""
    run_grid(CELLS[:1], setting(folder, 1), tmp_path, workers=1)
    errors, *_ = run_grid(CELLS[:1], setting(folder), tmp_path, workers=1)
    assert errors.equals(whole[0][whole[0]["method"] == "homogeneous"].reset_index(drop=True))


KILLED = """
import sys; sys.path.insert(0, {tests!r})
from pathlib import Path
import test_grid as t
if __name__ == "__main__":
    t.run_grid(t.CELLS, t.setting({folder!r}, 12), Path({state!r}), workers=2)
"""


def test_sigkill_leaves_no_worker_and_the_rest_runs_to_the_same_bits(folder, tmp_path):
    script = tmp_path / "killed.py"
    state = tmp_path / "state"
    script.write_text(KILLED.format(tests=os.path.dirname(__file__), folder=str(folder), state=str(state)))
    process = subprocess.Popen([sys.executable, str(script)], start_new_session=True)
    while not list(state.glob("*/*.safetensors")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    group = process.pid
    for _ in range(100):  # the workers notice that their parent is gone
        if not _alive(group):
            break
        time.sleep(0.1)
    assert not _alive(group)
    resumed = run_grid(CELLS, setting(folder, 12), state, workers=1)
    fresh = run_grid(CELLS, setting(folder, 12), tmp_path / "fresh", workers=1)
    assert_same(resumed, fresh)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
