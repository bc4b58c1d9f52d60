"""The federation on Flower: messages in one process here, real processes in test_flower_processes."""

import json
import zlib
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason='Flower is not installed: pip install "fedexit[flower]"')

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from small_grid import SmallGrid

from fedexit import METHODS, Client, FedexitError, LocalTraining, Method, MultiExitModel, federate, load_backbone
from fedexit.federated.fedra import round_of_drawn_layers
from fedexit.federated.regime import Regime
from fedexit.federated.rounds import drop_outs
from fedexit.flower.client import client_app
from fedexit.flower.fleet import Node
from fedexit.flower.server import federate_on
from fedexit.model.names import layer_of

pytestmark = pytest.mark.flower
TRAINING = LocalTraining(batch_size=4, learning_rate=3e-3)
DEPTHS = {"ann": 3, "ben": 6, "cid": 12}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDEXIT_DATA", str(tmp_path))


def tones(seed: int, count: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1600, generator=generator), number % 2) for number in range(count)]


CLIPS = {name: tones(seed, 3 + seed) for seed, name in enumerate(DEPTHS)}


def make_model(**options) -> MultiExitModel:
    return MultiExitModel(load_backbone("nano"), ["low", "high"], **options)


def make_nodes(depths=DEPTHS) -> list[Node]:
    return [Node(name, depth, len(CLIPS[name]), data=name) for name, depth in depths.items()]


def make_grid(**options) -> SmallGrid:
    return SmallGrid(client_app(lambda context, group, labels: CLIPS[group]), list(DEPTHS), **options)


def here(model, clients=DEPTHS, **options):
    """Federate in this process."""
    return federate(model, [Client(name, CLIPS[name], depth) for name, depth in clients.items()], **options)


def on(grid, model, nodes=None, **options):
    """Federate over Flower's messages."""
    return federate_on(grid, nodes or make_nodes(), model, wait=0, deadline=0.1, **options)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_weights_of_this_process_or_is_refused_by_name(name):
    way, model = METHODS[name], make_model(shared_head=METHODS[name].shared_head)
    depths = dict.fromkeys(DEPTHS, 6) if name == "homogeneous" else DEPTHS
    given = dict(method=name, rounds=2, training=TRAINING, seed=5)
    if way.narrow or way.local_round is round_of_drawn_layers:
        with pytest.raises(FedexitError, match=f"method {name} "):
            on(make_grid(), model, **given)
        return
    far, near = on(make_grid(), model, make_nodes(depths), **given), here(model, depths, **given)
    assert far.model.checksum() == near.model.checksum() != model.checksum()
    assert far.clients.drop(columns="seconds").equals(near.clients.drop(columns="seconds"))
    assert far.heads.keys() == near.heads.keys()


def test_a_node_gets_and_sends_its_layers_alone_and_the_bytes_of_the_ledger():
    grid, rows, whole = make_grid(), [], make_model().trainable_weights()
    done = on(grid, make_model(), rounds=2, training=TRAINING, method="layerwise-all", timed=rows.append)
    names = {
        name: [one for one in whole if (layer_of(one) or 0) <= depth and (exit_of(one) or 0) <= depth]
        for name, depth in DEPTHS.items()
    }
    for name, content in grid.jobs[:3]:  # every byte of a job is a weight of its layers and heads
        expected = b"".join(whole[one].numpy().tobytes() for one in names[name])
        assert [array.numpy().tobytes() for array in content["weights"].values()] == [expected]
        config = json.loads(zlib.decompress(content["start"]["config.json"]))
        assert config["exits"][-1] == DEPTHS[name] == config["backbone"]["num_hidden_layers"]
    for name, content in grid.sent:
        assert content["weights"]["weights"].numpy().nbytes == sum(4 * whole[one].numel() for one in names[name])
    for row in rows:
        told = done.clients[done.clients["round"] == row["round"]]["bytes"].sum()
        assert told <= row["bytes_down"] == row["bytes_up"] <= 1.05 * told
    assert [row["bytes_start"] > 0 for row in rows] == [True, False]  # a node gets its model once
    assert all("start" in content for _, content in grid.jobs[:3])


def exit_of(name: str) -> int | None:
    """Return the exit of a head's weight."""
    return int(name.split(".")[1]) if name.startswith("heads.") else None


def changed(reply: Message, weights=None, **facts) -> Message:
    """Return a reply with other weights or facts."""
    told = json.loads(reply.content["report"]["json"]) | facts
    held = reply.content["weights"]["weights"].numpy()
    sent = ArrayRecord({"weights": Array(weights(held) if weights else held)})
    return replied(reply, {"weights": sent, "report": ConfigRecord({"json": json.dumps(told)})})


def replied(reply: Message, records: dict) -> Message:
    reply.content = RecordDict(records)
    return reply


