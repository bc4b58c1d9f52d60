"""Test what notebook 25 shows: frames of a clip, mixes of a fleet, and controls that a run does not show."""

import pandas as pd
import pytest
import torch

from fedexit import MultiExitModel, load_backbone
from fedexit.data.text import CHARACTERS
from fedexit.lab import figures_listen
from fedexit.lab.listening import BANDS, explore, frames_of, mixed, same_as_last
from fedexit.model.ctc import greedy


def test_frames_hold_what_the_exits_spell_and_where_the_sound_is():
    model = MultiExitModel(load_backbone("nano"), list(CHARACTERS), [3, 6], head="ctc")
    waveform = torch.zeros(16_000)
    waveform[8_000:] = 0.5 * torch.sin(torch.arange(8_000) * 2 * torch.pi * 1_000 / 16_000)
    frames = frames_of(model, waveform)
    with torch.no_grad():
        outputs = model(waveform[None])
    assert len(frames) == outputs[3].shape[1] and frames["second"].between(0, 1).all()
    for exit, logits in outputs.items():
        kept = frames[f"exit {exit}"][frames[f"exit {exit}"] != frames[f"exit {exit}"].shift()]
        assert "".join(kept).replace("_", " ").strip() == greedy(logits)[0]
        assert frames[f"sure {exit}"].tolist() == pytest.approx(logits[0].softmax(-1).amax(-1).tolist(), abs=1e-4)
    early, late = frames[frames["second"] < 0.45], frames[frames["second"] > 0.55]
    bands = [f"band {band}" for band in range(1, BANDS + 1)]
    assert (early[["low", "high"]] == 0).all(axis=None) and (early[bands] == -80).all(axis=None)
    assert late["high"].max() == pytest.approx(0.5, abs=0.01) and set(late[bands].idxmax(axis=1)) == {"band 5"}  # 1 kHz
    assert len(figures_listen.over_time(frames).axes) == 3


def test_agreement_counts_the_frames_in_which_the_last_exit_spells():
    frames = pd.DataFrame({"exit 3": ["a", "b", "", "c", "d"], "exit 12": ["a", "", "b", "c", "e"]})
    assert same_as_last(frames, [3, 12]).to_dict("list") == {"exit": [3, 12], "frames": [4, 4], "share": [0.5, 1.0]}


def test_a_mix_by_hand():
    """Devices of depth 6 and 12 take tier 3 and 9; the one of depth 2 stays away, and nobody trains layer 10."""
    table = mixed({2: 7, 3: 1, 6: 2, 9: 1, 12: 1}, [9, 3], g=1.0).set_index(["layer", "tier"])
    assert table.loc[(1, 3), "clients"] == 3 and table.loc[(1, 9), "clients"] == 2
    assert table.loc[(3, 3), "share"] == pytest.approx(9 / 27) and table.loc[(3, 9), "share"] == pytest.approx(18 / 27)
    assert table.loc[(1, 3), "effective"] == pytest.approx(27**2 / (3 * 9 + 2 * 81))
    assert (table.loc[4:9, "share"] == 1).all() and (table.loc[4:9, "effective"] == 2).all()
    assert table.index.get_level_values("layer").max() == 9
    even = mixed({3: 5, 12: 5}, [3, 12], g=0.0)
    assert even["effective"].max() == 10
    figure = figures_listen.mix(pd.concat([even.assign(mix="a", g=0.0), even.assign(mix="b", g=0.0)]))
    assert len(figure.axes) == 4 and figure.axes[0].get_title() == "a\ng = 0"


def test_controls_are_shown_to_a_reader_and_not_in_a_run(monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("ipywidgets.interact", lambda draw, **controls: shown.append((draw, controls)))
    monkeypatch.setenv("FEDEXIT_OUT", "anywhere")
    explore(print, g=(0, 1))
    assert shown == [] and "JupyterLab" in capsys.readouterr().out
    monkeypatch.delenv("FEDEXIT_OUT")
    explore(print, g=(0, 1))
    assert shown == [(print, {"g": (0, 1)})]
