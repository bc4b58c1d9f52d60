"""Run those notebooks of `nbs_ci.yml` whose inputs changed, and replace results only when a run is complete.

A notebook works in results/.state/<profile>/<id>/out. Once every declared artifact is there and its checks hold, that
folder becomes the results (`fedexit.runner.publish`): results/<id> in the profile `default`, which is committed, and
results/<profile>/<id> in all others. Until then the earlier results stay.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from importlib.util import find_spec
from pathlib import Path

from fedexit.runner import fingerprint, provenance
from fedexit.runner.checks import check_artifacts, check_tables, read_table
from fedexit.runner.execution import default_values, execute, known_parameters
from fedexit.runner.jobs import at_once, submitter
from fedexit.runner.manifest import Notebook, load_manifest, select
from fedexit.runner.provenance import NOT_HERE, state_folder, state_of
from fedexit.runner.publish import locked, put_in_place
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.paths import data_dir, project_root, results_dir, results_of, shown


def run(profile: str, ids: list[str], overrides: dict, force: bool = False, jobs: int = 1) -> bool:
    """Run the notebooks `ids` and those that they need, if out of date or unverified; return whether all succeeded.

    A line is printed before each notebook, then a summary and the headline tables. Results that came with the project
    or are unverified are made again if their notebook is in `ids`. If another notebook only needs them, they are used
    as they are, so that a figure can be redrawn in seconds in a fresh clone.

    Args:
        profile: name of the set of parameters.
        ids: notebooks; all of the profile if empty.
        overrides: parameters of the notebooks in `ids` that replace those of the profile.
        force: run the named notebooks (or all) even if they are up to date.
        jobs: number of notebooks that run side by side.

    Raises:
        FedexitError: a name, a parameter or a corpus is wrong, or another process runs the profile. No notebook has
            started by then.
    """
    notebooks = select(load_manifest(project_root()), profile, ids)
    if overrides and not ids:
        raise FedexitError("-p needs a notebook: fedexit run NOTEBOOK -p NAME=VALUE")
    if jobs < 1:
        raise FedexitError(f"--jobs {jobs}: give the number of notebooks side by side, 1 or more")
    check_kinds(profile, ids, overrides)
    parameters = {n.id: _parameters(n, profile, overrides if n.id in ids else {}) for n in notebooks}
    for notebook in notebooks:  # a missing corpus or a broken notebook is reported before anything runs
        state_of(notebook, profile, parameters[notebook.id])
        _check_parameters(notebook, parameters[notebook.id])

    def why(notebook: Notebook) -> tuple[list[str], str]:
        """Return the reasons to run it, and a description of its results if they are used as they are."""
        state = state_of(notebook, profile, parameters[notebook.id])
        package = notebook.profiles[profile].package
        if not ids and not force and package and not find_spec(package) and not {*state.changed} - {NOT_HERE}:
            return [], f"used as it is, because {package} is not installed"
        if not ids or notebook.id in ids:
            return state.reasons or (["forced"] if force else []), "up to date"
        changed = [reason for reason in state.changed if reason != NOT_HERE]
        return changed, "used as it is, unverified" if state.unverified else "up to date"

    for name, value in overrides.items():
        print(f"{name} = {value!r} ({_kind(value)})")
    with locked(profile), submitter(jobs) as submit:
        return _run_all(notebooks, profile, parameters, why, submit, jobs)


def _run_all(
    notebooks: list[Notebook], profile: str, parameters: dict[str, dict], why: Callable, submit: Callable, jobs: int
) -> bool:
    """Start each notebook when those that it needs are done, until all are done or one fails; print what happens.

    If several run side by side, the longest start first, so that no long one is left alone at the end.
    """
    order = list(enumerate(notebooks, 1))
    if jobs > 1:
        order.sort(key=lambda one: -one[1].profiles[profile].minutes)
    listed = {notebook.id for notebook in notebooks}
    outcome: dict[str, str] = {}
    running: dict[Future, str] = {}
    failure: tuple[str, FedexitError] | None = None
    while failure is None and len(outcome) < len(notebooks):
        for number, notebook in order:
            ready = notebook.id not in {*outcome, *running.values()} and set(notebook.needs) & listed <= set(outcome)
            if not ready or len(running) == jobs:
                continue
            reasons, as_is = why(notebook)
            if reasons:
                minutes = notebook.profiles[profile].minutes
                print(f"[{number}/{len(notebooks)}] {notebook.id} ... about {minutes:g} min ({'; '.join(reasons)})")
                sys.stdout.flush()
                future = submit(_run_notebook, notebook, profile, parameters[notebook.id], jobs == 1)
            else:
                future = at_once(_use_as_is, notebook, profile, as_is)
            running[future] = notebook.id
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            name = running.pop(future)
            try:
                outcome[name] = future.result()
                if jobs > 1:
                    print(f"{name}: {outcome[name]}", flush=True)
            except FedexitError as error:
                failure = failure or (name, error)
            except BrokenExecutor as error:
                killed = (
                    f"{name}: its process died ({error}); most often memory ran out: use fewer --jobs, run it again"
                )
                failure = failure or (name, FedexitError(killed))
    if failure:
        print(f"fedexit: {failure[1]}", file=sys.stderr)
        outcome[failure[0]] = "failed"
    lines = [f"{notebook.id}: {outcome.get(notebook.id, 'not run')}" for notebook in notebooks]
    print(*lines, sep="\n")
    if failure is None:
        _print_headlines(notebooks, profile)
    return failure is None


def _use_as_is(notebook: Notebook, profile: str, as_is: str) -> str:
    check_tables(notebook, results_of(profile) / notebook.id)
    return as_is


def status(profile: str) -> None:
    """Print whether each notebook of `profile` is up to date, out of date or unverified, and why."""
    stale: set[str] = set()
    for notebook in select(load_manifest(project_root()), profile, []):
        described = provenance.described(notebook, profile, _parameters(notebook, profile, {}))
        waits = [need for need in notebook.needs if need in stale]
        if described != "up to date":
            waits = []
        print(f"{notebook.id}: {described}" + (f" unless {', '.join(waits)} changes its tables" if waits else ""))
        if described != "up to date" or waits:
            stale.add(notebook.id)


def _parameters(notebook: Notebook, profile: str, overrides: dict) -> dict:
    return {**notebook.profiles[profile].parameters, **overrides, "profile": profile}


def _kind(value: object) -> str:
    """Return the type of a YAML value in words."""
    kinds = {bool: "true or false", int: "number", float: "number", str: "text", list: "list", dict: "mapping"}
    return kinds.get(type(value), "null, no value")


def check_kinds(profile: str, ids: list[str], overrides: dict) -> None:
    """Raise FedexitError if a parameter of the notebooks `ids` (or all) is of another kind than its known values.

    Known values are that of the notebook and those of its profiles. A name without one is not checked here.
    """
    for notebook in select(load_manifest(project_root()), profile, ids) if overrides else []:
        every = [default_values(notebook), *(own.parameters for own in notebook.profiles.values())]
        for name, value in overrides.items() if not ids or notebook.id in ids else ():
            known = [values[name] for values in every if name in values]
            like = next((one for one in known if one is not None), None)
            if like is not None and not any(_alike(value, one) for one in known):
                kind = "whole number" if type(like) is int else _kind(like)
                raise FedexitError(
                    f"{notebook.id}: -p {name} is {value!r} ({_kind(value)}); give a value like {like!r} ({kind})"
                )


def _alike(value: object, known: object) -> bool:
    """Return whether a value of YAML can take the place of a known one: of a whole number, only another."""
    if isinstance(known, list):
        return isinstance(value, list) and all(not known or any(_alike(part, one) for one in known) for part in value)
    return type(value) is int if type(known) is int else _kind(value) == _kind(known)


def _check_parameters(notebook: Notebook, parameters: dict) -> None:
    known = known_parameters(notebook)
    if unknown := sorted(set(parameters) - set(known)):
        names = ", ".join(known) or "nothing"
        raise FedexitError(f"{notebook.id}: unknown parameter {unknown[0]}; its cell tagged parameters sets: {names}")


def _run_notebook(notebook: Notebook, profile: str, parameters: dict, bar: bool) -> str:
    """Run in the staging folder, check the results and put them in place; return a summary for the user."""
    parts = fingerprint.components(notebook, profile, parameters, results_of(profile))
    state = state_folder(notebook, profile)
    out, executed, notes = state / "out", state / "notebook.ipynb", state / "reads.jsonl"
    checkpoints = state / "checkpoints" / fingerprint.key_of(parts)
    failed = results_of(profile) / f"{notebook.id}.failed.ipynb"
    shutil.rmtree(out, ignore_errors=True)
    for folder in (out, checkpoints, failed.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for left in (notes, executed):
        left.unlink(missing_ok=True)
    begin = time.monotonic()
    try:
        environment = _environment(notebook, out, checkpoints, bar)
        environment["FEDEXIT_READS"] = str(notes)
        environment["FEDEXIT_UNDECLARED"] = json.dumps(provenance.undeclared(notebook, profile))
        execute(notebook, parameters, executed, environment, notebook.profiles[profile].limit, bar)
        check_artifacts(notebook, out)
        check_tables(notebook, out)
    except FedexitError as failure:
        if not executed.is_file():  # stopped before the first cell
            raise
        os.replace(executed, failed)
        raise FedexitError(f"{failure}; the notebook is kept at {shown(failed)}") from None
    seconds = time.monotonic() - begin
    os.replace(executed, out / "notebook.ipynb")
    provenance.write(notebook, profile, parts, provenance.recorded_reads(notes), out)
    write_text(state / "seconds.txt", f"{seconds:.1f}\n")
    compared = put_in_place(notebook, profile, out)
    shutil.rmtree(state / "checkpoints")
    for left in (notes, failed):
        left.unlink(missing_ok=True)
    return f"ran in {seconds:.0f} s{compared}"


def _environment(notebook: Notebook, out: Path, checkpoints: Path, bar: bool) -> dict[str, str]:
    """Return the environment that `results` and `paths` read in the kernel; paths are absolute."""
    terminal = bar and sys.stderr.isatty() and hasattr(os, "ttyname")  # Windows has none
    return {
        "FEDEXIT_OUT": str(out),
        "FEDEXIT_STATE": str(checkpoints),
        "FEDEXIT_NEEDS": " ".join(notebook.needs),
        "FEDEXIT_ROOT": str(project_root()),
        "FEDEXIT_RESULTS": str(results_dir()),
        "FEDEXIT_DATA": str(data_dir()),
        "FEDEXIT_PROGRESS": os.ttyname(sys.stderr.fileno()) if terminal else "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # sums in the same order on every machine
    }


def _print_headlines(notebooks: list[Notebook], profile: str) -> None:
    print(f"figures and tables: {shown(results_of(profile))}/<notebook>/figures and tables")
    for notebook in notebooks:
        if notebook.headline:
            frame = read_table(notebook, results_of(profile) / notebook.id, notebook.headline)
            sentences = list(frame) == ["says"]
            text = "\n".join(frame["says"].fillna("")) if sentences else frame.to_string(index=False)
            print(f"\n{notebook.title} ({notebook.id}, {notebook.headline})\n{text}")
