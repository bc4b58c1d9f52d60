import io
import struct

import numpy as np
import pytest
import soundfile as sf
import torch

from fedexit.data.audio import decode_audio, read_audio, read_clip, to_16k_mono, write_audio
from fedexit.data.constants import SAMPLE_RATE
from fedexit.support.errors import FedexitError


def tone(hertz=440, rate=SAMPLE_RATE, seconds=0.5):
    time = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_16_bit_audio_is_bit_identical_after_writing_and_reading(tmp_path):
    wave = (torch.from_numpy(tone()) * 32768).round() / 32768
    wave[0], wave[1] = -1, 32767 / 32768
    write_audio(tmp_path / "a.flac", wave)
    assert torch.equal(read_audio(tmp_path / "a.flac"), wave)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]


def test_overshoot_is_clipped_not_wrapped_and_reported(tmp_path):
    lost = write_audio(tmp_path / "a.flac", torch.tensor([3.0, -3.0, 0.0]))
    assert lost == "2 of 3 samples clipped, peak 3.00"
    assert read_audio(tmp_path / "a.flac").tolist() == [32767 / 32768, -1, 0]


def test_a_level_that_16_bits_hold_is_not_reported(tmp_path):
    for level in (1.0, 0.5, 1 / 32768, 0.0):
        assert write_audio(tmp_path / "a.flac", torch.tensor([level, -level]).clamp(max=32767 / 32768)) == ""
    assert "very quiet" in write_audio(tmp_path / "a.flac", torch.from_numpy(tone()) * 1e-4)


@pytest.mark.parametrize(
    ("scale", "says"), [(20_000.0, "peak is 1e+04"), (8.5, "peak is 4.25"), (1e-6, "silence in 16")]
)
def test_levels_far_beyond_16_bits_are_refused(tmp_path, scale, says):
    with pytest.raises(FedexitError, match=r"a\.flac: not written") as caught:
        write_audio(tmp_path / "a.flac", torch.from_numpy(tone()) * scale)
    assert says in str(caught.value) and not list(tmp_path.iterdir())


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
def test_truncated_files_are_refused(tmp_path, ending, share):
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


def test_decode_audio_returns_rate_and_channels(tmp_path):
    sf.write(tmp_path / "a.wav", np.zeros((441, 2)), 44_100)
    samples, rate = decode_audio(tmp_path / "a.wav")
    assert (tuple(samples.shape), samples.dtype, rate) == ((2, 441), torch.float32, 44_100)


# ---- sizes in headers are hints ----------------------------------------------------------------------------------


def encoded(form, subtype=None, rate=SAMPLE_RATE, samples=None):
    file = io.BytesIO()
    sf.write(file, tone() if samples is None else samples, rate, format=form, subtype=subtype)
    return bytearray(file.getvalue())


def sized(form, changes):
    """Return a file of 8,000 samples with other numbers in header fields, which are found by the bytes before them."""
    content = encoded(form)
    for before, layout, value in changes:
        place = 4 if before is None else content.index(before) + len(before)
        struct.pack_into(layout, content, place, value & (256 ** struct.calcsize(layout) - 1))
    return bytes(content)


PLACEHOLDERS = [0, 1, 36, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, -37, -1, 8_000]
WAVE64 = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
UNKNOWN = (
    [("WAV", [(None, "<I", size), (b"data", "<I", size)]) for size in PLACEHOLDERS]
    + [("WAV", [(b"data", "<I", size)]) for size in (0, 2_000, 10**6, -1)]
    + [("WAV", [(None, "<I", size)]) for size in (0, 36, 10**6, -1)]
    + [("AIFF", [(None, ">I", size), (b"SSND", ">I", size)]) for size in (0, 0x7F000000, -1, 4_000)]
    + [("AU", [(b".snd\x00\x00\x00\x18", ">I", size)]) for size in (0, 0x7FFFFFFF, -1, 4_000)]
    + [("CAF", [(b"data", ">Q", size)]) for size in (0, -1, 4_000)]
    + [("W64", [(WAVE64, "<Q", size)]) for size in (0, 24, 1 << 63, -1)]
    + [("RF64", [(b"ds64\x1c\x00\x00\x00", "<Q", size), (b"ds64\x1c\x00\x00\x00", "<Q", size)]) for size in (0, -1)]
)


@pytest.mark.parametrize(("form", "changes"), UNKNOWN)
def test_any_size_in_a_header_is_read_to_the_end_of_the_data(form, changes):
    samples, rate = decode_audio(sized(form, changes))
    assert torch.equal(samples, decode_audio(bytes(encoded(form)))[0])
    assert (samples.shape[1], rate) == (8_000, SAMPLE_RATE)


LIST = b"LIST" + struct.pack("<I", 12) + b"INFOISFT" + bytes(4)


BEHIND = [(LIST, size) for size in (16_000, 0, 0xFFFFFFFF)]  # without a size only chunks differ from samples
BEHIND += [(more, 16_000) for more in (LIST[:-3], b"TAG" + bytes(125), bytes(5_000), b"\x80garbage" * 9)]


