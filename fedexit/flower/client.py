"""Run the ClientApp: train the local round of one node on its own clips."""

import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from fedexit.data.batches import Example
from fedexit.federated.clients import Client
from fedexit.federated.workers import Work
from fedexit.flower import wire
from fedexit.flower.fleet import task_clips
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra
from fedexit.support.files import new_folder
from fedexit.support.paths import data_dir
from fedexit.support.processes import one_thread

with extra("flower"):
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

Load = Callable[[Context, str, Sequence[str]], Sequence[Example]]


def own_clips(context: Context, group: str, labels: Sequence[str]) -> Sequence[Example]:
    """Return the training clips of this node, for the labels of the server's model.

    Args:
        context: Flower's context. Its `node_config`, or else its `run_config`, has `corpus` (a name or a folder) and
            `task` (a name in `fedexit.data.tasks.TASKS`).
        group: The group of clips that the fleet file gives this client; empty: all training clips.
        labels: The labels of the server's model.

    Raises:
        FedexitError: no corpus is named, it has no such clips, or a label that the model lacks.
    """
    config = {**context.run_config, **context.node_config}
    if not config.get("corpus"):
        raise FedexitError('no corpus is named; start the node with --node-config \'corpus="FOLDER" task="keyword"\'')
    return task_clips(str(config["corpus"]), str(config.get("task") or "keyword"), group, tuple(labels))


def client_app(load: Load = own_clips) -> "ClientApp":
    """Return the ClientApp of a node. `load(context, group, labels)` returns its clips: see `own_clips`.

    Example:
        >>> client = client_app(lambda context, group, labels: my_clips(group))
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(trained(message.content, context, load), reply_to=message)

    @app.query()
    def query(message: Message, context: Context) -> Message:
        place = int(context.node_config.get("partition-id", -1))
        return Message(RecordDict({wire.REPORT: ConfigRecord({"partition": place})}), reply_to=message)

    return app


def trained(content: RecordDict, context: Context, load: Load) -> RecordDict:
    """Return the reply to a job: the update and its report, or why there is none."""
    try:
        job = wire.Job.unpacked(content[wire.JOB])
        model = _scratch(job.start, content.get(wire.START))
        if model is None:
            return RecordDict({wire.REPORT: ConfigRecord({"lacks": wire.START})})
        weights = wire.unpacked_weights(content[wire.WEIGHTS], model.trainable_weights())
        like = {name: weights[name] for name in job.own}
        own = wire.unpacked_weights(content[wire.OWN], like) if like else {}
        client = Client(job.client, load(context, job.data, model.labels), job.depth, own=own)
        with one_thread():
            update, report = Work(job.training, job.objective).run(model, weights, client, tuple(job.stream), job.share)
    except FedexitError as error:
        return RecordDict({wire.REPORT: ConfigRecord({"refused": str(error)})})
    sent = wire.packed_weights(update.weights[name] for name in weights)
    facts = wire.packed_report(job, update.examples, report)
    return RecordDict({wire.WEIGHTS: sent, wire.REPORT: facts})


def _scratch(digest: str, start: ConfigRecord | None) -> MultiExitModel | None:
    """Return the model in which a client trains, from the `start` of the server or from this node's cache."""
    folder = _cache() / digest
    if start is not None and not folder.exists():
        with new_folder(folder) as part:
            wire.write_start(start, digest, part)
    return _loaded(folder) if folder.exists() else None


def _cache() -> Path:
    """Return the folder of models that servers sent: FEDEXIT_DATA's `cache/flower`, or this user's."""
    if os.environ.get("FEDEXIT_DATA"):
        return data_dir() / "cache" / "flower"
    return Path.home() / ".cache" / "fedexit" / "flower"


@lru_cache(maxsize=4)
def _loaded(folder: Path) -> MultiExitModel:
    model, trainable = MultiExitModel.from_pretrained(folder), json.loads((folder / wire.NAMES).read_text())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model
