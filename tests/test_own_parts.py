"""Test parts of the user's own: methods, rules, servers, local rounds, heads, confidence rules and kinds of targets."""

from functools import partial

import numpy as np
import pytest
import torch
from test_federation import TRAINING, make_clients, make_model, tones
from torch import nn

from fedexit import Client, FedexitError, Method, MultiExitModel, Update, federate, load_backbone, local_round
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.data.batches import collate
from fedexit.federated.regime import Regime
from fedexit.model.heads import Head, macs_of
from fedexit.model.metrics import all_rates, predict

CLIP = tones(0, 1)[0][0]
DEV = tones(99, 4)


class Last(nn.Module):
    """A head that reads the last frame."""

    def __init__(self, width, labels):
        super().__init__()
        self.linear = nn.Linear(width, labels)

    def forward(self, states, frames):
        return self.linear(states[torch.arange(len(states)), frames - 1])


class Normed(Last):
    def __init__(self, width, labels):
        super().__init__(width, labels)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, states, frames):
        return self.linear(self.norm(states.mean(1)))


class Pull:
    """A server that adds up the changes of all rounds."""

    def __init__(self, share=0.5):
        self.share, self.calls = share, []

    def step(self, weights, averages, moments):
        self.calls.append(1)
        for name, old in weights.items():
            moments[name] = moments.get(name, 0) + averages[name] - old
        return {name: old + self.share * moments[name] for name, old in weights.items()}


def median(old, updates):
    sent = {name: [update.weights[name] for update in updates if name in update.weights] for name in old}
    return {name: torch.stack(sent[name]).median(0).values if sent[name] else old[name] for name in old}


def seven(model, weights, client, training, stream, objective):
    update, report = local_round(model, weights, client, training, stream, objective)
    return Update(update.weights, 7, update.depth), report


def run(method, model=None, **changes):
    settings = dict(rounds=2, training=TRAINING, dev=DEV, method=method) | changes
    return federate(model or make_model(), make_clients(), **settings)


OWN = {
    "server": (Method("pull", server=Pull()), "pooled"),
    "rule": (Method("median", rule=median), "pooled"),
    "round": (Method("seven", local_round=seven), "pooled"),
    "head": (Method("last"), Last),
}


@pytest.mark.parametrize("part", OWN)
def test_own_parts_are_bit_identical_on_two_workers_and_after_resuming(part, tmp_path):
    method, head = OWN[part]
    model = MultiExitModel(load_backbone("nano"), ["low", "high"], head=head)
    whole, usual = run(method, model), run("layerwise", model)
    assert (whole.model.checksum() == usual.model.checksum()) == (part == "head")
    assert run(method, model, workers=2).model.checksum() == whole.model.checksum()
    run(method, model, rounds=1, checkpoint=tmp_path / "state")
    assert run(method, model, checkpoint=tmp_path / "state").model.checksum() == whole.model.checksum()


def test_an_own_server_is_tried_on_a_copy_and_identified_by_its_attributes(tmp_path):
    server = Pull()
    run(Method("pull", server=server), checkpoint=tmp_path / "state")
    assert len(server.calls) == 2
    with pytest.raises(FedexitError, match="belongs to another run"):
        run(Method("pull", server=Pull(0.1)), checkpoint=tmp_path / "state")


def test_own_rules_follow_their_formula():
    start = {name: tensor.clone() for name, tensor in make_model().trainable_weights().items()}
    whole, half = (run(Method("x", "", "", "count", server=own), rounds=1) for own in (None, Pull()))
    for name, tensor in half.model.trainable_weights().items():
        expected = (start[name] + whole.model.trainable_weights()[name]) / 2
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)


