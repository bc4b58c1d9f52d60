"""Keep the record of how each result was made, and compare it with the present state of the project.

Two files say how a result was made. `provenance.json` lies beside the result and is committed with it. It holds nothing
that differs between two equal runs. A mark in results/.state says that a run in this copy of the project gave the
stored results. If it gave published results again, it left its own record in the folder `last` beside the mark
(`fedexit.runner.publish`). That record then counts, because the code may have changed since the published one.
"""

import json
import platform
import re
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedexit.data.places import NAMES, corpus_checksum
from fedexit.runner import fingerprint
from fedexit.runner.cell_index import cells_folder, read_index, trusted_codes
from fedexit.runner.manifest import Notebook
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash, write_text
from fedexit.support.paths import backbone_folders, project_root, results_dir, results_of
from fedexit.support.reads import read_notes

NOT_HERE = "the results came with the project and were not run here"
UNRECORDED = "made before fedexit recorded what a notebook reads; run it again"
CELLS_CODE = "fedexit.lab.cells"


@dataclass(frozen=True)
class State:
    """The relation of stored results to the present inputs.

    changed: reasons why the results differ from those of the present inputs.
    unverified: reasons why this cannot be known.
    """

    changed: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Return all reasons to run the notebook; empty when its results are up to date."""
        return self.changed + self.unverified


def state_folder(notebook: Notebook, profile: str) -> Path:
    """Return the folder where a notebook works until its results are complete."""
    return results_dir() / ".state" / profile / notebook.id


def last_folder(notebook: Notebook, profile: str) -> Path:
    """Return the folder of the last run's files, if that run gave the published results again and left them alone."""
    return state_folder(notebook, profile) / "last"


