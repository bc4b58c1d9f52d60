"""The property tests can fail: each rule of Eq. (1) is broken on purpose, and its test must notice."""

import pytest
import test_aggregation as properties
import test_backbone

from fedexit import aggregation
from fedexit.aggregation import Aggregator
from fedexit.backbone import Backbone


def plain_sum_of_depths(update, method, exponent):
    return update.examples + update.depth


def no_data_size(update, method, exponent):
    return float(update.depth)


def no_depth(update, method, exponent):
    return float(update.examples)


def masked_weighs_too(update, method, exponent):
    return float(update.examples * update.depth)


def everybody_trained_everything(self, name, depth):
    return True


def one_layer_too_many(self, name, depth):
    layer = aggregation.layer_of(name)
    return self.method == "stale" or layer is None or layer <= depth + 1


def stale_is_masked(self, name, old):
    self.method = "masked"
    return true_mean(self, name, old)


def zeros_when_nobody_trained(self, name, old):
    return true_mean(self, name, old) if name in self._sums else old * 0


def no_division(self, name, old):
    self._totals = dict.fromkeys(self._totals, 1.0)
    return true_mean(self, name, old)


def last_client_wins(self, name, tensor, weight):
    self._sums[name], self._totals[name] = tensor.float() * weight, weight


two_tiers = properties.test_2_two_tiers_differ_from_masked_in_layers_1_to_3_only
true_mean = Aggregator._mean
MUTANTS = [
    ("client_weight", plain_sum_of_depths, lambda: properties.test_equals_the_equation_written_by_hand()),
    ("client_weight", no_data_size, lambda: properties.test_1_equal_depths_are_fedavg()),
    ("client_weight", no_depth, lambda: two_tiers(9)),
    ("client_weight", masked_weighs_too, lambda: two_tiers(9)),
    ("client_weight", no_depth, lambda: properties.test_3_share_of_the_low_tier_and_effective_clients(9, 1 / 4, 0.80)),
    ("_mean", stale_is_masked, lambda: properties.test_4_stale_fedavg_is_masked_with_a_smaller_server_step()),
    ("_mean", zeros_when_nobody_trained, lambda: properties.test_5_a_layer_nobody_trained_keeps_its_bits("layerwise")),
    ("_trained", everybody_trained_everything, lambda: properties.test_5_sent_but_untrained_layers_are_not_averaged()),
    ("_trained", one_layer_too_many, lambda: properties.test_5_sent_but_untrained_layers_are_not_averaged()),
    ("_mean", no_division, lambda: properties.test_6_averaging_weights_is_averaging_deltas()),
    ("_accumulate", last_client_wins, lambda: properties.test_8_linear_sums_and_any_order()),
]  # fmt: skip


@pytest.mark.parametrize(("place", "mutant", "test"), MUTANTS, ids=[m.__name__ for _, m, _ in MUTANTS])
def test_a_broken_rule_is_noticed(monkeypatch, place, mutant, test):
    monkeypatch.setattr(aggregation if place == "client_weight" else Aggregator, place, mutant)
    with pytest.raises((AssertionError, ExceptionGroup)):
        test()


def test_a_layer_off_by_one_is_noticed(monkeypatch, tmp_path):
    """Property 7: an exit that reads one layer too deep, or the padding, must not pass."""
    true_states = Backbone.hidden_states

    def shifted(self, waveforms, lengths=None, depth=None):
        states, frames = true_states(self, waveforms, lengths, depth)
        return states[1:] + states[-1:], frames

    def deaf_to_lengths(self, waveforms, lengths=None, depth=None):
        states, _ = true_states(self, waveforms, None, depth)
        return states, self.frame_lengths(lengths)

    for number, mutant in enumerate((shifted, deaf_to_lengths)):
        monkeypatch.setattr(Backbone, "hidden_states", mutant)
        with pytest.raises(AssertionError):
            test_backbone.test_7_depth_k_is_the_full_models_kth_hidden_state(
                "hubert", "group", test_backbone.padded_batch(), tmp_path / str(number)
            )
