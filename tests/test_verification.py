"""Test EER and minDCF by brute force, and trial lists by their rules and, if the corpora exist, byte by byte."""

import itertools
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_curve
from small_corpus import write_small_corpus

from fedexit import FedexitError, MultiExitModel, cli, load_backbone, open_corpus
from fedexit.data import trials as trial_lists
from fedexit.data.batches import collate
from fedexit.data.tasks import make_task
from fedexit.lab import verification

ROOT = Path(__file__).parents[1]
LISTS = ("queen", "speechocean")

SCORED = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({same for _, same in pairs}) == 2
)  # whole numbers: many ties
SEEDS = st.integers(0, 10_000)


def rates(scores, same):
    """Count false alarms and misses of "same if the score is at least t", from no trial accepted to all."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    return [((scores[same == 0] >= t).mean(), (scores[same == 1] < t).mean()) for t in thresholds]


def brute_force_eer(scores, same):
    for (alarms, misses), (more, fewer) in itertools.pairwise(rates(scores, same)):
        if fewer <= more:  # bisect between the two
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                crossed = misses + middle * (fewer - misses) <= alarms + middle * (more - alarms)
                low, high = (low, middle) if crossed else (middle, high)
            return alarms + high * (more - alarms)
    raise AssertionError("all trials accepted have no misses")


def random_trials(seed):
    generator = np.random.default_rng(seed)
    same = np.concatenate([[0, 1], generator.integers(0, 2, 60)])
    return generator.normal(size=62) + generator.uniform(-2, 3) * same, same


def arrays(pairs):
    scores, same = zip(*pairs, strict=True)
    return np.array(scores, float), np.array(same, int)


@given(SCORED)
def test_eer_is_where_misses_and_false_alarms_meet_with_ties(pairs):
    assert verification.equal_error_rate(*arrays(pairs)) == pytest.approx(brute_force_eer(*arrays(pairs)), abs=1e-12)


@given(SEEDS)
def test_eer_is_the_root_on_the_roc_curve(seed):
    scores, same = random_trials(seed)
    alarms, hits, _ = roc_curve(same, scores)
    root = brentq(lambda x: 1 - x - np.interp(x, alarms, hits), 0, 1) if hits[alarms == 0].max() < 1 else 0.0
    assert verification.equal_error_rate(scores, same) == pytest.approx(root, abs=1e-9)
    assert verification.equal_error_rate(scores, same) == pytest.approx(brute_force_eer(scores, same), abs=1e-12)


@given(SCORED, st.sampled_from([0.01, 0.05, 0.5, 0.9]))
def test_min_dcf_is_the_least_cost_over_all_thresholds(pairs, prior):
    costs = [prior * misses + (1 - prior) * alarms for alarms, misses in rates(*arrays(pairs))]
    expected = min(costs) / min(costs[0], costs[-1])  # the first accepts no trial, the last all
    assert verification.min_dcf(*arrays(pairs), prior) == pytest.approx(expected, abs=1e-12)


@given(SEEDS)
def test_only_the_order_of_scores_matters(seed):
    scores, same = random_trials(seed)
    for measure in (verification.equal_error_rate, verification.min_dcf):
        assert measure(scores, same) == measure(3 * scores**3 + 1, same)
    turned = verification.equal_error_rate(-scores, same)
    assert turned == pytest.approx(1 - verification.equal_error_rate(scores, same), abs=1e-12)


def test_perfect_inverted_and_constant_scores():
    same = np.array([1, 1, 1, 0, 0])
    perfect = np.array([0.9, 0.8, 0.7, 0.2, 0.1])
    found = [
        (verification.equal_error_rate(scores, same), verification.min_dcf(scores, same))
        for scores in (perfect, -perfect, np.zeros(5))
    ]
    assert found == [(0.0, 0.0), (1.0, 1.0), (0.5, 1.0)]


@pytest.fixture(scope="module")
def model():
    return MultiExitModel(load_backbone("nano").truncated(6), ["a", "b"], [3, 6])


def test_verify_scores_every_exit_by_the_cosine_of_embeddings(model):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(1600 + 320 * n, generator=generator), 0) for n in range(8)]
    ids = [f"clip{n}" for n in (3, 1, 2, 0, 7, 6, 5, 4)]
    model.standardise(*collate(data)[:2])
    pairs = list(itertools.combinations(range(8), 2))
    trials = pd.DataFrame([(ids[a], ids[b], (a + b) % 2) for a, b in pairs], columns=["first", "second", "same"])
    found = verification.verify(model, data, ids, trials).set_index(["exit", "metric"])
    assert list(found.index) == [(3, "EER"), (3, "minDCF"), (6, "EER"), (6, "minDCF")]
    assert set(found["n"]) == {28}
    for depth in (3, 6):
        vectors = [model.embeddings(*collate([clip])[:2])[depth][0] for clip in data]
        scores = [torch.cosine_similarity(vectors[a], vectors[b], dim=0).item() for a, b in pairs]
        expected = brute_force_eer(np.array(scores), trials["same"].to_numpy())
        assert found.loc[(depth, "EER"), "value"] == pytest.approx(expected)


def manifest(clips_of_speaker):
    speakers = [name for name, clips in clips_of_speaker.items() for _ in range(clips)]
    return pd.DataFrame({"id": [f"{n:03}" for n in range(len(speakers))], "speaker": speakers})


@given(st.lists(st.integers(2, 6), min_size=2, max_size=6), SEEDS)
def test_trials_are_labelled_correctly_and_unique(clips, seed):
    rows = manifest({f"s{n}": count for n, count in enumerate(clips)})
    most = sum(count * (count - 1) // 2 for count in clips)
    pairs = min(most, len(rows))
    trials = trial_lists.make_trials(rows, pairs, seed)
    speaker = rows.set_index("id")["speaker"]
    truth = trials["first"].map(speaker) == trials["second"].map(speaker)
    assert (truth == (trials["same"] == 1)).all() and trials["same"].value_counts().to_dict() == {1: pairs, 0: pairs}
    assert len({frozenset(pair) for pair in zip(trials["first"], trials["second"], strict=True)}) == 2 * pairs
    assert trials.equals(trial_lists.make_trials(rows, pairs, seed))


def test_a_speaker_of_many_clips_does_not_fill_the_list():
    rows = manifest({"joe": 60, "ann": 12, "ben": 12, "cid": 12})
    trials = trial_lists.make_trials(rows, 100)
    speaker = rows.set_index("id")["speaker"]
    who = trials["first"].map(speaker)
    assert who[trials["same"] == 1].value_counts().between(15, 35).all()  # by pairs alone JOE would have 90
    kinds = pd.Series(zip(who, trials["second"].map(speaker), strict=True))[trials["same"] == 0].value_counts()
    assert len(kinds) == 6 and kinds.between(8, 27).all()


def test_trials_of_many_clips_need_little_memory():
    rows = pd.DataFrame({"id": range(4_000), "speaker": [f"s{n % 40}" for n in range(4_000)]})
    tracemalloc.start()
    assert len(trial_lists.make_trials(rows, 50)) == 100
    assert tracemalloc.get_traced_memory()[1] < 8e6  # bytes; a number for each pair would take 64e6
    tracemalloc.stop()


def test_unusual_ids_survive_storing(tmp_path, monkeypatch):
    ids = ["NA", "nan", "01", "1e5", "None", "a,b"]
    rows = pd.DataFrame({"id": ids, "speaker": list("aabbcc")})
    made = trial_lists.make_trials(rows, 3)
    (tmp_path / "trial_lists").mkdir()
    made.to_csv(tmp_path / "trial_lists" / "odd.csv", index=False)
    monkeypatch.setattr(trial_lists, "__file__", str(tmp_path / "trials.py"))
    read = trial_lists.trials_of(SimpleNamespace(name="odd", table={"id": ids}))
    assert read.equals(made) and {*read["first"], *read["second"]} == set(ids)


@pytest.mark.parametrize(("pairs", "says"), [(5, "4 pairs of one speaker, not 5"), (0, "not 0"), (-1, "not -1")])
def test_too_few_pairs_are_refused(pairs, says):
    with pytest.raises(FedexitError, match=f"there are {says}" if pairs > 0 else says):
        trial_lists.make_trials(manifest({"ann": 3, "ben": 2}), pairs)
    with pytest.raises(FedexitError, match="there is no pair of two speakers among 3 clips"):
        trial_lists.make_trials(manifest({"ann": 3}), 2)


def test_the_command_writes_test_clips_of_known_speakers(tmp_path, capsys):
    folder = write_small_corpus(tmp_path / "small")
    table = pd.read_csv(folder / "manifest.csv", keep_default_na=False)
    table.loc[table["speaker"] == "CID", "speaker"] = ""
    table.to_csv(folder / "manifest.csv", index=False)
    out = tmp_path / "trials.csv"
    assert cli.main(["data", "trials", str(folder), "--pairs", "20", "--out", str(out)]) == 0
    trials = pd.read_csv(out)
    assert {clip[:4] for clip in (*trials["first"], *trials["second"])} == {"ANN4", "BEN4", "DOT4"}
    assert len(trials) == 40 and str(out) in capsys.readouterr().out
    nowhere = str(tmp_path / "nowhere" / "trials.csv")
    assert cli.main(["data", "trials", str(folder), "--pairs", "20", "--out", nowhere]) == 2
    assert f"{nowhere}: cannot be written" in capsys.readouterr().err


def test_a_corpus_without_a_list_or_without_its_clips_has_no_trials(tmp_path):
    assert trial_lists.trials_of(open_corpus(write_small_corpus(tmp_path / "small"))) is None
    assert trial_lists.trials_of(open_corpus(write_small_corpus(tmp_path / "queen"))) is None  # another queen


# ---- the lists of the project ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_committed_lists_have_a_thousand_pairs_of_each_kind(name):
    trials = pd.read_csv(ROOT / "fedexit" / "data" / "trial_lists" / f"{name}.csv", dtype={"first": str, "second": str})
    assert list(trials) == ["first", "second", "same"]
    assert trials["same"].value_counts().to_dict() == {1: 1000, 0: 1000}
    assert len({frozenset(pair) for pair in zip(trials["first"], trials["second"], strict=True)}) == 2000
    assert (trials["first"] != trials["second"]).all()


@pytest.fixture
def corpus(request, monkeypatch):
    monkeypatch.setenv("FEDEXIT_ROOT", str(ROOT))
    try:
        return open_corpus(request.param)
    except FedexitError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("corpus", LISTS, indirect=True)
def test_the_documented_command_writes_the_committed_lists(corpus, tmp_path):
    command = f"fedexit data trials {corpus.name} --pairs 1000 --out fedexit/data/trial_lists/{corpus.name}.csv"
    assert command in (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    out = tmp_path / "again.csv"
    assert cli.main([*command.split()[1:-1], str(out)]) == 0
    assert out.read_bytes() == (ROOT / "fedexit" / "data" / "trial_lists" / f"{corpus.name}.csv").read_bytes()


@pytest.mark.parametrize("corpus", LISTS, indirect=True)
def test_committed_lists_name_test_clips_and_label_them_right(corpus):
    trials, rows = trial_lists.trials_of(corpus), corpus.manifest.set_index("id")
    first, second = (rows.loc[trials[side]].reset_index() for side in ("first", "second"))
    assert ((first["speaker"] == second["speaker"]).astype(int) == trials["same"]).all()
    assert set(first["split"]) | set(second["split"]) == {"test"}
    named, speakers = {*first["id"], *second["id"]}, {*first["speaker"], *second["speaker"]}
    if corpus.name == "speechocean":
        assert len(speakers) == 20 and not speakers & set(make_task("speaker", corpus).labels)
    else:
        task = make_task("voice", corpus)
        assert len(speakers) == 22 and speakers <= set(task.labels)
        assert not named & set(task.rows.query("split != 'test'")["id"])


@pytest.mark.parametrize("nobody", ["", None, float("nan")])
def test_clips_without_a_speaker_are_in_no_trial(nobody):
    rows = manifest({"ann": 3, "ben": 3, "x": 4})
    unknown = rows["speaker"] == "x"
    made = trial_lists.make_trials(rows.assign(speaker=rows["speaker"].where(~unknown, nobody)), 6)
    assert not {*made["first"], *made["second"]} & set(rows["id"][unknown])


def test_wrong_arguments_of_trials_are_named():
    rows = manifest({"ann": 3, "ben": 3})
    for pairs in (2.0, True, "2"):
        with pytest.raises(FedexitError, match="must be a whole number above 0"):
            trial_lists.make_trials(rows, pairs)
    for wrong in (rows[["id"]], [1], None):
        with pytest.raises(FedexitError, match="have no column"):
            trial_lists.make_trials(wrong, 1)
    with pytest.raises(FedexitError, match=r"no pair of two speakers among 3 clips of 1 speaker"):
        trial_lists.make_trials(rows[rows["speaker"] == "ann"], 1)
