"""Run the notebooks of `nbs_ci.yml`, only those whose inputs changed, and keep nothing half done.

A notebook works in results/.state/<profile>/<id>/out; that folder is renamed to results/<profile>/<id> once every
declared artifact is there and its checks hold. Until then the earlier results stay.
"""

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fedexit.runner import fingerprint
from fedexit.runner.execution import execute, known_parameters
from fedexit.runner.manifest import Notebook, load_manifest, select
from fedexit.support.errors import FedexitError
from fedexit.support.paths import data_dir, project_root, results_dir

if TYPE_CHECKING:
    import pandas as pd
NOT_HERE = "the results came with the project and were not run here"


def run(profile: str, ids: list[str], overrides: dict, force: bool = False) -> bool:
    """Run the notebooks `ids` (none: all of `profile`) and what they need, where out of date; True when all went well.

    `overrides` replaces parameters of the notebooks named in `ids`; `force` runs those named (or all) in any case.
    Prints a line before each notebook, a summary and the headline tables. Raises FedexitError before anything starts
    when a name, a parameter or a corpus is wrong, or when another run of the profile is under way.

    Results that came with the project and fit its state are run again where they are asked for; where another notebook
    only needs them they are taken as they are, so that a figure can be redrawn in seconds in a fresh clone.
    """
    notebooks = select(load_manifest(project_root()), profile, ids)
    if overrides and not ids:
        raise FedexitError("-p needs the notebook it is for: fedexit run NOTEBOOK -p NAME=VALUE")
    parameters = {n.id: _parameters(n, profile, overrides if n.id in ids else {}) for n in notebooks}
    for notebook in notebooks:
        # asked for its errors alone: a missing corpus or a broken notebook is said before anything runs
        _stale_because(notebook, profile, parameters[notebook.id])
        _check_parameters(notebook, parameters[notebook.id])
    summary = []
    with _lock(profile):
        for number, notebook in enumerate(notebooks, 1):
            asked = not ids or notebook.id in ids
            why = _stale_because(notebook, profile, parameters[notebook.id])
            if not why and asked and not _was_run_here(notebook, profile):
                why = [NOT_HERE]
            if not why and asked and force:
                why = ["forced"]
            try:
                if why:
                    minutes = notebook.profiles[profile]["minutes"]
                    label = f"[{number}/{len(notebooks)}] {notebook.id}"
                    print(f"{label} ... about {minutes:g} min ({'; '.join(why)})", flush=True)
                    earlier = _tables(notebook, profile)
                    seconds = _run_notebook(notebook, profile, parameters[notebook.id])
                    verdict = _compared(earlier, _tables(notebook, profile))
                    summary.append(f"{notebook.id}: ran in {seconds:.0f} s{verdict}")
                else:
                    _check_tables(notebook, results_dir() / profile / notebook.id)
                    summary.append(f"{notebook.id}: up to date")
            except FedexitError as failure:
                print(f"fedexit: {failure}", file=sys.stderr)
                print(*summary, f"{notebook.id}: failed", *(f"{n.id}: not run" for n in notebooks[number:]), sep="\n")
                return False
    _print_summary(summary, notebooks, profile)
    return True


def status(profile: str) -> None:
    """Print for each notebook of `profile` whether it is up to date, and if not, why."""
    stale: set[str] = set()
    for notebook in select(load_manifest(project_root()), profile, []):
        try:
            why = _stale_because(notebook, profile, _parameters(notebook, profile, {}))
        except FedexitError as error:
            why = [str(error)]
        if not why and not _was_run_here(notebook, profile):
            why = [NOT_HERE]
        waits = [need for need in notebook.needs if need in stale]
        if why:
            print(f"{notebook.id}: to run ({'; '.join(why)})")
        else:
            print(f"{notebook.id}: up to date" + (f" unless {', '.join(waits)} changes its tables" if waits else ""))
        if why or waits:
            stale.add(notebook.id)


def _parameters(notebook: Notebook, profile: str, overrides: dict) -> dict:
    return {**notebook.profiles[profile].get("parameters", {}), **overrides, "profile": profile}


