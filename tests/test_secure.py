"""Test secure aggregation: its sum is that of Eq. (1), and the server sees no individual update."""

import pytest
import torch
from test_federation import TRAINING, make_clients, make_model

from fedexit import Client, FedexitError, Method, Update, aggregate, federate
from fedexit.privacy import secure
from fedexit.privacy.secure import Participant, SecureServer, holders_of, pair_seeds, secure_mean, tolerance

OLD = {f"encoder.layers.{layer}.weight": torch.zeros(40, 10) for layer in range(3)} | {"front.bias": torch.zeros(5)}
DEPTHS = {"ann": 1, "ben": 1, "cid": 2, "dot": 2, "eve": 2}


def updates(depths=DEPTHS, **changes):
    generator = torch.Generator().manual_seed(3)
    drawn = {}
    for place, (client, depth) in enumerate(depths.items()):
        names = [*list(OLD)[:depth], "front.bias"]
        weights = {name: torch.randn(OLD[name].shape, generator=generator) for name in names}
        drawn[client] = Update(weights, 17 + 40 * place, depth)
    return drawn | changes


def participants(sent):
    holders, pairs = holders_of(sent), pair_seeds(sent)
    own = {name: bytes([place]) * 32 for place, name in enumerate(sent)}
    return holders, {name: Participant(name, sent[name], holders, pairs[name], own[name]) for name in sent}


@pytest.mark.parametrize("dropped", [(), ("ann",), ("dot",), ("ann", "eve")])
def test_the_masked_sum_is_eq_1_within_the_stated_tolerance_also_after_drop_outs(dropped):
    sent = updates()
    arrived = [update for name, update in sent.items() if name not in dropped]
    plain, found = aggregate({n: w.double() for n, w in OLD.items()}, arrived), secure_mean(OLD, sent, dropped)
    for name, mean in found.items():
        held = [update for update in arrived if name in update.weights]
        if not held:
            assert mean is OLD[name]
        else:
            allowed = tolerance(held) + 2**-24 * plain[name].abs().max()  # float32
            assert 0 < (mean - plain[name]).abs().max() <= allowed
    again = secure_mean(OLD, sent, dropped)  # other masks
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_the_server_receives_uniform_numbers_that_say_nothing_of_an_update():
    sent = updates()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in sent["dot"].weights.items()}
    for update in (sent["dot"], Update(zeros, 1, 2)):
        message = participants(sent | {"dot": update})[1]["dot"].message()
        assert all(values.shape == OLD[name].shape for name, values in message.sums.items())
        octets = torch.tensor([*b"".join(values.tobytes() for values in message.sums.values())])
        counts = torch.bincount(octets, minlength=256).double()
        expected = len(octets) / 256
        assert (counts - expected).square().sum() / expected < 360  # chi-squared, 255 degrees: p is about 2e-5


def test_what_is_revealed_for_a_drop_out_leaves_each_arrived_message_and_a_late_one_hidden():
    sent = updates()
    holders, clients = participants(sent)
    server, late = SecureServer(OLD, holders), clients["dot"].message()
    for name in sent.keys() - {"dot"}:
        server.receive(clients[name].message())
    seeds = [clients[name].reveal(server.arrived) for name in server.arrived]
    for name, masked in late.sums.items():  # all that the server can remove from the late message
        values = masked.copy()
        for one in seeds:
            if one.client in holders[name]:
                values += secure._signed(one.client, "dot", secure.mask(one.pairs["dot"], name, "sum", values.shape))
        true = secure.encoded(sent["dot"].examples * 2 * sent["dot"].weights[name].double().numpy(), 5, "")
        own = secure.mask(clients["dot"].own, name, "sum", values.shape)
        assert (values == true + own).all()  # the mask that only dot knows remains
        assert (values != true).all()
    with pytest.raises(FedexitError, match="dot did not arrive, so it reveals no seed"):
        clients["dot"].reveal(server.arrived)
    assert all(one.pairs.keys() == {"dot"} for one in seeds)


def test_a_layer_with_a_single_holder_is_refused_by_clients_and_server():
    with pytest.raises(FedexitError, match="only client eve holds layer 3"):
        secure_mean(OLD, updates(DEPTHS | {"eve": 3}))
    with pytest.raises(FedexitError, match="only client cid holds layer 2"):
        secure_mean(OLD, updates(), dropped=["dot", "eve"])
    holders, clients = participants(updates())
    with pytest.raises(FedexitError, match="only client cid holds layer 2"):
        clients["ann"].reveal(["ann", "cid"])
    server = SecureServer(OLD, holders)
    server.receive(clients["ann"].message())
    with pytest.raises(FedexitError, match="only client ann"):
        server.result([clients["ann"].reveal(["ann", "ben", "cid", "dot"])])


def test_messages_that_do_not_fit_are_refused():
    sent = updates()
    holders, clients = participants(sent)
    server, message = SecureServer(OLD, holders), clients["ann"].message()
    server.receive(message)
    with pytest.raises(FedexitError, match="ann sent twice"):
        server.receive(message)
    with pytest.raises(FedexitError, match="ann has sent, but not revealed"):
        server.result([])
    large = {name: 1e9 * tensor for name, tensor in sent["ann"].weights.items()}
    with pytest.raises(FedexitError, match="cap n_i"):
        secure_mean(OLD, sent | {"ann": Update(large, 10_000, 1)})


def test_a_federation_under_secure_aggregation_is_that_of_eq_1_up_to_rounding():
    clients = [Client(f"{one.name}{copy}", one.data, one.depth) for one in make_clients()[:2] for copy in "ab"]
    settings = dict(rounds=2, training=TRAINING)
    found = federate(make_model(), clients, Method("secure", rule=secure.secure_rule), **settings)
    plain = federate(make_model(), clients, "layerwise", **settings)
    start, end = make_model().trainable_weights(), plain.model.trainable_weights()
    for name, mean in found.model.trainable_weights().items():
        torch.testing.assert_close(mean, end[name], atol=2e-4, rtol=2e-4)
    assert any(not torch.equal(start[name], end[name]) for name in start)
    with pytest.raises(FedexitError, match="only client 000000 holds"):
        federate(make_model(), make_clients(), Method("secure", rule=secure.secure_rule), **settings)
