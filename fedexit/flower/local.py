"""Start and end a whole fleet on one machine: a SuperLink with TLS, and a SuperNode with its own key per client."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import psutil

from fedexit.flower.fleet import Node, check_fleet, write_fleet
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import write_text

HOST, CONNECTION = "127.0.0.1", "fleet"
_RUNS = 3  # of a simulation that fails
_MARK = "FEDEXIT_FLEET"  # in the environment of every process of a fleet: its folder
_QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR")  # Jupyter sets them; they put colours into Flower's JSON


def up(
    folder: str | Path,
    nodes: Sequence[Node],
    model: MultiExitModel,
    config: Mapping[str, Any] | None = None,
    simulated: bool = False,
    ways: Mapping[int, str] | None = None,
) -> None:
    """Start a fleet in `folder`, which holds all that belongs to it; `fedexit fleet down` ends it.

    The folder gets certificates, keys, the fleet file, the model before training (`start`), the app, logs, and Flower's
    own files (`home`). Ports are free ones. Telemetry, the check for updates and the installation of packages are off.

    Args:
        folder: A new or empty folder.
        nodes: The clients; each gets a new key.
        model: The model before training.
        config: Configuration of the app that differs from `template/pyproject.toml`, such as `corpus` and `task`.
        simulated: Start a SuperLink that simulates the nodes, without keys and certificates.
        ways: HOST:PORT by number of a node (from 0), where it reaches the SuperLink in another way, as by a tunnel.

    Raises:
        FedexitError: the folder is not empty, or a process does not start.
    """
    folder = Path(folder).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FedexitError(f"{folder} is not empty; run fedexit fleet down {folder}, delete it, or name another folder")
    check_fleet(nodes)
    for part in ("keys", "logs", "home"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if not simulated:
        from fedexit.flower.certificates import make_certificates, make_key  # they need Flower

        make_certificates(folder, [HOST, "localhost"])
        nodes = [replace(node, key=make_key(folder / "keys" / f"node{n}")) for n, node in enumerate(nodes)]
    write_fleet(nodes, folder / "fleet.csv")
    model.save_pretrained(folder / "start")
    _copy_app(folder, config or {})
    facts = {"port": free_port(), "simulated": simulated, "nodes": [free_port() for _ in nodes]}
    write_text(folder / "fleet.json", json.dumps(facts))
    secure = "insecure = true" if simulated else f'root-certificates = "{folder / "ca.crt"}"'
    connection = f'[superlink.{CONNECTION}]\naddress = "{HOST}:{facts["port"]}"\n{secure}\n'
    write_text(folder / "home" / "config.toml", f'[superlink]\ndefault = "{CONNECTION}"\n\n{connection}')
    try:
        start_superlink(folder)
        for number, node in enumerate([] if simulated else nodes):
            flwr(folder, "supernode", "register", f"keys/node{number}.pub", CONNECTION, "--name", node.client)
            start_node(folder, number, (ways or {}).get(number, ""))
    except BaseException:
        down(folder)
        raise


def _copy_app(folder: Path, config: Mapping[str, Any]) -> None:
    """Copy the app's two files to `folder`/app, with the values of `config` and absolute paths."""
    with as_file(files("fedexit.flower") / "template") as template:
        shutil.copytree(template, folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
    place = folder / "app" / "pyproject.toml"
    paths = {"fleet": str(folder / "fleet.csv"), "model": str(folder / "start"), "out": str(folder / "run")}
    text = place.read_text(encoding="utf-8")
    for name, value in {**paths, **config}.items():
        lines = text.splitlines()
        found = [number for number, line in enumerate(lines) if line.startswith(f"{name} = ")]
        if not found:
            raise FedexitError(f"the app has no setting {name!r}; see {place}")
        lines[found[0]] = f"{name} = {json.dumps(value)}"
        text = "\n".join(lines) + "\n"
    write_text(place, text)


def free_port() -> int:
    """Return a port of this machine that nothing uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def facts_of(folder: str | Path) -> dict[str, Any]:
    """Return ports and kind of the fleet in `folder`. Raise FedexitError when there is none."""
    try:
        facts = json.loads((Path(folder) / "fleet.json").read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError(f"fleet.json is a {type(facts).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise FedexitError(f"{folder} holds no fleet ({first_line(error)}); start one: fedexit fleet up") from error
    return facts


def environment(folder: str | Path) -> dict[str, str]:
    """Return the environment of the fleet's processes and of `flwr` commands about it."""
    folder = Path(folder).resolve()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    plain = {name: value for name, value in os.environ.items() if name not in _COLOURS}
    return {**plain, **_QUIET, "NO_COLOR": "1", "PATH": path, "FLWR_HOME": str(folder / "home"), _MARK: str(folder)}


def start_superlink(folder: str | Path) -> subprocess.Popen:
    """Start the SuperLink of a fleet, after a kill with the same state, and wait until it listens."""
    folder, facts = Path(folder).resolve(), facts_of(folder)
    options = ["--host", HOST, "--port", str(facts["port"]), "--disable-runtime-dependency-installation"]
    if facts["simulated"]:
        options += ["--insecure", "--simulation"]
    else:
        options += ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]
        options += ["--enable-supernode-auth", "--database", "state.db"]
    process = _started(folder, "superlink", "flower-superlink", *options)
    _wait_for_port(facts["port"], process, folder / "logs" / "superlink.log")
    return process