WRONG = {
    "unknown rule 'median'": dict(rule="median"),
    "the rule returned a int": dict(rule=lambda old, updates: 0),
    "TypeError.*takes 1 positional": dict(rule=lambda old: old),
    "the rule returned 0 weights": dict(rule=lambda old, updates: {}),
    "return a finite tensor of shape": dict(rule=lambda old, updates: {n: t[:1] for n, t in old.items()}),
    "its server is .*give an object with step": dict(server=object()),
    "server S returned a NoneType": dict(server=type("S", (), {"step": lambda *_: None})()),
    "its server is <class": dict(server=Pull),
    "its enlist returned a NoneType": dict(enlist=lambda clients: None),
    "its enlist returned a list": dict(enlist=lambda clients: [*clients, *clients]),
    "its local_round is": dict(local_round=lambda model: None),
    "client c0: local_round returned a NoneType": dict(local_round=lambda *_: None),
    "its objective is 'all'": dict(objective="all"),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_part_of_a_method_is_named_before_a_round(words):
    model, done = make_model(), []
    with pytest.raises(FedexitError, match=words) as caught:
        run(Method("mine", **WRONG[words]), model, on_round=lambda *_: done.append(1))
    assert not done and "\n" not in str(caught.value)


def test_parts_that_no_process_can_load_are_refused_with_their_name():
    with pytest.raises(FedexitError, match="the method's local_round cannot be sent to workers"):
        run(Method("mine", local_round=lambda *given: seven(*given)), workers=2)
    model = MultiExitModel(load_backbone("nano"), ["low", "high"], head=lambda *given: Last(*given))
    with pytest.raises(FedexitError, match="the model's head cannot be sent to workers"):
        run("layerwise", model, workers=2)


ONE = Last(64, 2)
WRONG_HEADS = {
    "one Last, and each exit needs its own": Last(64, 2),
    "share weights": lambda width, labels: ONE,
    "cannot be made": lambda width: None,
    "is a int, not a module": lambda width, labels: 0,
    "fails on a batch": nn.Linear,
    "changes its buffers": Normed,
    r"gives \(2, 3\), not finite logits \(2, 2\)": lambda width, labels: Last(width, labels + 1),
    "have no weights": nn.Identity,
    "unknown head 'last'": "last",
}


@pytest.mark.parametrize("words", WRONG_HEADS)
def test_a_wrong_head_is_refused(words):
    with pytest.raises(FedexitError, match=words) as caught:
        MultiExitModel(load_backbone("nano"), ["low", "high"], [3, 6], head=WRONG_HEADS[words])
    assert "\n" not in str(caught.value)


def test_an_own_head_is_saved_and_its_products_are_counted(tmp_path):
    model = MultiExitModel(load_backbone("nano"), ["low", "high"], head=Last)
    model.save_pretrained(tmp_path)
    assert MultiExitModel.from_pretrained(tmp_path, head=Last).checksum() == model.checksum()
    with pytest.raises(FedexitError, match=r"unknown head 'Last'.*head=MyHead"):
        MultiExitModel.from_pretrained(tmp_path)
    assert macs_of(Last(64, 2), 64, 50) == 2 * 64 and macs_of(Head(64, 2), 64, 50) == 2 * 2 * 64
    with pytest.raises(FedexitError, match="head Last lacks reads, centre, scale"):
        model.standardise(*collate(DEV)[:2])


def margin(seen, labels):
    first, second = seen[-1].softmax(-1).flatten().topk(2).values
    return first - second


class Patient:
    threshold = 2

    def __call__(self, seen, labels):
        return len(seen)


def test_own_confidence_rules_stop_at_their_threshold():
    model = make_model()
    assert model.predict(CLIP, rate=16000, rule=margin, threshold=0.0)["exit"].tolist() == [3]
    assert model.predict(CLIP, rate=16000, rule=margin, threshold=1.1)["exit"].tolist() == [12]
    assert model.predict(CLIP, rate=16000, rule=Patient())["exit"].tolist() == [6]
    for words, rule in {
        "fails on logits": lambda seen: 1.0,
        "gives None": lambda seen, labels: None,
        r"gives \(1, 2\)": lambda seen, labels: seen[-1],
        "gives nan": lambda seen, labels: float("nan"),
        "unknown rule 'margin'": "margin",
        "threshold must be a number, not None": margin,
    }.items():
        with pytest.raises(FedexitError, match=words):
            model.predict(CLIP, rate=16000, rule=rule, threshold=None if "must" in words else 0.5)


def targets_of(kind):
    """Return clips whose pitch decides their targets."""
    pitches = np.linspace(0.05, 0.5, 12)
    clips = [torch.sin(torch.arange(3200) * pitch) for pitch in pitches.tolist()]
    own = [(p - 0.275) * 8 if kind == "number" else [int(p > 0.2), int(p > 0.35)] for p in pitches.tolist()]
    return list(zip(clips, own, strict=True))


@pytest.mark.parametrize(("kind", "labels"), [("number", ["pitch"]), ("multi-label", ["mid", "high"])])
def test_numbers_and_several_labels_are_learned_answered_and_saved(kind, labels, tmp_path):
    data, metric = targets_of(kind), {"number": "MAE", "multi-label": "Hamming"}[kind]
    model = MultiExitModel(load_backbone("nano"), labels, [3, 6], targets=kind)
    model.standardise(*collate(data)[:2])
    clients = [Client("ann", data[::2], 3), Client("ben", data[1::2], 6)]
    own = dict(rounds=4, dev=data, method="depthfl", regime=Regime(heads_rounds=1), training=TRAINING)
    one, two = (federate(model, clients, **own, workers=workers) for workers in (1, 2))
    assert one.model.checksum() == two.model.checksum() and set(one.table["metric"]) == {metric}
    fine_tune(one.model, data, [3, 6], Recipe(epochs=15, crop=None))
    found = predict(one.model, data)
    errors = all_rates(found).set_index("exit")["value"]
    before = all_rates(predict(model, data)).set_index("exit")["value"]
    assert (errors < 0.5 * before).all()
    pairs = found.query("exit == 6")[["predicted", "label"]].to_numpy().tolist()
    by_hand = np.abs(np.array([one for one, _ in pairs]) - np.array([own for _, own in pairs])).mean()
    assert errors[6] == pytest.approx(by_hand)
    one.model.save_pretrained(tmp_path)
    again = MultiExitModel.from_pretrained(tmp_path)
    answers = again.predict([clip for clip, _ in data], rate=16000)
    said = answers["number" if kind == "number" else "labels"].tolist()
    if kind == "number":
        assert said == pytest.approx([one for one, _ in pairs], abs=1e-4) and answers["confidence"].isna().all()
        with pytest.raises(FedexitError, match="needs labels or texts"):
            again.predict(CLIP, rate=16000, rule="entropy", threshold=0.5)
    else:
        assert said == [[name for name, held in zip(labels, one, strict=True) if held] for one, _ in pairs]
        exits = again.predict(CLIP, rate=16000, rule="probability", threshold=0.0)["exit"]
        assert answers["confidence"].between(0.5, 1).all() and exits.tolist() == [3]


@pytest.mark.parametrize(
    ("kind", "target"),
    [("number", float("nan")), ("number", [0.5]), ("number", "a"), ("multi-label", [1]), ("multi-label", [2, 0])],
)
def test_a_target_of_another_kind_is_named(kind, target):
    labels = ["a"] if kind == "number" else ["a", "b"]
    model = MultiExitModel(load_backbone("nano"), labels, targets=kind)
    with pytest.raises(FedexitError, match="client ann, clip 0 has target"):
        federate(model, [Client("ann", [(CLIP, target)], 3)], rounds=1)


def test_kinds_that_do_not_fit_the_head_or_labels_are_refused():
    make = partial(MultiExitModel, load_backbone("nano"))
    for words, given in {
        "unknown targets 'age'": dict(labels=["a"], targets="age"),
        "has one label": dict(labels=["a", "b"], targets="number"),
        r"gives \(2, 50, 2\), not finite logits \(2, 1\)": dict(labels=["a"], targets="number", head="ctc"),
        "to targets 'text'": dict(labels=["a", "b"], targets="text"),
    }.items():
        with pytest.raises(FedexitError, match=words):
            make(**given)


def test_dev_clips_of_clients_give_errors_with_the_heads_that_they_keep():
    clients = [Client(c.name, c.data, c.depth, dev=tones(50 + n, 5)) for n, c in enumerate(make_clients()[:2])]
    result = federate(make_model(), clients, "layerwise-local", rounds=1, training=TRAINING)
    assert result.by_client.columns.tolist() == ["client", "exit", "metric", "value", "n"]
    assert result.by_client[["client", "exit"]].to_numpy().tolist() == [["c0", 3], ["c1", 3], ["c1", 6]]
    before = result.model.checksum()
    personal = result.model
    personal.load_weights({**personal.trainable_weights(), **result.heads["c1"]})
    assert personal.checksum() != before
    expected = all_rates(predict(personal, clients[1].dev, [6]))["value"].item()
    assert result.by_client.query("client == 'c1' and exit == 6")["value"].item() == expected
    assert len(federate(make_model(), make_clients(), rounds=1, training=TRAINING).by_client) == 0
    with pytest.raises(FedexitError, match="client c0, dev, clip 0 has target 5"):
        federate(make_model(), [Client("c0", tones(0, 2), 3, dev=[(CLIP, 5)])], rounds=1)


def test_a_comparison_of_numpy_can_stop_the_run_and_threads_are_an_option(monkeypatch):
    result = run("layerwise", rounds=3, on_round=lambda number, model, table: np.bool_(number == 1))
    assert result.table["round"].max() == 1
    with pytest.raises(FedexitError, match="2 threads"):
        run(Method("watched", local_round=_stopped), threads=2)
    with pytest.raises(FedexitError, match="threads must be >= 1"):
        run("layerwise", threads=0)


def _stopped(*given):
    raise FedexitError(f"{torch.get_num_threads()} threads")
