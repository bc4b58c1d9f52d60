"""Run the ServerApp: read the configuration, federate over the fleet, and keep checkpoint, model and tables."""

import csv
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedexit.data.batches import Example
from fedexit.data.corpora import open_corpus
from fedexit.data.tasks import make_task
from fedexit.data.tasks.contract import Clips
from fedexit.federated.clients import LocalTraining
from fedexit.federated.resuming import Depths
from fedexit.federated.rounds import Federation, drop_outs
from fedexit.flower.fleet import Node, read_fleet
from fedexit.flower.plan import depths_by_policy
from fedexit.flower.server import federate_on
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.processes import one_thread

with extra("flower"):
    from flwr.app import Context
    from flwr.serverapp import Grid, ServerApp

CHECKPOINT = "state.safetensors"


def server_app(**parts: Any) -> "ServerApp":
    """Return the ServerApp of a federation; `template/pyproject.toml` lists its configuration.

    Args:
        parts: Arguments of `federate` in place of the configuration, such as `dev` or a `method` of your own.

    Example:
        >>> server = server_app(method=Method("mine", rule="masked"))
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serve(grid, context.run_config, **parts)

    return app


def serve(grid: Grid, config: Mapping[str, Any], **parts: Any) -> Federation:
    """Run or resume the federation of a configuration over `grid`, and write its results to the folder `out`.

    `out` gets the checkpoint `state.safetensors`, the trained `model`, and the tables `ledger.csv`, `errors.csv`,
    `events.csv` (updates that did not arrive, and why) and `times.csv` (`fedexit.flower.server.OnGrid`).

    Raises:
        FedexitError: as `federate_on`, and for files that cannot be read.
    """
    nodes, model = read_fleet(config["fleet"]), MultiExitModel.from_pretrained(Path(config["model"]))
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    training = LocalTraining(
        epochs=config["epochs"],
        batch_size=config["batch-size"],
        learning_rate=float(config["learning-rate"]),
        head_learning_rate=float(config["head-learning-rate"]),
    )
    given: dict[str, Any] = dict(
        deadline=float(config["deadline"]),
        wait=float(config["wait"]),
        note=_rows_to(out / "events.csv"),
        timed=_rows_to(out / "times.csv"),
        method=config["method"],
        rounds=config["rounds"],
        seed=config["seed"],
        fraction=float(config["fraction"]),
        training=training,
        depths=_depths(config, nodes, model, training),
        dev=_dev(config, model) if config["dev"] else (),
        checkpoint=out / CHECKPOINT,
    )
    with one_thread():
        done = federate_on(grid, nodes, model, **{**given, **parts})
    done.model.save_pretrained(out / "model")
    done.clients.to_csv(out / "ledger.csv", index=False)
    done.table.to_csv(out / "errors.csv", index=False)
    print(f"fedexit: {config['rounds']} rounds done, model {done.model.checksum()}", flush=True)
    return done


def _depths(
    config: Mapping[str, Any], nodes: Sequence[Node], model: MultiExitModel, training: LocalTraining
) -> Depths | None:
    """Return the function of the depths of a round, or None where all clients train to their own."""
    if config["policy"] and config["drop-out"]:
        raise FedexitError("a policy has its own drop-outs; leave out drop-out, or policy")
    if config["policy"]:
        return depths_by_policy(nodes, model, training, config["seed"])
    if config["drop-out"]:
        return partial(drop_outs, [node.client for node in nodes], float(config["drop-out"]), config["seed"])
    return None


def _dev(config: Mapping[str, Any], model: MultiExitModel) -> Sequence[Example]:
    task = make_task(config["task"], open_corpus(config["corpus"]))
    if task.labels != model.labels:
        raise FedexitError(f"task {task.name} has other labels than the model; make the model for it, or set dev=false")
    return Clips(task.corpus, task.rows.query("split == 'dev'"), task.max_seconds)


def _rows_to(file: Path) -> Callable[[dict[str, Any]], None]:
    """Return a function that appends a row to a CSV at once, so that a kill loses none."""

    def add(row: dict[str, Any]) -> None:
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, list(row), lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print("fedexit:", *(f"{name} {value}" for name, value in row.items()), flush=True)

    return add
