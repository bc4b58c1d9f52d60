"""Record what a notebook really reads: corpora, backbones and kept cells, for the provenance of its results.

`fedexit run` names a file in `FEDEXIT_READS`; every process of the notebook appends one JSON line per thing it reads.
`FEDEXIT_UNDECLARED` maps each thing that the notebook may not read to the reason. Nothing is recorded outside of
`fedexit run`.
"""

import json
import os
from pathlib import Path

from fedexit.support.errors import FedexitError

KINDS = ("corpus", "backbone", "cell")


def recording() -> bool:
    """Return whether reads are recorded, for callers whose checksum takes time to compute."""
    return bool(os.environ.get("FEDEXIT_READS"))


def undeclared(kind: str, name: str) -> str:
    """Return why the running notebook may not read this input, or an empty text if it may."""
    return json.loads(os.environ.get("FEDEXIT_UNDECLARED", "{}")).get(f"{kind} {name}", "")


def note_read(kind: str, name: str, checksum: str, code: str = "") -> None:
    """Record that this process reads the `kind` (one of `KINDS`) called `name` with this content `checksum`.

    Args:
        kind: `corpus`, `backbone` or `cell`.
        name: the corpus or backbone as the user names it; a cell's path below the results folder.
        checksum: hash of its content.
        code: for cells, the hash of the code that made it ("" if unknown).

    Raises:
        FedexitError: under `fedexit run`, nbs_ci.yml does not declare it.
    """
    if reason := undeclared(kind, name):
        raise FedexitError(reason)
    target = os.environ.get("FEDEXIT_READS")
    if not target:
        return
    line = json.dumps({"kind": kind, "name": name, "checksum": checksum, "code": code}, sort_keys=True) + "\n"
    with open(target, "a", encoding="utf-8") as file:  # one short line: appended whole, also by several processes
        file.write(line)


def read_notes(file: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Return the notes of `file` as {kind: {name: {"checksum": ..., "code": ...}}}, with an entry for every kind."""
    found: dict[str, dict[str, dict[str, str]]] = {kind: {} for kind in KINDS}
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            note = json.loads(line)
            found[note["kind"]][note["name"]] = {"checksum": note["checksum"], "code": note["code"]}
    return found
