"""Run the shared workload with `fedexit.flower` on nodes that Flower simulates (extra `flower`)."""

import logging
import os
import time
from itertools import pairwise
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedexit.bench.flower_engine import simulate
from fedexit.bench.workload import LEARNING_RATE, SEED, Workload, build_client, build_model, outcome
from fedexit.federated.clients import LocalTraining
from fedexit.flower.client import client_app
from fedexit.flower.fleet import Node
from fedexit.flower.server import federate_on


def fleet(workload: Workload, processes: int, started: float) -> dict:
    """Run `federate_on` with `processes` Ray actors. Arguments are those of `engines.bare`.

    `rounds` lacks the first round, in which the actors import torch. `startup` ends with that round.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is given by Ray)
    server, result = ServerApp(), dict[str, Any]()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        nodes = [Node(str(n), 12, workload.clips, data=str(n)) for n in range(workload.clients)]
        training = LocalTraining(
            1, workload.batch, LEARNING_RATE, LEARNING_RATE, clip_norm=float("inf"), optimiser="sgd"
        )
        marks: list[float] = []
        done = federate_on(
            grid, nodes, build_model(workload), "masked", rounds=workload.rounds, seed=SEED, training=training,
            on_round=lambda *_: marks.append(time.time()),
        )  # fmt: skip
        rounds = [end - begin for begin, end in pairwise(marks)]
        result.update(startup=marks[0] - started, rounds=rounds)
        result.update(outcome(workload, done.model.trainable_weights()))

    data = client_app(lambda context, group, labels: build_client(workload, int(group)).data)
    simulate(server, data, workload, processes)
    return result
