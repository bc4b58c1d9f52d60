"""Test that the property tests can fail: each rule of Eq. (1), of heads and of measures is broken on purpose."""

from functools import partial
from tempfile import TemporaryDirectory

import pytest
import test_aggregation as properties
import test_alphabets
import test_backbone
import test_ctc
import test_methods
import test_metrics
import test_objectives
import test_tasks
import test_verification
from sklearn.metrics import roc_curve

from fedexit.data.tasks import paralinguistic
from fedexit.data.text import spell
from fedexit.federated import aggregation, objectives
from fedexit.federated.aggregation import Aggregator
from fedexit.lab import verification
from fedexit.model import backbone, ctc, metrics
from fedexit.model.backbone import Backbone


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


two_tiers = properties.test_2_two_tiers_differ_from_masked_only_in_layers_1_to_3
untrained_layer = properties.test_5_a_layer_nobody_trained_stays_bit_identical
true_mean = Aggregator._mean
MUTANTS = [
    ("client_weight", plain_sum_of_depths, lambda: properties.test_equals_the_equation_written_by_hand()),
    ("client_weight", no_data_size, lambda: properties.test_1_equal_depths_give_fedavg()),
    ("client_weight", no_depth, lambda: two_tiers(9)),
    ("client_weight", masked_weighs_too, lambda: two_tiers(9)),
    ("client_weight", no_depth, lambda: properties.test_3_share_of_the_low_tier_and_effective_clients(9, 1 / 4, 0.80)),
    ("client_weight", no_depth, test_methods.test_the_rule_count_ignores_the_number_of_clips),
    ("_mean", stale_is_masked, lambda: properties.test_4_stale_fedavg_equals_masked_with_a_smaller_server_step()),
    ("_mean", zeros_when_nobody_trained, lambda: untrained_layer("layerwise")),
    ("_trained", everybody_trained_everything, lambda: properties.test_5_sent_but_untrained_layers_are_not_averaged()),
    ("_trained", one_layer_too_many, lambda: properties.test_5_sent_but_untrained_layers_are_not_averaged()),
    ("_mean", no_division, lambda: properties.test_6_averaging_weights_equals_averaging_changes()),
    ("_accumulate", last_client_wins, lambda: properties.test_8_clients_can_be_split_and_shuffled()),
]  # fmt: skip


@pytest.mark.parametrize(("place", "mutant", "test"), MUTANTS, ids=[m.__name__ for _, m, _ in MUTANTS])
def test_a_broken_rule_is_noticed(monkeypatch, place, mutant, test):
    monkeypatch.setattr(aggregation if place == "client_weight" else Aggregator, place, mutant)
    with pytest.raises((AssertionError, ExceptionGroup)):
        test()


def test_a_layer_off_by_one_is_noticed(monkeypatch, tmp_path):
    """Break property 7: an exit reads one layer too deep, or reads the padding."""
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


def no_line_between_thresholds(scores, same):
    alarms, hits, _ = roc_curve(same, scores, drop_intermediate=False)
    return float(alarms[abs(1 - hits - alarms).argmin()])


def cost_of_no_system_is_one(scores, same, prior=0.05):
    return true_dcf(scores, same, prior) * min(prior, 1 - prior)


def mean_of_rates(predictions, by=("exit",), unit="character"):
    counted = predictions.assign(**metrics._counts(predictions, unit))
    rates = counted.assign(value=counted["errors"] / counted["n"]).groupby(list(by))
    return rates.agg(value=("value", "mean"), n=("n", "sum")).reset_index()


def a_teacher_that_learns(teacher, student, temperature=1.0, kind="label"):
    told = (teacher / temperature).log_softmax(-1)
    pupil = (student / temperature).log_softmax(-1)
    return temperature**2 * (told.exp() * (told - pupil)).sum(-1).mean()


def everybody_teaches(exits, exit, distillation):
    return [other for other in exits if other != exit]


def a_fold_that_tests_its_development_speakers(name, corpus, rows, column):
    return true_set(name, corpus, rows.assign(split=rows["split"].replace("dev", "test")), column)


def a_fixed_alphabet(codes, labels):
    return spell(codes)


def quiet_clips():
    with TemporaryDirectory() as folder:
        test_backbone.test_loudness_and_offset_change_no_logits("layer", test_backbone.padded_batch(), folder)


true_dcf, true_set = verification.min_dcf, paralinguistic.closed_set
perfect_and_blind = test_verification.test_perfect_inverted_and_constant_scores
deepest = test_objectives.test_the_deepest_exit_teaches_without_being_taught_and_weighs_twice
folds = test_tasks.test_folds_test_each_speaker_once_and_keep_them_apart
mutual = partial(test_objectives.test_mutual_teaching_has_the_gradients_computed_by_hand, 3.0)
LATER = [
    (ctc, "_SURE", 0.0, lambda: test_ctc.test_padding_changes_neither_loss_nor_text(False)),
    (ctc, "frames_needed", len, test_ctc.test_frames_needed_is_the_smallest_number_that_spells_the_text),
    (metrics, "spell", a_fixed_alphabet, test_alphabets.test_words_are_cut_at_the_blank_of_own_labels),
    (backbone, "standardised", lambda waveforms, lengths: waveforms, quiet_clips),
    (verification, "equal_error_rate", no_line_between_thresholds, perfect_and_blind),
    (verification, "min_dcf", cost_of_no_system_is_one, perfect_and_blind),
    (metrics, "error_rates", mean_of_rates, test_metrics.test_error_rates_are_pooled_counts_and_not_means_of_rates),
    (objectives, "divergence", a_teacher_that_learns, mutual),
    (objectives, "_teachers", everybody_teaches, deepest),
    (paralinguistic, "closed_set", a_fold_that_tests_its_development_speakers, folds),
]  # fmt: skip


@pytest.mark.parametrize(("module", "place", "mutant", "test"), LATER, ids=[place for _, place, *_ in LATER])
def test_a_broken_measure_is_noticed(monkeypatch, module, place, mutant, test):
    monkeypatch.setattr(module, place, mutant)
    monkeypatch.setattr(test_ctc, "frames_needed", ctc.frames_needed)
    with pytest.raises((AssertionError, ExceptionGroup)):
        test()
