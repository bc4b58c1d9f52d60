"""Test that a federation refuses bad inputs in one sentence before its first round, and damages nothing."""

import math
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_federation import TRAINING, make_clients, make_model, run, tones

from fedexit import Client, FedexitError, MultiExitModel, federate, load_backbone
from fedexit.central.fine_tuning import schedule
from fedexit.data.text import CHARACTERS, characters
from fedexit.federated.aggregation import Update, make_aggregator
from fedexit.federated.resuming import RoundState
from fedexit.support import placement, processes
from fedexit.support.checkpoints import append_rows, load_checkpoint, read_rows, rows_file, save_checkpoint
from fedexit.support.sharing import pickled

CLIP = tones(0, 1)[0][0]
START = {"layers.0.w": torch.zeros(3), "layers.1.w": torch.zeros(3)}


def refused(says, *data, model=None, dev=(), **client):
    given = Client(**{"name": "ann", "data": list(data), "depth": 3, **client})
    with pytest.raises(FedexitError, match=says) as caught:
        federate(model or make_model(), [given], rounds=1, dev=dev, training=TRAINING)
    assert "\n" not in str(caught.value)


def spoiled(value):
    clip = CLIP.clone()
    clip[7] = value
    return clip


@pytest.mark.parametrize(
    ("clip", "says"),
    [
        (spoiled(math.nan), "holds NaN"),
        (spoiled(math.inf), "holds an infinite value"),
        (CLIP[None], r"shape \(1, 3200\).*mono"),
        (torch.stack([CLIP, CLIP]), r"shape \(2, 3200\).*mono"),
        (torch.stack([CLIP] * 5), "5 channels"),
        (CLIP.double(), "float64"),
        (CLIP.half(), "float16"),
        ((CLIP * 1000).short(), "int16"),
        (CLIP.numpy(), "ndarray"),
        (CLIP.tolist(), "list"),
        (CLIP[:0], "no samples"),
        (CLIP[:399], "shorter than one frame.*399"),
    ],
)
def test_a_clip_is_named_with_its_client(clip, says):
    for place in (0, 1):
        data = tones(1, 2)
        data.insert(place, (clip, 0))
        refused(f"client ann, clip {place} .*{says}", *data)
    refused(f"dev, clip 0 .*{says}", *tones(1, 2), dev=[(clip, 0)])


@pytest.mark.parametrize("target", [2, -1, -100, 0.0, "a", None, [1, 0], torch.tensor(0.5)])
def test_a_target_is_named_with_its_clip(target):
    refused("client ann, clip 1 has target", (CLIP, 0), (CLIP, target))


@pytest.mark.parametrize("target", [np.int64(1), np.uint8(1), torch.tensor(1), True])
def test_labels_of_any_integer_type_are_the_same(target):
    runs = [
        federate(make_model(), [Client("a", [(CLIP, 0), (CLIP, one)], depth)], rounds=1).model.checksum()
        for one, depth in ((1, 3), (target, np.int64(3)))
    ]
    assert runs[0] == runs[1]


def test_rows_of_other_libraries_are_refused_by_their_kind():
    refused("clip 0 is a dict with the keys audio, label; give a pair", {"audio": [0.0], "label": 1})
    refused("data of client ann are a generator", data=(one for one in tones(0, 2)))
    refused("client ann has no clips")


@pytest.mark.parametrize("features", [False, True])
def test_a_text_that_is_too_long_is_named_before_training(features):
    model = MultiExitModel(load_backbone("nano"), list(CHARACTERS), head="ctc")
    clip, long = CLIP[:1680], characters("hello")  # 5 frames; two equal letters need 6
    if features:
        clip = torch.randn(model.backbone.channels, 5)
    refused("clip 1 has 5 frames, and its text of 5 characters needs 6", (CLIP, [1]), (clip, long), model=model) if (
        not features
    ) else refused("clip 0 has 5 frames, and its text of 5 characters needs 6", (clip, long), model=model)
    federate(model, [Client("a", [(clip, characters("helo"))], 3)], rounds=1, dev=[(clip, long)])
    refused("has target 3; give a text", (clip, 3), model=model)
    refused("has target .*each from 1 to 28", (clip, [29]), model=model)


def test_a_model_with_one_label_is_refused():
    refused("1 label", (CLIP, 0), model=MultiExitModel(load_backbone("nano"), [""]))


