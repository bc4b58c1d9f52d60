"""Test that probes find only planted information, splits share no speaker, and measures agree with values by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import mutual_info_score
from sklearn.preprocessing import StandardScaler

from fedexit import FedexitError, load_backbone
from fedexit.central.probes import (
    ALPHAS,
    best_layer,
    cluster_quality,
    ctc_probe,
    frame_states,
    group_splits,
    linear_cka,
    log_mel,
    pooled_log_mel,
    pooled_states,
    profile,
)
from fedexit.data.batches import normalised
from fedexit.data.text import characters

CLIPS = [torch.randn(length, generator=torch.Generator().manual_seed(length)) for length in (5000, 900, 7000, 5100)]


# ---- features ----------------------------------------------------------------------------------------------------


def test_states_do_not_depend_on_the_batch_and_keep_their_order():
    backbone = load_backbone("nano")
    pooled = pooled_states(backbone, CLIPS, "states")
    assert pooled.shape == (4, 13, 64)
    frames = {layer: frame_states(backbone, CLIPS, layer, "states") for layer in (0, 5)}
    for index, clip in enumerate(CLIPS):
        with torch.no_grad():
            alone = backbone.hidden_states(normalised(clip)[None])[0]
        expected = torch.stack([torch.cat([s[0].mean(0), s[0].std(0, correction=0)]) for s in alone])
        torch.testing.assert_close(torch.from_numpy(pooled[index]), expected, rtol=1e-3, atol=1e-4)
        for layer, states in frames.items():
            torch.testing.assert_close(states[index], alone[layer][0], rtol=1e-3, atol=1e-4)


def test_log_mel_is_of_the_normalised_clip():
    assert pooled_log_mel(CLIPS).shape == (4, 1, 160)
    torch.testing.assert_close(log_mel(CLIPS[0]), log_mel(7 * CLIPS[0] + 3), rtol=1e-3, atol=1e-3)
    assert log_mel(CLIPS[0], hop=320).shape == (16, 80)


# ---- linear probes -----------------------------------------------------------------------------------------------


def planted(layers=3, layer=2, clips=150):
    random = np.random.default_rng(0)
    labels = random.integers(3, size=clips)
    features = random.standard_normal((clips, layers, 10)).astype(np.float32)
    features[np.arange(clips), layer, labels] += 4
    return features, np.array(["a", "b", "c"])[labels]


def test_a_probe_finds_the_layer_that_holds_planted_information():
    features, labels = planted()
    table = profile(features, labels, group_splits(labels, range(len(labels)), 3))
    assert len(table) == 9 and best_layer(table) == 2
    means = table.groupby("layer")["test"].mean()
    assert means[2] > 0.9 and means.drop(2).max() < 0.5
    assert table.equals(profile(features, labels, group_splits(labels, range(len(labels)), 3)))


def test_the_best_layer_is_chosen_on_dev_alone():
    features, labels = planted()
    table = profile(features, labels, group_splits(labels, range(len(labels)), 3))
    table.loc[table["layer"] == 0, "test"] = 1.0
    assert best_layer(table) == 2


def test_one_ridge_strength_is_chosen_on_dev_for_all_splits():
    features, labels = planted()
    splits = group_splits(labels, range(len(labels)), 3)
    table = profile(features[:, 2:], labels, splits)
    scaled = [StandardScaler().fit(features[train, 2]).transform(features[:, 2]) for train, _, _ in splits]
    dev = {
        alpha: [
            RidgeClassifier(alpha).fit(x[train], labels[train]).score(x[held_out], labels[held_out])
            for x, (train, held_out, _) in zip(scaled, splits, strict=True)
        ]
        for alpha in ALPHAS
    }
    assert list(table["dev"]) == max(dev.values(), key=np.mean)


def test_no_group_is_in_two_parts_and_every_clip_is_tested_once():
    speakers, labels = np.repeat([f"s{number}" for number in range(20)], 7), np.tile(list("abcdefg"), 20)
    splits = group_splits(labels, speakers, 5)
    for parts in splits:
        named = [set(speakers[part]) for part in parts]
        assert [len(names) for names in named] == [12, 4, 4] and len(set.union(*named)) == 20
        assert all(set(labels[part]) == set("abcdefg") for part in parts)
    assert sorted(np.concatenate([test for _, _, test in splits])) == list(range(140))
    assert all(np.array_equal(splits[fold][1], splits[(fold + 1) % 5][2]) for fold in range(5))


@pytest.mark.parametrize("folds", [2, 4])
def test_too_few_and_too_many_folds_are_refused(folds):
    with pytest.raises(FedexitError, match=f"folds={folds} must be at least 3 and at most the number of groups, 3"):
        group_splits(list("aabbcc"), list("aabbcc"), folds)


# ---- similarity --------------------------------------------------------------------------------------------------


def test_cka_ignores_rotation_scale_and_shift_and_nothing_else():
    random = np.random.default_rng(0)
    x = random.standard_normal((500, 6))
    rotation = np.linalg.qr(random.standard_normal((6, 6)))[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x, random.standard_normal((500, 6))) < 0.05


def test_cluster_quality_by_hand():
    codes, labels = np.array([0, 0, 0, 1, 1, 2]), np.array(list("aabbbb"))
    quality = cluster_quality(codes, labels)
    assert quality["label_purity"] == pytest.approx((2 + 2 + 1) / 6)
    assert quality["code_purity"] == pytest.approx((2 + 2) / 6)
    entropy = -(1 / 3 * np.log(1 / 3) + 2 / 3 * np.log(2 / 3))
    assert quality["pnmi"] == pytest.approx(mutual_info_score(labels, codes) / entropy)
    assert cluster_quality(labels, labels)["pnmi"] == pytest.approx(1)


# ---- characters --------------------------------------------------------------------------------------------------


def spelled(texts, noise=0.05):
    """Return frames that spell a text: two noisy frames in the direction of each character, then one of the blank."""
    random = torch.Generator().manual_seed(0)
    states = []
    for text in texts:
        codes = [code for character in characters(text) for code in (character, character, 0)]
        states.append(torch.eye(29)[codes] + noise * torch.randn(len(codes), 29, generator=random))
    return states


def test_a_linear_ctc_head_reads_linearly_spelled_texts():
    words = ["hello there", "a bee", "what is it", "no", "see you", "yes we can"] * 8
    states, split = spelled(words), (np.arange(32), np.arange(32, 40), np.arange(40, 48))
    rates = ctc_probe(states, words, split, updates=250)
    assert max(rates) < 0.1
    assert rates == ctc_probe(states, words, split, updates=250)
    blind = ctc_probe([torch.randn_like(state) for state in states], words, split, updates=250)
    assert min(blind) > 0.6


@pytest.mark.parametrize(("text", "frames"), [("...", 9), ("hello", 5), ("abc", 2)])
def test_texts_that_cannot_be_spelled_are_refused_by_number(text, frames):
    states = [torch.randn(20, 4), torch.randn(frames, 4)]
    with pytest.raises(FedexitError, match=rf"clip 1: {frames} frames cannot spell"):
        ctc_probe(states, ["ab", text], (np.array([0]), np.array([0]), np.array([1])), updates=1)