@pytest.mark.parametrize(("behind", "size"), BEHIND)
def test_chunks_after_the_samples_are_not_decoded(behind, size):
    content = encoded("WAV") + behind
    struct.pack_into("<I", content, 40, size)
    assert decode_audio(bytes(content))[0].shape[1] == 8_000


def test_chunks_may_come_in_any_order():
    wave = bytes(encoded("WAV"))
    assert decode_audio(wave[:12] + wave[36:] + wave[12:36])[0].shape[1] == 8_000


def test_an_empty_data_chunk_before_other_chunks_stays_empty():
    with pytest.raises(FedexitError, match="no samples"):
        decode_audio(bytes(encoded("WAV", samples=tone()[:0]) + LIST), "a.wav")


@pytest.mark.parametrize("form", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64", "FLAC", "OGG", "MP3", "NIST"])
def test_a_file_that_ends_too_early_is_refused_by_name(form):
    content = bytes(encoded(form, samples=np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)))
    for share in (0.6, 0.9):
        with pytest.raises(FedexitError, match=rf"a\.{form}: cut short") as caught:
            decode_audio(content[: int(share * len(content))], f"a.{form}")
        assert "\n" not in str(caught.value)


# ---- unusual but whole files -------------------------------------------------------------------------------------


def streamed_flac():
    content = encoded("FLAC")
    number = int.from_bytes(content[18:26], "big") >> 36 << 36  # the last 36 bits count the samples; 0 is unknown
    content[18:42] = number.to_bytes(8, "big") + bytes(16)
    return bytes(content)


def test_a_streamed_flac_of_unknown_length_is_decoded():
    assert torch.equal(decode_audio(streamed_flac())[0], decode_audio(bytes(encoded("FLAC")))[0])
    with pytest.raises(FedexitError, match=r"a\.flac: cut short or damaged"):
        decode_audio(streamed_flac()[:-3_000], "a.flac")


KINDS = [
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("FLAC", None),
    ("MP3", None),
    ("WAV", None),
    ("AIFF", None),
    ("RF64", None),
]


@pytest.mark.parametrize(("form", "subtype"), KINDS)
def test_several_recordings_in_a_file_are_joined(form, subtype):
    first, second = (bytes(encoded(form, subtype, samples=tone(hertz))) for hertz in (300, 500))
    joined = decode_audio(first + second + first)[0]
    assert torch.equal(joined, torch.cat([decode_audio(one)[0] for one in (first, second, first)], 1))


@pytest.mark.parametrize(("form", "subtype"), KINDS)
def test_recordings_of_two_sample_rates_in_a_file_are_refused(form, subtype):
    with pytest.raises(FedexitError, match=r"holds several recordings, 8000 Hz .* and 16000 Hz .*; write one file"):
        decode_audio(bytes(encoded(form, subtype) + encoded(form, subtype, 8_000)))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_files_without_an_end_or_with_trailing_garbage_are_decoded(subtype):
    content = encoded("OGG", subtype)
    expected = decode_audio(bytes(content))[0]
    last = content.rfind(b"OggS")
    stopped = decode_audio(bytes(with_flags(content, last, content[last + 5] & ~4)))[0]
    assert torch.equal(stopped, expected) and torch.equal(decode_audio(bytes(content) + b"garbage")[0], expected)


