import copy
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_jobs import wait_or_fail
from torch.utils.data import ConcatDataset

from fedexit.data.batches import batches, by_length, collate, data_digest, normalised
from fedexit.data.tasks.contract import majority_error
from fedexit.data.text import CHARACTERS, characters
from fedexit.federated.clients import Client, LocalTraining, local_round, make_optimiser
from fedexit.federated.rounds import drop_outs, federate, sample
from fedexit.model.backbone import backbone_from_config, config_of, load_backbone
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import error_rates, predict
from fedexit.model.names import layer_of
from fedexit.support import checkpoints
from fedexit.support.checkpoints import save_checkpoint
from fedexit.support.errors import FedexitError
from fedexit.support.processes import on_workers
from fedexit.support.streams import numpy_stream, seeded

TRAINING = LocalTraining(batch_size=4, learning_rate=3e-3)
SGD = LocalTraining(batch_size=4, learning_rate=0.1, optimiser="sgd")


def tones(seed: int, count: int) -> list:
    """Return clips of low or high tones in noise, which any depth can learn in seconds."""
    generator = torch.Generator().manual_seed(seed)
    clips = []
    for i in range(count):
        time_axis = torch.arange(3200) / 16000
        tone = torch.sin(2 * torch.pi * (300.0, 2500.0)[i % 2] * time_axis)
        clips.append((tone + 0.1 * torch.randn(3200, generator=generator), i % 2))
    return clips


def make_clients() -> list[Client]:
    return [Client(f"c{i}", tones(i, 4 + 2 * i), depth, f"tier {depth}") for i, depth in enumerate((3, 6, 9, 12))]


def make_model() -> MultiExitModel:
    return MultiExitModel(load_backbone("nano"), ["low", "high"])


def run(checkpoint=None, rounds=3, seed=0, **changes):
    settings = dict(rounds=rounds, seed=seed, fraction=0.5, training=TRAINING, dev=tones(99, 6), checkpoint=checkpoint)
    return federate(make_model(), make_clients(), **{**settings, **changes})


def assert_same(one, two):
    assert one.table.equals(two.table)
    assert one.clients.drop(columns="seconds").equals(two.clients.drop(columns="seconds"))  # wall time differs
    left, right = one.model.state_dict(), two.model.state_dict()
    assert all(torch.equal(left[n], right[n]) for n in left)


def test_every_exit_learns_something_easy():
    model = make_model()
    result = federate(model, make_clients(), rounds=8, training=TRAINING, dev=tones(99, 20), evaluate_every=8)
    last = result.table[result.table["round"] == 8].set_index("exit")["value"]
    assert list(last.index) == [3, 6, 9, 12]
    assert (last < 0.25).all(), last


def test_local_round_is_pure():
    model, client = make_model(), make_clients()[0]
    start = {n: t.clone() for n, t in model.trainable_weights().items()}
    scratch = model.client_model(3)
    first, report = local_round(scratch, start, client, TRAINING, (0, "x"))
    again, _ = local_round(scratch, start, client, TRAINING, (0, "x"))  # the scratch space is dirty now
    other, _ = local_round(scratch, start, client, TRAINING, (1, "x"))
    assert all(torch.equal(first.weights[n], again.weights[n]) for n in first.weights)
    assert any(not torch.equal(first.weights[n], other.weights[n]) for n in first.weights)
    assert all(torch.equal(start[n], t) for n, t in model.trainable_weights().items())
    assert (first.examples, first.depth) == (4, 3)
    assert report.loss > 0


def test_a_shallow_client_sends_only_layers_up_to_its_depth():
    model = make_model()
    result = federate(model, make_clients(), rounds=1, training=TRAINING)
    sent = result.clients.set_index("depth")["bytes"]
    layer = 4 * sum(p.numel() for p in model.backbone.model.encoder.layers[0].parameters())
    assert (sent.diff().dropna() == 3 * layer).all()
    update, _ = local_round(model.client_model(3), model.trainable_weights(), make_clients()[0], TRAINING, (0,))
    assert max(layer_of(n) or 0 for n in update.weights) == 3
    assert sum(t.numel() * 4 for t in update.weights.values()) == sent[3]


CLIENT_PROCESS = """
import gc, sys; sys.path.insert(0, {tests!r})
import torch
import test_federation as t
from fedexit.model.names import layer_of
from fedexit.model.exits import MultiExitModel
model = MultiExitModel.from_pretrained({folder!r})
received = {{name: tensor.clone() for name, tensor in model.trainable_weights().items()}}
update, _ = t.local_round(model, received, t.make_clients()[0], t.TRAINING, (0,))
held = {{id(p): p.numel() * 4 for p in gc.get_objects() if isinstance(p, torch.nn.Parameter)}}
sent = sum(weight.numel() * 4 for weight in update.weights.values())
print(sum(held.values()), sent, max(layer_of(name) or 0 for name in update.weights))
"""


