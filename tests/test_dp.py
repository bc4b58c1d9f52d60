"""Test differential privacy: the accountants agree, and one client cannot move the model further than it may."""

import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from test_federation import TRAINING, make_clients, make_model, tones

from fedexit import FedexitError, Update, federate
from fedexit.privacy.accounting import Mechanism, contour_epsilon, noise_for, pld_epsilon, rdp_epsilon
from fedexit.privacy.noise import ClippedSum, Groups, Noise, Privacy, group_of, poisson, private_method

PRIVACY = Privacy(noise=0.8, clip=0.05, head_clip=0.5, examples=6, sampling=0.7)
DEPTHS = (3, 3, 6, 9, 12)


def exact(noise, delta):
    """Return epsilon of one Gaussian mechanism (Balle & Wang 2018)."""
    return brentq(
        lambda e: norm.cdf(0.5 / noise - e * noise) - math.exp(e) * norm.cdf(-0.5 / noise - e * noise) - delta, 0, 99
    )


@pytest.mark.parametrize(
    ("noise", "rounds", "sampling", "delta"),
    [(1.0, 1, 1.0, 1e-5), (2.0, 20, 1.0, 1e-3), (1.0, 20, 0.5, 1e-3), (0.6, 50, 0.02, 1e-5), (4.0, 1000, 0.2, 1e-6)],
)
def test_two_independent_accountants_agree_within_one_percent_below_the_bound_by_orders(noise, rounds, sampling, delta):
    mechanism = Mechanism(noise, rounds, sampling)
    found = pld_epsilon(mechanism, delta)
    assert found == pytest.approx(contour_epsilon(mechanism, delta), rel=1e-3)
    assert found < rdp_epsilon(mechanism, delta) < 1.3 * found
    if sampling == 1:  # T rounds are one with less noise
        assert found == pytest.approx(exact(noise / math.sqrt(rounds), delta), rel=1e-4)


def test_the_noise_for_an_epsilon_costs_that_epsilon():
    found = noise_for(2.0, 1e-2, rounds=4, sampling=0.5)
    assert 1.99 < pld_epsilon(Mechanism(found, 4, 0.5), 1e-2) <= 2.0
    with pytest.raises(FedexitError, match="epsilon must be from"):
        noise_for(0.0, 1e-2, 4)
    with pytest.raises(FedexitError, match=r"sampling must be in \(0, 1\], not 1.5"):
        pld_epsilon(Mechanism(1.0, 1, 1.5), 1e-2)


def test_one_client_moves_the_sum_by_at_most_what_the_noise_covers():
    model = make_model()
    groups, old = Groups(model, DEPTHS, PRIVACY), model.trainable_weights()
    rule, others = ClippedSum(PRIVACY, groups), []
    for depth in {*DEPTHS}:
        held = model.client_model(depth).trainable_weights()
        generator = torch.Generator().manual_seed(depth)
        wild = {name: old[name] + 50 * torch.randn(old[name].shape, generator=generator) for name in held}
        one = Update(wild, 10_000, depth)
        moved = {
            name: (new - old[name]).double() for name, new in rule(old, [*others, one]).items() if new is not old[name]
        }
        assert moved.keys() == held.keys()
        by_group = {}
        for name, change in moved.items():
            by_group[group_of(name)] = by_group.get(group_of(name), 0.0) + float(change.square().sum())
        joint = math.sqrt(sum(square / groups.sigma[group] ** 2 for group, square in by_group.items()))
        assert joint <= 1.001 / PRIVACY.noise  # what the accountants assume
        assert joint > 0.99 / PRIVACY.noise or depth < max(DEPTHS)
    assert groups.effective_noise(PRIVACY) == pytest.approx(PRIVACY.noise)
    assert groups.sigma["layer 12"] > groups.sigma["layer 7"] > groups.sigma["layer 1"]
    assert groups.denominator["layer 12"] == pytest.approx(0.7 * 6 * 12)


def test_the_denominator_is_public_so_no_client_changes_the_weight_of_another():
    model = make_model()
    groups, old = Groups(model, DEPTHS, PRIVACY), model.trainable_weights()
    rule = ClippedSum(PRIVACY, groups)
    step = Update({name: old[name] + 1e-3 for name in model.client_model(3).trainable_weights()}, 4, 3)
    alone, twice = rule(old, [step]), rule(old, [step, step])
    for name in step.weights:
        torch.testing.assert_close(twice[name] - old[name], 2 * (alone[name] - old[name]), atol=1e-6, rtol=1e-3)
    with pytest.raises(FedexitError, match="an update has depth 4; announced: 3, 6, 9, 12"):
        rule(old, [Update(step.weights, 4, 4)])


def test_the_noise_has_the_stated_width_and_differs_by_round_and_weight():
    model = make_model()
    groups, old, moments = Groups(model, DEPTHS, PRIVACY), model.trainable_weights(), {}
    server = Noise(groups, seed=3)
    first, second = (server.step(old, old, moments) for _ in range(2))
    for group, sigma in groups.sigma.items():
        drawn = [
            torch.cat([(new[n] - old[n]).flatten() for n in old if group_of(n) == group]) for new in (first, second)
        ]
        assert drawn[0].std() == pytest.approx(sigma, rel=5 / math.sqrt(len(drawn[0])))
        assert not torch.equal(*drawn)
    again = Noise(groups, seed=3).step(old, old, {})
    assert all(torch.equal(first[name], again[name]) for name in old)


def test_a_private_federation_resumes_bit_identically_and_noises_rounds_without_clients(tmp_path):
    clients, model = make_clients(), make_model()
    way = private_method(model, clients, PRIVACY)
    settings = dict(method=way, training=TRAINING, dev=tones(99, 4), depths=poisson(clients, PRIVACY, 1))
    whole = federate(model, clients, rounds=3, **settings)
    federate(model, clients, rounds=2, checkpoint=tmp_path / "c", **settings)
    again = federate(model, clients, rounds=3, checkpoint=tmp_path / "c", **settings)
    assert whole.model.checksum() == again.model.checksum()
    nobody = settings | {"depths": lambda number: {client.name: None for client in clients}}
    alone = federate(model, clients, rounds=1, **nobody)
    assert alone.model.checksum() != model.checksum()
    with pytest.raises(FedexitError, match="no client has depth 12"):
        private_method(model, clients[:2], PRIVACY)
