"""Test the attacks: they find what is there, and nothing where nothing is."""

import pytest
import torch
from test_federation import make_model

from fedexit import Client, FedexitError, LocalTraining, local_round
from fedexit.privacy.leakage import auc, auc_by_group, change_of, information, padded, scores


def noisy(seed, count):
    """Return clips of tones of random pitch in noise."""
    generator = torch.Generator().manual_seed(seed)
    pitches = 200 + 3000 * torch.rand(count, generator=generator)
    times = torch.arange(3200) / 16000
    waves = (2 * torch.pi * pitches[:, None] * times).sin() + 0.3 * torch.randn(count, 3200, generator=generator)
    return [(wave, place % 2) for place, wave in enumerate(waves)]


def test_an_update_tells_its_training_clips_from_others_and_noise_does_not():
    model, members, others = make_model(), noisy(2, 2), noisy(21, 12)
    client = Client("ann", members, 3)
    training = LocalTraining(batch_size=6, optimiser="sgd", learning_rate=0.1, head_learning_rate=0.1)
    old = model.trainable_weights()
    sent = local_round(model.client_model(3), old, client, training, (0,))[0].weights
    change = change_of(old, sent)
    torch.manual_seed(0)
    noise = {name: torch.randn_like(tensor) for name, tensor in change.items()}
    found = scores(model, 3, {"update": change, "noise": noise}, members + others)
    rates = auc_by_group(found, [True] * 2 + [False] * 12).set_index(["change", "group"])["auc"]
    assert {"layer 1", "layer 3", "head 3", "all"} <= {*rates["update"].index}
    assert rates["update", "all"] > 0.8
    assert (found.query("change == 'noise'")["score"].abs() < 0.2).mean() > 0.9
    with pytest.raises(FedexitError, match="lacks"):
        scores(model, 6, {"update": change}, members)


def test_auc_counts_pairs_in_order():
    assert auc([3, 2], [1, 2]) == 3.5 / 4
    assert auc([0.0], [1.0]) == 0.0
    with pytest.raises(FedexitError, match="0 positive"):
        auc([], [1.0])


def test_exit_times_tell_the_label_and_padding_hides_it():
    labels = [0, 1, 2, 3] * 40
    times = [1.0 + (label > 1) for label in labels]
    bits, p = information(times, labels)
    assert bits == pytest.approx(1.0, abs=0.05) and p < 0.01
    hidden, p = information(padded(times, [2.0]), labels)
    assert hidden == pytest.approx(0.0, abs=1e-12) and p == 1.0
    assert padded([0.5, 1.0, 1.2], [2.0, 1.0]) == [1.0, 1.0, 2.0]
    with pytest.raises(FedexitError, match="after the last slot"):
        padded([3.0], [2.0])
