import io
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import ShortTimeFFT
from scipy.signal.windows import hann

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline import audio
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline, Step
from hasten.inputs.pipeline.mp3 import samples_of_frames

soundfile: Any = pytest.importorskip("soundfile", reason="needs soundfile: hasten[audio]")
pytest.importorskip("soxr", reason="needs soxr: hasten[audio]")
RATE = 16000


def tone(hertz: float, rate: int = RATE, seconds: float = 0.5) -> Array:
    times = np.arange(int(rate * seconds)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def encoded(
    samples: Array, rate: int = RATE, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def refused(make: Any) -> str:
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("kind", "subtype", "within"),
    [
        ("WAV", "FLOAT", 0),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-22),
        ("WAV", "PCM_U8", 2**-6),
        ("FLAC", "PCM_16", 2**-15),
    ],
)
def test_sounds_decode_to_what_was_written(kind: str, subtype: str, within: float) -> None:
    wanted = tone(440)
    given = DecodeAudio()(encoded(wanted, kind=kind, subtype=subtype))
    assert given.dtype == np.float32
    assert given.shape == wanted.shape
    assert np.abs(given - wanted).max() <= within


def test_channels_are_averaged() -> None:
    stereo = np.stack([tone(440), np.zeros_like(tone(440))], axis=1)
    given = DecodeAudio()(encoded(stereo, subtype="FLOAT"))
    np.testing.assert_allclose(given, tone(440) / 2, atol=1e-7)


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "OGG", "MP3"])
def test_a_sound_that_is_cut_short_is_no_shorter_sound(tmp_path: Path, kind: str) -> None:
    whole = encoded(tone(440, seconds=2), kind=kind)
    file = tmp_path / "a"
    for part in (whole[: len(whole) // 2], encoded(tone(440, seconds=0), kind=kind)):
        file.write_bytes(part)
        for given in (part, file):
            said = refused(lambda given=given: DecodeAudio()(given))
            assert "is cut short or empty: give" in said or "can't be read as a sound" in said
    assert len(DecodeAudio()(whole)) == 2 * RATE


def test_a_whole_mp3_of_variable_rate_that_states_no_length_is_read() -> None:
    # Streams and recorders write no Xing frame; the decoder then guesses twice the length from the silence.
    file, noise = io.BytesIO(), np.random.default_rng(0).normal(0, 0.2, 5 * RATE)
    sound = np.concatenate([np.zeros(5 * RATE), noise]).astype(np.float32)
    soundfile.write(file, sound, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    whole = file.getvalue()
    streamed = whole[whole.index(whole[:2], whole.index(b"Xing")) :]
    assert soundfile.info(io.BytesIO(streamed)).frames > 1.2 * len(sound)
    assert len(DecodeAudio()(streamed)) == pytest.approx(len(sound), abs=RATE / 10)
    pictured = b"ID3\x04\0\0\0\0\x40\0" + bytes(1 << 13)  # tags of 8 KiB, such as a cover
    assert len(DecodeAudio()(pictured + whole)) == len(sound)
    assert "is cut short" in refused(lambda: DecodeAudio()(pictured + whole[: len(whole) // 2]))


def test_an_mp3_of_variable_rate_of_which_only_a_part_is_read_is_refused(tmp_path: Path) -> None:
    # The decoder guesses half the length from the noise at the beginning, and reads no further.
    file, noise = io.BytesIO(), np.random.default_rng(0).normal(0, 0.2, 5 * RATE)
    sound = np.concatenate([noise, np.zeros(15 * RATE)]).astype(np.float32)
    soundfile.write(file, sound, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.3)
    whole = file.getvalue()
    streamed = whole[whole.index(whole[:2], whole.index(b"Xing")) :]
    assert soundfile.info(io.BytesIO(streamed)).frames < 0.8 * len(sound)
    (tmp_path / "a.mp3").write_bytes(streamed)
    for given, name in ((streamed, "the sound"), (tmp_path / "a.mp3", str(tmp_path / "a.mp3"))):
        said = refused(lambda given=given: DecodeAudio()(given))
        assert said.startswith(f"{name} is an MP3 file of 20.")
        assert said.endswith(
            " s of it were read, since it doesn't state its length: convert it, for example by ffmpeg"
        )
    assert len(DecodeAudio()(whole)) == len(sound)
    assert "is an MP3 file of 40." in refused(lambda: DecodeAudio()(whole + whole))


@pytest.mark.parametrize("seconds", [0.05, 0.5, 3])
@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_whole_mp3s_of_every_rate_and_length_are_read(seconds: float, rate: int, mode: str) -> None:
    for channels in (1, 2):
        file, sound = io.BytesIO(), np.stack([tone(440, rate, seconds)] * channels, axis=1)
        soundfile.write(file, sound, rate, format="MP3", bitrate_mode=mode)
        whole = file.getvalue()
        assert len(DecodeAudio(rate)(whole)) == len(sound)
        held = samples_of_frames(whole)
        assert len(sound) <= held <= len(sound) + 8000
        # Tags at the end and bytes between frames are no sound.
        assert samples_of_frames(whole + b"TAG" + b"\xff" * 125) == held


def test_what_strangers_send_for_an_mp3_is_looked_at_for_a_while_only() -> None:
    assert samples_of_frames(b"") == samples_of_frames(b"ID3") == 0
    assert samples_of_frames(b"\xff" * 100_000) == 0
    assert samples_of_frames(b"\xff" * 3000 + encoded(tone(440), kind="MP3")) == 0


def test_a_sound_that_was_written_as_it_came_states_no_size() -> None:
    whole = encoded(tone(440))
    for size in (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"):
        streamed = whole[:4] + size + whole[8:]
        assert np.array_equal(DecodeAudio()(streamed), DecodeAudio()(whole))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_is_resampled(rate: int) -> None:
    given = DecodeAudio()(encoded(tone(440, rate), rate, subtype="FLOAT"))
    assert given.shape == (RATE // 2,)
    middle = slice(1000, -1000)  # The ends ring, as any filter's do.
    assert np.abs(given - tone(440))[middle].max() < 1e-3


def test_a_file_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tone(440)))
    np.testing.assert_array_equal(
        DecodeAudio()(tmp_path / "a.wav"), DecodeAudio()(encoded(tone(440)))
    )


def test_what_can_not_be_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(lambda: DecodeAudio()(b"text")).startswith("the sound can't be read as a sound")
    path = tmp_path / "no.wav"
    assert refused(lambda: DecodeAudio()(path)).startswith(f"{path} can't be read as a sound")
    assert refused(lambda: DecodeAudio(max_samples=7999)(encoded(tone(440)))) == (
        "the sound has 8000 samples of 1 channels at 16000 Hz, more than 7999 in all"
    )
    slow = encoded(tone(1, 100), 100)
    assert refused(lambda: DecodeAudio(max_samples=7999)(slow)) == (
        "the sound has 50 samples of 1 channels at 100 Hz, more than 7999 in all"
    )
    assert refused(lambda: DecodeAudio()(encoded(tone(440), kind="AU"))).startswith(
        "the sound is AU; accepted formats are WAV"
    )
    assert refused(lambda: DecodeAudio(0)) == (
        "decode_audio.rate=0: give a number from 1 to 1.04858e+06"
    )
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert refused(lambda: DecodeAudio()(b"")) == (
        "the step decode_audio needs the extra: pip install 'hasten[audio]'"
    )


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_a_sound_with_numbers_that_are_not_finite_is_refused(strange: float) -> None:
    samples = tone(440)
    samples[100] = strange
    data = encoded(samples, subtype="FLOAT")
    assert refused(lambda: DecodeAudio()(data)) == (
        "the sound has samples that aren't finite numbers"
    )


@pytest.mark.parametrize(
    ("frames", "channels", "rate", "most"), [(4_000, 1, 1, 305), (20_000, 2, 8, 191)]
)
def test_a_sound_that_takes_much_memory_for_its_bytes_is_refused(
    frames: int, channels: int, rate: int, most: int, tmp_path: Path
) -> None:
    data = encoded(np.zeros((frames, channels), np.float32), rate, subtype="PCM_U8")
    assert refused(lambda: DecodeAudio()(data)) == (
        f"the sound has {frames:,} samples of {channels} channels at {rate} Hz in {len(data):,} bytes: decoding "
        f"it takes {most} MiB, but only 16 MiB are allowed for so few bytes; send a shorter sound, or raise "
        "memory_per_byte of the step decode_audio"
    )
    assert refused(lambda: DecodeAudio(memory_per_byte=-1)) == (
        "decode_audio.memory_per_byte=-1: give a number from 0 to inf"
    )
    # A setting, a file of one's own, or more bytes.
    (tmp_path / "slow.wav").write_bytes(data)
    assert DecodeAudio(memory_per_byte=0, rate=8 * rate)(data).shape == (8 * frames,)
    assert DecodeAudio(rate=8 * rate)(tmp_path / "slow.wav").shape == (8 * frames,)
    short = encoded(np.zeros(600, np.float32), 1, subtype="PCM_U8")
    assert "takes 46 MiB" in refused(lambda: DecodeAudio()(short))
    assert DecodeAudio()(short + bytes(81_000)).shape == (9_600_000,)


def test_a_sound_is_cut_or_followed_by_silence() -> None:
    sound = np.arange(1, 4, dtype=np.float32)
    assert FitLength(2)(sound).tolist() == [1, 2]
    assert FitLength(5)(sound).tolist() == [1, 2, 3, 0, 0]
    assert refused(lambda: FitLength(0)).startswith("fit_length.length=0: give a number from 1")


@pytest.mark.parametrize("window", [400, 512])
def test_the_power_is_that_of_scipys_short_time_fourier_transform(window: int) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    step = LogMel(window=window, log="natural")
    # Both center the first frame at the first sample; scipy fills with zeros beyond the ends.
    transform = ShortTimeFFT(hann(window, sym=False), 160, RATE)
    power = np.abs(transform.stft(sound, p0=0, p1=26)) ** 2
    inside = slice(2, 23)
    wanted = np.log(step._bands @ power)[:, inside]
    np.testing.assert_allclose(step(sound)[:, inside], wanted, atol=1e-4)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("hertz", [300, 1000, 4000])
def test_a_tone_is_loudest_in_its_own_band(scale: Any, hertz: float) -> None:
    step = LogMel(scale=scale, log="decimal", window=1024)
    loudest = int(step(tone(hertz))[:, 20].argmax())
    weights = step._bands[loudest]
    peak = np.fft.rfftfreq(1024, 1 / RATE)[weights.argmax()]
    assert abs(peak - hertz) < 0.06 * hertz + RATE / 1024


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, {}),
        ({"scale": "htk", "area": False}, {"htk": True, "norm": None}),
        (
            {"fft": 512, "center": False, "mels": 64, "low": 50.0, "high": 7000.0},
            {"n_fft": 512, "win_length": 400, "center": False, "n_mels": 64, "fmin": 50}
            | {"fmax": 7000},
        ),
    ],
)
def test_spectrograms_are_librosas(settings: dict[str, Any], same: dict[str, Any]) -> None:
    librosa: Any = pytest.importorskip("librosa", reason="needs librosa as the oracle")
    sound = tone(440) + np.random.default_rng(0).normal(0, 0.05, RATE // 2).astype(np.float32)
    options = {"n_fft": 400, "hop_length": 160, "n_mels": 80, "pad_mode": "reflect", **same}
    wanted = librosa.feature.melspectrogram(y=sound, sr=RATE, **options)
    given = LogMel(log="natural", **settings)(sound)
    np.testing.assert_allclose(given, np.log(np.maximum(wanted, 1e-10)), atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"center": False}, {"window": 399, "hop": 7}])
@pytest.mark.parametrize("length", [401, 1600, 3333, 20_000])
def test_a_long_sound_is_computed_in_parts(
    settings: dict[str, Any], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    step = LogMel(**settings)
    whole = step(sound)
    for frames in (1, 3, 10):
        monkeypatch.setattr(audio, "_FRAME_SAMPLES", frames * step.window)
        np.testing.assert_allclose(step(sound), whole, atol=1e-5)


def test_a_long_sound_takes_little_more_memory_than_itself_and_its_spectrogram() -> None:
    sound = np.zeros(4_000_000, np.float32)
    tracemalloc.start()
    spectrogram = LogMel()(sound)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < spectrogram.nbytes + (9 << 20)


def test_whispers_values_end_eight_below_the_highest_and_lack_the_last_frame() -> None:
    pipeline = Pipeline((DecodeAudio(), FitLength(RATE), LogMel()))
    given = pipeline(encoded(tone(440)))
    assert given.shape == (80, 100)
    assert given.dtype == np.float32
    assert given.min() == pytest.approx(given.max() - 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hop": 0}, "log_mel.hop=0: give a number from 1 to 65536"),
        ({"fft": 399}, "log_mel.fft=399: give a number from 400 to 65536"),
        ({"high": 9000.0}, "log_mel.high=9000.0: give a number from 0 to 8000"),
        ({"floor": 0.0}, "log_mel.floor=0.0: give a number from 1e-30 to 1"),
    ],
)
def test_settings_that_can_not_be_used_are_named(settings: dict[str, Any], message: str) -> None:
    assert refused(lambda: LogMel(**settings)) == message


def test_sounds_that_do_not_fit_are_named() -> None:
    assert refused(lambda: LogMel()(np.zeros(200, np.float32))) == (
        "log_mel needs a sound of at least 201 samples; got [200]"
    )
    assert refused(lambda: LogMel(hop=1, window=2**16)(np.zeros(2**15 + 1, np.float32))) == (
        "a sound of 32769 samples is too long for log_mel with hop=1: cut it first, with fit_length"
    )


def test_steps_come_back_from_their_records() -> None:
    for step in (DecodeAudio(8000), FitLength(5), LogMel(scale="htk", log="natural")):
        assert from_record(Step, to_record(step)) == step


@pytest.mark.parametrize(
    "data", [b"", b"<!DOCTYPE html>", b"RIFF\x24\x00\x00\x00WAVEfmt ", b"OggS"]
)
def test_what_is_no_sound_is_said_without_an_address_in_memory(data: bytes) -> None:
    with pytest.raises(InputError, match=r"^the sound can't be read as a sound: \w") as error:
        DecodeAudio()(data)
    assert "0x" not in str(error.value)
    assert "opening" not in str(error.value)


def test_a_number_is_no_open_file() -> None:
    """libsndfile would read the file that this process has open under the number, and close it."""
    place = os.open(os.devnull, os.O_RDONLY)
    try:
        with pytest.raises(InputError) as error:
            DecodeAudio()(place)  # type: ignore[arg-type]
        assert str(error.value) == (
            "the step decode_audio takes a sound file's bytes or its path, but gets a value of type int"
        )
        os.fstat(place)
    finally:
        os.close(place)


def test_a_text_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text may come from a stranger, whom a server shows no file of its own."""
    monkeypatch.chdir(tmp_path)
    Path("a.wav").write_bytes(encoded(tone(440)))
    assert refused(lambda: DecodeAudio()("a.wav")) == (  # type: ignore[arg-type]
        "decode_audio takes a sound's bytes or its path, but a text isn't a path: give Path('a.wav')"
    )
    assert DecodeAudio()(Path("a.wav")).shape == (RATE // 2,)
