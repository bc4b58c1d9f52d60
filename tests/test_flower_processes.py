"""The federation on Flower's own processes: simulated, and deployed with TLS and keys, on ports of this machine."""

import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest
from small_corpus import write_small_corpus

pytest.importorskip("flwr", reason='Flower is not installed: pip install "fedexit[flower]"')

from fedexit import FedexitError, LocalTraining, MultiExitModel, federate, load_backbone, open_corpus
from fedexit.data.tasks import make_task
from fedexit.flower import local
from fedexit.flower.certificates import make_certificates, make_key
from fedexit.flower.fleet import Node, clients_here

pytestmark = pytest.mark.flower
DEPTHS = {"ANN1.DOG": 3, "BEN1.DOG": 6, "CID1.DOG": 12}
NODES = [Node(group[:3].lower(), depth, 6, data=group) for group, depth in DEPTHS.items()]
TRAINING = LocalTraining(batch_size=4, learning_rate=3e-3)
PATIENCE = 900.0  # seconds; a busy machine must not fail a test
WAITS = {"wait": PATIENCE, "deadline": PATIENCE}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_small_corpus(tmp_path_factory.mktemp("small") / "corpus")


def start_of(corpus: Path, backbone: str = "nano") -> MultiExitModel:
    return MultiExitModel(load_backbone(backbone), make_task("keyword", open_corpus(corpus)).labels)


def here(corpus: Path, rounds: int, **options) -> str:
    """Return the checksum of the federation in this process."""
    start = start_of(corpus)
    clients = clients_here(NODES, str(corpus), "keyword", start.labels)
    return federate(start, clients, rounds=rounds, training=TRAINING, **options).model.checksum()


def started(folder: Path, corpus: Path, backbone: str = "nano", rounds: int = 3, **options) -> Path:
    config = {"corpus": str(corpus), "rounds": rounds, "batch-size": 4, "learning-rate": 3e-3, **WAITS}
    local.up(folder, NODES, start_of(corpus, backbone), config, **options)
    return folder


def checksum(out: Path) -> str:
    return MultiExitModel.from_pretrained(out / "model").checksum()


def until(ready, what: str) -> None:
    """Wait until `ready()` is true."""
    end = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.2)


def rows(table: Path) -> pd.DataFrame:
    return pd.read_csv(table) if table.exists() and table.stat().st_size else pd.DataFrame({"round": []})


def kill(process: psutil.Process) -> None:
    """Kill -9 a process; what it started ends by itself."""
    process.send_signal(signal.SIGKILL)
    with suppress(psutil.TimeoutExpired):
        process.wait(10)


def named(folder: Path, *words: str) -> psutil.Process:
    """Return the one process of a fleet whose command line holds all `words`."""
    [found] = [
        one for one in local.processes(folder) if all(any(word in part for part in one.cmdline()) for word in words)
    ]
    return found


def supernode(folder: Path, name: str, key: str, certificates: str) -> subprocess.Popen:
    """Start a SuperNode of the user's own making, with another key or other certificates."""
    address = f"127.0.0.1:{local.facts_of(folder)['port']}"
    command = ["flower-supernode", "--superlink", address, "--root-certificates", certificates, "--max-retries", "2"]
    command += ["--auth-supernode-private-key", key, "--port", str(local.free_port())]
    with (folder / "logs" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=local.environment(folder), stdout=log, stderr=log)


def logged(folder: Path, name: str, words: str) -> bool:
    return words in (folder / "logs" / f"{name}.log").read_text(errors="replace")


class Counter:
    """A way to a port that counts the bytes through it, as they are on the wire."""

    def __init__(self, target):
        self.target, self.down, self.up = target, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.place = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            near, _ = self.listener.accept()
            far = self._reached()
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _reached(self) -> socket.socket:
        """Return a connection to the port, once something listens there: a SuperNode ends at a broken handshake."""
        while True:
            with suppress(OSError):
                return socket.create_connection(("127.0.0.1", self.target()))
            time.sleep(0.2)

    def _pass(self, source, target, way):
        with suppress(OSError):
            while part := source.recv(65536):
                setattr(self, way, getattr(self, way) + len(part))
                target.sendall(part)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, corpus):
    """Give a deployed fleet of three nodes, and the counter of the bytes of its deepest."""
    folder = tmp_path_factory.mktemp("deployed") / "fleet"
    counter = Counter(lambda: local.facts_of(folder)["port"])
    try:
        yield started(folder, corpus, ways={2: counter.place}), counter
    finally:
        local.down(folder)
        assert not local.processes(folder)


