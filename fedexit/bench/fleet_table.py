"""Measure rounds of 50 nodes in one process, on a simulated fleet, and on plain Flower, in an environment with Flower.

`python -m fedexit.bench.fleet_table` takes minutes. It writes docs/fleet_rounds.csv, and its table in docs/fleet.md.
"""

from dataclasses import asdict
from statistics import median

import pandas as pd

from fedexit.bench.child import launch
from fedexit.bench.workload import Workload, same_weights
from fedexit.support.errors import FedexitError
from fedexit.support.files import write_text
from fedexit.support.paths import project_root

# nearly empty rounds of a very small model: one clip of a tenth of a second per client
WORKLOAD = Workload(rounds=4, clients=50, clips=1, samples=1600, width=32, channels=16)
ENGINES = {"fedexit": "one process", "fleet": "fedexit.flower, simulated", "flower": "Flower's own FedAvg, simulated"}
MARKS = "<!-- rounds:begin -->", "<!-- rounds:end -->"


def measured(workload: Workload = WORKLOAD) -> pd.DataFrame:
    """Return a row per engine: `engine, clients, seconds` (median of a round but the first), `memory_mb` (peak).

    Raises FedexitError when an engine fails, or ends with other weights than one process.
    """
    rows, first = [], None
    for name, says in ENGINES.items():
        found = launch(name, {"workload": asdict(workload), "processes": 1})
        first = first or found
        if not same_weights(found, first, workload.kind):
            raise FedexitError(f"{says} ends with other weights than one process; its times do not compare")
        rounds = found["rounds"] if name == "fleet" else found["rounds"][1:]  # those of `fleet` lack the first
        rows.append([says, workload.clients, round(median(rounds), 3), round(found["peak_mb"])])
    return pd.DataFrame(rows, columns=["engine", "clients", "seconds", "memory_mb"])


def rendered(text: str, table: pd.DataFrame) -> str:
    """Return the text of docs/fleet.md with `table` between its markers."""
    before, rest = text.split(MARKS[0])
    after = rest.split(MARKS[1])[1]
    lines = [f"| {row.engine} | {row.clients} | {row.seconds:.2f} | {row.memory_mb} |" for row in table.itertuples()]
    head = ["| engine | nodes | seconds per round | memory, MB |", "| --- | --- | --- | --- |"]
    return before + "\n".join([MARKS[0], *head, *lines, MARKS[1]]) + after


def main() -> None:
    """Measure, and write both files."""
    guide, table = project_root() / "docs" / "fleet.md", measured()
    write_text(guide.with_name("fleet_rounds.csv"), table.to_csv(index=False, lineterminator="\n"))
    write_text(guide, rendered(guide.read_text(encoding="utf-8"), table))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
