"""Steps from a sound file to a model's input."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Step, unfit
from hasten.inputs.pipeline.decoded_bytes import allowed_bytes
from hasten.inputs.pipeline.memory import make_room
from hasten.inputs.pipeline.mp3 import samples_of_frames

MAX_SAMPLES = 2**26
"""Largest number of samples, 67 million: an hour at 16 kHz, or 256 MiB as float32."""
MAX_RATE = 2**20
"""Largest number of samples per second."""
_ALWAYS_BYTES = 16 << 20
"""Memory that decoding a sound may take, however few bytes it has; its spectrogram takes some more."""
_FRAME_SAMPLES = 2**18
"""Samples of a spectrogram's frames that are computed at a time."""
_FRAME_BYTES = 32
"""Bytes for each of them, as measured."""
_SAMPLE_BYTES, _RESAMPLED_BYTES = 4, 5
"""Bytes for each sample as float32, and for each that soxr makes, as measured."""
_HEAD = {b"RIFF": "little", b"FORM": "big"}
"""First bytes of files that state their size behind them, less 8 bytes, and its byte order: WAV and AIFF."""
_MOST_STATED = 0x7F00_0000
"""Largest size that counts as stated: a program that writes a sound while it comes states a larger one."""
_WHOLE = 0.9
"""Share of the stated bytes, or samples, that a whole file has: some state a few too many."""
_STATING = (b"Xing", b"Info", b"VBRI")
"""Marks by which an MP3 file says that it states its length; without one the decoder guesses it from the first frames."""
_BEGINNING_BYTES = 4096
"""Bytes of an MP3 file, after its tags, in which such a mark is."""
_BESIDE = 12_000
"""Samples of an MP3 file's frames that aren't sound: those that the encoder puts before and after it, and the frame with
the marks above."""
FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name}={value!r}: give a number from {low:g} to {high:g}")


def _check_format(name: str, given: str) -> None:
    if given not in FORMATS:
        raise InputError(f"{name} is {given}; accepted formats are {', '.join(FORMATS)}")


def _unreadable(name: str, error: Exception) -> InputError:
    # libsndfile's own words, without an object's address
    said = getattr(error, "error_string", "") or str(error)
    return InputError(f"{name} can't be read as a sound: {' '.join(said.split())}")


def _check_whole(name: str, value: bytes | Path, format_: str, read: int, stated: int) -> None:
    """Check that a sound has the samples, and a file of WAV or AIFF the bytes, that its header states.

    A decoder ends without an error where the file does.

    Args:
        name: Name of the sound in messages.
        value: The file's bytes, or its path.
        format_: Format of the file, one of `FORMATS`.
        read: Number of samples that were read.
        stated: Number of samples that the header states; a guess for some MP3 files, which isn't compared.

    Raises:
        InputError: it hasn't.
    """
    with io.BytesIO(value) if isinstance(value, bytes) else value.open("rb") as file:
        head, size = file.read(10), file.seek(0, io.SEEK_END)
        tags = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
        file.seek(10 + tags if head[:3] == b"ID3" else 0)
        beginning = file.read(_BEGINNING_BYTES)
    order: Any = _HEAD.get(head[:4])
    claimed = 0 if order is None else 8 + int.from_bytes(head[4:8], order)
    cut = size < _WHOLE * claimed and claimed < _MOST_STATED
    if format_ != "MP3" or any(mark in beginning for mark in _STATING):
        cut = cut or read < _WHOLE * stated
    if cut or not read:
        raise InputError(f"{name} is cut short or empty: give the whole sound, or leave it out")


def _check_frames(name: str, value: bytes | Path, read: int, rate: int) -> None:
    """Check that an MP3 file's sound is as long as its frames.

    Where the file states no length, or that of its first part alone, the decoder reads only what it takes for the whole.

    Args:
        name: Name of the sound in messages.
        value: The file's bytes, or its path.
        read: Number of samples that were read.
        rate: Samples per second of the file.

    Raises:
        InputError: it isn't.
    """
    held = samples_of_frames(value if isinstance(value, bytes) else value.read_bytes())
    if read + _BESIDE < _WHOLE * held:
        raise InputError(
            f"{name} is an MP3 file of {held / rate:.1f} s, but only {read / rate:.1f} s of it were read, since it doesn't "
            "state its length: convert it, for example by ffmpeg"
        )