def test_a_shallow_client_in_a_process_of_its_own_holds_three_layers(tmp_path):
    """Count all parameters in the client's process by the garbage collector and compare with the arithmetic."""
    model = make_model()
    model.client_model(3).save_pretrained(tmp_path)
    code = CLIENT_PROCESS.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    held, sent, deepest = map(int, output.split())
    layer = 4 * sum(p.numel() for p in model.backbone.model.encoder.layers[0].parameters())
    head = 4 * sum(p.numel() for p in model.heads["3"].parameters())
    whole = 4 * sum(p.numel() for p in model.parameters())
    frozen = 4 * sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert held == whole - 9 * layer - 3 * head
    assert (sent, deepest) == (held - frozen, 3)


def test_equal_seeds_give_bit_identical_weights_and_other_seeds_do_not():
    assert_same(run(), run())
    assert not run().table.equals(run(seed=1).table)


def test_a_resumed_run_is_bit_identical(tmp_path):
    whole = run()
    run(tmp_path / "state", rounds=2)
    assert_same(whole, run(tmp_path / "state"))
    assert_same(whole, run(tmp_path / "state"))  # nothing left to do


KILLED = """
import os, signal, sys; sys.path.insert(0, {tests!r})
import test_federation as t
from fedexit.federated import rounds
row = rounds.ledger_row

def row_or_die(number, *rest):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return row(number, *rest)

rounds.ledger_row = row_or_die
t.run({checkpoint!r}, rounds=5, evaluate_every=4)
"""


def test_a_run_killed_within_a_round_resumes_bit_identically(tmp_path):
    checkpoint = tmp_path / "state"
    code = KILLED.format(tests=os.path.dirname(__file__), checkpoint=str(checkpoint))
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL  # after a client of round 3
    load_file(checkpoint)
    assert_same(run(rounds=5, evaluate_every=4), run(checkpoint, rounds=5, evaluate_every=4))


def test_more_rounds_continue_a_run_and_fewer_are_refused(tmp_path):
    run(tmp_path / "state", rounds=3, evaluate_every=2)
    assert_same(run(rounds=5, evaluate_every=2), run(tmp_path / "state", rounds=5, evaluate_every=2))
    with pytest.raises(FedexitError, match="holds 5 rounds already; rounds=4 is too few"):
        run(tmp_path / "state", rounds=4)


def test_a_checkpoint_of_another_start_is_refused(tmp_path):
    run(tmp_path / "state", rounds=1)
    other = MultiExitModel(load_backbone("nano", seed=1), ["low", "high"])
    with pytest.raises(FedexitError, match="another run"):
        federate(other, make_clients(), rounds=2, fraction=0.5, training=TRAINING, checkpoint=tmp_path / "state")


def test_a_checkpoint_of_other_clips_is_refused(tmp_path):
    """Only the clips differ: names, tiers, depths and numbers of clips are equal."""
    run(tmp_path / "state", rounds=1)
    dealt_otherwise = [replace(client, data=client.data[::-1]) for client in make_clients()]
    louder = [replace(client, data=[(2 * clip, label) for clip, label in client.data]) for client in make_clients()]
    for other in (
        dict(clients=louder),
        dict(dev=tones(99, 8)),
        dict(dev=tones(99, 6)[::-1]),
        dict(dev=()),
        dict(clients=dealt_otherwise),
    ):
        given = dict(clients=make_clients(), rounds=2, fraction=0.5, training=TRAINING, dev=tones(99, 6)) | other
        with pytest.raises(FedexitError, match="another run"):
            federate(make_model(), **given, checkpoint=tmp_path / "state")


def test_a_resumed_run_has_the_table_of_an_uninterrupted_one_or_is_refused(tmp_path):
    run(tmp_path / "state", rounds=2)
    for rounds, every in ((2, 2), (4, 2), (4, 4)):  # fewer rows are asked for than the file has
        for ending in ("", ".rows.jsonl"):
            shutil.copy(tmp_path / f"state{ending}", tmp_path / f"copy{ending}")
        assert_same(
            run(rounds=rounds, evaluate_every=every), run(tmp_path / "copy", rounds=rounds, evaluate_every=every)
        )
    run(tmp_path / "sparse", rounds=4, evaluate_every=3)
    with pytest.raises(FedexitError, match="no errors after round 1; take evaluate_every as it was"):
        run(tmp_path / "sparse", rounds=5)


