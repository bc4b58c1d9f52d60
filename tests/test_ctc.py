import itertools
import sys

import pytest
import torch
import torchaudio.models.decoder
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedexit.data.batches import collate
from fedexit.data.text import CHARACTERS, characters, frames_needed, spell, unspelled, words
from fedexit.lab.beam import beam_decoder, beam_search_available
from fedexit.model.backbone import load_backbone
from fedexit.model.ctc import CTCHead, ctc_loss, greedy, too_long, within
from fedexit.model.exits import MultiExitModel
from fedexit.model.heads import HEADS
from fedexit.support.errors import FedexitError


def test_characters_keep_letters_apostrophes_and_single_blanks():
    assert characters("It's  A-b!") == characters("it's a b") and characters("42?!") == []
    assert characters("az' ") == [1, 26, 27]
    assert spell(characters("Don't panic")) == "don't panic"


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("don’t", "don't"),
        ("donʼt", "don't"),
        ("café", "cafe"),
        ("cafe\u0301", "cafe"),
        ("Œuvre", "oeuvre"),
        ("straße", "strasse"),
        ("İstanbul", "istanbul"),
        ("ﬁne", "fine"),
        ("ＡＢＣ", "abc"),
        ("łódź", "lodz"),
        ("3 apples", "apples"),
        ("ок yes", "yes"),
    ],
)
def test_letters_with_marks_are_spelled_by_their_base_letters(text, spelled):
    assert spell(characters(text)) == spelled


def test_other_letters_are_named_and_words_are_whole():
    assert unspelled("Привет, мир! café 42") == "приветм42" and unspelled("Don’t, naïve Straße!") == ""
    assert words("L’été à Москва: 42 'tis 42nd") == ["l'été", "à", "москва", "tis", "42nd"]


@given(st.lists(st.integers(1, 3), max_size=5))
def test_frames_needed_is_the_smallest_number_that_spells_the_text(target):
    def spells(frames):
        paths = itertools.product(range(4), repeat=frames)
        return any([c for c, _ in itertools.groupby(path) if c] == target for path in paths)

    needed = frames_needed(target)
    if needed <= 6:
        assert spells(needed) and (needed == 0 or not spells(needed - 1))


@pytest.mark.parametrize("recurrent", [False, True])
def test_padding_changes_neither_loss_nor_text(recurrent):
    torch.manual_seed(0)
    head = CTCHead(8, len(CHARACTERS), recurrent).eval()
    states, frames = torch.randn(3, 20, 8), torch.tensor([20, 13, 7])
    targets = torch.tensor([[1, 2, 2, 3], [4, 0, 0, 0], [5, 5, 0, 0]])
    together = head(states, frames)
    alone = [head(states[i : i + 1, :f], frames[i : i + 1]) for i, f in enumerate(frames.tolist())]
    lengths = (targets > 0).sum(1)
    expected = [
        nn.functional.ctc_loss(
            one.log_softmax(-1).transpose(0, 1), targets[i : i + 1], frames[i : i + 1], lengths[i : i + 1]
        )
        for i, one in enumerate(alone)
    ]
    torch.testing.assert_close(ctc_loss(together, targets), torch.stack(expected).mean())
    assert greedy(together) == [text for one in alone for text in greedy(one)]
    for i, one in enumerate(alone):
        torch.testing.assert_close(together[i, : frames[i]], one[0])


def test_padding_gets_no_gradient():
    head = CTCHead(8, 5)
    states = torch.randn(2, 9, 8, requires_grad=True)
    ctc_loss(head(states, torch.tensor([9, 4])), torch.tensor([[1, 2], [3, 0]])).backward()
    assert states.grad[1, 4:].abs().max() == 0 and states.grad[1, :4].abs().min() > 0


def test_an_empty_text_is_a_valid_target():
    clips, lengths, targets = collate([(torch.randn(3200), []), (torch.randn(1600), [1, 2])])
    assert targets.dtype == torch.long and targets.tolist() == [[0, 0], [1, 2]]
    model = MultiExitModel(load_backbone("nano"), CHARACTERS, [3], head="ctc")
    assert torch.isfinite(ctc_loss(model(clips, lengths)[3], targets))


