"""Pictures and sounds that a served model or chain prepares, in each way in which a client may send them.

The first line of an input is a way, a model and a number; the file follows. The number says how often the file is
sent: as the samples of one request, as the requests of one stream or of one connection, or on as many connections.
If the way ends in "gzip", the file is compressed already.
"""

from __future__ import annotations

import abc
import gzip
import io
import json
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes, grown
from fuzz.served import Served
from fuzz.surface import MOST_BYTES, Fault
from fuzz.surfaces import grpc_calls
from fuzz.surfaces.http import Http, request
from fuzz.surfaces.images import Images, encoded, many_pixels
from PIL import Image
from tests.support import chains

from hasten.serving.protocol.messages import message

_HEAD_BYTES = 400
"""Bytes that the head of a request takes at most."""
_MOST_UNPACKED, _MOST_FILE = 48 << 20, 8 << 20
_BLOCK = 4096
_POWERS = (12, 16, 18, 20, 21, 22)
_TIMES = (1, 1, 1, 2, 3, 8, 32, 128)
_MOST_CONNECTIONS = 16
_WAYS = (
    *("http", "http-raw", "http-gzip", "http-several", "http-together"),
    *("grpc", "grpc-raw", "grpc-gzip", "stream"),
)
"""The file as the body, as samples in bytes, compressed, in several requests, on several connections; then the same
over gRPC."""


