"""Read the fleet file, which binds each client to the public key, the depth and the clips of its device."""

import csv
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, NoReturn

import pandas as pd
from pydantic import Field

from fedexit.data.batches import Example
from fedexit.data.corpora import open_corpus
from fedexit.data.groups import client_groups
from fedexit.data.tasks import make_task
from fedexit.data.tasks.contract import Clips, Task
from fedexit.federated.clients import Client
from fedexit.support.checks import whole_number
from fedexit.support.errors import FedexitError, first_line
from fedexit.support.files import read_bytes, write_text
from fedexit.support.settings import check_fields


@dataclass(frozen=True)
class Node:
    """One client of a fleet, as the server knows it. What a node claims about itself is ignored."""

    client: str  # unique name
    depth: Annotated[int, Field(ge=1)]  # L_i, the deepest layer that it may receive
    examples: Annotated[int, Field(ge=1, le=1_000_000)]  # n_i of Eq. (1), its number of training clips
    tier: str = ""  # class of the device, for the ledger
    device: str = ""  # a name of `fedexit.devices.profiles.profiles`, for the plan and the policy
    data: str = ""  # group of the clips that it trains on; empty: all training clips of its corpus
    key: str = ""  # public key in SSH format; empty in a simulation alone

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.client:
            raise FedexitError("its name is empty; give it one")


_COLUMNS = [field.name for field in fields(Node)]
_WHOLE = ("depth", "examples")


def read_fleet(file: str | Path) -> list[Node]:
    """Return the nodes of a fleet file, in its order.

    Args:
        file: A CSV with the columns `client, depth, examples` and, where needed, `tier, device, data, key`, separated
            by commas, semicolons or tabs; or a TOML file with a table `[[client]]` per client, whose `client` is its
            name.

    Raises:
        FedexitError: the file cannot be read, a column is missing or unknown, a value is out of range, or two clients
            share a name or a key.

    Example:
        client,depth,examples,device,data,key
        ann,3,40,small board,ANN1.DOG,ecdsa-sha2-nistp384 AAAA...
    """
    file = Path(file)
    content = read_bytes(file)
    try:
        text = content.decode("utf-8-sig")
        nodes = [_node(row) for row in (_toml_rows(text) if file.suffix == ".toml" else _csv_rows(text))]
        check_fleet(nodes)
    except UnicodeDecodeError:
        raise FedexitError(f"fleet file {file} is not UTF-8 text; save it as a CSV file in UTF-8") from None
    except FedexitError as error:
        raise FedexitError(f"fleet file {file}: {error}") from None
    except ValueError as error:  # of a message with a whole number of thousands of digits, which 0x... can give
        raise FedexitError(f"fleet file {file}: a number is too large ({first_line(error)}); correct it") from None
    return nodes


def _toml_rows(text: str) -> list[dict]:
    try:
        rows = tomllib.loads(text).get("client")
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits and of deep lists
        raise FedexitError(f"it is not TOML ({first_line(error)}); see docs/fleet.md") from None
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise FedexitError("it has no table [[client]]; write one for each client, see docs/fleet.md")
    return rows


