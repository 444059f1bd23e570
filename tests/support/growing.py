"""A server of models whose answers become larger than those before, and its clients of gRPC."""

from __future__ import annotations

import contextlib
import json
import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
import numpy as np
from onnx import parser, save
from tests.support.models import solid
from tests.support.pausing import RELEASE, Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import until

from hasten.core.sequences import Sequences
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.rows import Row
from hasten.serving.models import batching
from hasten.serving.protocol.messages import message

MIB = 1 << 20
LARGE = MIB // 2
"""Numbers in an answer of 2 MiB."""
HELD_MS = 600_000
"""Pause that lasts until a test ends it."""


def grown(folder: Path) -> Path:
    """Write x: [1, 4] -> y, as many zeros as the second number of x says; the first one is a pause."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        grown (float[batch, 4] x) => (float[batch, found] y)
        <int64[1] flat = {-1}, int64[1] one = {1}, int64[1] two = {2}> {
            all = Reshape (x, flat)  second = Slice (all, one, two)  size = Abs (second)
            count = Cast <to = 7> (size)  shape = Concat <axis = 0> (one, count)
            y = ConstantOfShape (shape)
        }"""
    save(parser.parse_model(text), folder / "grown.onnx")
    return folder / "grown.onnx"


def stepping(folder: Path) -> Path:
    """Write x: [1, 4], state -> y, as many numbers as the second one of x says, each the number of the step."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        stepping (float[batch, 4] x, float[batch, 1] before) => (float[found] y, float[batch, 1] after)
        <int64[1] flat = {-1}, int64[1] one = {1}, int64[1] two = {2}, float plus = {1}> {
            after = Add (before, plus)  number = Reshape (after, flat)
            all = Reshape (x, flat)  second = Slice (all, one, two)  size = Abs (second)
            count = Cast <to = 7> (size)  y = Expand (number, count)
        }"""
    save(parser.parse_model(text), folder / "stepping.onnx")
    return folder / "stepping.onnx"


def asking(
    count: int,
    pause_ms: int = 0,
    model: str = "grown",
    id_: str = "",
    *,
    start: bool = False,
    output: str = "",
) -> bytes:
    """Ask for so many numbers, after a pause."""
    made, x = message("ModelInferRequest")(model_name=model, id=id_), [pause_ms, count, 0, 0]
    if model == "rows":
        made.inputs.add(name="raw", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
            json.dumps(x).encode()
        )
        return bytes(made.SerializeToString())
    made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    made.raw_input_contents.append(np.array(x, np.float32).tobytes())
    if output:
        made.outputs.add(name=output)
    if model == "stepping":
        made.parameters["sequence_id"].int64_param = 7
        made.parameters["sequence_start"].bool_param = start
    return bytes(made.SerializeToString())


class Growing:
    """A server of `grown`, whose engine is on a thread, and of `solid`."""

    def __init__(self, server: ServerThread) -> None:
        self.server = server
        self.state: Any = server.server.state
        self.model = self.find("grown")

    def find(self, name: str) -> Any:
        return self.server.call(lambda: self.state.repository.find(name))

    @property
    def held_bytes(self) -> int:
        return int(self.server.call(lambda: self.state.body_bytes))

    @property
    def queued(self) -> int:
        return int(self.server.call(lambda: self.model.queued_rows))

    def settle(self, name: str = "grown") -> None:
        """Let a model's engine go, and wait until it runs nothing more, however often others ask meanwhile."""
        model = self.find(name)
        RELEASE.set()
        with grpc.insecure_channel(self.server.grpc_url) as channel:
            ask = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for _ in range(100):
                until(lambda: bool(self.server.call(lambda: model.idle)))
                ask(asking(1, model="solid"))

    @contextlib.contextmanager
    def client(self) -> Iterator[Any]:
        """A client that takes little of what it doesn't read."""
        little = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
        options = [
            *little,
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
        ]
        with grpc.insecure_channel(self.server.grpc_url, options=options) as channel:
            yield channel


@contextlib.contextmanager
def growing_server(tmp_path: Path) -> Iterator[Growing]:
    """Serve `grown`, `stepping`, `rows` and `solid`, whose engines are on threads of their own.

    Args:
        tmp_path: Folder for their bundles.
    """
    with (
        patch.object(batching, "INLINE_NS", 0),
        patch.object(batching, "_LONE_NS", 0),
        pausing_installed(tmp_path / "plug-in"),
    ):
        pausing = bundle_of(tmp_path, grown(tmp_path), engine=Pausing(), keep_exact=False)
        carried = Sequences((("before", "after"),))
        model = stepping(tmp_path)
        stepping_ = bundle_of(
            tmp_path, model, engine=Pausing(), keep_exact=False, sequences=carried
        )
        row = Pipeline((Row(tuple("abcd")),))
        model = grown(tmp_path)
        rows = bundle_of(tmp_path, model, "rows", engine=Pausing(), keep_exact=False, pipeline=row)
        places = [
            place_of(pausing, most_rows=1, sessions=1, most_wait_ns=600_000_000_000),
            place_of(bundle_of(tmp_path, solid(tmp_path))),
            place_of(stepping_, most_rows=1, sessions=1, most_wait_ns=600_000_000_000),
            place_of(rows, most_rows=1, sessions=1, most_wait_ns=600_000_000_000),
        ]
        with ServerThread(*places, grpc=True) as server:
            yield Growing(server)
            RELEASE.set()


class Stream:
    """A stream, to which requests are sent when a test wants."""

    def __init__(self, channel: Any) -> None:
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(
            iter(self._requests.get, None)
        )

    def ask(self, *requests: bytes) -> None:
        for one in requests:
            self._requests.put(one)

    def read(self, count: int) -> list[tuple[str, int]]:
        """Read so many answers: the id of each, and how many bytes of tensors it has."""
        return [self._read(next(self._answers)) for _ in range(count)]

    def numbers(self, count: int) -> list[int]:
        """Read so many answers: the first number of each."""
        return [
            int(np.frombuffer(self._tensor(next(self._answers)), np.float32)[0])
            for _ in range(count)
        ]

    def refused(self, count: int) -> list[str]:
        """Read so many answers, which are errors: their messages."""
        answers = [
            message("ModelStreamInferResponse").FromString(next(self._answers))
            for _ in range(count)
        ]
        return [one.error_message for one in answers]

    def _tensor(self, data: bytes) -> bytes:
        answer = message("ModelStreamInferResponse").FromString(data)
        assert not answer.error_message
        return bytes(answer.infer_response.raw_output_contents[0])

    def _read(self, data: bytes) -> tuple[str, int]:
        answer = message("ModelStreamInferResponse").FromString(data)
        assert not answer.error_message
        return answer.infer_response.id, len(answer.infer_response.raw_output_contents[0])


def large(count: int, model: str = "grown") -> list[bytes]:
    """Ask for so many large answers, of which the first one comes once it is let go."""
    return [asking(LARGE, 0 if n else HELD_MS, model, str(n)) for n in range(count)]
