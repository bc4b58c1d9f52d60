"""The benchmark compares engines only if they end with equal weights. No test measures time."""

import json
import subprocess
import time
from dataclasses import asdict, replace
from importlib import import_module

import pandas as pd
import pytest

from fedexit import cli
from fedexit.bench import child, engines, peers, report, suite
from fedexit.bench.workload import (
    Sizes,
    Workload,
    build_clients,
    build_model,
    epoch,
    outcome,
    same_weights,
    train_locally,
)
from fedexit.support.errors import FedexitError

TINY = Workload(rounds=3, clients=2, clips=4, samples=1600, batch=2, width=8, channels=4)
SIZES = Sizes(TINY, preset="nano", models=2, samples=1600)


def here(name: str, arguments: dict, threads: int = 1, python: object = None, ranks: int = 1) -> dict:
    """Run the target in this process instead of `child.launch`."""
    arguments = {**arguments, "started": time.time()}
    if "workload" in arguments:
        arguments["workload"] = Workload(**arguments["workload"])
    module, function = child.TARGETS[name].split(":")
    answer = getattr(import_module(module), function)(**arguments)
    return {**(answer if isinstance(answer, dict) else {"rows": answer}), "peak_mb": 1.0}


@pytest.fixture
def tiny(monkeypatch):
    """Run the benchmark with tiny sizes in this process, without the engines that fork."""
    alone = tuple(engine for engine in suite.ENGINES if engine.processes == 1)
    monkeypatch.setattr(suite, "ENGINES", alone)
    monkeypatch.setattr(suite, "Sizes", lambda: SIZES)
    monkeypatch.setattr(suite, "launch", here)
    monkeypatch.setattr(suite.os, "cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def floor() -> dict:
    """Return the outcome of the bare loop at full depth."""
    return engines.bare(TINY, 1, time.time())


@pytest.mark.parametrize("kind", ["full", "mixed", "empty"])
def test_engines_end_with_the_same_weights(kind):
    workload = replace(TINY, kind=kind)
    floor = engines.bare(workload, 1, time.time())
    own = engines.fedexit(workload, 1, time.time())
    assert same_weights(own, floor, kind)
    assert len(floor["rounds"]) == 3 and len(own["rounds"]) == 2
    assert (floor["moved"] > 1e-6 * floor["checksum"]) == (kind != "empty")


def test_two_workers_end_with_the_same_weights(floor):
    assert same_weights(engines.fedexit(TINY, 2, time.time()), floor, "full")


def test_the_bare_loop_on_two_processes_ends_with_the_same_weights_and_its_memory_is_reported(floor):
    """A separate process runs it, because forking a process with threads is not safe."""
    found = child.launch("bare", {"workload": asdict(TINY), "processes": 2})
    assert same_weights(found, floor, "full")
    assert found["peak_mb"] > 50 and found["startup"] > 0


def test_other_batches_give_other_weights():
    def trained(shift: int) -> dict:
        model = build_model(TINY)
        train_locally(model, TINY, build_clients(TINY)[0], 1 + shift)
        return outcome(TINY, model.trainable_weights())

    assert not same_weights(trained(1), trained(0), "full")
    assert same_weights(trained(0), trained(0), "full")


def test_an_epoch_holds_each_clip_once():
    client = build_clients(TINY)[1]
    labels = [label for _, _, batch in epoch(TINY, client, 2) for label in batch.tolist()]
    assert sorted(labels) == sorted(label for _, label in client.data)


def test_command_writes_its_tables(tiny, tmp_path):
    assert cli.main(["bench", "engine", "aggregate", "--repetitions", "2", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "tables" / "engine.csv")
    assert set(table["engine"]) == {"bare", "fedexit"} and set(table["kind"]) == {"full", "mixed", "empty"}
    assert table["equal_weights"].all() and (table["repetitions"] == 2).all()
    assert (table["min"] <= table["median"]).all() and (table["median"] <= table["max"]).all()
    floor = table[(table["engine"] == "bare") & (table["kind"] == "full")]
    assert (floor["ratio"] == 1).all()
    table = pd.read_csv(tmp_path / "tables" / "aggregate.csv")
    assert {"limit", "aggregator", "sum", "stack"} < set(table["way"]) and (table["median"] > 0).all()
    assert (tmp_path / "figures" / "engine.png").is_file() and (tmp_path / "figures" / "engine.csv").is_file()
    written = json.loads((tmp_path / "provenance.json").read_text())
    assert written["sizes"]["preset"] == "nano" and {"fedexit", "torch", "pandas"} < set(written["packages"])


def test_depth_is_compared_with_its_macs(tiny, tmp_path):
    suite.bench(["depth"], 1, tmp_path)
    table = pd.read_csv(tmp_path / "tables" / "depth.csv")
    assert list(table["depth"].unique()) == [3, 6, 9, 12] and set(table["cached"]) == {False, True}
    assert (table[table["depth"] == 12]["macs_ratio"] == 1).all() and (table["macs_ratio"] <= 1).all()


def test_an_engine_with_wrong_weights_is_named(tmp_path, capsys):
    right = {"startup": 1.0, "rounds": [1.0, 1.0], "checksum": 9.0, "moved": 1.0, "peak_mb": 1.0, "repetition": 0}
    bare = {"engine": "bare", "kind": "full", "processes": 1, **right}
    table = report.write_engines(tmp_path, [bare, {**bare, "engine": "other", "moved": 1.01}])
    assert list(table.groupby("engine")["equal_weights"].all()) == [True, False]
    assert "other, full, ended with other weights" in capsys.readouterr().err


def test_wrong_arguments_give_one_line(capsys):
    assert cli.main(["bench", "speed"]) == 2
    message = "fedexit: unknown part 'speed' of the benchmark; known: engine, aggregate, depth, peers\n"
    assert capsys.readouterr().err == message
    assert cli.main(["bench", "--repetitions", "0"]) == 2
    assert capsys.readouterr().err == "fedexit: repetitions must be >= 1, not 0\n"


def test_a_failing_process_gives_its_last_line_as_the_reason():
    with pytest.raises(FedexitError, match="no-such-target failed: KeyError: 'no-such-target'"):
        child.launch("no-such-target", {})


def test_a_peer_that_cannot_be_installed_is_left_out(tiny, tmp_path, monkeypatch, capsys):
    def fail(command: list, **options) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: no matching distribution\n")

    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path))
    monkeypatch.setattr(suite, "ENGINES", suite.ENGINES[:2])
    monkeypatch.setattr(peers.subprocess, "run", fail)
    suite.bench(["peers"], 1, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    reason = "ERROR: no matching distribution; continuing without it"
    assert lines[0] == f"fedexit: peer pfl cannot be installed (pfl==0.6.0): {reason}" and len(lines) == 2
    assert set(pd.read_csv(tmp_path / "out" / "tables" / "engine.csv")["engine"]) == {"bare", "fedexit"}


def test_a_peer_that_fails_is_left_out(tiny, tmp_path, monkeypatch, capsys):
    def launch(name: str, *arguments: object, **options: object) -> dict:
        if name == "pfl":
            raise FedexitError("pfl failed: no such attribute")
        return here(name, *arguments, **options)

    monkeypatch.setattr(suite, "launch", launch)
    monkeypatch.setattr(suite, "ENGINES", suite.ENGINES[:1])
    monkeypatch.setattr(suite, "PEER_ENGINES", suite.PEER_ENGINES[:1])
    monkeypatch.setattr(peers, "peer_python", lambda name: "python")
    suite.bench(["peers"], 2, tmp_path)
    assert capsys.readouterr().err == "fedexit: peer pfl failed: no such attribute; continuing without it\n"
    assert (pd.read_csv(tmp_path / "tables" / "engine.csv")["repetitions"] == 2).all()
