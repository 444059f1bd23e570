"""Requests for models whose inputs have open lengths, in all sizes that a client may state.

An input says as JSON by which way, for which model, with which shape of each input and how often a request is sent.
Its numbers are zeros, so that many of them take few bytes as they are sent.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from typing import Any

from fuzz.open_lengths import MODELS, Open, OpenModel
from fuzz.surface import MOST_BYTES
from fuzz.surfaces import grpc_calls
from fuzz.surfaces.http import Headers, request
from fuzz.surfaces.media import Sending

from hasten.serving.protocol.messages import message

_AS_JSON = ("http", "http-several", "http-together")
_WAYS = (*_AS_JSON, "http-raw", "http-gzip", "grpc", "grpc-raw", "stream")
"""Numbers as JSON, in several requests, on several connections, as bytes, as compressed bytes; then over gRPC."""
_ROWS = (1, 1, 1, 2, 3, 8, 31, 32, 33, 200)
_TIMES = (1, 1, 1, 2, 8, 100)
_ODD = (0, -1, 1 << 31, 1 << 62)
_LONGEST = 2048
_MOST_UNPACKED = 4 << 20
"""Bytes of a tensor that is sent compressed; those of a larger one are left out."""
_HEAD_BYTES = 600
"""Bytes that a request takes beside its numbers at most."""
BY_NAME = {one.name: one for one in MODELS}
"""Name of a model -> the model."""


class Lengths(Sending):
    """Requests whose open dimensions have sizes below, at and above what is allowed."""

    name = "lengths"

    def seeds(self) -> list[bytes]:
        return [
            written(way, model, [list(one.longest) for one in model.inputs], 1)
            for model in MODELS
            for way in _WAYS
        ]

    def own(self) -> list[bytes]:
        return [
            written("http-gzip", model, [list(one.longest) for one in model.inputs], rows)
            for model in MODELS
            for rows in ((32, 16, 8, 4, 2, 1) if model.batched else (1,))
        ]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        model = BY_NAME[json.loads(seed)["model"]]
        sizes = [sizes_of(one, rng) for one in model.inputs]
        return written(rng.choice(_WAYS), model, sizes, rng.choice(_ROWS), rng.choice(_TIMES))

    def sent(self, data: bytes) -> str:
        asked = json.loads(data)
        way, model, times = asked["way"], BY_NAME[asked["model"]], asked["times"]
        tensors = list(zip(model.inputs, asked["shapes"], strict=True))
        if way.startswith("http"):
            sent = over_http(way, model.name, tensors)
            if way == "http-together":
                return self.together(sent, min(times, MOST_BYTES // len(sent)))
            often = min(times, MOST_BYTES // len(sent)) if way == "http-several" else 1
            return self.http.check(sent * max(1, often))
        sent = over_grpc(way, model.name, tensors)
        if way == "stream":
            often = max(1, min(times, MOST_BYTES // (len(sent) + 4)))
            return self.streams.check(grpc_calls.framed([sent] * often))
        return self.calls.check(b"ModelInfer\n" + sent)


def sizes_of(given: Open, rng: random.Random) -> list[int]:
    """Return sizes of an input's open dimensions: about a bound on each or on their product, or anything."""
    known, together = max(given.longest), math.prod(given.longest)
    if rng.random() < 0.05:
        return [rng.choice((*given.longest, *_ODD)) for _ in given.longest]
    near = (known, 2 * known, 1024, _any(rng))
    first = min(_LONGEST, rng.choice(near) + rng.choice((0, 0, 0, 1)))
    if len(given.longest) == 1:
        return [first]
    products = (together, 2 * together, 1024, 4096, 1024 * min(given.longest), 1 << 16, first**2)
    second = max(1, rng.choice(products) // first + rng.choice((0, 0, 0, 1)))
    return rng.choice(([first, second], [second, first]))


def _any(rng: random.Random) -> int:
    return round(2 ** rng.uniform(0, math.log2(_LONGEST)))


def written(way: str, model: OpenModel, sizes: list[list[int]], rows: int, times: int = 1) -> bytes:
    """Return an input; it is sent compressed if it would be too long otherwise."""
    shapes = [[rows, *each] if model.batched else each for each in sizes]
    size = sum(
        _elements(shape) * (2 if way in _AS_JSON else one.dtype.itemsize)
        for one, shape in zip(model.inputs, shapes, strict=True)
    )
    if size > MOST_BYTES - _HEAD_BYTES:
        way = "http-gzip"
    return json.dumps({"way": way, "model": model.name, "shapes": shapes, "times": times}).encode()


def _elements(shape: list[int]) -> int:
    return math.prod(max(0, size) for size in shape)


def numbers(given: Open, shape: list[int]) -> bytes:
    """Return the bytes of an input's numbers; those beyond a limit are left out."""
    return bytes(min(_elements(shape) * given.dtype.itemsize, _MOST_UNPACKED))


def over_http(way: str, name: str, tensors: list[tuple[Open, list[int]]]) -> bytes:
    """Return the request of HTTP for a model."""
    path, body, headers = f"v2/models/{name}/infer", b"", list[tuple[str, str]]()
    inputs: list[dict[str, Any]] = []
    for number, (given, shape) in enumerate(tensors):
        one = {"name": given.name, "datatype": given.datatype, "shape": shape}
        data = numbers(given, shape)
        if way in _AS_JSON:
            inputs.append({**one, "data": f"*{number}"})
        else:
            inputs.append({**one, "parameters": {"binary_data_size": len(data)}})
            body += data
    head = json.dumps({"inputs": inputs}).encode()
    if body or way in ("http-raw", "http-gzip"):
        headers.append(("Inference-Header-Content-Length", str(len(head))))
    else:
        for number, (_, shape) in enumerate(tensors):
            zeros = b",".join([b"0"] * min(_elements(shape), MOST_BYTES // 2))
            head = head.replace(f'"*{number}"'.encode(), b"[" + zeros + b"]")
    return _packed(path, head + body, headers, way)


def _packed(path: str, body: bytes, headers: Headers, way: str) -> bytes:
    if way != "http-gzip":
        return request(path, body, headers)
    return request(path, gzip.compress(body, 6, mtime=0), [*headers, ("Content-Encoding", "gzip")])


def over_grpc(way: str, name: str, tensors: list[tuple[Open, list[int]]]) -> bytes:
    """Return the request of gRPC for a model, with its numbers as fields or as bytes."""
    tensor = message("ModelInferRequest.InferInputTensor")
    contents = message("InferTensorContents")
    asked = message("ModelInferRequest")(model_name=name)
    for given, shape in tensors:
        one = tensor(name=given.name, datatype=given.datatype, shape=shape)
        if way == "grpc":
            field = "uint_contents" if given.datatype == "UINT8" else "fp32_contents"
            zeros = [0] * min(_elements(shape), MOST_BYTES // given.dtype.itemsize)
            one.contents.CopyFrom(contents(**{field: zeros}))
        else:
            asked.raw_input_contents.append(numbers(given, shape))
        asked.inputs.append(one)
    made: bytes = asked.SerializeToString()
    return made
