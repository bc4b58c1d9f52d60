"""Keep finished cells: four tables and an index entry, which records the code and everything else that made them.

A cell is *verified* when the present code made it and its tables are as they were written. Any other cell is
*unverified*: it is still read, because it took hours, but it never counts as up to date.
"""

import csv
import hashlib
import io
import json
import math
import platform
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from fedexit.devices.profiles import profiles
from fedexit.lab.cells import Measured
from fedexit.lab.material import opened
from fedexit.lab.setting import Cell, Setting
from fedexit.model.backbone import PRESETS, load_backbone, state_hash
from fedexit.runner import fingerprint
from fedexit.support.checkpoints import options_set
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import file_hash, json_hash, sealed, unsealed, weights_hash, write_bytes, write_text
from fedexit.support.locks import sweep
from fedexit.support.paths import backbone_folders, results_dir
from fedexit.support.placement import lacks_bfloat16
from fedexit.support.reads import note_read

MAKER = "fedexit.lab.cells"  # the module whose code, with all that it reaches, decides the numbers of a cell
# columns of names and answers: "NA", "0003" and "" stay text
TEXTS = {"answer", "client", "clip", "cluster", "method", "metric", "split", "task", "tier", "weights"}


ENTRY = {  # parts of an index entry
    "cell", "setting", "code", "corpus", "backbone", "versions", "python", "processor", "seconds", "weights",
    "finished", "tables",
}  # fmt: skip


class Origin(NamedTuple):
    """The inputs from which the cells of a grid are made.

    code: hash of the code.
    corpus: name and content checksum of the corpus.
    backbone: name and checksum of the backbone.
    """

    code: str
    corpus: tuple[str, str]
    backbone: tuple[str, str]


def origin_of(setting: Setting, checksum: str = "") -> Origin:
    """Return the inputs of the cells of `setting`. They are read anew, because files may have changed.

    Args:
        setting: the options of the cells.
        checksum: that of the corpus, if it is known; then the corpus need not be there.
    """
    name, backbone = setting.data.corpus, setting.model.backbone
    if not checksum:
        corpus = opened(name)
        name, checksum = corpus.name, corpus.checksum
    return Origin(present_code(), (name, checksum), (backbone, backbone_checksum(backbone)))


@cache
def present_code() -> str:
    """Return the hash of the code that makes cells now."""
    return fingerprint.code_hash(MAKER)


def backbone_checksum(name: str) -> str:
    """Return a hash of a backbone's configuration and weights: of its files if they exist, else of the loaded model.

    A preset has no weights to compare, because its code draws them: the checksum is its name.
    """
    folder = backbone_folders().get(name, Path(name))
    if folder.is_dir():
        configurations = [file_hash(folder / part) for part in ("config.json", "preprocessor_config.json")]
        return json_hash([*configurations, weights_hash(folder)])
    if name in PRESETS:
        return name
    return state_hash(load_backbone(name))


def key_of(setting: Setting, origin: Origin, central: bool) -> str:
    """Return the name of the folder of a setting's central cells, or of its federations.

    It depends on everything that decides numbers: the options that differ from their defaults, the content of the
    corpus, the weights and the device table. Options of federations do not change the key of central cells, and the
    reverse. The code is not part of the key: a cell that other code made is found and is unverified.
    """
    words = in_words(options_set(setting))
    del words["data"]["corpus"], words["model"]["backbone"]  # another path to the same content gives the same key
    if central:
        del words["federation"]
    else:
        words["study"].pop("central", None)
    facts = {"setting": words, "corpus": origin.corpus, "backbone": origin.backbone[1]}
    if setting.federation.policy is not None and not central:  # readers may change the table of devices
        known = profiles()
        facts["fleet"] = in_words([known[name] for name in setting.federation.fleet])
    return json_hash(facts)[:16]