def state_of(notebook: Notebook, profile: str, parameters: dict) -> State:
    """Compare the stored results of `notebook` with its present inputs.

    Raises:
        FedexitError: the notebook cannot be read or a corpus is missing.
    """
    parts = fingerprint.components(notebook, profile, parameters, results_of(profile))
    folder = results_of(profile) / notebook.id
    here = was_run_here(notebook, profile)
    try:
        stored = _read(folder)
        hashes = dict(stored["artifacts"])
        if here and last_folder(notebook, profile).is_dir():
            stored = _read(last_folder(notebook, profile))
        earlier = dict(stored["fingerprint"])
        if "reads" not in stored:
            return State(unverified=[UNRECORDED])
        changed = fingerprint.differences(earlier, parts)
        lost, unverified = _cells_compared(stored["reads"]["cell"])
        lost += _corpora_compared(stored["reads"]["corpus"], notebook.path.parent)
    except FileNotFoundError:
        return State(changed=["never run"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return State(changed=["provenance.json is damaged"])
    changed += lost
    for name in ["notebook.ipynb", *notebook.artifacts]:
        if not (folder / name).is_file():
            changed.append(f"{name} missing")
        elif name in hashes and file_hash(folder / name) != hashes[name]:
            changed.append(f"{name} changed by hand")
    changed += [f"{name} no longer declared" for name in sorted(set(hashes) - set(notebook.artifacts))]
    if not changed and not unverified and not here:
        changed = [NOT_HERE]
    return State(changed, unverified)


def described(notebook: Notebook, profile: str, parameters: dict) -> str:
    """Return `up to date`, `to run (why)` or `unverified (why)`, also where a corpus is missing."""
    try:
        state = state_of(notebook, profile, parameters)
    except FedexitError as error:
        state = State(changed=[str(error)])
        with suppress(OSError, ValueError, TypeError, RecursionError):
            if "reads" not in _read(results_of(profile) / notebook.id):
                state = State(unverified=[UNRECORDED, *state.changed])
    if not state.reasons:
        return "up to date"
    return f"{'to run' if state.changed else 'unverified'} ({'; '.join(state.reasons)})"


def _cells_compared(cells: dict[str, dict]) -> tuple[list[str], list[str]]:
    """Return what changed in the kept cells that were read, and which of them other or unknown code made."""
    changed = [name for name, note in sorted(cells.items()) if _content(name) not in (None, note["checksum"])]
    gone = [name for name in sorted(cells) if _content(name) is None]
    unknown = [name for name, note in cells.items() if not note["code"]]
    codes = trusted_codes(cells_folder(), fingerprint.code_hash(CELLS_CODE)) if len(unknown) < len(cells) else set()
    other = [name for name, note in cells.items() if note["code"] not in {"", *codes}]
    said = [(changed, "changed"), (gone, "are gone")]
    made = [(unknown, "were made by unknown code"), (other, "were made by other code than the present")]
    first, second = (
        [f"{len(names)} of {len(cells)} kept cells {verb} ({names[0]})" for names, verb in group if names]
        for group in (said, made)
    )
    return first, second


def _corpora_compared(corpora: dict[str, dict], folder: Path) -> list[str]:
    """Return what changed in the user's own corpora that were read; relative paths start at `folder`.

    Known corpora are declared, so the fingerprint has them.
    """
    changed = []
    for name, note in sorted(corpora.items()):
        if name not in NAMES:
            try:
                now = corpus_checksum(folder / name)
            except FedexitError:
                now = "gone"
            if now != note["checksum"]:
                changed.append(f"corpus {name} {'is gone' if now == 'gone' else 'changed'}")
    return changed


def _content(cell: str) -> str | None:
    """Return a checksum of a published cell, or of the files of a kept one (`<name>`, `<name>.errors.csv.gz`, ...).

    It is None if the cell is not there.
    """
    path = results_dir() / cell
    if path.parents[1] == cells_folder():
        return read_index(cells_folder()).get((path.parent.name, path.name), {}).get("checksum")
    own = re.compile(re.escape(path.name) + r"(\.[a-z][\w.]*)?")
    files = sorted(file for file in path.parent.glob("*") if own.fullmatch(file.name))
    return "+".join(map(file_hash, files)) or None


def was_run_here(notebook: Notebook, profile: str) -> bool:
    """Return whether a run in this copy of the project gave the stored results; git has results, but not the mark."""
    mark = _mark(notebook, profile)
    return mark.is_file() and mark.read_text(encoding="utf-8") == file_hash(_provenance(notebook, profile))


def mark_as_run_here(notebook: Notebook, profile: str) -> None:
    """Note that a run in this copy of the project gave the stored results."""
    write_text(_mark(notebook, profile), file_hash(_provenance(notebook, profile)))


def _mark(notebook: Notebook, profile: str) -> Path:
    return state_folder(notebook, profile) / "run_here"


def _provenance(notebook: Notebook, profile: str) -> Path:
    return results_of(profile) / notebook.id / "provenance.json"


def _read(folder: Path) -> dict:
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def undeclared(notebook: Notebook, profile: str) -> dict[str, str]:
    """Return the reason for each corpus and backbone (`corpus emodb`) that the notebook may not read in `profile`."""
    kinds = [
        ("corpus", "data", set(NAMES) - set(notebook.data_in(profile))),
        ("backbone", "backbones", set(backbone_folders()) - set(notebook.backbones_in(profile))),
    ]
    return {
        f"{kind} {name}": f"{notebook.id} reads the {kind} {name}, which nbs_ci.yml does not declare; add {name} to "
        f"{section} of the notebook or of its profile {profile}"
        for kind, section, names in kinds
        for name in sorted(names - set(notebook.profiles[profile].optional))
    }


def recorded_reads(file: Path) -> dict[str, dict]:
    """Return what a run noted in `file`, except corpora, models and cells that it made for itself."""
    reads = {kind: {n: note for n, note in notes.items() if not _own(n)} for kind, notes in read_notes(file).items()}
    kept = {name: note for name, note in reads["cell"].items() if not name.startswith(".state/")}
    return reads | {"cell": {name: {**note, "checksum": _content(name)} for name, note in kept.items()}}


def _own(name: str) -> bool:
    """Return whether a corpus or model is a folder that does not outlive the run."""
    temporary = (Path(tempfile.gettempdir()), results_dir() / ".state")
    return Path(name).is_absolute() and any(Path(name).is_relative_to(folder) for folder in temporary)


def write(notebook: Notebook, profile: str, parts: dict, reads: dict, folder: Path) -> None:
    """Write `folder`/provenance.json: how the results in `folder` were made.

    Parameters and the versions of libraries are in `parts`, the components of the fingerprint.
    """
    provenance = {
        "artifacts": {name: file_hash(folder / name) for name in notebook.artifacts},
        "fingerprint": parts,
        "git": _git_state(),
        "notebook": notebook.id,
        "platform": {"machine": platform.machine(), "system": platform.system()},
        "profile": profile,
        "python": platform.python_version(),
        "reads": reads,
    }
    write_text(folder / "provenance.json", json.dumps(provenance, indent=2, sort_keys=True) + "\n")


def _git_state() -> dict | None:
    """Return the commit and whether anything but results differs from it; None outside git."""
    git = ["git", "-C", str(project_root())]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = [*git, "status", "--porcelain", "--", ".", ":(exclude)results"]
        dirty = subprocess.run(changes, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit, "dirty": bool(dirty)}
