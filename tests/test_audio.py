import numpy as np
import pytest
import soundfile as sf
import torch

from fedexit.data.audio import SAMPLE_RATE, decode_audio, read_audio, to_16k_mono, write_audio
from fedexit.support.errors import FedexitError


def tone(hertz=440, rate=SAMPLE_RATE, seconds=0.5):
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_sixteen_bit_audio_survives_write_and_read_bit_for_bit(tmp_path):
    wave = (torch.from_numpy(tone()) * 32768).round() / 32768
    wave[0], wave[1] = -1, 32767 / 32768
    write_audio(tmp_path / "a.flac", wave)
    assert torch.equal(read_audio(tmp_path / "a.flac"), wave)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]


def test_too_loud_is_clipped_not_wrapped(tmp_path):
    write_audio(tmp_path / "a.flac", torch.tensor([3.0, -3.0, 0.0]))
    assert read_audio(tmp_path / "a.flac").tolist() == [32767 / 32768, -1, 0]


@pytest.mark.parametrize("wave", [torch.tensor([0.0, torch.nan]), torch.zeros(0), torch.zeros(2, 3)])
def test_bad_waveforms_are_not_written(tmp_path, wave):
    with pytest.raises(FedexitError, match=r"a\.flac: not written"):
        write_audio(tmp_path / "a.flac", wave)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("missing.wav", lambda path: None, "No such file"),
        ("empty.wav", lambda path: path.write_bytes(b""), "empty"),
        ("text.flac", lambda path: path.write_text("not audio at all, just words\n" * 20), "not readable as audio"),
        ("nothing.wav", lambda path: sf.write(path, np.zeros(0, np.float32), SAMPLE_RATE), "no samples"),
        ("stereo.wav", lambda path: sf.write(path, np.zeros((99, 2)), SAMPLE_RATE), "16000 Hz with 2 channel"),
        (
            "rate.wav",
            lambda path: sf.write(path, tone(rate=8000), 8000),
            "8000 Hz with 1 .*fedexit data convert",
        ),
        ("nan.wav", lambda path: sf.write(path, np.full(99, np.nan), SAMPLE_RATE, subtype="FLOAT"), "not finite"),
    ],
)
def test_bad_files_are_refused_in_one_line_that_names_them(tmp_path, name, make, says):
    make(tmp_path / name)
    with pytest.raises(FedexitError, match=says) as caught:
        read_audio(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncation_is_noticed(tmp_path, ending, share):
    path = tmp_path / f"a.{ending}"
    sf.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 20_000), SAMPLE_RATE, subtype="PCM_16")
    assert len(read_audio(path)) == 20_000
    cut(path, share)
    with pytest.raises(FedexitError, match=rf"a\.{ending}: (cut short|not readable)"):
        read_audio(path)


def test_resampling_keeps_pitch_and_length():
    wave = to_16k_mono(torch.from_numpy(tone(1000, rate=11_025)), 11_025)
    assert len(wave) == pytest.approx(SAMPLE_RATE * 0.5, abs=2)
    assert wave.sub(torch.from_numpy(tone(1000))[: len(wave)])[200:-200].abs().max() < 0.01


def test_channels_are_averaged_and_16k_mono_is_left_alone():
    left = torch.from_numpy(tone())
    assert torch.equal(to_16k_mono(torch.stack([left, -left]), SAMPLE_RATE), torch.zeros_like(left))
    assert torch.equal(to_16k_mono(left, SAMPLE_RATE), left)


def test_decode_audio_tells_rate_and_channels(tmp_path):
    sf.write(tmp_path / "a.wav", np.zeros((441, 2)), 44_100)
    samples, rate = decode_audio(tmp_path / "a.wav")
    assert (tuple(samples.shape), samples.dtype, rate) == ((2, 441), torch.float32, 44_100)
