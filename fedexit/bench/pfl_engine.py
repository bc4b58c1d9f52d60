"""Run the shared workload with pfl-research (PyPI: pfl), where it is installed (see `fedexit.bench.peers`).

Local training is pfl's own. It gets each client's clips in the order in which the other engines draw their batches.
"""

import os
import time

import torch
from torch import Tensor, nn

if not hasattr(torch.distributed, "reduce_op"):  # pfl 0.6 still calls this enumeration by its old name
    torch.distributed.reduce_op = torch.distributed.ReduceOp  # type: ignore[assignment]
os.environ["PFL_PYTORCH_DEVICE"] = "cpu"

from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.context import LocalResultMetaData
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from fedexit.bench.workload import LEARNING_RATE, Workload, build_clients, build_model, epoch, loss, outcome


def pfl(workload: Workload, processes: int, started: float) -> dict:
    """Run FedAvg by pfl. Arguments and result are those of `engines.bare`; torchrun starts the processes."""
    module = _Module(workload)
    central = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)  # adds the mean difference
    model = PyTorchModel(module, local_optimizer_create=torch.optim.SGD, central_optimizer=central)
    if workload.kind == "empty":
        model.do_multiple_epochs_of = lambda *_, **__: LocalResultMetaData(num_steps=0)
    backend = SimulatedBackend(_data(workload), val_data=None, postprocessors=[WeightByDatapoints()])
    clock = _Clock()
    startup, since = time.time() - started, time.perf_counter()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=workload.rounds, evaluation_frequency=10**9, train_cohort_size=workload.clients,
            val_cohort_size=None,
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=workload.batch
        ),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )  # fmt: skip
    rounds = [end - begin for begin, end in zip([since, *clock.marks], clock.marks, strict=False)]
    return {"startup": startup, "rounds": rounds, **outcome(workload, module.net.trainable_weights())}


class _Module(nn.Module):
    """A client's full-depth model with the two methods that pfl requires."""

    def __init__(self, workload: Workload):
        super().__init__()
        whole = build_model(workload)
        [self.depth] = whole.exits
        self.net = whole.client_model(self.depth)

    def loss(self, waveforms: Tensor, labels: Tensor) -> Tensor:
        self.net.train()
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
        return loss(self.net, waveforms, lengths, labels, self.depth)

    def metrics(self, waveforms: Tensor, labels: Tensor) -> dict:
        return {"loss": Weighted(0.0, 1)}  # never evaluated


def _data(workload: Workload) -> FederatedDataset:
    """Return the clients in order, each once per round. A visit names the round too, which decides the clips' order."""
    clients = build_clients(workload)
    # one round more than needed, in case pfl draws ahead
    visits = iter([(number, c) for number in range(1, workload.rounds + 2) for c in range(workload.clients)])

    def dataset(visit: tuple[int, int]) -> Dataset:
        number, client = visit
        waveforms, _, labels = zip(*epoch(workload, clients[client], number), strict=True)
        return Dataset(raw_data=[torch.cat(waveforms), torch.cat(labels)], user_id=str(client))

    return FederatedDataset(make_dataset_fn=dataset, user_sampler=lambda: next(visits))


class _Clock(TrainingProcessCallback):
    """A callback that records when each round ends."""

    def __init__(self):
        self.marks: list[float] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.marks.append(time.perf_counter())
        return False, Metrics()
