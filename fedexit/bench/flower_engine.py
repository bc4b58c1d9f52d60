"""Run the shared workload with Flower's simulation (PyPI: flwr[simulation], on Ray), where it is installed."""

import logging
import os
import time
from dataclasses import asdict
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from fedexit.bench.workload import Workload, build_client, build_model, outcome, train_locally
from fedexit.federated.clients import Client
from fedexit.model.exits import MultiExitModel

client_app = ClientApp()


def flower(workload: Workload, processes: int, started: float) -> dict:
    """Run FedAvg by Flower with `processes` Ray actors. Arguments and result are those of `engines.bare`."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    # By default Ray lowers the priority of its actors; no other engine does.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (the name is given by Ray)
    server_app = ServerApp()
    result: dict[str, Any] = {}

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        everyone = dict(min_train_nodes=workload.clients, min_available_nodes=workload.clients)
        strategy = _Timed(fraction_evaluate=0.0, **everyone)
        start = ArrayRecord(_client_model(workload).state_dict())
        end = strategy.start(grid, start, workload.rounds, train_config=ConfigRecord(asdict(workload)))
        model = _client_model(workload)
        model.load_state_dict(end.arrays.to_torch_state_dict())
        rounds = [end - begin for begin, end in zip(strategy.begins, strategy.ends, strict=True)]
        startup = strategy.first - started
        result.update(startup=startup, rounds=rounds, **outcome(workload, model.trainable_weights()))

    simulate(server_app, client_app, workload, processes)
    return result


def simulate(server: ServerApp, client: ClientApp, workload: Workload, processes: int) -> None:
    """Run both apps with a node per client, on `processes` Ray actors of one core each."""
    start = {"num_cpus": processes, "include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    config = {"init_args": start, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server, client, num_supernodes=workload.clients, backend_config=config)


class _Timed(FedAvg):
    """FedAvg that records when each round begins and ends; `first` is `time.time()` at the start of the first round."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.begins, self.ends, self.first = [], [], 0.0

    def configure_train(self, server_round, arrays, config, grid):
        self.begins.append(time.perf_counter())
        self.first = self.first or time.time()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        aggregated = super().aggregate_train(server_round, replies)
        self.ends.append(time.perf_counter())
        return aggregated


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train a client for one round in an actor, which keeps its model and clips for the next round."""
    torch.set_num_threads(1)
    config = dict(message.content["config"])
    number = config.pop("server-round")
    workload = Workload(**config)
    model, client = _client_model(workload), _client(workload, int(context.node_config["partition-id"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train_locally(model, workload, client, number)
    sent = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(client.data)})}
    return Message(content=RecordDict(sent), reply_to=message)


@cache
def _client_model(workload: Workload) -> MultiExitModel:
    whole = build_model(workload)
    [depth] = whole.exits
    return whole.client_model(depth)


@cache
def _client(workload: Workload, number: int) -> Client:
    return build_client(workload, number)
