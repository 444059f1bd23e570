"""Messages of gRPC: single calls of every method, and streams of inferences, with whole and broken messages.

An input of `grpc` is the name of a method and the message. "gzip" behind the name says that the message is compressed
by gRPC itself, and "unread" with a number that it is sent by so many calls at once, whose answers aren't read. One of
`streams` is messages, each after its length in 4 bytes.
"""

from __future__ import annotations

import gzip
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import grpc
import numpy as np
from fuzz.messages import changed_message
from fuzz.mutation import changed_bytes, grown
from fuzz.served import REGIONS, Served
from fuzz.surface import MOST_BYTES, Fault

from hasten.serving.protocol.messages import METHODS, SERVICE, Method, message

_PATIENCE_S = 60.0
_FINE = (
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "UNIMPLEMENTED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
)
_BUSY = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")
_MOST_CALLS = 128
_CALL_BYTES = 30
"""Bytes that a call takes on a connection beside its message, at least."""
_LONGEST_UNREAD = 2000
_LEAVING_S = 0.3
"""Time for a server to answer calls whose answers aren't read."""
_LITTLE_READ = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 16),
    ("grpc.use_local_subchannel_pool", 1),
]
"""Settings of a client of its own that takes little of what it doesn't read."""
_MOST_UNPACKED = 48 << 20
_OWN_FAULT = "the server failed"


def inferences() -> list[bytes]:
    """Return good requests: tensors as bytes, as numbers, as text, with parameters, several at once."""
    request = message("ModelInferRequest")
    tensor = message("ModelInferRequest.InferInputTensor")
    contents = message("InferTensorContents")
    wanted = message("ModelInferRequest.InferRequestedOutputTensor")
    x = tensor(name="x", datatype="FP32", shape=[1, 4])
    numbers = contents(fp32_contents=[1, 2, 3, 4])
    filled = tensor(name="x", datatype="FP32", shape=[1, 4], contents=numbers)
    both = [
        tensor(name="features", datatype="FP32", shape=[2, 8]),
        tensor(name="ids", datatype="INT64", shape=[2, 3]),
    ]
    text = tensor(name="raw", datatype="BYTES", shape=[1], contents=contents(bytes_contents=[b"a"]))
    asked = request(model_name="tiny", id="7", inputs=[filled], outputs=[wanted(name="y")])
    asked.parameters["timeout"].int64_param = 9_000_000
    asked.outputs[0].parameters["classification"].int64_param = 2
    shared = request(model_name="tiny", inputs=[x])
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    shared.inputs[0].parameters["shared_memory_byte_size"].int64_param = 16
    large = request(model_name="wide", inputs=[filled], outputs=[wanted(name="y")])
    large.outputs[0].parameters["classification"].int64_param = 5000
    raw = [np.ones((2, 8), np.float32).tobytes(), np.ones((2, 3), np.int64).tobytes()]
    made = [
        request(model_name="tiny", inputs=[x], raw_input_contents=[np.ones(4, "f4").tobytes()]),
        request(model_name="two_inputs", inputs=both, raw_input_contents=raw),
        request(model_name="colour", inputs=[text]),
        asked,
        shared,
        large,
    ]
    return [each.SerializeToString() for each in made]


def others() -> Iterator[tuple[str, bytes]]:
    """Yield a good message for each of the other methods."""
    given: dict[str, Any] = {
        "name": "tiny",
        "model_name": "tiny",
        "key": f"{REGIONS}a",
        "byte_size": 64,
    }
    for name, method in METHODS.items():
        if not method.streaming and name != "ModelInfer":
            kind = message(method.request)
            fields = {
                key: value for key, value in given.items() if key in kind.DESCRIPTOR.fields_by_name
            }
            yield name, kind(**fields).SerializeToString()


@cache
def channel_to(port: int) -> Any:
    """Return a channel to the server on a port."""
    return grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.max_send_message_length", -1)])


