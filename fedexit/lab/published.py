"""Publish finished cells in five Parquet files and read them: one index of all cells, and their four tables.

Each publication adds row groups and leaves the bytes of earlier ones alone, so git stores only what is new. Equal cells
have equal rows, whatever the order in which they were published. results/cells/README.md describes the columns. A
published cell is *verified* when the present code made it or reproduced it (`fedexit.runner.cell_index.trusted_codes`)
and its rows are as they were published.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd

from fedexit.data import places
from fedexit.lab.cells import Measured
from fedexit.lab.kept import (
    Origin,
    finished_cells,
    in_words,
    noted_name,
    origin_of,
    present_code,
    read_cell,
    read_entry,
    table_hashes,
)
from fedexit.lab.setting import FederationPart, Setting
from fedexit.runner.cell_index import INDEX, read_index, refusing_damage, trusted_codes
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.extras import extra
from fedexit.support.files import json_hash, replacing
from fedexit.support.reads import note_read, undeclared

with extra("notebooks"):
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

Identity = tuple[str, str]  # key and name of a cell
NAME, WHOLE, LARGE, REAL = pa.dictionary(pa.int32(), pa.string()), pa.int32(), pa.int64(), pa.float64()
PLACE = {"key": NAME, "name": NAME}
ABOUT = {"method": NAME, "task": NAME, "seed": WHOLE}
COSTS = ("parameters", "bytes", "macs_forward", "macs_backward", "memory_forward", "memory_training")
SCHEMAS = {
    kind: pa.schema(PLACE | columns)
    for kind, columns in {
        "errors": ABOUT
        | {"round": WHOLE, "tier": NAME, "exit": WHOLE, "split": NAME, "metric": NAME, "value": REAL, "n": WHOLE},
        "ledger": {"round": WHOLE, "client": NAME, "tier": NAME, "depth": WHOLE, "examples": WHOLE, "loss": REAL}
        | {**dict.fromkeys(COSTS, LARGE), "seconds": REAL, "width": REAL, **ABOUT},
        "items": ABOUT
        | {"split": NAME, "exit": WHOLE, "item": WHOLE, "clip": NAME, "cluster": NAME, "tier": NAME, "metric": NAME}
        | {"errors": WHOLE, "n": WHOLE},
        "spot": ABOUT | {"round": WHOLE, "weights": NAME, "exit": WHOLE, "clip": NAME, "answer": NAME},
    }.items()
}
OPTIONAL = "width"  # a column of the ledger that only models of several widths have
TEXT = pa.string()
INDEX_SCHEMA = pa.schema(
    {
        **dict.fromkeys(("key", "name", "task", "method"), TEXT),
        **{"depth": WHOLE, "seed": WHOLE, "setting": TEXT, "code": TEXT},
        **dict.fromkeys(("corpus", "corpus_checksum", "backbone", "backbone_checksum", "versions", "python"), TEXT),
        **{"processor": TEXT, "bfloat16": pa.bool_(), "seconds": REAL, "weights": TEXT, "finished": TEXT},
        "checksum": TEXT,
    }
)
ROWS_PER_GROUP = 1 << 17


def publish(state: Path, target: Path) -> int:
    """Add every finished cell below `state` to the published cells in `target`, and return their number.

    A cell replaces the published one with the same key and name. The state is left as it is. If the process is killed
    while it replaces the files, publish again.

    Raises:
        FedexitError: tables are not those that the cell's index entry names, or have other columns; a published file
            is damaged.
    """
    entries, added = _newest(state)
    if not entries:
        return 0
    stays = {place: row for place, row in read_index(target).items() if place not in entries}
    tables = {kind: _joined((added[place][kind] for place in sorted(added)), SCHEMAS[kind]) for kind in SCHEMAS}
    sums = _checksums(tables, {kind: _bounds(table) for kind, table in tables.items()}, entries)
    rows = stays | {place: _index_row(place, entry, sums[place]) for place, entry in entries.items()}
    index = pa.Table.from_pylist([rows[place] for place in sorted(rows)], INDEX_SCHEMA)
    with ExitStack() as stack:  # the index is entered first, so it is replaced last
        for kind, table in reversed([*tables.items(), ("cells", index)]):
            groups = [table] if kind == "cells" else [*_kept_groups(target, kind, stays), table]
            _write_groups(stack.enter_context(replacing(_file(target, kind))), table.schema, groups)
    return len(entries)


def _kept_groups(folder: Path, kind: str, stays: Collection[Identity]) -> Iterator[pa.Table]:
    """Yield the row groups of a published table as they are, but without the rows of cells that do not stay.

    A later publication thus leaves the bytes of the earlier ones alone, and git stores only what is new.
    """
    file = _file(folder, kind)
    if not stays or not file.is_file():
        return
    with refusing_damage(file), pq.ParquetFile(file) as stored:
        for number in range(stored.num_row_groups):
            group = stored.read_row_group(number).select(SCHEMAS[kind].names).cast(SCHEMAS[kind])
            places = _bounds(group)
            if not places.keys() <= {*stays}:
                group = _joined((group[slice(*rows)] for own, rows in places.items() if own in stays), SCHEMAS[kind])
            yield group


def _write_groups(file: Path, schema: pa.Schema, groups: Iterable[pa.Table]) -> None:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in groups:
            if len(group):
                writer.write_table(group, ROWS_PER_GROUP)


def _newest(state: Path) -> tuple[dict[Identity, dict], dict[Identity, dict[str, pa.Table]]]:
    """Return the index entries and the tables of the finished cells below `state`, of each cell the newest."""
    entries: dict[Identity, dict] = {}
    tables = {}
    for folder, cell in finished_cells(state):
        place, entry = (folder.name, cell.name), read_entry(folder, cell.name)
        if entry["tables"] != table_hashes(folder, cell):
            raise FedexitError(
                f"{cell.name}: its tables changed since they were written; delete its files in {folder} and measure it "
                "again"
            )
        if place not in entries or entries[place]["finished"] <= entry["finished"]:
            measured, _ = read_cell(folder, cell)
            entries[place] = entry
            tables[place] = {kind: _as_arrow(getattr(measured, kind), kind, place) for kind in SCHEMAS}
    return entries, tables


def _as_arrow(table: pd.DataFrame, kind: str, place: Identity) -> pa.Table:
    """Return a table of the cell at `place` in the published columns."""
    schema = SCHEMAS[kind]
    if table.empty:
        return schema.empty_table()
    table = table.assign(**dict(zip(PLACE, place, strict=True)))
    if kind == "ledger":
        table["seconds"] = table["seconds"].round(3)  # the rest is noise, and does not compress
    if wrong := ({*schema.names} - {OPTIONAL}) ^ ({*table.columns} - {OPTIONAL}):
        state = "lacks" if min(wrong) in schema.names else "has an unknown"
        raise FedexitError(f"{place[1]}: the table {kind} {state} column {min(wrong)!r}; see SCHEMAS in {__name__}")
    try:
        return pa.Table.from_arrays([_column(table, field) for field in schema], schema=schema)
    except (pa.ArrowException, ValueError) as error:
        raise FedexitError(f"{place[1]}: the table {kind} cannot be published ({first_line(error)})") from error


def _column(table: pd.DataFrame, field: pa.Field) -> pa.Array:
    if field.name not in table:
        return pa.nulls(len(table), field.type)
    values = table[field.name]
    if values.isna().any() and field.type != REAL:
        raise ValueError(f"column {field.name} has an empty value")
    if field.type == NAME:
        return pa.array(values.tolist(), TEXT).dictionary_encode()
    return pa.array(values.to_numpy(), from_pandas=False).cast(field.type)  # a cast that changed a value would fail


def _joined(parts: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return all rows in one piece. The dictionary of each column has the values in the order of their first row."""
    table = pa.concat_tables([schema.empty_table(), *parts])
    columns = [
        column.cast(TEXT).combine_chunks().dictionary_encode() if field.type == NAME else column.combine_chunks()
        for field, column in zip(schema, table.columns, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _index_row(place: Identity, entry: Mapping[str, Any], checksum: str) -> dict:
    """Return the row of a cell in the index, from its index entry in the state folder."""
    flat = {name: entry[name] for name in ("code", "python", "seconds", "weights", "finished")}
    sources = {source: entry[source]["name"] for source in ("corpus", "backbone")}
    sums = {f"{source}_checksum": entry[source]["checksum"] for source in sources}
    words = {name: json.dumps(entry[name], sort_keys=True, ensure_ascii=False) for name in ("setting", "versions")}
    machine = {"processor": entry["processor"]["model"], "bfloat16": entry["processor"]["bfloat16"]}
    own = {**dict(zip(PLACE, place, strict=True)), **entry["cell"], **flat, **sources}
    return {**own, **sums, **words, **machine, "checksum": checksum}


def read_published(folder: Path, wanted: Collection[Identity]) -> dict[Identity, tuple[Measured, bool]]:
    """Return the tables of those `wanted` cells that are published in `folder`, and whether each cell is verified.

    Every file is read once. Each cell is noted for the provenance, with a checksum of its rows.

    Raises:
        FedexitError: a file is missing or damaged.
    """
    index = read_index(folder)
    places = sorted(place for place in {*wanted} if place in index)
    if not places:
        return {}
    tables = {kind: _read_table(folder, kind, places) for kind in SCHEMAS}
    bounds = {kind: _bounds(table) for kind, table in tables.items()}
    sums, trusted = _checksums(tables, bounds, places), trusted_codes(folder, present_code())
    frames = {kind: _as_frame(table) for kind, table in tables.items()}
    found = {}
    for place in places:
        code = index[place]["code"] if sums[place] == index[place]["checksum"] else ""
        note_read("cell", noted_name(folder.joinpath(*place)), sums[place], code=code)
        own = [_cut(frames[kind], bounds[kind].get(place, (0, 0))) for kind in Measured._fields]
        found[place] = Measured(*own), code in trusted
    return found


def origin_in(folder: Path, setting: Setting) -> Origin:
    """Return the inputs of the cells of `setting`, also if their corpus cannot be read but its cells are published.

    A known corpus that is not on this machine, or that the running notebook does not declare, has the content that its
    cells in `folder` were made from.

    Raises:
        FedexitError: the corpus is here but damaged, or the published cells have none or several of its contents.
    """
    try:
        return origin_of(setting)
    except FedexitError:
        name = setting.data.corpus
        contents = {row["corpus_checksum"] for row in read_index(folder).values() if row["corpus"] == name}
        damaged = name in places.NAMES and places.found(name) is not None and not undeclared("corpus", name)
        if name not in places.NAMES or damaged or len(contents) != 1:
            raise
    return origin_of(setting, contents.pop())


def _read_table(folder: Path, kind: str, places: Iterable[Identity]) -> pa.Table:
    """Return the rows of all cells that share a key with one of `places`."""
    file, keys = _file(folder, kind), sorted({key for key, _ in places})
    with refusing_damage(file):
        table = pq.read_table(file, filters=pc.field("key").cast(TEXT).isin(pa.array(keys)))
        return table.select(SCHEMAS[kind].names).cast(SCHEMAS[kind]).unify_dictionaries()


def _bounds(table: pa.Table) -> dict[Identity, tuple[int, int]]:
    """Return the first row of each cell and the row after its last; the rows of a cell lie together."""
    codes = [_only(table[name]).indices.to_numpy() for name in PLACE]
    changes = np.flatnonzero((codes[0][1:] != codes[0][:-1]) | (codes[1][1:] != codes[1][:-1])) + 1
    ends = [*changes.tolist(), len(table)] if len(table) else []
    starts = [0, *changes.tolist()]
    texts = [_only(table[name]).dictionary.to_pylist() for name in PLACE]
    return {
        (texts[0][codes[0][start]], texts[1][codes[1][start]]): (start, end)
        for start, end in zip(starts[: len(ends)], ends, strict=True)
    }


def _checksums(
    tables: Mapping[str, pa.Table], bounds: Mapping[str, Mapping[Identity, tuple[int, int]]], places: Iterable[Identity]
) -> dict[Identity, str]:
    """Return a checksum of the rows of each cell. It depends on values and their order, not on how they are packed."""
    found: dict[Identity, list[str]] = {place: [] for place in places}
    for kind, table in tables.items():
        columns = [_packed(_only(table[field.name]), field.type) for field in table.schema]
        for place, sums in found.items():
            start, end = bounds[kind].get(place, (0, 0))
            digest = hashlib.sha256()
            for column in columns:
                digest.update(column[start:end].data)
            sums.append(digest.hexdigest())
    return {place: json_hash(sums) for place, sums in found.items()}


def _packed(column: pa.Array, kind: pa.DataType) -> np.ndarray:
    """Return eight bytes for every value: those of a number, or a hash of a text."""
    if kind == NAME:
        hashes = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in column.dictionary.to_pylist()]
        return np.frombuffer(b"".join(hashes), np.int64)[column.indices.to_numpy()]
    return column.to_numpy(zero_copy_only=False).astype(np.float64 if kind == REAL else np.int64)


def _as_frame(table: pa.Table) -> pd.DataFrame:
    """Return a table without key and name, with texts and numbers of the usual types."""
    columns = {}
    for field in list(table.schema)[len(PLACE) :]:
        column = _only(table[field.name])
        if field.type == NAME:
            columns[field.name] = column.cast(TEXT).to_pandas()
        else:
            numbers = column.to_numpy(zero_copy_only=False)
            columns[field.name] = pd.Series(numbers if field.type == REAL else numbers.astype(np.int64))
    return pd.DataFrame(columns)


def _cut(table: pd.DataFrame, rows: tuple[int, int]) -> pd.DataFrame:
    """Return some rows, without the optional column if they have none."""
    own = table.iloc[slice(*rows)]
    own.index = pd.RangeIndex(len(own))  # reset_index would copy every column
    return own.drop(columns=OPTIONAL) if OPTIONAL in own and own[OPTIONAL].isna().all() else own


def _only(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _file(folder: Path, kind: str) -> Path:
    return folder / (INDEX if kind == "cells" else f"{kind}.parquet")


def setting_from(text: str) -> Setting:
    """Return the setting whose parts are the JSON object `text`, as the column `setting` of the index has them.

    A central cell has no part `federation`, because it does not use one; it gets a federation of one round.

    Raises:
        FedexitError: an option is unknown, missing or out of range.
    """
    words = {"federation": in_words(FederationPart(1, "iid", 1.0)), **json.loads(text)}
    return _rebuilt(Setting, words, "the setting")


def _rebuilt(kind: Any, words: Any, where: str) -> Any:
    """Return a value of the type `kind` from `words`, which `in_words` made of it."""
    inner, origin = get_args(kind), get_origin(kind)
    if origin in (Union, UnionType):  # X | None
        [other] = {*inner} - {NoneType}
        return None if words is None else _rebuilt(other, words, where)
    if is_dataclass(kind) or hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        if unknown := words.keys() - hints.keys():
            raise FedexitError(f"{where} has an unknown option {min(unknown)!r}; get the code that made the cell")
        try:
            return kind(**{name: _rebuilt(hints[name], own, name) for name, own in words.items()})
        except TypeError as error:
            raise FedexitError(
                f"{where} lacks an option ({first_line(error)}); get the code that made the cell"
            ) from error
    if origin is Mapping:
        return {inner[0](name): _rebuilt(inner[1], own, where) for name, own in words.items()}
    if origin is tuple:
        return tuple(_rebuilt(inner[0], own, where) for own in words)
    return float(words) if kind is float and isinstance(words, str) else words  # "inf" is a number as text