def test_an_interrupted_run_can_end_earlier_than_planned(tmp_path, monkeypatch):
    def save_and_stop(file, identity, state, tensors):
        save_checkpoint(file, identity, state, tensors)
        if state["round"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "state", rounds=5, evaluate_every=2)
    monkeypatch.undo()
    assert_same(run(rounds=3, evaluate_every=2), run(tmp_path / "state", rounds=3, evaluate_every=2))


def test_the_digest_hashes_the_content_or_uses_the_data_sets_own_hash():
    class Listed(Sequence):
        content_hash = "abc"

        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise AssertionError("read")

    plain = tones(0, 3)
    arrays = [(clip.numpy(), np.int64(label)) for clip, label in plain]
    assert data_digest(plain) == data_digest(arrays) == data_digest(tuple(plain))
    other = [(clip.clone(), label) for clip, label in plain]
    other[2][0][100] += 1e-4
    assert (
        len({data_digest(data) for data in (plain, other, plain[::-1], plain[:2], [(c, 1 - y) for c, y in plain])}) == 5
    )
    assert data_digest(Listed()) == "abc"
    assert data_digest(ConcatDataset([Listed(), plain])) != data_digest(ConcatDataset([plain, Listed()]))


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path):
    run(tmp_path / "state", rounds=1)
    with pytest.raises(FedexitError, match="another run"):
        run(tmp_path / "state", seed=1)
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:100])
    with pytest.raises(FedexitError, match="damaged"):
        run(tmp_path / "state")


def test_sampling_is_by_round_and_without_replacement():
    clients = make_clients()
    drawn = [tuple(c.name for c in sample(clients, 0.5, 0, number)) for number in range(20)]
    assert all(len(set(names)) == 2 for names in drawn)
    assert len(set(drawn)) > 1
    assert drawn[7] == tuple(c.name for c in sample(clients, 0.5, 0, 7))


def test_padding_changes_no_prediction():
    model = make_model()
    clips = [(torch.randn(n), 0) for n in (1600, 3000, 8000)]
    together = predict(model, clips)
    alone = [predict(model, [clip]).assign(item=i) for i, clip in enumerate(clips)]
    for i, frame in enumerate(alone):
        assert (together[together["item"] == i]["predicted"].to_numpy() == frame["predicted"].to_numpy()).all()