def _check_parameters(notebook: Notebook, parameters: dict) -> None:
    known = known_parameters(notebook)
    if unknown := sorted(set(parameters) - set(known)):
        names = ", ".join(known) or "nothing"
        raise FedexitError(f"{notebook.id}: unknown parameter {unknown[0]}; its cell tagged parameters sets: {names}")


def _stale_because(notebook: Notebook, profile: str, parameters: dict) -> list[str]:
    """Why the stored results of `notebook` are not those of its present inputs; empty when they are."""
    parts = fingerprint.components(notebook, parameters, results_dir() / profile)
    folder = results_dir() / profile / notebook.id
    try:
        stored = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        why, hashes = fingerprint.differences(stored["fingerprint"], parts), stored["artifacts"]
    except FileNotFoundError:
        return ["never run"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ["provenance.json is damaged"]
    for name in ["notebook.ipynb", *notebook.artifacts]:
        if not (folder / name).is_file():
            why.append(f"{name} missing")
        elif name in hashes and fingerprint.file_hash(folder / name) != hashes[name]:
            why.append(f"{name} changed by hand")
    return why + [f"{name} no longer declared" for name in sorted(set(hashes) - set(notebook.artifacts))]


def _was_run_here(notebook: Notebook, profile: str) -> bool:
    """Whether the stored results were made in this copy of the project; git carries results, but not the mark."""
    mark = _mark(notebook, profile)
    provenance = results_dir() / profile / notebook.id / "provenance.json"
    return mark.is_file() and mark.read_text() == fingerprint.file_hash(provenance)


def _mark(notebook: Notebook, profile: str) -> Path:
    return results_dir() / ".state" / profile / notebook.id / "run_here"


def _tables(notebook: Notebook, profile: str) -> dict[str, str]:
    """Content hashes of the stored tables; empty when there are none."""
    folder = results_dir() / profile / notebook.id
    names = [name for name in notebook.artifacts if name.startswith("tables/") and (folder / name).is_file()]
    return {name: fingerprint.file_hash(folder / name) for name in names}


def _compared(earlier: dict[str, str], now: dict[str, str]) -> str:
    """What a rerun says about reproduction: whether each table has the bytes it had before."""
    if not earlier:
        return ""
    changed = sorted(Path(name).stem for name in now if now[name] != earlier.get(name))
    return f"; tables changed: {', '.join(changed)}" if changed else "; tables as before, to the byte"


def _run_notebook(notebook: Notebook, profile: str, parameters: dict) -> float:
    """Run in the staging folder, check what came out and put it in place; returns seconds."""
    parts = fingerprint.components(notebook, parameters, results_dir() / profile)
    state = results_dir() / ".state" / profile / notebook.id
    out, executed = state / "out", state / "notebook.ipynb"
    checkpoints = state / "checkpoints" / fingerprint.key_of(parts)
    failed = results_dir() / profile / f"{notebook.id}.failed.ipynb"
    shutil.rmtree(out, ignore_errors=True)
    for folder in (out, checkpoints, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    try:
        environment = _environment(notebook, out, checkpoints)
        execute(notebook, parameters, executed, environment, notebook.profiles[profile]["limit"])
        _check_artifacts(notebook, out)
        _check_tables(notebook, out)
    except FedexitError as failure:
        os.replace(executed, failed)
        raise FedexitError(f"{failure}; the notebook is kept at {_shown(failed)}") from None
    seconds = time.monotonic() - begin
    os.replace(executed, out / "notebook.ipynb")
    _write_provenance(notebook, profile, parts, seconds, out)
    _put_in_place(out, results_dir() / profile / notebook.id, state / "old")
    _mark(notebook, profile).write_text(
        fingerprint.file_hash(results_dir() / profile / notebook.id / "provenance.json")
    )
    shutil.rmtree(state / "checkpoints")
    failed.unlink(missing_ok=True)
    return seconds


def _environment(notebook: Notebook, out: Path, checkpoints: Path) -> dict[str, str]:
    """Return the environment that `results` and `paths` read in the kernel; paths are absolute."""
    return {
        "FEDEXIT_OUT": str(out),
        "FEDEXIT_STATE": str(checkpoints),
        "FEDEXIT_NEEDS": " ".join(notebook.needs),
        "FEDEXIT_ROOT": str(project_root()),
        "FEDEXIT_RESULTS": str(results_dir()),
        "FEDEXIT_DATA": str(data_dir()),
        "FEDEXIT_PROGRESS": os.ttyname(sys.stderr.fileno()) if sys.stderr.isatty() else "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # sums in the same order on every machine
    }


def _check_artifacts(notebook: Notebook, folder: Path) -> None:
    produced = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if missing := sorted(set(notebook.artifacts) - produced):
        raise FedexitError(f"{notebook.id} did not write {', '.join(missing)}, which nbs_ci.yml declares")
    if undeclared := sorted(produced - set(notebook.artifacts)):
        raise FedexitError(f"{notebook.id} wrote {', '.join(undeclared)}; declare it in nbs_ci.yml")


def _check_tables(notebook: Notebook, folder: Path) -> None:
    if notebook.headline:
        _read_table(notebook, folder, notebook.headline)
    for check in notebook.checks:
        where = f"{notebook.id}: {check['table']}"
        frame = _read_table(notebook, folder, check["table"])
        if missing := [name for name in check.get("columns", []) if name not in frame.columns]:
            raise FedexitError(f"{where} lacks the column {missing[0]}; it has: {', '.join(frame.columns)}")
        try:
            rows = len(frame.query(check["query"]) if "query" in check else frame)
        except (ValueError, NameError, KeyError, TypeError, SyntaxError) as error:
            raise FedexitError(f"{where}: the check's query {check['query']!r} cannot be used: {error}") from None
        least, most = check.get("min_rows", 0 if "max_rows" in check else 1), check.get("max_rows", len(frame))
        if not least <= rows <= most:
            kind = f"where {check['query']}" if "query" in check else "in all"
            wanted = f"{least} to {most}" if "max_rows" in check else f"at least {least}"
            raise FedexitError(f"{where} has {rows} rows {kind}; its check wants {wanted}")


def _read_table(notebook: Notebook, folder: Path, name: str) -> "pd.DataFrame":
    import pandas as pd

    try:
        return pd.read_csv(folder / name)
    except ValueError as error:  # pandas' own errors are of this kind
        raise FedexitError(f"{notebook.id}: {name} is no table ({error}); write one that has columns") from None


def _write_provenance(notebook: Notebook, profile: str, parts: dict, seconds: float, folder: Path) -> None:
    """Where the results in `folder` come from; parameters and library versions are part of the fingerprint."""
    provenance = {
        "artifacts": {name: fingerprint.file_hash(folder / name) for name in notebook.artifacts},
        "fingerprint": parts,
        "git": _git_state(),
        "notebook": notebook.id,
        "platform": {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()},
        "profile": profile,
        "python": platform.python_version(),
        "seconds": round(seconds, 1),
    }
    text = json.dumps(provenance, indent=2, sort_keys=True) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8", newline="\n")


def _git_state() -> dict | None:
    """Commit and whether anything but results differs from it; None outside git."""
    git = ["git", "-C", str(project_root())]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = [*git, "status", "--porcelain", "--", ".", ":(exclude)results"]
        dirty = subprocess.run(changes, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)}


def _put_in_place(new: Path, final: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock(profile: str) -> Iterator[None]:
    """Hold the profile for this process; the system lets go of it however the process ends."""
    path = results_dir() / ".state" / profile / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FedexitError(f"profile {profile} is being run by another process; wait for it or stop it") from None
        yield


def _print_summary(summary: list[str], notebooks: list[Notebook], profile: str) -> None:
    print(*summary, sep="\n")
    print(f"figures and tables: {_shown(results_dir() / profile)}/<notebook>/figures and tables")
    for notebook in notebooks:
        if notebook.headline:
            frame = _read_table(notebook, results_dir() / profile / notebook.id, notebook.headline)
            print(f"\n{notebook.title} ({notebook.id}, {notebook.headline})\n{frame.to_string(index=False)}")


def _shown(path: Path) -> str:
    """Path as the reader types it: from the project's folder when it is inside."""
    root = project_root()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)
