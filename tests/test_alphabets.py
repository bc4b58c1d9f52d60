"""Test texts in other alphabets than a-z: spelled, divided into clients, learned and decoded."""

import unicodedata
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_tasks import corpus_of, lines

from fedexit.central.ctc_start import HEADS_FILE, load_start_heads
from fedexit.central.fine_tuning import Recipe, fine_tune
from fedexit.data.batches import collate
from fedexit.data.tasks import make_task
from fedexit.data.tasks.asr import asr_task
from fedexit.data.text import CHARACTERS, alphabet_of, characters, checked_alphabet, spell, unspelled
from fedexit.federated.clients import Client
from fedexit.federated.rounds import federate
from fedexit.lab.beam import beam_decoder
from fedexit.model.backbone import load_backbone
from fedexit.model.ctc import greedy
from fedexit.model.exits import MultiExitModel
from fedexit.model.metrics import all_rates, predict
from fedexit.support.errors import FedexitError

GERMAN = ["größe über", "süße äpfel", "schöne grüße"]
RUSSIAN = ["привет мир", "это наш дом", "ёлка и мороз"]


@pytest.mark.parametrize(
    ("text", "alphabet", "spelled", "lost"),
    [
        ("Größe: ÜBER 12 Äpfel!", [*CHARACTERS, *"äöüß"], "größe über äpfel", "12"),
        ("Gro\u0308\u00dfe", [*CHARACTERS, *"äöüß"], "größe", ""),  # decomposed, as macOS writes it
        ("naïve café", [*CHARACTERS, "é"], "naive café", ""),
        ("42 mal", [*CHARACTERS, *"0123456789"], "42 mal", ""),
        ("It’s", CHARACTERS, "it's", ""),
        ("it’s", "istm ", "it s", ""),  # without an apostrophe it is punctuation
        ("l’été", ["’", *CHARACTERS], "l’ete", ""),  # an alphabet with the typographic one
        ("yes No", "ABCDEFGHIJKLMNOPQRSTUVWXYZ ", "YES NO", ""),
        ("Привет, мир", " абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "привет мир", ""),
        ("Ёлка йод", " абвгдежзиклмнопрстуфхцчшщъыьэюя", "елка иод", ""),  # without ё and й their base letters
        ("नमस्ते", [*"नमसत ", "\u094d"], "नमस्त", "\u0947"),  # a vowel sign is not an accent
        ("x² 你好", CHARACTERS, "x", "²你好"),
    ],
)
def test_texts_are_spelled_by_the_rule(text, alphabet, spelled, lost):
    assert spell(characters(text, alphabet), alphabet) == spelled
    assert unspelled(text, alphabet) == lost


@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_a_learned_alphabet_spells_its_own_letters_and_digits(texts):
    if not any(one.isalpha() or one.isdecimal() for text in texts for one in text):
        return
    try:
        learned = alphabet_of(texts)
    except FedexitError:  # letters of lone accents or numbers that are no digits
        return
    assert checked_alphabet(learned) == learned and learned[-1] == " "
    for text in texts:
        assert not [one for one in unspelled(text, learned) if one.isalpha() or one.isdecimal()]
        again = spell(characters(text, learned), learned)
        assert characters(again, learned) == characters(text, learned)


def test_a_learned_alphabet_holds_what_occurs():
    assert alphabet_of(["Größe, 7!", "Don’t"]) == [*"'7degnortßö", " "]
    with pytest.raises(FedexitError, match="cannot be learned: the training texts hold no letters"):
        alphabet_of(["?!", ""])


@pytest.mark.parametrize(
    ("alphabet", "says"),
    [
        (5, "alphabet is 5; give a list of characters, or 'learned'"),
        (["a", "ch", " "], "alphabet holds 'ch'; give single characters"),
        (["a", 3, " "], "alphabet holds 3; give single characters"),
        ("abca ", "alphabet holds 'a' 2 times; list each character once"),
        ("abc", "alphabet lacks the blank ' ', which separates words; add it"),
        ("lerned", "alphabet holds 'e' 2 times"),
        ("", "alphabet lacks the blank"),
    ],
)
def test_wrong_alphabets_are_refused(alphabet, says):
    with pytest.raises(FedexitError, match=says):
        make_task("asr", corpus_of(lines("AB")), alphabet=alphabet)


def test_an_alphabet_is_given_or_learned_from_training_texts_alone():
    rows = [dict(row, text=GERMAN[n % 3]) for n, row in enumerate(lines("ABCDEFGHIJ"))]
    base = asr_task(corpus_of(rows))
    tested = sorted(base.rows.query("split == 'test'")["speaker"].unique())
    rows = [dict(row, text="größe çx") if row["speaker"] in tested else row for row in rows]
    with pytest.warns(UserWarning, match=r"\(16 characters\) lacks characters of \d+ of 100 transcripts \(x in \d+\)"):
        learned = make_task("asr", corpus_of(rows), alphabet="learned")
    assert learned.labels == alphabet_of(GERMAN) and (learned.rows["split"] == base.rows["split"]).all()
    spelled = {spell(target, learned.labels) for target in learned.rows.query("split == 'test'")["target"]}
    assert spelled == {"größe c"}  # ç loses its mark, and x is in no training text
    letters = list(" xç") + alphabet_of(GERMAN)[:-1]
    with pytest.raises(FedexitError, match="alphabet holds 'ç' 2 times"):  # composed and decomposed
        make_task("asr", corpus_of(rows), alphabet=[*letters, "c\u0327"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given_ = make_task("asr", corpus_of(rows), alphabet=letters)
    assert given_.labels == letters
    assert {spell(target, letters) for target in given_.rows["target"]} == {*GERMAN, "größe çx"}


def test_start_heads_for_a_to_z_are_not_loaded_for_another_alphabet(tmp_path):
    MultiExitModel(load_backbone("nano"), CHARACTERS, head="ctc").save_heads(tmp_path / HEADS_FILE)
    same, other = (MultiExitModel(load_backbone("nano"), text, head="ctc") for text in (CHARACTERS, CHARACTERS[::-1]))
    assert load_start_heads(same, str(tmp_path)) and not load_start_heads(other, str(tmp_path))


def test_words_are_cut_at_the_blank_of_own_labels():
    labels = list(" abcdefghijklmnopqrstuvwxyz'")
    model = MultiExitModel(load_backbone("nano"), labels, [3], head="ctc")
    table = predict(model, [(torch.randn(32000), characters("hello my world", labels))])
    assert table["label"].tolist() == ["hello my world"]
    assert all_rates(table).set_index("metric")["n"].to_dict() == {"CER": 14, "WER": 3}


def test_beam_search_knows_the_models_own_labels():
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed")
    labels = [" ", *alphabet_of(GERMAN)[:-1]]
    path = [code for code in characters("süße äpfel", labels) for code in (code, 0)]
    logits = torch.nn.functional.one_hot(torch.tensor([path]), 1 + len(labels)) * 10.0
    assert greedy(logits, labels) == beam_decoder(["süße", "äpfel"], labels)(logits) == ["süße äpfel"]


def test_a_text_too_long_for_its_clip_is_refused_before_training():
    letters = alphabet_of(RUSSIAN)
    model = MultiExitModel(load_backbone("nano"), letters, head="ctc")
    before, long = model.checksum(), [(torch.randn(8000), characters("привет мир " * 3, letters))]
    with pytest.raises(FedexitError, match="client ann, clip 0 has 24 frames, and its text of 32 characters needs 32"):
        federate(model, [Client("ann", long, 3)], rounds=1)
    with pytest.raises(FedexitError, match="training data, clip 0 has 24 frames"):
        fine_tune(model, long, [3], Recipe(crop=None))
    assert model.checksum() == before


def spoken(text, letters, voice):
    """Return one tone per letter of `text`, in the pitch of `voice`."""
    time = torch.arange(1600) / 16000
    heights = [200 + 90 * letters.index(one) if one != " " else 0 for one in text]
    return torch.cat([torch.sin(2 * torch.pi * voice * one * time) * torch.hann_window(1600) for one in heights])


def word_errors(wanted, found):
    """Return the least number of words to insert, delete or replace, counted by hand."""
    table = np.zeros((len(wanted) + 1, len(found) + 1), int)
    table[:, 0], table[0] = range(len(wanted) + 1), range(len(found) + 1)
    for i, one in enumerate(wanted, 1):
        for j, other in enumerate(found, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one != other))
    return table[-1, -1]


def ids(text, form, letters):
    """Return the character ids of `text` as it is written in the Unicode form `form`."""
    return characters(unicodedata.normalize(form, text), letters)


def by_hand(table: pd.DataFrame) -> float:
    pairs = [(label.split(), said.split()) for label, said in zip(table["label"], table["predicted"], strict=True)]
    return sum(word_errors(*pair) for pair in pairs) / sum(len(wanted) for wanted, _ in pairs)


@pytest.mark.parametrize("texts", [GERMAN, RUSSIAN], ids=["german", "russian"])
def test_other_languages_train_and_decode(texts):
    letters = alphabet_of(unicodedata.normalize("NFD", text) for text in texts)
    assert letters == alphabet_of(texts)
    voices = ((1, "NFC"), (1.03, "NFD"))
    data = [(spoken(text, letters, voice), ids(text, form, letters)) for text in texts for voice, form in voices]
    model = MultiExitModel(load_backbone("nano"), letters, [3], head="ctc")
    model.standardise(*collate(data)[:2])
    result = federate(model, [Client("ann", data[::2], 3), Client("ben", data[1::2], 3)], rounds=1, dev=data)
    assert set(result.table["metric"]) == {"CER", "WER"}
    model = result.model
    recipe = dict(batch_size=3, crop=None, learning_rate=3e-3, head_learning_rate=3e-2)
    for epochs in (25, 45):
        fine_tune(model, data, [3], Recipe(epochs=epochs, **recipe))
        table = predict(model, data)
        assert table["label"].tolist() == [text for text in texts for _ in voices]
        word_rate = all_rates(table).set_index("metric").loc["WER", "value"]
        assert word_rate == pytest.approx(by_hand(table))
    assert word_rate == 0
    said = model.transcribe([clip for clip, _ in data], rate=16000)
    assert said["text"].tolist() == table["label"].tolist() and (said["confidence"] > 0.5).all()