def test_error_rates_count():
    model = make_model()
    predictions = predict(model, tones(0, 7), exits=[3, 12])
    rates = error_rates(predictions)
    assert list(rates["n"]) == [7, 7]
    wrong = predictions[predictions["exit"] == 3].eval("predicted != label").sum()
    assert rates["value"][0] * 7 == pytest.approx(wrong)
    assert majority_error([0, 0, 1, 2]) == 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (dict(clients=[]), "at least one client"),
        (dict(clients=[Client("a", tones(0, 2), 5)]), "exit 5"),
        (dict(clients=[Client("a", tones(0, 2), 3), Client("a", tones(0, 2), 6)]), "listed twice"),
        (dict(clients=[Client("a", [], 3)]), "a has no clips"),
        (dict(rounds=0), "rounds"),
        (dict(fraction=0.0), "fraction"),
        (dict(evaluate_every=0), "evaluate_every"),
        (dict(method="fedsgd"), "fedsgd.*layerwise"),
        (dict(training=LocalTraining(learning_rate=1e30, epochs=20)), "learning rate"),
    ],
)
def test_bad_input_is_refused_in_one_line(changes, says):
    arguments = {**dict(clients=make_clients(), rounds=1, training=TRAINING), **changes}
    with pytest.raises(FedexitError, match=says) as caught:
        federate(make_model(), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"optimiser": "lion"}, "optimiser='lion'.*'adam' or 'sgd'"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"epochs": 1.5}, "epochs=1.5: input should be a valid integer"),
        ({"head_learning_rate": 0.0}, "head_learning_rate=0.0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_impossible_training_options_are_refused(changes, says):
    with pytest.raises(FedexitError, match=says):
        LocalTraining(**changes)


def of_the_round(number):
    """Return other depths for some rounds: c3 loses a layer or all of them, c0 gains some."""
    return {1: {"c3": 9, "c0": 6}, 2: {"c3": None}}.get(number, {})


def test_depths_may_change_from_round_to_round(tmp_path):
    given = dict(fraction=1.0, depths=of_the_round)
    whole, two = run(rounds=3, **given), run(rounds=3, workers=2, **given)
    ledger = whole.clients.pivot(index="round", columns="client", values="depth")
    assert ledger.loc[1].tolist() == [6, 6, 9, 9] and ledger.loc[3].tolist() == [3, 6, 9, 12]
    assert ledger.loc[2].isna().tolist() == [False, False, False, True]
    sent = whole.clients.set_index(["client", "round"])["bytes"]
    assert sent["c0", 1] > sent["c0", 2] and sent["c0", 1] == sent["c1", 1]
    assert_same(whole, two)
    run(tmp_path / "state", rounds=2, **given)
    assert_same(run(tmp_path / "state", rounds=3, **given), whole)
    for other in (None, lambda number: of_the_round(number if number == 1 else 3)):  # from the second round on
        with pytest.raises(FedexitError, match="other depths"):
            run(tmp_path / "state", rounds=3, fraction=1.0, depths=other)
    with pytest.raises(FedexitError, match="c1 asks for exit 5"):
        run(fraction=1.0, depths=lambda number: {"c1": 5})


@pytest.mark.parametrize("method", ["homogeneous", "exclusive", "all-shallow"])
def test_depths_by_round_cannot_override_those_of_a_method(method):
    clients = [replace(client, depth=6) for client in make_clients()]
    given = dict(clients=clients, method=method, rounds=2, training=TRAINING)
    with pytest.raises(FedexitError, match=f"method {method} sets the depths of its clients"):
        federate(make_model(), **given, depths=lambda number: {"c3": 12} if number == 2 else {})
    ledger = federate(make_model(), **given, depths=lambda number: {"c3": None}).clients
    assert set(ledger["client"]) == {"c0", "c1", "c2"} and set(ledger["depth"]) == {6}


def test_a_round_without_updates_changes_nothing():
    names = [client.name for client in make_clients()]
    result = run(rounds=2, depths=partial(drop_outs, names, 1.0, 0))
    start, end = make_model().trainable_weights(), result.model.trainable_weights()
    assert result.clients.empty and all(torch.equal(start[name], end[name]) for name in start)


def test_drop_outs_have_the_given_share_and_differ_by_round():
    names = [f"c{i}" for i in range(200)]
    first, again, second = (drop_outs(names, 0.3, 0, number) for number in (1, 1, 2))
    assert 40 < len(first) < 80 and set(first.values()) == {None} and first == again != second
    assert drop_outs(names, 0.0, 0, 1) == {}
    with pytest.raises(FedexitError, match="drop-outs"):
        drop_outs(names, 1.5, 0, 1)


def test_an_empty_clip_is_refused():
    with pytest.raises(FedexitError, match="no samples"):
        collate([(torch.zeros(0), 0)])


def test_results_are_bit_identical_for_any_number_of_workers():
    """Use dropout, whose draws must not depend on earlier work of a process, and a layer that stays frozen."""
    results = []
    for workers in (1, 2, 3):
        config = config_of(load_backbone("nano"))
        backbone = backbone_from_config({**config, "hidden_dropout": 0.1}, "nano", False)
        backbone.model.encoder.layers[1].requires_grad_(False)
        with seeded("test"):
            for parameter in backbone.parameters():
                parameter.data.normal_(std=0.1)
        model = MultiExitModel(backbone, ["low", "high"])
        results.append(federate(model, make_clients(), rounds=2, training=TRAINING, dev=tones(99, 6), workers=workers))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])
    assert not any(".layers.1." in name for name in results[1].model.trainable_weights())


@pytest.mark.parametrize("head", ["ctc", "ctc-bilstm"])
def test_results_on_texts_are_bit_identical_for_any_number_of_workers(head):
    """Use texts, whose lengths differ between clips."""
    results = []
    for workers in (1, 2):
        clients = make_clients()
        for client in clients:
            client.data[:] = [
                (wave[: 2240 + 320 * i % 1600], characters(("low", "so high")[label][: 3 + i % 3]))
                for i, (wave, label) in enumerate(client.data)
            ]
        model = MultiExitModel(load_backbone("nano"), CHARACTERS, head=head)
        start = model.checksum()
        dev = [(wave, characters(("low", "high")[label])) for wave, label in tones(99, 6)]
        training = replace(TRAINING, spec_augment=True)
        results.append(federate(model, clients, rounds=2, training=training, dev=dev, workers=workers))
        assert results[-1].model.checksum() != start == model.checksum()
    assert_same(*results)
    assert set(results[0].table["metric"]) == {"CER", "WER"} and len(results[0].clients) == 8