LIES = {
    "another n_i": (partial(changed, examples=400), "states another examples"),
    "another depth": (partial(changed, depth=12), "states another depth"),
    "another name": (partial(changed, client="cid"), "states another client"),
    "another round": (partial(changed, stream=[0, "round", 7, "client"]), "states another stream"),
    "more layers": (partial(changed, weights=lambda held: np.tile(held, 2)), "bytes of weights; its client"),
    "fewer layers": (partial(changed, weights=lambda held: held[4:]), "bytes of weights; its client"),
    "another type": (partial(changed, weights=lambda held: held.astype(float)), "bytes of weights; its client"),
    "not a number": (partial(changed, weights=lambda held: np.full_like(held, 255)), "not finite"),
    "lengths of other clips": (partial(changed, lengths=[16000]), "1 lengths for"),
    "clips without a frame": (partial(changed, lengths=[1] * len(CLIPS["ann"])), "cannot be used"),
    "a loss in words": (partial(changed, loss="small"), "cannot be used"),
    "nothing": (lambda reply: replied(reply, {}), "cannot be used"),
    "silence": (lambda reply: None, "no reply within"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_reply_costs_its_clients_round_alone_and_is_named(lie):
    wrong, says = LIES[lie]
    told, given = [], dict(rounds=2, training=TRAINING)
    spoilt = make_grid(spoil=lambda number, name, reply: wrong(reply) if (number, name) == (1, "ann") else reply)
    far = on(spoilt, make_model(), note=told.append, **given)
    near = here(make_model(), depths=lambda number: {"ann": None} if number == 1 else {}, **given)
    assert far.model.checksum() == near.model.checksum()
    [row] = told
    assert (row["round"], row["client"]) == (1, "ann") and says in row["why"]


def test_a_node_whose_clips_cannot_be_trained_on_says_why():
    clips = {**CLIPS, "ben": [(torch.full((1600,), torch.nan), 0)] * len(CLIPS["ben"])}
    grid, told = SmallGrid(client_app(lambda context, group, labels: clips[group]), list(DEPTHS)), []
    on(grid, make_model(), rounds=1, note=told.append)
    assert [row["client"] for row in told] == ["ben"] and "holds NaN" in told[0]["why"]


def test_drop_outs_sampling_and_falling_rates_are_those_of_this_process():
    regime = Regime(falling_rates=True, average=0.5)
    given = dict(rounds=3, training=TRAINING, fraction=0.7, regime=regime, dev=tones(9, 4))
    dropped = partial(drop_outs, list(DEPTHS), 0.4, 1)
    far = on(make_grid(), make_model(), depths=dropped, **given)
    near = here(make_model(), depths=dropped, **given)
    assert 0 < len(far.clients) < 6 and far.table.equals(near.table)
    assert far.model.checksum() == near.model.checksum()


def test_an_interrupted_federation_resumes_on_another_grid(tmp_path):
    given, file = dict(training=TRAINING, method="layerwise-adam"), tmp_path / "state"
    on(make_grid(), make_model(), rounds=3, checkpoint=file, on_round=lambda number, *_: number == 2, **given)
    grid = make_grid()
    far = on(grid, make_model(), rounds=3, checkpoint=file, **given)
    assert len(grid.jobs) == 3  # of the third round
    assert far.model.checksum() == here(make_model(), rounds=3, **given).model.checksum()


def test_keys_decide_who_a_node_is(tmp_path):
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

    from fedexit.flower.certificates import make_key

    keys = {name: make_key(tmp_path / name) for name in DEPTHS}
    pem = {
        name: load_ssh_public_key(key.encode()).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for name, key in keys.items()
    }
    nodes = [replace(node, key=keys[node.client]) for node in make_nodes()]
    swapped = make_grid(keys=pem | {"ann": pem["cid"], "cid": pem["ann"]})  # partitions are no proof
    on(swapped, make_model(), nodes, rounds=1)
    assert {place: json.loads(job["job"]["json"])["client"] for place, job in swapped.jobs} == {
        "ann": "cid", "ben": "ben", "cid": "ann",
    }  # fmt: skip
    told, stranger = [], make_grid(keys=pem | {"ann": b"-----BEGIN PUBLIC KEY of a stranger"})
    on(stranger, make_model(), nodes, rounds=1, note=told.append)
    assert {place for place, _ in stranger.jobs} == {"ben", "cid"} and {row["client"] for row in told} == {"ann"}
    with pytest.raises(FedexitError, match="has no keys"):
        on(stranger, make_model(), make_nodes(), rounds=1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(method=Method("mine", local_round=lambda *given: None)), "method mine has a local round of its own"),
        (dict(regime=Regime(heads_rounds=1)), "heads_rounds needs the clients' clips"),
        (dict(depths=lambda number: {"ann": 12}), "would train to depth 12; the fleet allows 3"),
        (dict(deadline=0), "deadline of a round must be > 0"),
        (dict(nodes=[Node("ann", 4, 3)]), "client ann asks for exit 4"),
    ],
)
def test_what_a_fleet_cannot_do_is_refused_in_one_line(changes, says):
    given = {**dict(nodes=make_nodes(), rounds=1, wait=0, deadline=0.1), **changes}
    with pytest.raises(FedexitError, match=says):
        federate_on(make_grid(), given.pop("nodes"), make_model(), **given)


def test_a_fleet_without_nodes_stops_before_the_first_round():
    with pytest.raises(FedexitError, match="no client of the fleet came within"):
        on(SmallGrid(client_app(), []), make_model(), rounds=1)