def check_header(path: Path) -> None:
    """Check that a file begins like a sound of an accepted format.

    Raises:
        InputError: it doesn't; the message names the file.
    """
    try:
        import soundfile
    except ImportError as error:
        raise missing_extra("a folder of sounds", DecodeAudio.extra) from error
    try:
        with soundfile.SoundFile(path) as file:
            _check_format(str(path), file.format)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise _unreadable(str(path), error) from error


@dataclass(frozen=True)
class DecodeAudio(Step):
    """Decode a sound file or its bytes to one channel of float32 in [-1, 1], of shape (samples,).

    Channels are averaged, and other rates resampled by soxr at its high quality. Accepted are WAV,
    AIFF, FLAC, Ogg and MP3.

    Attributes:
        rate: Samples per second of the result.
        max_samples: Largest number of samples, over all channels, that is accepted, at most
            `MAX_SAMPLES`; of the file and of the result.
        memory_per_byte: Bytes of memory that a sound that comes as bytes may take while it is decoded, for
            each of its bytes beyond 64 KiB, besides 16 MiB; 0 for any.
    """

    rate: int = 16000
    max_samples: int = MAX_SAMPLES
    memory_per_byte: int = 2048
    packages: ClassVar[tuple[str, ...]] = ("soundfile", "soxr")
    extra: ClassVar[str] = "audio"

    def __post_init__(self) -> None:
        """Check the rate and the limit."""
        _check_range("decode_audio.rate", self.rate, 1, MAX_RATE)
        _check_range("decode_audio.max_samples", self.max_samples, 1, MAX_SAMPLES)
        _check_range("decode_audio.memory_per_byte", self.memory_per_byte, 0, math.inf)

    def __call__(self, value: bytes | Path) -> Array:
        """Decode a sound.

        Raises:
            InputError: the file can't be read as a whole, or it is cut short, too long, takes too much memory for its
                bytes, or has samples that aren't finite; or something else than a file was given.
        """
        if isinstance(value, str):  # may come from a stranger, and must not open files here
            raise InputError(
                "decode_audio takes a sound's bytes or its path, but a text isn't a path: give "
                f"Path({value!r:.80})"
            )
        # libsndfile takes a number for a file that this process has open, and closes it
        if not isinstance(value, (bytes, Path)):
            raise unfit("decode_audio", value, "a sound file's bytes or its path")
        try:
            import soundfile
            import soxr
        except ImportError as error:
            raise missing_extra("the step decode_audio", self.extra) from error
        name = "the sound" if isinstance(value, bytes) else str(value)
        try:
            with soundfile.SoundFile(
                io.BytesIO(value) if isinstance(value, bytes) else value
            ) as file:
                _check_format(name, file.format)
                _check_range(f"{name}'s rate", file.samplerate, 1, MAX_RATE)
                result = file.frames * self.rate // file.samplerate
                if max(file.frames * file.channels, result) > self.max_samples:
                    raise InputError(
                        f"{name} has {file.frames} samples of {file.channels} channels at "
                        f"{file.samplerate} Hz, more than {self.max_samples} in all"
                    )
                if isinstance(value, bytes):
                    self._check_bytes(file, result, len(value))
                samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
                _check_whole(name, value, file.format, len(samples), file.frames)
                if file.format == "MP3":
                    _check_frames(name, value, len(samples), rate)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise _unreadable(name, error) from error
        mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
        if not np.isfinite(mono).all():
            raise InputError(f"{name} has samples that aren't finite numbers")
        if rate != self.rate:
            mono = soxr.resample(mono, rate, self.rate, quality="HQ")
        return np.ascontiguousarray(mono, np.float32)

    def _check_bytes(self, file: Any, result: int, sent: int) -> None:
        """Refuse a sound that takes much memory for the bytes that it was sent in.

        Args:
            file: The sound, opened by soundfile.
            result: Samples of the result.
            sent: Bytes of the file.
        """
        needed = _SAMPLE_BYTES * file.frames * (file.channels + (file.channels > 1))
        if file.samplerate != self.rate:
            needed += _RESAMPLED_BYTES * result
        allowed = allowed_bytes(sent, self.memory_per_byte, _ALWAYS_BYTES)
        if self.memory_per_byte and needed > allowed:
            raise InputError(
                f"the sound has {file.frames:,} samples of {file.channels} channels at {file.samplerate} Hz in "
                f"{sent:,} bytes: decoding it takes {needed / 2**20:,.0f} MiB, but only {allowed / 2**20:,.0f} MiB "
                "are allowed for so few bytes; send a shorter sound, or raise memory_per_byte of the step "
                "decode_audio"
            )
        make_room(needed)