def test_rounds_in_bfloat16_learn_nearly_the_same_and_leave_single_precision():
    exact = federate(make_model(), make_clients(), rounds=1, training=TRAINING)
    half = replace(TRAINING, bfloat16=True)
    one, two = (federate(make_model(), make_clients(), rounds=1, training=half, workers=n) for n in (1, 2))
    assert_same(one, two)
    start, weights = make_model().state_dict(), one.model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    name = "backbone.model.encoder.layers.2.feed_forward.output_dense.weight"
    moved, like = (result.model.state_dict()[name] - start[name] for result in (one, exact))
    assert not torch.equal(moved, like) and torch.cosine_similarity(moved.flatten(), like.flatten(), dim=0) > 0.8
    assert one.model.backbone.model.config._attn_implementation == "sdpa"


def test_batches_hold_clips_of_similar_length_and_every_clip_once():
    lengths = numpy_stream("lengths").integers(1000, 64_000, 64).tolist()
    groups = by_length([(torch.zeros(length), 0) for length in lengths], 8)
    assert sorted(position for group in groups for position in group) == list(range(64))
    padded = [8 * max(lengths[position] for position in group) for group in groups]
    listed = [8 * max(lengths[start : start + 8]) for start in range(0, 64, 8)]
    assert sum(padded) < 0.85 * sum(listed)
    assert by_length([(torch.zeros(length), 0) for length in (1000, 900, 1100, 950)], 4) == [[0, 1, 2, 3]]  # as listed


def test_an_error_in_a_worker_is_raised_in_the_main_process():
    broken = [Client("c9", tones(0, 4), 3), Client("mute", [(torch.zeros(0), 0)], 3)]
    for workers in (1, 2):
        with pytest.raises(FedexitError, match="client mute, clip 0 holds no samples"):
            federate(make_model(), broken, rounds=1, workers=workers)


def test_the_first_failure_stops_the_other_workers(tmp_path):
    files = tmp_path / "begun", tmp_path / "ended"
    with pytest.raises(FedexitError, match="a job that fails"):
        on_workers(wait_or_fail, [(True, *files), (False, *files)], 2, "jobs")
    for process in multiprocessing.active_children():
        process.join(60)
    assert not files[1].exists()


class Deadly(Sequence):
    """Clips that kill the worker that reads them, as a full memory does."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if multiprocessing.parent_process():
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3200), 0


def test_a_dead_worker_gives_one_clear_message():
    with pytest.raises(FedexitError, match="a worker died"):
        federate(make_model(), [Client("c9", Deadly(), 3)], rounds=1, workers=2)


def plain_rounds(model, clients, rounds, seed):
    """Return the weights of a plain reference: whole models on waveforms, and every weight averaged by Eq. (1)."""
    for number in range(1, rounds + 1):
        sums, totals = {}, {}
        for client in clients:
            local = copy.deepcopy(model)
            optimiser = make_optimiser(local, SGD)
            rng = numpy_stream(seed, "round", number, "client", client.name, "batches", 0)
            for waveforms, lengths, labels in batches(client.data, SGD.batch_size, rng):
                loss = torch.nn.functional.cross_entropy(local(waveforms, lengths)[client.depth], labels)
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(local.parameters(), SGD.clip_norm)
                optimiser.step()
            for name, parameter in local.named_parameters():
                if parameter.grad is not None:
                    weight = len(client.data) * client.depth
                    sums[name] = sums.get(name, 0) + weight * parameter.detach()
                    totals[name] = totals.get(name, 0) + weight
        for name, parameter in model.named_parameters():
            if name in sums:
                parameter.data = sums[name] / totals[name]
    return model


def convolved(backbone, waveform):
    return backbone.convolve(normalised(waveform)[None], torch.tensor([len(waveform)]))[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_cached_rounds_of_mixed_depth_equal_a_plain_reference(workers):
    """Compare up to rounding, with plain SGD: its step is as exact as its gradient. (Adam's first step is the sign.)"""
    clients = make_clients()
    for client in clients:  # lengths that differ, so that there is padding
        client.data[:] = [(wave[: 1600 + 320 * (i % 4)], label) for i, (wave, label) in enumerate(client.data)]
    expected = plain_rounds(make_model(), clients, 2, 0).trainable_weights()
    backbone = make_model().backbone
    cached = [replace(c, data=[(convolved(backbone, w), y) for w, y in c.data]) for c in clients]
    found = federate(make_model(), cached, rounds=2, training=SGD, workers=workers).model.trainable_weights()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)