def test_a_batch_beyond_the_memory_is_refused_with_the_numbers(monkeypatch):
    free = type("Free", (), {"available": 2 * 10**6})
    monkeypatch.setattr(placement.psutil, "virtual_memory", lambda: free)
    refused(
        r"client ann: a batch of 2 clips of 60 s needs [\d.]+ GB .* exit 3, and 0.0 GB", *[(CLIP.repeat(300), 0)] * 2
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(name=""), "not empty"),
        (dict(name=1), "must be texts"),
        (dict(name="\udc80"), "not valid Unicode"),
        (dict(tier=3), "must be texts"),
        (dict(depth="3"), "depth of client ann must be a whole number"),
        (dict(depth=3.0), "depth of client ann must be a whole number"),
        (dict(depth=True), "depth of client ann must be a whole number"),
    ],
)
def test_impossible_clients_are_refused(changes, says):
    refused(says, *tones(0, 2), **changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(clients={"a": make_clients()[0]}), "a list of Client, not of str"),
        (dict(clients=make_clients()[0]), "a list of Client, not a Client"),
        (dict(rounds=2.0), "rounds must be a whole number, not 2.0"),
        (dict(rounds=True), "rounds must be a whole number"),
        (dict(seed=None), "seed must be a whole number, not None"),
        (dict(workers=1.5), "workers must be"),
        (dict(fraction=math.nan), "fraction must be"),
        (dict(fraction="all"), "fraction must be"),
        (dict(training={"epochs": 1}), "training must be a LocalTraining.*not a dict"),
        (dict(depth_exponent=math.inf), "depth_exponent must be a number from -10 to 10, not inf"),
        (dict(depths={"c0": 3}), "depths must be a function, not a dict"),
        (dict(on_round=3), "on_round must be a function, not a int"),
        (dict(depths=lambda number: None), "depths gave a NoneType for round 1"),
        (dict(method=None), "unknown method None"),
        (dict(dev=None), "data of dev are a NoneType"),
        (dict(depths=lambda number: {"C0": 3}), "name 'C0', which is not a client"),
        (dict(checkpoint="."), "cannot be written.*it is a folder"),
        (dict(checkpoint=os.devnull + "/state"), "cannot be written"),
    ],
)
def test_impossible_arguments_are_refused(changes, says):
    with pytest.raises(FedexitError, match=says):
        federate(make_model(), **{**dict(clients=make_clients(), rounds=1, training=TRAINING), **changes})


def test_runs_with_unusual_names_and_seeds_resume_bit_identically(tmp_path):
    clients = [
        replace(client, name=name) for client, name in zip(make_clients(), ("NA", "nan", "a,b\r\n", "0"), strict=True)
    ]
    given = dict(clients=clients, rounds=2, training=TRAINING, method="layerwise-local")
    whole = federate(make_model(), **given, seed=np.int64(3))
    federate(make_model(), **{**given, "rounds": 1}, seed=3, checkpoint=tmp_path / "state")
    resumed = federate(make_model(), **given, seed=3, checkpoint=tmp_path / "state", workers=2)
    assert whole.model.checksum() == resumed.model.checksum() and whole.heads.keys() == resumed.heads.keys()
    assert whole.clients.drop(columns="seconds").equals(resumed.clients.drop(columns="seconds"))
    assert set(whole.clients["client"]) == {"NA", "nan", "a,b\r\n", "0"}


def test_federate_trains_a_copy_and_leaves_its_argument_unchanged():
    model = make_model().train()
    before = model.checksum()
    first, second = (federate(model, make_clients(), rounds=1, training=TRAINING).model for _ in range(2))
    assert model.checksum() == before != first.checksum() == second.checksum() and model.training


@pytest.mark.parametrize("rule", ["layerwise", "stale", "count", "inclusive"])
@pytest.mark.parametrize(
    "bad",
    [
        Update({"layers.0.w": torch.ones(3), "layers.1.w": torch.ones(2)}, 1, 2),
        Update({"layers.0.w": torch.ones(3), "other": torch.ones(2)}, 1, 2),
        Update({"layers.0.w": torch.ones(3), "layers.1.w": torch.full((3,), math.nan)}, 1, 2),
        Update({"layers.0.w": torch.ones(3), "layers.1.w": np.ones(3)}, 1, 2),
        Update({"layers.0.w": torch.ones(3, dtype=torch.int64)}, 1, 2),
        Update({"layers.0.w": torch.ones(3)}, 1.5, 2),
        Update({"layers.0.w": torch.ones(3)}, True, 2),
        Update({"layers.0.w": torch.ones(3)}, 1, 3),
        Update({"layers.0.w": torch.ones(3)}, 1, 1.0),
    ],
)
def test_a_refused_update_leaves_the_sums_unchanged(rule, bad):
    good = Update({"layers.0.w": torch.arange(3.0)}, np.int64(3), np.int32(1))
    expected = make_aggregator(START, rule)
    expected.add(good)
    server = make_aggregator(START, rule)
    for update in (bad, good, bad):
        if update is good:
            server.add(update)
            continue
        with pytest.raises(FedexitError):
            server.add(update)
    result, same = server.result(), expected.result()
    assert all(torch.equal(result[name], same[name]) for name in START)
    for again in (server.result, lambda: server.add(good)):
        with pytest.raises(FedexitError, match="has given its result"):
            again()