class Sending(Served):
    """A surface whose inputs are sent over HTTP and gRPC.

    Attributes:
        http: Requests over HTTP.
        calls: Single calls over gRPC.
        streams: Streams over gRPC.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.http, self.calls = Http(folder), grpc_calls.Calls(folder)
        self.streams = grpc_calls.Streams(folder)

    def check(self, data: bytes) -> str:
        for surface in (self.http, self.calls, self.streams):
            surface.running = self.running
        return self.sent(data)

    @abc.abstractmethod
    def sent(self, data: bytes) -> str:
        """Send an input; return in a word what came of it.

        Raises:
            Fault: what came isn't what may come.
        """

    def together(self, asked: bytes, times: int) -> str:
        """Send a request on several connections at the same time."""
        with ThreadPoolExecutor(_MOST_CONNECTIONS) as threads:
            words = threads.map(self.http.check, [asked] * max(1, min(times, _MOST_CONNECTIONS)))
            return " ".join(sorted(set(words)))


class Media(Sending):
    """Files for served models, sent over HTTP and gRPC.

    Attributes:
        models: Names of the models that take such files.
        kind: Content-Type of such a file.
    """

    models: tuple[str, ...]
    kind: str

    def seeds(self) -> list[bytes]:
        files = self.files()
        every = [
            written(way, model, 1, file)
            for model in self.models
            for way, file in zip(_WAYS * len(files), files, strict=False)
        ]
        return every + [written(way, self.models[0], 2, files[0]) for way in _WAYS]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        _, _, _, file = taken_apart(seed)
        way, model, times = rng.choice(_WAYS), rng.choice(self.models), rng.choice(_TIMES)
        return written(way, model, times, self.changed(rng, file))

    def sent(self, data: bytes) -> str:
        way, model, times, file = taken_apart(data)
        if way == "http-together":
            return self.together(over_http(way, model, 1, file, self.kind), times)
        if way.startswith("http"):
            return self.http.check(over_http(way, model, times, file, self.kind))
        if way == "stream":
            asked = over_grpc("grpc", model, 1, file)
            return self.streams.check(grpc_calls.framed([asked] * times))
        if way.startswith("grpc"):
            name = b"ModelInfer gzip\n" if way == "grpc-gzip" else b"ModelInfer\n"
            return self.calls.check(name + over_grpc(way, model, times, file))
        raise Fault(f"no way {way!r}")

    @abc.abstractmethod
    def files(self) -> list[bytes]:
        """Return good files, the same ones each time."""

    @abc.abstractmethod
    def changed(self, rng: random.Random, file: bytes) -> bytes:
        """Return a file that is made of a good one."""


class Pictures(Media):
    """Pictures for two classifiers, and for a chain."""

    name = "pictures"
    models = ("colour", "large", "squares")
    kind = "image/png"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._images = Images(folder)

    def files(self) -> list[bytes]:
        bright = chains.squares({(row, row): "red" for row in range(8)})
        return [*self._images.seeds(), chains.png(bright), encoded(Image.fromarray(bright), "JPEG")]

    def changed(self, rng: random.Random, file: bytes) -> bytes:
        return many_pixels(rng) if rng.random() < 0.4 else self._images.mutate(rng, file)


class Sounds(Media):
    """Sounds for a model of a second, and for one whose pipeline doesn't cut them."""

    name = "sounds"
    models = ("sound", "uncut")
    kind = "audio/wav"
    forms = (
        *(("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "IMA_ADPCM")),
        *(("AIFF", "PCM_24"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS")),
        ("MP3", "MPEG_LAYER_III"),
    )

    def files(self) -> list[bytes]:
        tone = np.sin(np.arange(16_000) / 20) * 0.5
        stereo = np.stack([tone, -tone], axis=1)
        forms = (*self.forms, ("RF64", "PCM_U8"))
        made = [sound(tone[:6000], 16_000, *form) for form in forms]
        made += [sound(stereo[:4000], 8_000, *form) for form in forms]
        return [*made, sound(tone, 48_000, "FLAC", "PCM_16"), sound(tone[:300], 11_025, *forms[0])]

    def changed(self, rng: random.Random, file: bytes) -> bytes:
        kind = rng.random()
        if kind < 0.35:
            return long_sound(rng)
        if kind < 0.55:
            return with_number(file, rng)
        return grown(file, rng) if kind < 0.65 else changed_bytes(file, rng)


def sound(samples: Any, rate: int, form: str, subtype: str) -> bytes:
    """Return the file of a sound."""
    import soundfile

    file, channels = io.BytesIO(), 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(file, "w", rate, channels, subtype, format=form) as made:
        for first in range(0, len(samples), _BLOCK):  # the encoder of Vorbis crashes on more
            made.write(samples[first : first + _BLOCK])
    return file.getvalue()


def long_sound(rng: random.Random) -> bytes:
    """Return a sound of silence or of clicks: long, of many channels, or at an odd rate."""
    form, subtype = rng.choice(Sounds.forms)
    rate = rng.choice((8_000, 48_000))
    channels = rng.choice((1, 1, 1, 2, 8)) if form in ("WAV", "AIFF", "FLAC") else 1
    if form in ("WAV", "FLAC") and rng.random() < 0.4:
        rate = rng.choice((1, 7, 1000, 192_000, 655_350))
    channels = 1 if subtype == "IMA_ADPCM" else channels
    return of_clicks(form, subtype, rate, channels, rng.choice(_POWERS), rng.random() < 0.2)


@lru_cache(64)
def of_clicks(form: str, subtype: str, rate: int, channels: int, power: int, loud: bool) -> bytes:
    """Return the file of 2**power samples, over all channels: of silence, or of clicks if it is loud."""
    samples = np.zeros((2**power // channels, channels), np.float32)
    if loud:
        samples[::100] = 0.5
    return sound(samples, rate, form, subtype)[:_MOST_FILE]


def with_number(data: bytes, rng: random.Random) -> bytes:
    """Write a large or small number where a form may state its rate, its channels or its length."""
    found = bytearray(data)
    form = rng.choice((">H", "<H", ">I", "<I", ">Q", "<Q"))
    at, size = rng.randrange(max(1, min(len(found), 80) - 8)), struct.calcsize(form)
    number = rng.choice((0, 1, 2, 255, 1024, 2**15, 2**16 - 1, 2**20, 2**26, 2**31 - 1, 2**32 - 1))
    found[at : at + size] = struct.pack(form, number % 256**size)
    return bytes(found)


def written(way: str, model: str, times: int, file: bytes) -> bytes:
    """Return an input. A file that is too long is cut off, and sent less often."""
    if way.endswith("gzip"):
        file = gzip.compress(file, 6, mtime=0)
    file = file[: MOST_BYTES - _HEAD_BYTES]
    each = len(file) + (_HEAD_BYTES if way in ("http-several", "http-together") else 40)
    times = max(1, min(times, (MOST_BYTES - _HEAD_BYTES) // each))
    return f"{way} {model} {times}\n".encode() + file


def taken_apart(data: bytes) -> tuple[str, str, int, bytes]:
    """Return an input's way, model and number, and its file as it was before it was compressed."""
    head, _, file = data.partition(b"\n")
    way, model, times = head.decode().split()
    return way, model, int(times), unpacked(file) if way.endswith("gzip") else file


def unpacked(data: bytes) -> bytes:
    """Decompress what can be, up to a limit."""
    try:
        return zlib.decompressobj(31).decompress(data, _MOST_UNPACKED)
    except zlib.error:
        return data


def over_http(way: str, model: str, times: int, file: bytes, kind: str) -> bytes:
    """Return the requests of HTTP that send a file."""
    path = f"v2/models/{model}/infer"
    if way in ("http", "http-several", "http-together"):
        return request(path, file, [("Content-Type", kind)], "POST") * (
            times if way != "http" else 1
        )
    if way == "http-gzip":
        packed = gzip.compress(file, 6, mtime=0)
        return request(path, packed, [("Content-Type", kind), ("Content-Encoding", "gzip")])
    return of_samples(path, as_elements(file, times), times)


def of_samples(path: str, samples: bytes, count: int) -> bytes:
    """Return a request of HTTP that sends so many samples as a tensor of BYTES."""
    given: dict[str, Any] = {"name": "raw", "datatype": "BYTES", "shape": [count]}
    given["parameters"] = {"binary_data_size": len(samples)}
    head = json.dumps({"inputs": [given]}).encode()
    return request(path, head + samples, [("Inference-Header-Content-Length", str(len(head)))])


def as_elements(file: bytes, times: int) -> bytes:
    """Return a file as the elements of a tensor of BYTES."""
    return (struct.pack("<I", len(file)) + file) * times


def over_grpc(way: str, model: str, times: int, file: bytes) -> bytes:
    """Return a request of gRPC that sends a file, in its contents or as raw bytes."""
    tensor = message("ModelInferRequest.InferInputTensor")
    contents = message("InferTensorContents")
    asked = message("ModelInferRequest")(model_name=model)
    given = tensor(name="raw", datatype="BYTES", shape=[times])
    if way == "grpc-raw":
        asked.raw_input_contents.append(as_elements(file, times))
    else:
        given.contents.CopyFrom(contents(bytes_contents=[file] * times))
    asked.inputs.append(given)
    made: bytes = asked.SerializeToString()
    return made
