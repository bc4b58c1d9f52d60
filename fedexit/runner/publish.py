"""Put the results of a run in place, unless they are the published ones again.

Published results change only when an artifact, a parameter or the text of the notebook differs. Times and memory of
this machine (`measured` in nbs_ci.yml) are not a reason, nor is other code that gives the same results: then the files
of the run go to the folder `last` of the state (`provenance.last_folder`). `publish` puts them in place on request.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from fedexit.runner import provenance
from fedexit.runner.manifest import Notebook, load_manifest, select
from fedexit.support.errors import FedexitError
from fedexit.support.files import file_hash, swap
from fedexit.support.locks import sweep
from fedexit.support.paths import PUBLISHED, project_root, results_dir, results_of, shown

MEASURED = "measured again"
# Tags of cells that are written by the runner or by `fedexit readme`, so they do not count as text of the notebook
WRITTEN = {"injected-parameters", "found"}


@contextmanager
def locked(profile: str) -> Iterator[None]:
    """Lock the results of a profile for this process; the system releases the lock however the process ends."""
    path = results_dir() / ".state" / profile / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(path, timeout=0):
            for folder in (results_of(profile), *path.parent.iterdir()):
                sweep(folder)
            yield
    except filelock.Timeout:
        raise FedexitError(f"profile {profile} is being run by another process; wait for it or stop it") from None


def put_in_place(notebook: Notebook, profile: str, out: Path) -> str:
    """Move the finished results in `out` to where they belong, and mark them as run here.

    Args:
        notebook: the notebook that ran.
        profile: its profile.
        out: folder of all artifacts, the executed notebook and provenance.json; gone afterwards.

    Returns:
        A phrase that compares the new artifacts with the earlier ones; "" if there were none.
    """
    final, last = results_of(profile) / notebook.id, provenance.last_folder(notebook, profile)
    compared = _compared(notebook, out, final)
    if profile == PUBLISHED and is_published(notebook, out, final):
        swap(out, last)
        if MEASURED in compared:
            compared += f" (see {shown(last)})"
    else:
        swap(out, final)
        shutil.rmtree(last, ignore_errors=True)
    provenance.mark_as_run_here(notebook, profile)
    return compared


def publish(ids: list[str]) -> None:
    """Replace the published results of the notebooks `ids` by those of their last run here, with record and times.

    Raises:
        FedexitError: a notebook is unknown, or its last run left no other files than the published ones. Nothing is
            replaced by then.
    """
    notebooks = [one for one in select(load_manifest(project_root()), PUBLISHED, ids) if one.id in ids]
    with locked(PUBLISHED):
        for notebook in notebooks:
            last = provenance.last_folder(notebook, PUBLISHED)
            if not (last.is_dir() and provenance.was_run_here(notebook, PUBLISHED)):
                again = f"fedexit run --force {notebook.id}"
                raise FedexitError(f"{notebook.id}: its last run here left nothing to publish; run it again: {again}")
        for notebook in notebooks:
            final = results_of(PUBLISHED) / notebook.id
            swap(provenance.last_folder(notebook, PUBLISHED), final)
            provenance.mark_as_run_here(notebook, PUBLISHED)
            print(f"{notebook.id}: {shown(final)} now has the files of the last run")


def is_published(notebook: Notebook, new: Path, published: Path) -> bool:
    """Return whether `published` holds the results in `new`, apart from measured ones, and agrees with its record."""
    if _files(new) != _files(published):
        return False
    try:
        record, own = (json.loads((folder / "provenance.json").read_text("utf-8")) for folder in (published, new))
        kept, made = dict(record["artifacts"]), own["artifacts"]
        intact = all(kept[name] == file_hash(published / name) for name in notebook.artifacts)
        equal = all(kept[name] == made[name] for name in notebook.artifacts if name not in notebook.measured)
        same_parameters = record["fingerprint"]["parameters"] == own["fingerprint"]["parameters"]
        same_text = _sources(published / "notebook.ipynb") == _sources(new / "notebook.ipynb")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # damaged
    return intact and equal and same_parameters and same_text


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _sources(executed: Path) -> list[tuple[str, str]]:
    """Return kind and source of the cells of an executed notebook, without those that `WRITTEN` names."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    own = [cell for cell in cells if not WRITTEN & {*cell["metadata"].get("tags", [])}]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in own]


def _compared(notebook: Notebook, new: Path, earlier: Path) -> str:
    """Return in words how the artifacts of a rerun differ from the earlier ones."""
    if not earlier.exists():
        return ""
    changed = [name for name in notebook.artifacts if file_hash(new / name) != file_hash(earlier / name)]
    other = [name for name in changed if name not in notebook.measured]
    tables, figures = ([name for name in other if name.startswith(kind)] for kind in ("tables/", "figures/"))
    said = [_listed("tables changed", tables) or "tables bit-identical to the earlier ones"]
    said += [_listed("figures changed", figures), _listed(MEASURED, [name for name in changed if name not in other])]
    return "".join(f"; {phrase}" for phrase in said if phrase)


def _listed(what: str, names: list[str]) -> str:
    return f"{what}: {', '.join(sorted({Path(name).stem for name in names}))}" if names else ""
