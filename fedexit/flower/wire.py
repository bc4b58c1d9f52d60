"""Pack the job of a client's round, and its reply, as records of Flower messages: weights, and small facts as JSON."""

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fedexit.federated.clients import LocalTraining, RoundReport
from fedexit.federated.objectives import Objective
from fedexit.model.exits import MultiExitModel
from fedexit.support.errors import FedexitError
from fedexit.support.extras import extra

with extra("flower"):
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

NAMES = "trainable.json"  # beside the files of `save_pretrained`: the names of the weights in messages, in their order
JOB, START, WEIGHTS, OWN, REPORT = "job", "start", "weights", "own", "report"  # names of the records


@dataclass(frozen=True)
class Job:
    """The job of one client in one round."""

    client: str  # name
    data: str  # group of its clips
    depth: int  # L_i in this round
    stream: list[str | int]  # name of the random stream, without the client
    share: float  # of the full learning rates
    training: LocalTraining
    objective: Objective
    own: list[str]  # names of the weights that it keeps between rounds, in their order
    start: str  # hash of the model in which it trains

    def packed(self) -> "ConfigRecord":
        """Return the job as a record."""
        return ConfigRecord({"json": json.dumps(asdict(self))})

    @classmethod
    def unpacked(cls, record: Mapping[str, Any]) -> "Job":
        """Return the job of a record. Raises FedexitError for options that the node's version does not know."""
        try:
            facts = json.loads(record["json"])
            training, objective = LocalTraining(**facts.pop("training")), Objective(**facts.pop("objective"))
            return cls(**facts, training=training, objective=objective)
        except (KeyError, TypeError, ValueError) as error:
            raise FedexitError(f"the job is not of this version of fedexit ({error}); install the server's") from error


def packed_weights(weights: Iterable[Tensor]) -> "ArrayRecord":
    """Return tensors as one array of their bytes, as Flower makes several requests per array."""
    parts = [tensor.detach().cpu().contiguous().flatten().view(torch.uint8) for tensor in weights]
    return ArrayRecord({WEIGHTS: Array(torch.cat(parts).numpy())})


def unpacked_weights(record: "ArrayRecord", like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a record with the names, shapes and types of `like`, in its order.

    Raises FedexitError for another number of bytes.
    """
    held = torch.from_numpy(record[WEIGHTS].numpy().copy())
    sizes = [tensor.numel() * tensor.element_size() for tensor in like.values()]
    if held.dtype != torch.uint8 or held.shape != (sum(sizes),):
        raise FedexitError(f"it holds {held.numel()} bytes of weights; its client has {sum(sizes)}")
    parts = zip(like.items(), held.split(sizes), strict=True)
    # copies, because a view as another type needs aligned memory
    return {name: part.clone().view(tensor.dtype).reshape(tensor.shape) for (name, tensor), part in parts}


def packed_report(job: Job, examples: int, report: RoundReport) -> "ConfigRecord":
    """Return the report of a local round as a record, with what identifies the job."""
    facts = {"client": job.client, "depth": job.depth, "stream": job.stream, "examples": examples}
    return ConfigRecord({"json": json.dumps({**facts, **asdict(report)})})


def read_report(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a record of `packed_report`."""
    return json.loads(record["json"])


def array_bytes(content: "RecordDict") -> int:
    """Return the bytes of all weights in a message."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def start_of(model: MultiExitModel) -> tuple[str, "ConfigRecord"]:
    """Return the hash and the record of a cut model without its trainable weights, which come with every job.

    The model's trainable weights are set to zero, so that the hash is the same in every round.
    """
    for tensor in model.trainable_weights().values():
        tensor.zero_()
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        (Path(folder) / NAMES).write_text(json.dumps(list(model.trainable_weights())))
        files = {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
    digest = sha256(repr([(name, sha256(content).hexdigest()) for name, content in files.items()]).encode())
    return digest.hexdigest(), ConfigRecord({name: zlib.compress(content, 1) for name, content in files.items()})


def write_start(record: Mapping[str, Any], digest: str, folder: Path) -> None:
    """Write the files of a record of `start_of` to `folder`. Raises FedexitError unless they have the hash `digest`."""
    files = {name: zlib.decompress(content) for name, content in sorted(record.items())}
    found = sha256(repr([(name, sha256(content).hexdigest()) for name, content in files.items()]).encode())
    if found.hexdigest() != digest or any(Path(name).name != name for name in files):
        raise FedexitError("the model that the server sent is damaged; run the round again")
    for name, content in files.items():
        (folder / name).write_bytes(content)
