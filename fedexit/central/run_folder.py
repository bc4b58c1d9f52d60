"""Keep the folder of a pre-training run for one run: the record of its settings, and the mark that it ended."""

import json
from pathlib import Path

from fedexit.support.errors import FedexitError
from fedexit.support.files import weights_hash, write_text

FINISHED = "finished"  # file in work/ with the hash of the finished weights


def check_claim(out: Path, claim: dict) -> None:
    """Raise FedexitError unless `out` is new or holds a run with the entries of `claim`."""
    file = out / "work" / "settings.json"
    if any(path.exists() and not path.is_dir() for path in (out, out / "work")):
        raise FedexitError(f"{out} cannot be the folder of a run, because a file has its name; name another folder")
    if not file.is_file():
        if (out / "config.json").exists():
            raise FedexitError(f"{out} holds a model and no unfinished run; name a new folder")
        return
    try:
        stored = json.loads(file.read_text())
        if not isinstance(stored, dict):
            raise ValueError(f"it holds a JSON {type(stored).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise FedexitError(f"{file} is damaged ({error}); delete {out} and run again") from error
    if changed := [name for name, value in claim.items() if stored.get(name) != json.loads(json.dumps(value))]:
        raise FedexitError(f"{out} holds a run with other {' and '.join(changed)}; name a new folder, or use the same")


def make_claim(out: Path, claim: dict) -> None:
    """Record in the folder `out` which run it holds, or check that it is this run."""
    check_claim(out, claim)
    write_text(out / "work" / "settings.json", json.dumps(claim, indent=1, sort_keys=True) + "\n")


def is_finished(out: Path) -> bool:
    """Return whether the run in `out` ended and its model is as it was written."""
    mark = out / "work" / FINISHED
    return mark.is_file() and mark.read_bytes() == weights_hash(out).encode()


def make_folder(out: Path) -> None:
    """Create `out` and check that files can be written there."""
    try:
        write_text(out / ".writable", "")
        (out / ".writable").unlink()
    except OSError as error:
        raise FedexitError(f"{out} cannot be written ({error.strerror}); name another folder") from error
