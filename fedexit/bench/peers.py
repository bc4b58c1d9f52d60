"""Install other engines, each in its own virtual environment, so that their dependencies cannot conflict with ours."""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.paths import data_dir

PEERS = {"pfl": "pfl==0.6.0", "flower": "flwr[simulation]==1.42.0"}  # the versions that the adapters were written for


def peer_python(name: str) -> Path:
    """Return the Python interpreter that has peer `name` of `PEERS`, and install it in data/cache/bench/ if missing.

    The environment takes 100 to 500 MB. A .pth file adds this interpreter's packages after its own, so torch and
    transformers are the same and are not installed again.

    Raises:
        FedexitError: the installation fails.
    """
    folder = data_dir() / "cache" / "bench" / name
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = f"{PEERS[name]} numpy=={version('numpy')} python {sys.version.split()[0]}\n"
    done = folder / "installed"
    if not (done.is_file() and done.read_text() == wanted):
        _run(name, [sys.executable, "-m", "venv", "--clear", str(folder)])
        # the same numpy as here, because the shared torch was built for it
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run(name, [*pip, PEERS[name], f"numpy=={version('numpy')}"])
        own = _run(name, [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
        shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        Path(own, "fedexit_bench.pth").write_text("".join(f"{folder}\n" for folder in sorted(shared)))
        write_text(done, wanted)
    return python


def _run(name: str, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = [f"it ended with code {done.returncode}", *done.stderr.strip().splitlines()][-1]
        raise FedexitError(f"peer {name} cannot be installed ({PEERS[name]}): {last}")
    return done.stdout
