"""Measure memory and time of a client. Memory is the rise of the peak of a fresh process (Linux only).

`python -m fedexit.devices.probe` loads the libraries and forks a process per client; `measured_memories` starts it and
reads its output.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fedexit.data.batches import Example
from fedexit.federated.clients import Client, LocalTraining, local_round
from fedexit.model.backbone import backbone_from_config, config_of, load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.support.checks import check_exit
from fedexit.support.errors import FedexitError
from fedexit.support.processes import one_thread

MODES = ("training", "forward")
# glibc returns freed blocks above a size, which it raises up to 32 MB as blocks are freed. A fixed size turns that off,
# so the peak is the memory of the tensors without what the allocator keeps.
_RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class ProbedClient(NamedTuple):
    """A client with random weights whose memory is measured."""

    backbone: str  # name of the backbone
    depth: int  # of the client
    batch: int  # clips per batch
    seconds: float  # length of each clip
    # `training`, a local round with Adam of two batches, or `forward`, one batch without gradients. These are the peaks
    # that `fedexit.model.costs.memory` predicts.
    mode: str = "training"


def measured_memory(
    backbone: str, depth: int, batch: int, seconds: float, mode: str = "training", plain_allocator: bool = False
) -> int:
    """Return what `measured_memories` returns for one client; the arguments are the fields of `ProbedClient`."""
    return measured_memories([ProbedClient(backbone, depth, batch, seconds, mode)], plain_allocator)[0]


def measured_memories(clients: Sequence[ProbedClient], plain_allocator: bool = False) -> list[int]:
    """Return for each client the peak bytes, without the libraries, of a process that does its work and ends.

    Args:
        clients: What is measured, one after the other.
        plain_allocator: Whether the allocator keeps freed memory, as glibc does by default.

    Raises FedexitError for an unknown mode or depth, on other systems than Linux, and when a process dies.
    """
    jobs = json.dumps([_job(client) for client in clients])
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({} if plain_allocator else _RETURN_FREED)}
    command = [sys.executable, "-m", "fedexit.devices.probe"]
    done = subprocess.run(command, input=jobs, capture_output=True, text=True, env=env)
    peaks = [int(line) for line in done.stdout.splitlines()]
    if done.returncode:
        reason = [f"it ended with code {done.returncode}", *done.stderr.strip().splitlines()][-1]
        died = clients[len(peaks)]
        raise FedexitError(
            f"the process that measures {died.backbone} at depth {died.depth} (batch {died.batch}, {died.seconds:g} s, "
            f"{died.mode}) died, most often because memory ran out: {reason}"
        )
    return peaks


def _job(client: ProbedClient) -> dict:
    """Return the geometry and the sizes of a client as JSON can hold them."""
    if client.mode not in MODES:
        raise FedexitError(f"unknown mode {client.mode!r}; known: {', '.join(MODES)}")
    if not sys.platform.startswith("linux"):
        raise FedexitError("peak memory is read from /proc, which only Linux has; use fedexit.model.costs.memory")
    full = load_backbone(client.backbone)
    check_exit(client.depth, range(1, full.layers + 1), client.backbone)
    config = {**config_of(full), "num_hidden_layers": client.depth}
    samples = int(client.seconds * 16_000)
    return dict(config=config, depth=client.depth, batch=client.batch, samples=samples, mode=client.mode)


def step_seconds(model: MultiExitModel, depth: int, clips: Sequence[Example]) -> float:
    """Return the seconds of one training step of a client of `depth` with the batch `clips`, on one thread.

    It is half the difference between local rounds of three steps and of one, so the fixed costs of a round cancel.
    """
    client, weights, spent = model.client_model(depth), model.trainable_weights(), []
    training = LocalTraining(batch_size=len(clips))
    with one_thread():
        for steps in (1, 3):
            data = Client("timed", list(clips) * steps, depth)
            spent.append(local_round(client, weights, data, training, ("timed",))[1].seconds)
    return (spent[1] - spent[0]) / 2


def _probe(job: dict) -> int:
    """Return the peak bytes of `job` above those of the process after a small run that loads all libraries."""
    _run({**job, "config": _smallest(job["config"]), "depth": 1, "batch": 1, "samples": 8_000})
    before = resident("VmRSS")
    _run(job)
    return resident("VmHWM") - before


def _run(job: dict) -> None:
    depth, batch = job["depth"], job["batch"]
    model = MultiExitModel(backbone_from_config(job["config"], "probe", False), map(str, range(10)), [depth])
    clips = torch.randn(batch, job["samples"])
    if job["mode"] == "forward":
        _forward(model, clips)
        return
    examples = [(clip, 0) for clip in clips] * 2
    training = LocalTraining(batch_size=batch)
    local_round(model, model.trainable_weights(), Client("probe", examples, depth), training, ("probe",))


@torch.no_grad()
def _forward(model: MultiExitModel, clips: Tensor) -> None:
    model.eval()
    model(clips)


def _smallest(config: dict) -> dict:
    """Return a geometry of one thin layer that runs the same code as `config`."""
    widths = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
    return {**config, **widths, "conv_dim": [16] * len(config["conv_dim"]), "num_conv_pos_embedding_groups": 2}


def resident(field: str) -> int:
    """Return the bytes of this process's memory: now (`VmRSS`) or its peak so far (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _in_a_fork(job: dict) -> None:
    """Print the peak bytes of `job`, measured in a process that shares the libraries; end this one if that dies."""
    child = os.fork()
    if child == 0:
        try:
            print(_probe(job), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        sys.exit(f"it was ended by signal {-code}")
    if code:
        sys.exit(code)


if __name__ == "__main__":
    for waiting in json.load(sys.stdin):
        _in_a_fork(waiting)