def with_flags(content, page, flags):
    """Set the flags of the last page and its checksum, bit by bit as in the definition of Ogg."""
    content = bytearray(content)
    content[page + 5], content[page + 22 : page + 26] = flags, bytes(4)
    crc = 0
    for byte in content[page:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    content[page + 22 : page + 26] = struct.pack("<I", crc)
    return content


def readable_kinds():
    hidden = {("AIFF", "DWVW_12"), ("MP3", "MPEG_LAYER_I"), ("MP3", "MPEG_LAYER_II"), ("WAV", "MPEG_LAYER_III")}
    forms = set(sf.available_formats()) - {"RAW", "SD2"}  # without a header, and in two files
    kinds = [(form, subtype) for form in sorted(forms) for subtype in sorted(sf.available_subtypes(form))]
    return [kind for kind in kinds if kind not in hidden]  # libsndfile cannot write these


def test_every_subtype_of_libsndfile_decodes():
    for form, subtype in readable_kinds():
        samples, _ = decode_audio(bytes(encoded(form, subtype)), f"{form} {subtype}")
        assert 8_000 <= samples.shape[1] < 8_600, (form, subtype)  # block codecs fill their last block
        assert 0.3 < samples.abs().max() < 1, (form, subtype)


@pytest.mark.parametrize("fault", [RuntimeError("a\nb"), ValueError("array is too big"), MemoryError(), TypeError()])
def test_every_decoder_error_is_one_sentence(monkeypatch, fault):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(sf.SoundFile, "read", fail)
    with pytest.raises(FedexitError, match=r"^a\.wav: .+; .+$") as caught:
        decode_audio(bytes(encoded("WAV")), "a.wav")
    assert "\n" not in str(caught.value)


# ---- rates, channels, length -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_127, 16_001, 22_051, 44_056, 48_001, 192_000])
def test_resampling_from_any_rate_keeps_pitch_level_and_length(rate):
    wave = to_16k_mono(torch.from_numpy(tone(300, rate)), rate)
    assert wave.dtype == torch.float32 and len(wave) == pytest.approx(8_000, abs=2)
    assert wave.sub(torch.from_numpy(tone(300))[: len(wave)])[400:-400].abs().max() < 0.01


@pytest.mark.parametrize("rate", [44_056, 48_001])
def test_resampling_by_scipy_lets_nothing_above_8_khz_through(rate):
    assert to_16k_mono(torch.from_numpy(tone(11_000, rate)), rate)[400:-400].abs().max() < 0.01


@pytest.mark.parametrize("rate", [1, 999, 1_000_001])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(FedexitError, match=f"a.wav: its rate is {rate} Hz"):
        decode_audio(bytes(encoded("WAV", rate=rate)), "a.wav")


def stereo(*gains):
    return bytes(encoded("WAV", samples=np.stack([gain * tone() for gain in gains], 1)))


@pytest.mark.parametrize("gains", [(1, -1), (0.9, -0.85), (1, -1, 0.5, -0.5)])
def test_channels_that_cancel_out_are_refused_by_name(gains):
    with pytest.raises(FedexitError, match=rf"a\.wav: its {len(gains)} channels cancel out"):
        read_clip(stereo(*gains), "a.wav")


@pytest.mark.parametrize("gains", [(1, 1), (1, 0), (0, 0), (1, -0.5), (1, 0, 0, 0, 0, 0)])
def test_other_channels_are_averaged(gains):
    assert len(read_clip(stereo(*gains))) == 8_000


def test_a_clip_shorter_than_one_frame_is_refused_by_name():
    assert len(read_clip(bytes(encoded("WAV", samples=tone()[:400])))) == 400
    with pytest.raises(FedexitError, match=r"a\.wav: 399 samples at 16 kHz are too short"):
        read_clip(bytes(encoded("WAV", samples=tone()[:399])), "a.wav")


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (16_000, 2), (44_100, 1), (44_100, 2), (8_000, 1)])
def test_an_mp3_of_variable_bitrate_without_a_length_is_read_to_its_end(rate, channels):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, (2 * rate, channels)) * (np.arange(2 * rate) > rate)[:, None]
    content = bytes(encoded("MP3", rate=rate, samples=sound))
    second = content.index(content[:2], content.index(b"Xing"))  # the first frame holds nothing but the length
    samples, _ = decode_audio(content[second:])
    assert 2 * rate <= samples.shape[1] < 2 * rate + 4_000
    assert samples[:, -rate // 2 :].square().mean() > 0.5 * np.square(sound[-rate // 2 :]).mean()


# ---- what else people hand over ----------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"\n", b"TAG" + bytes(125), bytes(5_000)])
def test_a_tag_or_padding_behind_a_flac_changes_nothing(behind):
    content = bytes(encoded("FLAC"))
    assert torch.equal(decode_audio(content + behind)[0], decode_audio(content)[0])


@pytest.mark.parametrize(
    ("form", "subtype"), [("AVR", "PCM_16"), ("SVX", "PCM_16"), ("SVX", "PCM_S8"), ("SDS", "PCM_16"), ("SDS", "PCM_24")]
)
def test_cut_files_of_rare_formats_are_named(form, subtype):
    content = bytes(encoded(form, subtype))
    assert decode_audio(content)[0].shape[1] == 8_000
    for length in (len(content) // 2, len(content) - 2):
        with pytest.raises(FedexitError, match=r"^a: cut short"):
            decode_audio(content[:length], "a")


def test_damaged_files_print_no_traceback(capfd):
    for form in ("AIFF", "WAV", "AU", "CAF"):
        for length in (1, 4, 12, 20, 36, 60):
            with pytest.raises(FedexitError):
                decode_audio(bytes(encoded(form))[:length])
    assert "Traceback" not in capfd.readouterr().err


def test_audio_is_read_from_paths_texts_and_bytes(tmp_path):
    content = bytes(encoded("WAV"))
    (tmp_path / "a.wav").write_bytes(content)
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav"), content, bytearray(content)):
        assert decode_audio(source)[0].shape == (1, 8_000) and read_audio(source).shape == (8_000,)
    for source in (None, 5, [0.1]):
        with pytest.raises(FedexitError, match=r"no audio in an object of type \w+; give a path"):
            decode_audio(source)


@pytest.mark.parametrize("wave", [np.ones(400, np.float32), [0.1] * 400, torch.ones(400, dtype=torch.int16), None])
def test_what_is_no_tensor_of_floats_is_not_written(tmp_path, wave):
    with pytest.raises(FedexitError, match=r"a\.flac: not written, the waveform is .+; give a tensor of floats"):
        write_audio(tmp_path / "a.flac", wave)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named_without_temporary_names(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "a.flac", f"{tmp_path}/a\0b.flac"):
        with pytest.raises(FedexitError, match=r"cannot be written \(.+\); choose another place") as caught:
            write_audio(place, torch.zeros(400))
        assert ".part" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