@pytest.mark.parametrize("kind", ["ctc", "ctc-bilstm"])
def test_a_head_survives_saving_and_cutting(kind, tmp_path):
    model = MultiExitModel(load_backbone("nano"), CHARACTERS, [3, 12], head=kind).eval()
    clips, lengths = torch.randn(2, 8000), torch.tensor([8000, 5000])
    model.standardise(clips, lengths)
    model.save_pretrained(tmp_path)
    again, shallow = MultiExitModel.from_pretrained(tmp_path), model.client_model(3).eval()
    with torch.no_grad():
        expected = model(clips, lengths)
        assert torch.equal(again(clips, lengths)[12], expected[12])
        assert torch.equal(shallow(clips, lengths)[3], expected[3])


def logits_of(path):
    logits = torch.zeros(1, len(path), 1 + len(CHARACTERS))
    logits[0, range(len(path)), path] = 10.0
    return logits


def test_decoders_read_a_path_without_uncertainty():
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed")
    path = [code for code in characters("it's me") for code in (code, code, 0)]
    assert greedy(logits_of(path)) == ["it's me"]
    assert beam_decoder(["it's", "me", "we"])(logits_of(path)) == ["it's me"]


def test_beam_search_replaces_an_unknown_word_by_a_known_one():
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed")
    path = [code for code in characters("helo we") for code in (code, 0)]
    assert greedy(logits_of(path)) == ["helo we"]
    assert beam_decoder(["hello", "hero", "we"])(logits_of(path))[0].split()[1] == "we"
    assert beam_decoder(["hello", "hero", "we"])(logits_of(path))[0].split()[0] in {"hello", "hero"}


def test_beam_search_without_its_library_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "flashlight.lib.text.decoder", None)
    for name in ("ctc_decoder", "_ctc_decoder"):
        monkeypatch.delitem(vars(torchaudio.models.decoder), name, raising=False)
    monkeypatch.delitem(sys.modules, "torchaudio.models.decoder._ctc_decoder", raising=False)
    assert not beam_search_available()
    with pytest.raises(FedexitError, match=r"needs flashlight-text; .*fedexit\[beam\]"):
        beam_decoder(["yes"])


def test_a_clip_too_short_for_its_text_is_named_beside_longer_ones():
    head, frames = CTCHead(8, 5), torch.tensor([9, 3])
    logits = head(torch.randn(2, 9, 8), frames)
    assert torch.isfinite(ctc_loss(logits, torch.tensor([[1, 2, 0], [1, 2, 3]])))
    with pytest.raises(FedexitError, match=r"clip 1 of the batch \(from 0\) has 3 frames, too few to spell its 3 char"):
        ctc_loss(logits, torch.tensor([[1, 2, 0], [1, 2, 2]]))
    assert too_long([9, 3], [[1, 2], [1, 2, 2]]) == [1]
    half = head(torch.randn(2, 9, 8), frames).bfloat16()
    assert within(half).sum(1).tolist() == [9, 3] and within(half * torch.nan).all()


def test_macs_of_every_head_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    states, frames = torch.randn(1, 11, 8), torch.tensor([11])
    for kind in ("pooled", "ctc"):
        head = HEADS[kind](8, 5)
        with FlopCounterMode(display=False) as counter:
            head(states, frames)
        assert counter.get_total_flops() == 2 * head.macs(11)


def test_the_lstm_uses_single_precision_if_the_processor_lacks_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    head, heard = CTCHead(8, 5, recurrent=True), []
    head.recurrent.register_forward_hook(lambda module, given, found: heard.append(found[0].data))
    states, frames = torch.randn(2, 7, 8), torch.tensor([7, 4])
    with torch.autocast("cpu", torch.bfloat16):
        assert head(states, frames).isfinite().all()
    head(states, frames)
    assert heard[0].dtype == torch.float32 and torch.equal(*heard)