def in_words(value: Any) -> Any:
    """Return a dataclass with all of its fields, a mapping, a sequence or a scalar as plain values for JSON."""
    if is_dataclass(value):
        return {known.name: in_words(getattr(value, known.name)) for known in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return in_words(value._asdict())
    if isinstance(value, Mapping):
        return {str(name): in_words(own) for name, own in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [in_words(own) for own in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | None) else str(value)


def is_finished(folder: Path, cell: Cell) -> bool:
    """Return whether all tables of the cell are in `folder`."""
    return all(file.is_file() for file in _tables(folder, cell))


def write_cell(
    folder: Path,
    cell: Cell,
    measured: Measured,
    setting: Setting,
    origin: Origin,
    seconds: float,
    device: str = "cpu",
) -> None:
    """Write the index entry of a cell, then its tables; a cell is finished when its last table is there.

    Args:
        folder: where the files go (`key_of`).
        cell: the cell.
        measured: its tables.
        setting: its setting, which the entry holds in words.
        origin: the inputs from which it was made.
        seconds: wall time of the run that finished it.
        device: where it was trained; the name of a GPU counts as that of the processor.
    """
    contents = dict(zip(_tables(folder, cell), map(_packed, measured), strict=True))
    hashes = [hashlib.sha256(content).hexdigest() for content in contents.values()]
    used = {"data", "model", "study", *(("federation",) if cell.federated else ())}
    entry = {
        "cell": in_words(cell),
        "setting": {part: words for part, words in in_words(setting).items() if part in used},
        "code": origin.code,
        "corpus": dict(zip(("name", "checksum"), origin.corpus, strict=True)),
        "backbone": dict(zip(("name", "checksum"), origin.backbone, strict=True)),
        "versions": {name: fingerprint.version(name) for name in fingerprint.VERSIONS},
        "python": platform.python_version(),
        "processor": {"model": processor(device), "bfloat16": not lacks_bfloat16()},
        "seconds": round(seconds, 1),
        "weights": final_weights(measured),
        "finished": today(),
        "tables": dict(zip(Measured._fields, hashes, strict=True)),
    }
    for file in (_entry(folder, cell), *contents):
        sweep(folder, file.name)
    write_text(_entry(folder, cell), json.dumps(sealed(entry), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    for file, content in contents.items():
        write_bytes(file, content)


def read_cell(folder: Path, cell: Cell) -> tuple[Measured, bool]:
    """Return the tables of a finished cell, and whether it is verified; the read is noted for the provenance.

    Raises:
        FedexitError: a table is damaged.
    """
    hashes, entry = table_hashes(folder, cell), read_entry(folder, cell.name)
    code = entry.get("code") if entry.get("tables") == hashes else ""
    code = code if isinstance(code, str) else ""
    note_read("cell", noted_name(folder / cell.name), json_hash(list(hashes.values())), code=code)
    return Measured(*map(_unpacked, _tables(folder, cell))), bool(code) and code == present_code()


def table_hashes(folder: Path, cell: Cell) -> dict[str, str]:
    """Return the hash of the file of each table of a cell, which its index entry holds as well."""
    return dict(zip(Measured._fields, map(file_hash, _tables(folder, cell)), strict=True))


def finished_cells(state: Path) -> list[tuple[Path, Cell]]:
    """Return the folder of each finished cell below `state`, and the cell; those in the making are left out."""
    named = [(file.parent, read_entry(file.parent, file.stem).get("cell")) for file in sorted(state.rglob("*.json"))]
    found = [(folder, Cell(**about)) for folder, about in named if about]
    return [place for place in found if is_finished(*place)]


def final_weights(measured: Measured) -> str:
    """Return the checksum of a cell's weights after its last round; "" if the cell trains no weights."""
    return "" if measured.spot.empty else measured.spot["weights"].iloc[-1]


def today() -> str:
    """Return the date in UTC, as year-month-day."""
    return datetime.now(UTC).date().isoformat()


def processor(device: str = "cpu") -> str:
    """Return the model name of the processor or GPU, or the processor's architecture if the system gives no name."""
    if device != "cpu":
        return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _tables(folder: Path, cell: Cell) -> list[Path]:
    return [folder / f"{cell.name}.{kind}.csv.gz" for kind in Measured._fields]


def _entry(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def read_entry(folder: Path, name: str) -> dict:
    """Return the index entry of the cell `name`, or an empty one if the file is missing, unreadable or changed.

    An older version wrote entries without a checksum.
    """
    try:
        found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return found if {*found} == ENTRY else unsealed(found)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _packed(table: pd.DataFrame) -> bytes:
    """Return a table as a packed CSV file; equal tables give equal bytes, because no time is stored."""
    target = io.BytesIO()
    # pandas writes floats with all their digits; quotes keep names with a carriage return whole
    packing = {"method": "gzip", "mtime": 0}
    table.to_csv(target, index=False, compression=packing, quoting=csv.QUOTE_NONNUMERIC)
    return target.getvalue()


def _unpacked(file: Path) -> pd.DataFrame:
    """Return a stored table with its names as they were written and its floats bit-identical."""
    try:
        columns = pd.read_csv(file, nrows=0).columns
        empty = {name: [""] for name in columns if name not in TEXTS}
        texts = dict.fromkeys(TEXTS & {*columns}, str)
        return pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=empty)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        why = first_line(error)
        raise FedexitError(f"{file.name} is damaged ({why}); delete it and run again to measure the cell") from error


def noted_name(path: Path) -> str:
    """Return the name under which the read of a cell is noted: its path below the results folder, or the last two
    parts of any other.
    """
    path = path.resolve()
    try:
        return path.relative_to(results_dir()).as_posix()
    except (FedexitError, ValueError):
        return "/".join(path.parts[-2:])