def test_a_deployed_fleet_gives_the_weights_of_this_process_also_after_kills_of_its_server(fleet, corpus):
    folder, counter = fleet
    local.submit(folder)
    times = folder / "run" / "times.csv"

    def after_round(number: int) -> None:
        until(lambda: len(rows(times)) >= number and (folder / "run" / "state.safetensors").exists(), f"round {number}")

    after_round(1)
    kill(named(folder, "flwr-serverapp"))
    run = local.submit(folder)
    after_round(2)
    kill(named(folder, "flower-superlink"))
    local.start_superlink(folder)
    run = local.submit(folder)
    assert local.wait_for(folder, run, PATIENCE) == "finished:completed"
    done = pd.read_csv(folder / "run" / "ledger.csv")
    assert done["round"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    events = rows(folder / "run" / "events.csv")
    assert events.empty, events.to_string()
    # the weights of messages, and what the deepest node really sent and got, the start and the app included
    sent = rows(times)
    assert (sent["bytes_up"] <= 1.05 * done.query("round == 1")["bytes"].sum()).all()
    jobs, own = len(sent), done.query("client == 'cid'")["bytes"].iloc[0]
    assert jobs * own <= counter.up and jobs * own <= counter.down
    print(f"wire: up {counter.up}, down {counter.down} bytes; weights {jobs * own} each way")
    assert checksum(folder / "run") == here(corpus, 3)


def test_bytes_on_the_wire_are_those_of_the_ledger(tmp_path, corpus):
    folder = tmp_path / "fleet"
    counters = [Counter(lambda: local.facts_of(folder)["port"]) for _ in NODES]
    ways = {number: counter.place for number, counter in enumerate(counters)}
    try:
        started(folder, corpus, "tiny-distilled", rounds=2, ways=ways)
        assert local.wait_for(folder, local.submit(folder), PATIENCE) == "finished:completed"
    finally:
        local.down(folder)
    weights = pd.read_csv(folder / "run" / "ledger.csv").groupby("client")["bytes"].sum()
    for node, counter in zip(NODES, counters, strict=True):
        assert weights[node.client] < counter.up <= 1.05 * weights[node.client], node
    start = rows(folder / "run" / "times.csv")["bytes_start"].sum()  # what a node gets once: the frozen weights
    assert weights.sum() < sum(counter.down for counter in counters) - start <= 1.05 * weights.sum()


def test_a_node_killed_in_mid_round_costs_its_client_that_round_alone(fleet, corpus):
    folder, _ = fleet
    before = (folder / "logs" / "node1.log").read_text(errors="replace").count("Receiving: train message")
    run = local.submit(folder, out=str(folder / "killed"), rounds=2)
    log = folder / "logs" / "node1.log"
    until(lambda: log.read_text(errors="replace").count("Receiving: train message") > before, "a job for ben")
    kill(named(folder, "flower-supernode", "keys/node1"))
    until(lambda: len(rows(folder / "killed" / "times.csv")) == 1, "the end of the round without ben")
    assert local.wait_for(folder, run, PATIENCE) == "finished:completed"
    events = pd.read_csv(folder / "killed" / "events.csv")
    assert set(events["client"]) == {"ben"} and events["round"].tolist() == [1, 2]
    assert checksum(folder / "killed") == here(corpus, 2, depths=lambda number: {"ben": None})
    local.start_node(folder, 1)  # it takes part again


def test_strangers_wrong_certificates_and_the_key_of_another_are_refused(fleet, tmp_path):
    folder, _ = fleet
    make_key(folder / "keys" / "stranger")
    make_certificates(tmp_path, ["127.0.0.1"])
    stranger = supernode(folder, "stranger", "keys/stranger", "ca.crt")
    liar = supernode(folder, "liar", "keys/node0", str(tmp_path / "ca.crt"))
    try:
        for name, process in {"stranger": stranger, "liar": liar}.items():
            until(lambda process=process: process.poll() is not None, f"the refusal of {name}")
            told = (folder / "logs" / f"{name}.log").read_text(errors="replace")
            assert "Failed to initialize the connection" in told and "SuperNode ID" not in told
        assert "CERTIFICATE_VERIFY_FAILED" in told
    finally:
        for process in (stranger, liar):
            process.kill()
            process.wait()


def test_a_simulation_gives_the_weights_of_this_process(tmp_path, corpus):
    folder = started(tmp_path / "fleet", corpus, simulated=True)
    try:
        assert local.finished(folder, PATIENCE) == "finished:completed"
        assert checksum(folder / "run") == here(corpus, 3)
        with pytest.raises(FedexitError, match="is not empty"):
            local.up(folder, [Node("ann", 3, 6)], start_of(corpus))
    finally:
        local.down(folder)
    assert not local.processes(folder)
    shutil.rmtree(folder)