def _csv_rows(text: str) -> list[dict]:
    """Return the rows of a CSV, also of one with semicolons or tabs, as some spreadsheets write it."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise FedexitError(f"it is empty; it needs the columns {', '.join(_COLUMNS[:3])}")
    mark = max(",;\t", key=lines[0].count)
    try:
        names, *rows = [[value.strip() for value in row] for row in csv.reader(lines, delimiter=mark, strict=True)]
    except csv.Error as error:
        raise FedexitError(f"it is not CSV ({error}); see docs/fleet.md") from None
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise FedexitError(f"column {double[0]!r} is there twice; keep one of them")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise FedexitError(f"client {number} has {len(row)} values for {len(names)} columns; correct its line")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _node(row: dict) -> Node:
    if unknown := sorted(set(row) - set(_COLUMNS)):
        raise FedexitError(f"unknown column {unknown[0]!r}; known: {', '.join(_COLUMNS)}")
    if missing := [name for name in _COLUMNS[:3] if name not in row]:
        raise FedexitError(f"column {missing[0]!r} is missing; it needs {', '.join(_COLUMNS[:3])}")
    whole = {name: _whole_number(row, name) for name in _WHOLE}
    try:
        return Node(**{**row, **whole})
    except FedexitError as error:
        raise FedexitError(f"client {row['client']!r}: {error}") from None


def _whole_number(row: dict, name: str) -> int:
    try:
        return int(str(row[name]))
    except ValueError:
        raise FedexitError(f"client {row['client']!r}: {name} must be a whole number, not {row[name]!r}") from None


def check_fleet(nodes: Sequence[Node]) -> None:
    """Raise FedexitError for an empty fleet, and for a name or a key that two clients share."""
    if not nodes:
        raise FedexitError("the fleet has no client; list at least one")
    keys = [" ".join(node.key.split()[:2]) for node in nodes]  # without the comment
    for what, values in {"client": [node.client for node in nodes], "key": keys}.items():
        if double := [value for value, count in Counter(filter(None, values)).items() if count > 1]:
            raise FedexitError(f"two clients have the {what} {double[0]!r:.60}; each needs its own")


def write_fleet(nodes: Sequence[Node], file: str | Path) -> None:
    """Write `nodes` as a CSV that `read_fleet` reads."""
    check_fleet(nodes)
    table = pd.DataFrame([vars(node) for node in nodes], columns=_COLUMNS)
    write_text(file, table.to_csv(index=False, lineterminator="\n"))


def nodes_of_task(task: Task, count: int, exits: Sequence[int], devices: Sequence[str] = ()) -> list[Node]:
    """Return `count` nodes that hold the first groups of a task, at exits from the first to the last in turn.

    devices: the device of each node, if it is known.

    Raises FedexitError when the task has fewer groups.
    """
    groups = client_groups(task, 1)
    if not 1 <= whole_number(count, "the number of nodes") <= len(groups):
        raise FedexitError(f"the number of nodes must be from 1 to {len(groups)} (groups of the corpus), not {count}")
    sizes = task.rows.query("split == 'train'")["group"].value_counts()
    chosen = [exits[round(place * (len(exits) - 1) / max(1, count - 1))] for place in range(count)]
    parts = zip(groups[:count], chosen, devices or [""] * count, strict=True)
    return [Node(group, depth, int(sizes[group]), f"depth {depth}", device, group) for group, depth, device in parts]


class RemoteClips(Sequence[Example]):
    """Stand for the clips of a node, which never leave it: their number is known, and nothing else."""

    def __init__(self, node: Node):
        self._node = node
        self.content_hash = f"{node.examples} clips of {node.client}, {node.data}"

    def __len__(self) -> int:
        """Return n_i."""
        return self._node.examples

    def __getitem__(self, index: object) -> NoReturn:
        """Raise FedexitError."""
        raise FedexitError(f"the clips of client {self._node.client} are on its device; run this there")


def clients_of(nodes: Sequence[Node]) -> list[Client]:
    """Return the clients of a fleet for `federate`, without their clips."""
    return [Client(node.client, RemoteClips(node), node.depth, node.tier) for node in nodes]


@lru_cache(maxsize=8)
def task_clips(corpus: str, name: str, group: str, labels: tuple[str, ...]) -> Clips:
    """Return the training clips of `group` (empty: all) for a task, with targets by `labels`.

    Raises FedexitError when there are none, and for a label that the model lacks.
    """
    task = make_task(name, open_corpus(corpus))
    rows = task.rows.query("split == 'train'")
    rows = rows[rows["group"] == group] if group else rows
    if rows.empty:
        raise FedexitError(f"corpus {corpus} has no training clips of group {group!r}; correct data of the fleet")
    if task.head != "ctc":
        if unknown := {task.labels[target] for target in rows["target"]} - set(labels):
            raise FedexitError(f"label {min(unknown)!r} of corpus {corpus} is not one of the model: leave it out")
        rows = rows.assign(target=[labels.index(task.labels[target]) for target in rows["target"]])
    return Clips(task.corpus, rows, task.max_seconds)


def clients_here(nodes: Sequence[Node], corpus: str, task: str, labels: Sequence[str]) -> list[Client]:
    """Return the clients of a fleet with their clips, to run the same federation in this process."""
    clips = [task_clips(corpus, task, node.data, tuple(labels)) for node in nodes]
    return [Client(node.client, own, node.depth, node.tier) for node, own in zip(nodes, clips, strict=True)]