def start_node(folder: str | Path, number: int, superlink: str = "") -> subprocess.Popen:
    """Start the SuperNode `number` of a fleet (from 0); it reaches the SuperLink at HOST:PORT `superlink`, if given."""
    folder, facts = Path(folder).resolve(), facts_of(folder)
    options = ["--superlink", superlink or f"{HOST}:{facts['port']}", "--root-certificates", "ca.crt"]
    options += ["--auth-supernode-private-key", f"keys/node{number}", "--port", str(facts["nodes"][number])]
    return _started(folder, f"node{number}", "flower-supernode", *options)


def _started(folder: Path, name: str, *command: str) -> subprocess.Popen:
    with (folder / "logs" / f"{name}.log").open("ab") as log:
        try:
            return subprocess.Popen(  # in a session of its own, so that it outlives the terminal
                command, cwd=folder, env=environment(folder), stdout=log, stderr=log, start_new_session=True
            )
        except FileNotFoundError:
            raise FedexitError(f'{command[0]} is not installed; run: pip install "fedexit[flower]"') from None


def _wait_for_port(port: int, process: subprocess.Popen, log: Path, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.2)
    raise FedexitError(f"the SuperLink does not answer on port {port}; {log} says why")


def flwr(folder: str | Path, *arguments: str) -> dict[str, Any]:
    """Run a `flwr` command about the fleet in `folder`, and return its answer.

    Raises:
        FedexitError: the command fails.
    """
    command = ["flwr", *arguments, "--format", "json"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    with suppress(ValueError):
        answer = json.loads(done.stdout[done.stdout.index("{") :])
        if done.returncode == 0 and answer.get("success", True):
            return answer
    raise FedexitError(f"flwr {' '.join(arguments[:2])} failed: {(done.stdout + done.stderr).strip()[-300:]}")


def submit(folder: str | Path, **config: Any) -> str:
    """Submit the app of a fleet, with values that differ from its configuration, and return the number of the run.

    Example:
        >>> run = submit("fleet", rounds=3, method="masked")
    """
    facts = facts_of(folder)
    given = [part for name, value in config.items() for part in ("--run-config", f"{name}={json.dumps(value)}")]
    if facts["simulated"]:
        given += ["--federation-config", f"num-supernodes={len(facts['nodes'])}"]
    return str(flwr(folder, "run", "app", CONNECTION, *given)["run-id"])


def status(folder: str | Path, run: str) -> str:
    """Return Flower's status of a run, such as `running` or `finished:completed`."""
    [found] = flwr(folder, "list", CONNECTION, "--run-id", run)["runs"]
    return str(found["status"])


def wait_for(folder: str | Path, run: str, seconds: float = 600.0) -> str:
    """Wait until a run is finished and return its status. Raises FedexitError after `seconds`."""
    until = time.monotonic() + seconds
    while not (found := status(folder, run)).startswith("finished"):
        if time.monotonic() > until:
            raise FedexitError(f"run {run} is {found} after {seconds:g} s; {folder}/logs/superlink.log says more")
        time.sleep(3)
        while _app_runs(folder) and time.monotonic() < until:  # cheaper than to ask Flower
            time.sleep(2)
    return found


def finished(folder: str | Path, seconds: float = 600.0, **config: Any) -> str:
    """Submit the app, as `submit` does, wait until the run is finished, and return its status.

    A simulation that fails is submitted again, twice at most, and resumes: Ray gives up if a busy machine does not
    start it within 30 s. Raises FedexitError after `seconds`.
    """
    for _ in range(_RUNS if facts_of(folder)["simulated"] else 1):
        if (found := wait_for(folder, submit(folder, **config), seconds)) == "finished:completed":
            break
    return found


def _app_runs(folder: str | Path) -> bool:
    """Return whether a server app or a simulation of the fleet runs."""
    with suppress(psutil.Error):
        return any({"flwr-serverapp", "flwr-simulation"} & _commands(one) for one in processes(folder))
    return True  # a process ended meanwhile


def _commands(process: psutil.Process) -> set[str]:
    return {Path(part).name for part in process.cmdline()[:2]}


def processes(folder: str | Path) -> list[psutil.Process]:
    """Return the processes of the fleet in `folder`, also those that outlived their parent."""
    own, found = str(Path(folder).resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get(_MARK) == own:
                found.append(process)
    return found


def down(folder: str | Path) -> int:
    """End the processes of the fleet in `folder` and no other; return how many there were. The files stay."""
    found = processes(folder)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=10)
    for process in {*alive, *processes(folder)}:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=10)
    return len(found)