class Calls(Served):
    """Single calls."""

    name = "grpc"

    def seeds(self) -> list[bytes]:
        asked = [b"ModelInfer\n" + each for each in inferences()]
        return [*asked * 4, *(name.encode() + b"\n" + data for name, data in others())]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        name, _, data = seed.partition(b"\n")
        changes: tuple[Callable[[bytes, random.Random], bytes], ...] = (changed_message,) * 4
        change = rng.choice((*changes, changed_bytes, grown))
        data = change(data, rng)
        if rng.random() < 0.05:
            name = rng.choice(list(METHODS)).encode()
        if rng.random() < 0.03:
            count = rng.choice((2, 30, _MOST_CALLS))
            return name + b" unread %d\n" % count + rng.choice((data, large()))[:_LONGEST_UNREAD]
        if rng.random() < 0.05:
            large_ = grown(data, rng, rng.choice((MOST_BYTES, 1 << 20, _MOST_UNPACKED)))
            return name + b" gzip\n" + gzip.compress(large_)[: MOST_BYTES - 40]
        return name + b"\n" + data[: MOST_BYTES - 40]

    def check(self, data: bytes) -> str:
        head, _, body = data.partition(b"\n")
        name, *how_sent = head.decode("latin-1").split(" ")
        packed = how_sent == ["gzip"]
        if how_sent[:1] == ["unread"] and how_sent[-1].isdecimal():
            return self._left(name, body, int(how_sent[-1]))
        method = METHODS.get(name, Method("ServerLiveRequest", "ServerLiveResponse", False))
        if packed:
            body = _unpacked(body)
        channel = channel_to(self.running.server.grpc_port)
        called = channel.unary_unary(f"/{SERVICE}/{name}")
        how = grpc.Compression.Gzip if packed else None
        try:
            answer = called(body, timeout=_PATIENCE_S, compression=how)
        except grpc.RpcError as error:
            return judged(error)
        except ValueError:  # the client can't send such a name
            return "not sent"
        return sound(answer, method.response)

    def _left(self, name: str, body: bytes, count: int) -> str:
        """Send a message by several calls, and leave without having read an answer."""
        count = min(count, _MOST_CALLS, max(1, MOST_BYTES // (len(body) + _CALL_BYTES)))
        place = f"127.0.0.1:{self.running.server.grpc_port}"
        with grpc.insecure_channel(place, _LITTLE_READ) as channel:
            called = channel.stream_stream(f"/{SERVICE}/{name}")
            calls = [called(iter([body]), timeout=_PATIENCE_S) for _ in range(count)]
            time.sleep(_LEAVING_S)
            for call in calls:
                call.cancel()
        return "left"


class Streams(Served):
    """Streams of inferences."""

    name = "streams"

    def seeds(self) -> list[bytes]:
        every = inferences()
        return [
            framed(every),
            framed(every[:1] * 20),
            framed(every[1:2]),
            framed(every[3:] * 2),
            framed([large()] * 40),
        ]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        messages = apart(seed)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(messages))
            kind = rng.random()
            if kind < 0.7:
                messages[at] = rng.choice((changed_message, changed_bytes))(messages[at], rng)
            elif kind < 0.8:
                messages[at : at + 1] = [messages[at]] * rng.choice((2, 30, 300))
            elif kind < 0.9:
                messages[at] = grown(messages[at], rng)
            else:
                rng.shuffle(messages)
        return framed(messages)

    def check(self, data: bytes) -> str:
        channel = channel_to(self.running.server.grpc_port)
        messages = apart(data)
        called = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        try:
            answers = list(called(iter(messages), timeout=_PATIENCE_S))
        except grpc.RpcError as error:
            return judged(error)
        if len(answers) != len(messages):
            raise Fault(f"{len(messages)} requests of a stream got {len(answers)} answers")
        failed = 0
        for each in answers:
            sound(each, "ModelStreamInferResponse")
            said = message("ModelStreamInferResponse").FromString(each).error_message
            if _OWN_FAULT in said or "\n" in said:
                raise Fault(f"the stream said {said[:300]!r}")
            failed += bool(said)
        return "refused" if failed == len(answers) else "answered" if not failed else "both"


def large() -> bytes:
    """Return a request whose answer has 2 MiB."""
    tensor = message("ModelInferRequest.InferInputTensor")
    x, raw = tensor(name="x", datatype="FP32", shape=[1, 4]), np.ones(4, np.float32).tobytes()
    asked = message("ModelInferRequest")(model_name="wide", inputs=[x], raw_input_contents=[raw])
    made: bytes = asked.SerializeToString()
    return made


def framed(messages: list[bytes]) -> bytes:
    """Return messages as one input."""
    return b"".join(struct.pack("<I", len(each)) + each for each in messages)


def apart(data: bytes) -> list[bytes]:
    """Return the messages of an input; the last may be cut short."""
    found, place = [], 0
    while place + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, place)
        found.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    return found or [b""]


def judged(error: Any) -> str:
    """Return the status of an error in a word.

    Raises:
        Fault: it isn't an error of the protocol.
    """
    code, said = error.code().name, str(error.details())
    if code == "INTERNAL" and _OWN_FAULT not in said and said and "\n" not in said:
        return "failed"  # an engine can't compute what was asked
    if code not in (*_FINE, *_BUSY):
        raise Fault(f"status {code}: {said[:300]}")
    if not said or ("\n" in said and "Received" not in said) or len(said) > 2000:
        raise Fault(f"status {code} has no clear message: {said[:300]!r}")
    return "refused" if code in _FINE else code.lower()


def sound(answer: bytes, kind: str) -> str:
    """Say that an answer is one, after a look at its tensors.

    Raises:
        Fault: it isn't.
    """
    try:
        found = message(kind).FromString(answer)
    except Exception as error:
        raise Fault(f"the answer is no {kind}: {error}") from error
    if kind == "ModelInferResponse" and len(found.outputs) != len(found.raw_output_contents):
        raise Fault(f"{len(found.outputs)} outputs have {len(found.raw_output_contents)} tensors")
    return "answered"


def _unpacked(data: bytes) -> bytes:
    """Decompress what can be, up to a limit."""
    try:
        return zlib.decompressobj(31).decompress(data, _MOST_UNPACKED)
    except zlib.error:
        return data