@dataclass(frozen=True)
class FitLength(Step):
    """Cut (samples,) at the end to a length, or fill it up with silence.

    Attributes:
        length: Number of samples.
    """

    length: int

    def __post_init__(self) -> None:
        """Check the length."""
        _check_range("fit_length.length", self.length, 1, MAX_SAMPLES)

    def __call__(self, value: Array) -> Array:
        """Cut a sound or fill it up.

        Raises:
            InputError: the value is no line of samples.
        """
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
            raise unfit("fit_length", value, "a sound, (samples,), after decode_audio")
        value = value[: self.length]
        return np.pad(value, (0, self.length - len(value)))


@dataclass(frozen=True)
class LogMel(Step):
    """Compute the log-mel spectrogram, (mels, frames) float32, of a sound of shape (samples,).

    Frames are weighted by a periodic Hann window; the power of their Fourier transforms is summed
    in triangles on the mel scale. The defaults are Whisper's.

    Attributes:
        rate: Samples per second.
        window: Length of a frame, in samples.
        hop: Samples from one frame to the next.
        fft: Length of the Fourier transform, in samples, at least `window`; 0 for `window`.
        mels: Number of mel bands.
        low: Lower end of the lowest band, in Hz.
        high: Upper end of the highest band, in Hz; 0 for half the rate.
        center: Whether frame `i` is centered at sample `i * hop`, with the ends reflected;
            otherwise it begins there.
        scale: Formula of the mel scale: "slaney", linear up to 1 kHz, or "htk".
        area: Whether each band's triangle has the same area ("slaney" norm); otherwise the same
            height.
        log: Logarithm of the power: "natural"; "decimal"; or "whisper", which is decimal, at most 8
            below the highest, plus 4 and divided by 4, without the last frame, as Whisper has it.
        floor: Smallest power before the logarithm.
    """

    rate: int = 16000
    window: int = 400
    hop: int = 160
    fft: int = 0
    mels: int = 80
    low: float = 0.0
    high: float = 0.0
    center: bool = True
    scale: Literal["slaney", "htk"] = "slaney"
    area: bool = True
    log: Literal["natural", "decimal", "whisper"] = "whisper"
    floor: float = 1e-10

    def __post_init__(self) -> None:
        """Check the numbers."""
        _check_range("log_mel.rate", self.rate, 1, MAX_RATE)
        _check_range("log_mel.window", self.window, 2, 2**16)
        _check_range("log_mel.hop", self.hop, 1, 2**16)
        if self.fft:
            _check_range("log_mel.fft", self.fft, self.window, 2**16)
        _check_range("log_mel.mels", self.mels, 1, 1024)
        _check_range("log_mel.floor", self.floor, 1e-30, 1.0)
        _check_range("log_mel.high", self.high, 0, self.rate / 2)
        _check_range("log_mel.low", self.low, 0, (self.high or self.rate / 2) - 1e-3)

    @cached_property
    def _bands(self) -> Array:
        """Weight of each frequency in each band, (mels, frequencies) float32."""
        frequencies = np.fft.rfftfreq(self.fft or self.window, 1 / self.rate)
        ends = _mel(np.array([self.low, self.high or self.rate / 2]), self.scale)
        edges = _hertz(np.linspace(ends[0], ends[1], self.mels + 2), self.scale)
        widths = np.diff(edges)
        slopes = edges[:, None] - frequencies
        weights = np.minimum(-slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None])
        weights = np.maximum(weights, 0)
        if self.area:
            weights *= (2 / (edges[2:] - edges[:-2]))[:, None]
        return np.asarray(weights, np.float32)

    @cached_property
    def _weights(self) -> Array:
        """The window, periodic, in the middle of the transform's length."""
        long = self.fft or self.window
        hann = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(self.window) / self.window)
        before = (long - self.window) // 2
        return np.pad(hann, (before, long - self.window - before)).astype(np.float32)

    def __call__(self, value: Array) -> Array:
        """Compute the spectrogram.

        Raises:
            InputError: the sound is no line of samples, too short for one frame, or too long.
        """
        long = self.fft or self.window
        least = long // 2 + 1 if self.center else long
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
            raise unfit("log_mel", value, "a sound, (samples,), after decode_audio")
        if len(value) < least:
            raise InputError(
                f"log_mel needs a sound of at least {least} samples; got {list(value.shape)}"
            )
        if len(value) // self.hop * long > 4 * MAX_SAMPLES:
            raise InputError(
                f"a sound of {len(value)} samples is too long for log_mel with hop={self.hop}: "
                "cut it first, with fit_length"
            )
        added = 2 * (long // 2) if self.center else 0
        count = (len(value) + added - long) // self.hop + 1 - (self.log == "whisper")
        frames = min(
            count, max(1, _FRAME_SAMPLES // long)
        )  # a frame takes far more than its samples
        whole = value.base if isinstance(value.base, np.ndarray) else value
        make_room(whole.nbytes + 4 * self.mels * count + _FRAME_BYTES * long * frames)
        energy = np.empty((self.mels, count), np.float32)
        for begin in range(0, count, max(1, frames)):
            end = min(begin + frames, count)
            spectrum = np.fft.rfft(self._frames(value, begin, end) * self._weights)
            power = spectrum.real**2
            power += spectrum.imag**2
            energy[:, begin:end] = self._bands @ power.astype(np.float32).T
        np.maximum(energy, np.float32(self.floor), out=energy)
        if self.log == "natural":
            return np.asarray(np.log(energy, out=energy))
        np.log10(energy, out=energy)
        if self.log == "whisper":
            np.maximum(energy, energy.max(initial=-np.inf) - 8, out=energy)
            energy += 4
            energy /= 4
        return energy

    def _frames(self, value: Array, begin: int, end: int) -> Array:
        """Return some frames, (frames, transform's length); those at the ends go on as a reflection."""
        long = self.fft or self.window
        half = long // 2 if self.center else 0
        first, last = begin * self.hop - half, (end - 1) * self.hop + long - half
        # A reflection needs one sample more than it has itself.
        left = max(0, min(first, len(value) - half - 1))
        piece = value[left : max(last, half + 1)]
        if self.center:
            piece = np.pad(piece, (max(0, -first), max(0, last - len(value))), mode="reflect")
        piece = piece[max(0, first) - left :]
        frames = np.lib.stride_tricks.sliding_window_view(piece, long)[:: self.hop]
        return frames[: end - begin]


_LINEAR_HZ, _LOG_FROM_HZ, _LOG_STEP = 200 / 3, 1000.0, math.log(6.4) / 27
"""Slaney's scale: 3 mels per 200 Hz up to 1 kHz, then 27 per factor 6.4.

Source: M. Slaney, Auditory Toolbox, Interval Research Technical Report 1998-010.
"""


def _mel(hertz: Array, scale: str) -> Array:
    """Return frequencies on the mel scale; HTK's formula is 2595 log10(1 + f / 700)."""
    if scale == "htk":
        return np.asarray(2595 * np.log10(1 + hertz / 700))
    above = np.log(np.maximum(hertz, _LOG_FROM_HZ) / _LOG_FROM_HZ) / _LOG_STEP
    return np.asarray(np.minimum(hertz, _LOG_FROM_HZ) / _LINEAR_HZ + above)


def _hertz(mel: Array, scale: str) -> Array:
    """Return the frequencies of values on the mel scale."""
    if scale == "htk":
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    above = np.exp(np.maximum(mel - _LOG_FROM_HZ / _LINEAR_HZ, 0) * _LOG_STEP)
    return np.asarray(np.minimum(mel * _LINEAR_HZ, _LOG_FROM_HZ) * above)
