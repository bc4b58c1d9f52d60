"""Test properties of Eq. (1) that follow by arithmetic. `test_mutants.py` breaks each rule and expects a failure."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedexit.federated.aggregation import Aggregator, Update, aggregate
from fedexit.model.names import layer_of
from fedexit.support.errors import FedexitError

TOLERANCE = dict(rtol=1e-5, atol=1e-6)  # float32 sums of at most a dozen clients
LAYERS = 12


def weights(seed: int, depth: int = LAYERS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = {f"encoder.layers.{i}.linear.weight": torch.randn(3, 2, generator=generator) for i in range(depth)}
    return {"projection.weight": torch.randn(4, generator=generator), **named}


def update(seed: int, depth: int, examples: int) -> Update:
    return Update(weights(seed, depth), examples, depth)


rosters = st.lists(st.tuples(st.sampled_from([3, 6, 9, 12]), st.integers(1, 500)), min_size=1, max_size=12)


def from_roster(roster: list[tuple[int, int]]) -> list[Update]:
    return [update(100 + i, depth, examples) for i, (depth, examples) in enumerate(roster)]


def by_hand(global_weights, updates, exponent):
    """Return Eq. (1), computed in the plainest way in float64."""
    result = {}
    for name, old in global_weights.items():
        layer = layer_of(name) or 1
        members = [u for u in updates if u.depth >= layer]
        factors = [u.examples * float(u.depth) ** exponent for u in members]
        mean = sum(
            (f * u.weights[name].double() for f, u in zip(factors, members, strict=True)), torch.zeros(()).double()
        )
        result[name] = (mean / sum(factors)).float() if members else old
    return result


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(
            left[name], right[name], **(tolerance or TOLERANCE), msg=lambda m, n=name: f"{n}: {m}"
        )


@given(rosters, st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]))
@settings(max_examples=60)
def test_equals_the_equation_written_by_hand(roster, exponent):
    start, updates = weights(0), from_roster(roster)
    assert_close(aggregate(start, updates, depth_exponent=exponent), by_hand(start, updates, exponent))


@given(st.sampled_from([3, 6, 9, 12]), st.lists(st.integers(1, 500), min_size=1, max_size=8))
@settings(max_examples=40)
def test_1_equal_depths_give_fedavg(depth, examples):
    updates = from_roster([(depth, n) for n in examples])
    result = aggregate(weights(0), updates)
    for name in updates[0].weights:
        fedavg = sum(u.examples * u.weights[name].double() for u in updates) / sum(examples)
        torch.testing.assert_close(result[name], fedavg.float(), **TOLERANCE)


@pytest.mark.parametrize("high", [6, 9, 12])
def test_2_two_tiers_differ_from_masked_only_in_layers_1_to_3(high):
    start, updates = weights(0), from_roster([(3, 40), (3, 10), (high, 25), (high, 60)])
    ours, masked = aggregate(start, updates, "layerwise"), aggregate(start, updates, "masked")
    for name in start:
        same = torch.allclose(ours[name], masked[name], **TOLERANCE)
        assert same == ((layer_of(name) or 1) > 3), name


@pytest.mark.parametrize(("high", "share", "effective"), [(6, 1 / 3, 0.90), (9, 1 / 4, 0.80), (12, 1 / 5, 0.735)])
def test_3_share_of_the_low_tier_and_effective_clients(high, share, effective):
    name = "encoder.layers.0.w"
    clients = 10
    got = []
    for shallow in range(clients):  # each client in turn sends 1, all others 0: the result is its coefficient
        updates = [
            Update({name: torch.tensor([float(i == shallow)])}, 7, 3 if i < clients // 2 else high)
            for i in range(clients)
        ]
        got.append(aggregate({name: torch.zeros(1)}, updates)[name].item())
    assert sum(got[: clients // 2]) == pytest.approx(share, abs=1e-6)
    assert 1 / sum(c * c for c in got) / clients == pytest.approx(effective, abs=5e-4)


def test_4_stale_fedavg_equals_masked_with_a_smaller_server_step():
    start, low, high = weights(0), [(3, 40), (3, 10)], [(9, 25), (9, 60)]
    updates = from_roster(low + high)
    stale, masked = aggregate(start, updates, "stale"), aggregate(start, updates, "masked")
    step = sum(n for _, n in high) / sum(n for _, n in low + high)
    for name, old in start.items():
        layer = layer_of(name) or 1
        rate = 1.0 if layer <= 3 else step if layer <= 9 else 0.0
        torch.testing.assert_close(stale[name], old + rate * (masked[name] - old), **TOLERANCE)


def test_4_stale_fedavg_treats_missing_layers_as_untouched_copies():
    start = weights(0)
    short = from_roster([(3, 40), (9, 25)])
    whole = [Update({**start, **u.weights}, u.examples, u.depth) for u in short]
    for rule in ("stale", "unmasked"):
        assert_close(aggregate(start, short, rule), aggregate(start, whole, rule))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_4_unmasked_equals_eq_1_with_a_smaller_server_step(exponent):
    """The step is the weight n_i L_i^g of the clients that trained the layer, divided by that of all clients."""
    start, updates = weights(0), from_roster([(3, 40), (3, 10), (9, 25), (9, 60)])
    unmasked, masked = (aggregate(start, updates, rule, exponent) for rule in ("unmasked", "layerwise"))
    weight = {depth: sum(u.examples * depth**exponent for u in updates if u.depth == depth) for depth in (3, 9)}
    step = weight[9] / sum(weight.values())
    for name, old in start.items():
        layer = layer_of(name) or 1
        rate = 1.0 if layer <= 3 else step if layer <= 9 else 0.0
        torch.testing.assert_close(unmasked[name], old + rate * (masked[name] - old), **TOLERANCE)
    if exponent == 0:
        assert_close(unmasked, aggregate(start, updates, "stale"))


@pytest.mark.parametrize("method", ["layerwise", "masked", "stale", "unmasked"])
def test_5_a_layer_nobody_trained_stays_bit_identical(method):
    start = {
        name: tensor.half() / 3 for name, tensor in weights(0).items()
    }  # half precision: any arithmetic would show
    updates = [Update({k: v.half() for k, v in weights(s, 6).items()}, 3, 6) for s in (1, 2)]
    result = aggregate(start, updates, method)
    for name in start:
        untouched = (layer_of(name) or 1) > 6
        assert torch.equal(result[name], start[name]) == untouched, name
        assert result[name].dtype == torch.float16


def test_5_sent_but_untrained_layers_are_not_averaged():
    start = weights(0)
    intruder = Update(weights(1), examples=10, depth=3)  # claims depth 3 and sends all twelve layers
    for method in ("layerwise", "masked"):
        result = aggregate(start, [intruder], method)
        assert torch.equal(result["encoder.layers.3.linear.weight"], start["encoder.layers.3.linear.weight"])


@given(rosters)
@settings(max_examples=40)
def test_6_averaging_weights_equals_averaging_changes(roster):
    start, updates = weights(0), from_roster(roster)
    deltas = [Update({n: w - start[n] for n, w in u.weights.items()}, u.examples, u.depth) for u in updates]
    zero = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    moved = {name: start[name] + delta for name, delta in aggregate(zero, deltas).items()}
    assert_close(aggregate(start, updates), moved, rtol=1e-4, atol=1e-5)


@given(rosters, st.randoms(use_true_random=False), st.sampled_from(["layerwise", "masked", "stale", "unmasked"]))
@settings(max_examples=40)
def test_8_clients_can_be_split_and_shuffled(roster, random, method):
    """Eq. (1) needs only sums over clients, so two servers can share them and their order does not matter."""
    start, updates = weights(0), from_roster(roster)
    expected = aggregate(start, updates, method)
    random.shuffle(updates)
    assert_close(aggregate(start, iter(updates), method), expected)
    if method == "layerwise":
        numerator = {n: torch.zeros_like(t, dtype=torch.float64) for n, t in start.items()}
        denominator = dict.fromkeys(start, 0.0)
        for u in updates:
            for n, w in u.weights.items():
                numerator[n] += u.examples * u.depth * w.double()
                denominator[n] += u.examples * u.depth
        secure = {n: (numerator[n] / denominator[n]).float() if denominator[n] else start[n] for n in start}
        assert_close(secure, expected)


def test_memory_does_not_grow_with_the_number_of_clients():
    start = weights(0)
    aggregator = Aggregator(start)
    for seed in range(50):
        aggregator.add(update(seed, 12, 5))
    assert sum(t.numel() for t in aggregator._sums.values()) == sum(t.numel() for t in start.values())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("backbone.model.encoder.layers.0.attention.k_proj.weight", 1),
        ("model.encoder.layers.11.final_layer_norm.bias", 12),
        ("layers.2.w", 3),
        ("backbone.model.encoder.layers.4.attention.q_proj.lora_A.default.weight", 5),
        ("backbone.model.feature_extractor.conv_layers.0.conv.weight", None),
        ("backbone.model.adapter.layers.0.conv.weight", None),
        ("backbone.model.encoder.pos_conv_embed.layers.0.conv.weight", None),
        ("heads.3.norm.weight", None),
        ("backbone.model.encoder.pos_conv_embed.conv.parametrizations.weight.original0", None),
        ("heads.3.linear.weight", None),
    ],
)
def test_layer_of(name, layer):
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Update({"nowhere": torch.zeros(1)}, 1, 3), "nowhere"),
        (Update({"projection.weight": torch.zeros(5)}, 1, 3), "(5,)"),
        (Update({}, 0, 3), "examples"),
        (Update({}, 1, 0), "depth"),
        (Update({"projection.weight": torch.full((4,), torch.nan)}, 1, 3), "not finite"),
    ],
)
def test_malformed_updates_are_refused(bad, says):
    with pytest.raises(FedexitError, match=says.replace("(", r"\(").replace(")", r"\)")):
        aggregate(weights(0), [bad])


def test_unknown_method_is_refused():
    with pytest.raises(FedexitError, match=r"fedprox.*layerwise, masked, stale"):
        aggregate(weights(0), [], "fedprox")
