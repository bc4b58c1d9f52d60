"""Other engines, each in a virtual environment of its own, so that what it needs never meets what fedexit needs."""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir

PEERS = {"pfl": "pfl==0.6.0", "flower": "flwr[simulation]==1.42.0"}  # what the adapters were written for


def peer_python(name: str) -> Path:
    """The Python that has peer `name`, of `PEERS`; the first time makes it, in data/cache/bench/ (100 to 500 MB).

    A .pth file lends it this interpreter's packages after its own: so torch and transformers are the very same, and are
    not installed again. Raises FedexitError when that fails.
    """
    folder = data_dir() / "cache" / "bench" / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = f"{PEERS[name]} numpy=={version('numpy')} python {sys.version.split()[0]}\n"
    done = folder / "installed"
    if not (done.is_file() and done.read_text() == wanted):
        _run(name, [sys.executable, "-m", "venv", "--clear", str(folder)])
        # numpy as here: torch, which is lent, must find the one that it works with
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(name, [*pip, PEERS[name], f"numpy=={version('numpy')}"])
        own = _run(name, [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        Path(own, "fedexit_bench.pth").write_text("".join(f"{folder}\n" for folder in sorted(lent)))
        done.write_text(wanted)
    return python


def _run(name: str, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = [f"it ended with code {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise FedexitError(f"peer {name} cannot be installed ({PEERS[name]}): {last}")
    return done.stdout