def test_sums_are_as_exact_as_the_weights():
    for dtype, step in ((torch.float64, 2.0**-40), (torch.float32, 2.0**-20)):
        updates = [Update({"layers.0.w": torch.tensor([1 + k * step], dtype=dtype)}, 1, 1) for k in (0, 1)]
        server = make_aggregator({"layers.0.w": torch.zeros(1, dtype=dtype)})
        for update in updates:
            server.add(update)
        mean = server.result()["layers.0.w"]
        assert mean.dtype == dtype and mean.item() == 1 + step / 2
    half = make_aggregator({"layers.0.w": torch.zeros(1)})
    half.add(Update({"layers.0.w": torch.ones(1, dtype=torch.bfloat16)}, 1, 1))
    assert half.result()["layers.0.w"].dtype == torch.float32


def test_a_frozen_top_layer_does_not_lower_the_bound_of_the_depth():
    model = make_model()
    model.backbone.model.encoder.layers[11].requires_grad_(False)
    federate(model, make_clients(), rounds=1, training=TRAINING)


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_no_update_has_the_rate_zero(steps):
    rates = [schedule(step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates) and rates[-1] == min(rates[max(1, steps // 20) - 1 :])
    assert steps < 40 or rates[0] == 0.5  # 5 % of 40 updates are two


@pytest.mark.parametrize("state", ["{not json", "[]", "3", "{}", '{"round": "1"}', '{"rounds": 1}', None])
def test_a_damaged_state_gives_one_sentence(tmp_path, state):
    run(tmp_path / "state", rounds=1)
    with safe_open(tmp_path / "state", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if state is None:
        tensors.popitem()
    save_file(tensors, tmp_path / "state", metadata | ({"state": state} if state else {}))
    with pytest.raises(FedexitError, match=r"^checkpoint state is damaged") as caught:
        run(tmp_path / "state")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "shorter", "damaged"])
def test_an_incomplete_ledger_gives_one_sentence(tmp_path, change):
    run(tmp_path / "state", rounds=1)
    table = rows_file(tmp_path / "state")
    content = table.read_bytes()
    table.unlink() if change == "missing" else table.write_bytes(
        content[:-9] + (b"{" * 9 if change == "damaged" else b"")
    )
    with pytest.raises(FedexitError, match="checkpoint state is damaged") as caught:
        run(tmp_path / "state")
    assert "\n" not in str(caught.value)


def test_rows_of_a_round_that_was_not_saved_are_overwritten(tmp_path):
    file = tmp_path / "state"
    rows = [{"name": "NA", "loss": 0.1 + 0.2}, {"name": "\r\n,", "loss": 1e-300}]
    size = append_rows(file, rows, 0)
    append_rows(file, [{"name": "lost"}], size)  # and then the process is killed
    assert read_rows(file, size) == rows
    more = append_rows(file, [{"name": "b"}], size)
    assert read_rows(file, more) == [*rows, {"name": "b"}] and append_rows(file, [], 0) == 0


def test_the_header_of_a_checkpoint_stays_small(tmp_path):
    """The header of a tensor file holds at most 100 MB, so what grows with rounds and clients is not in it."""
    facts = {"clients": ["x" * 100] * 10**5}
    save_checkpoint(tmp_path / "state", facts, vars(RoundState(1, [], [], 0)), {"w": torch.zeros(1)})
    assert (tmp_path / "state").stat().st_size < 1000
    assert load_checkpoint(tmp_path / "state", facts)[0] == vars(RoundState(1, [], [], 0))


def test_tensors_go_to_workers_by_value_and_other_things_are_named():
    class Local:
        pass

    view = torch.arange(10**6).float()[:10]
    content = pickled([view, {"in": [view]}])
    assert len(content) < 2000 and torch.equal(ForkingPickler.loads(content)[1]["in"][0], view)
    with pytest.raises(FedexitError, match=r"cannot be sent to workers .*Local"):
        pickled(Local())


NOTEBOOK = """
from fedexit.support.sharing import pickled
class Mine: pass
try: pickled([Mine()])
except Exception as error: print(type(error).__name__, error)
"""


def test_a_class_of_a_notebook_is_named():
    said = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=True).stdout
    assert said.startswith("FedexitError workers cannot load Mine") and "workers=1" in said


def test_a_system_without_forkserver_spawns(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with processes.worker_pool("forkserver", 1, processes.start_worker) as pool:
        assert pool.submit(math.sqrt, 4.0).result() == 2.0
        assert type(next(iter(processes.processes_of(pool)))).__name__ == "SpawnProcess"


def test_a_single_worker_is_this_process():
    assert processes.on_workers(os.getpid, [(), ()], 1, "jobs") == [os.getpid()] * 2


def test_the_processes_of_a_pool_are_those_that_work():
    """This fails when the standard library changes the private name."""
    with processes.worker_pool("spawn", 1, processes.start_worker) as pool:
        assert pool.submit(os.getpid).result() in [process.pid for process in processes.processes_of(pool)]


def test_neither_workers_nor_threads_are_part_of_an_identity(tmp_path):
    run(tmp_path / "state", rounds=1, workers=2)
    torch.set_num_threads(2)
    try:
        resumed = run(tmp_path / "state", rounds=2)
    finally:
        torch.set_num_threads(1)
    assert resumed.model.checksum() == run(rounds=2).model.checksum()
