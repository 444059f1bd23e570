"""A real server over gRPC, asked by Triton's own client."""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import queue
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tests.support import models as own_models
from tests.support.pausing import RELEASE, Pausing, pausing_installed
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, shared_memory

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.fairness import Shares
from hasten.serving.grpc.calls import Inference
from hasten.serving.grpc.service import GrpcServer
from hasten.serving.models.clients import Clients
from hasten.serving.models.repository import Repository
from hasten.serving.owed_answers import OwedAnswers
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.messages import METHODS, SERVICE, message
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.state import Limits, ServerState
from hasten.serving.wire.grpc_messages import query_of, read_request
from hasten.serving.wire.message_plans import MessagePlans, heading_of
from hasten.serving.wire.shared_memory import SharedMemory
from hasten.testing import models

TOKEN = "0123456789abcdef"
FOREVER_NS = 3_600_000_000_000
REGION = f"/hasten_test_grpc_{os.getpid()}"
"""Name of shared memory, which all processes of this machine have in common."""
X = np.arange(16, dtype=np.float32).reshape(1, 16)
TYPES = {
    "bool": "bool",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "float16": "float16",
    "float": "float32",
    "double": "float64",
}
"""ONNX's name of a type -> numpy's."""


def every_type(folder: Path) -> Path:
    """Write an identity of an input of each type."""
    inputs = ", ".join(f"{name}[batch, 3] x_{name}" for name in TYPES)
    outputs = ", ".join(f"{name}[batch, 3] y_{name}" for name in TYPES)
    nodes = "\n".join(f"y_{name} = Identity(x_{name})" for name in TYPES)
    path = folder / "every_type.onnx"
    text = f"{models.HEADER} every_type ({inputs}) => ({outputs}) {{ {nodes} }}"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpc")


@pytest.fixture(scope="module")
def linear(folder: Path) -> Path:
    return bundle_of(folder, models.linear_classifier(folder), "linear")


@pytest.fixture(scope="module")
def slow(folder: Path) -> Iterator[Path]:
    """A bundle of `solid` that takes as long as it is asked to."""
    with pausing_installed(folder / "plug-in"):
        yield bundle_of(folder, own_models.solid(folder), "slow", engine=Pausing())


@pytest.fixture(scope="module")
def server(folder: Path, linear: Path, slow: Path) -> Iterator[ServerThread]:
    with ServerThread(
        place_of(linear),
        place_of(bundle_of(folder, every_type(folder)), "every_type"),
        place_of(slow, most_rows=1, most_wait_ns=600_000_000_000),
        place_of(linear, "spare"),
        grpc=True,
        control=True,
        shared_memory="/hasten_test_.*",
        limits=Limits(body_bytes=1 << 20),
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerThread) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_url) as opened:
        yield opened


def asked(array: Array, name: str = "x") -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


SLOW, HELD = (asked(np.array([[ms, 1, 1, 1]], np.float32)) for ms in (1, 600_000))
"""To the slow model, a millisecond, and ten minutes or until a test ends the pauses."""


@pytest.fixture
def held(server: ServerThread) -> Iterator[Any]:
    """The slow model, whose pauses all end after the test."""
    model = slow_model(server)
    yield model
    RELEASE.set()
    until(lambda: server.call(lambda: model.idle))
    RELEASE.clear()


def call(
    url: str, method: str, request: Any, metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[str, str, dict[str, Any]]:
    """Send a message, or bytes; the status, its details and what came behind it."""
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with grpc.insecure_channel(url) as channel:
        if METHODS[method].streaming:
            ask = channel.stream_stream(f"/{SERVICE}/{method}")
            answers = ask(iter([data]), timeout=PATIENCE_S, metadata=metadata)
            with contextlib.suppress(grpc.RpcError):
                list(answers)
            ended: Any = answers
        else:
            try:
                _, ended = channel.unary_unary(f"/{SERVICE}/{method}").with_call(
                    data, timeout=PATIENCE_S, metadata=metadata
                )
            except grpc.RpcError as error:
                ended = error
        return ended.code().name, ended.details(), dict(ended.trailing_metadata() or ())


def slow_model(server: ServerThread) -> Any:
    return server.call(lambda: server.server.state.repository.find("slow"))


class Stream:
    """A stream of Triton's client, and what came back on it."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self.client = client
        self.came: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        client.start_stream(lambda result, error: self.came.put((result, error)))

    def ask(
        self, model: str, tensor: triton.InferInput | None, request_id: str, **more: Any
    ) -> None:
        inputs = [] if tensor is None else [tensor]
        self.client.async_stream_infer(model, inputs, request_id=request_id, **more)

    def next(self) -> str:
        """The id of the next answer, or the next error's words."""
        result, error = self.came.get(timeout=PATIENCE_S)
        return str(result.get_response().id) if error is None else str(error.message())

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream(cancel_requests=True)


# -- what Triton's clients ask


def test_the_server_and_its_models_say_that_they_are_there(
    client: triton.InferenceServerClient,
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("linear", "2")
    assert not client.is_model_ready("nobody")


def test_the_server_and_its_models_describe_themselves(
    client: triton.InferenceServerClient,
) -> None:
    assert client.get_server_metadata().name == "hasten"
    found = client.get_model_metadata("linear")
    assert (found.name, list(found.versions), found.platform) == (
        "linear",
        ["1"],
        "hasten_onnxruntime",
    )
    (x,), (logits,) = found.inputs, found.outputs
    assert (x.name, x.datatype, list(x.shape)) == ("x", "FP32", [-1, 16])
    assert (logits.name, logits.datatype, list(logits.shape)) == ("logits", "FP32", [-1, 4])
    config = client.get_model_config("linear").config
    assert (config.name, config.max_batch_size, list(config.input[0].dims)) == ("linear", 32, [16])
    index = client.get_model_repository_index().models
    assert sorted((one.name, one.version, one.state) for one in index) == [
        ("every_type", "1", "READY"),
        ("linear", "1", "READY"),
        ("slow", "1", "READY"),
        ("spare", "1", "READY"),
    ]


def test_an_answer_is_the_models_and_carries_the_requests_id(
    server: ServerThread, client: triton.InferenceServerClient
) -> None:
    result = client.infer("linear", [asked(X)], request_id="7", model_version="1")

    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("linear", "1", "7")
    model = server.call(lambda: server.server.state.repository.find("linear"))
    assert np.allclose(result.as_numpy("logits"), model.opened.first.run({"x": X})["logits"])


def test_requests_are_counted_as_over_http(client: triton.InferenceServerClient) -> None:
    def counts() -> tuple[int, int, int]:
        (found,) = client.get_inference_statistics("linear").model_stats
        inference = found.inference_stats
        return found.inference_count, inference.success.count, inference.fail.count

    before = counts()
    client.infer("linear", [asked(np.repeat(X, 3, axis=0))])
    with pytest.raises(InferenceServerException):
        client.infer("linear", [])

    assert tuple(now - then for now, then in zip(counts(), before, strict=True)) == (3, 1, 1)
    names = {one.name for one in client.get_inference_statistics().model_stats}
    assert names == {"every_type", "linear", "slow", "spare"}


def test_every_type_comes_back_as_it_went(client: triton.InferenceServerClient) -> None:
    rng = np.random.default_rng(0)
    inputs = {
        name: rng.integers(0, 2, (2, 3)).astype(dtype)
        if np.dtype(dtype).kind in "bf"
        else np.array([[np.iinfo(dtype).min, 1, np.iinfo(dtype).max]] * 2, dtype)
        for name, dtype in TYPES.items()
    }

    result = client.infer(
        "every_type", [asked(array, f"x_{name}") for name, array in inputs.items()]
    )

    for name, array in inputs.items():
        came = result.as_numpy(f"y_{name}")
        assert came.dtype == array.dtype
        assert np.array_equal(came, array), name


def test_tensors_may_come_element_by_element(server: ServerThread) -> None:
    request = message("ModelInferRequest")(model_name="linear")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[1, 16])
    tensor.contents.fp32_contents.extend(X.reshape(-1).tolist())

    assert call(server.grpc_url, "ModelInfer", request)[:2] == ("OK", "")


def test_only_the_outputs_that_are_asked_for_come_and_classes_where_wanted(
    client: triton.InferenceServerClient,
) -> None:
    plain = client.infer("linear", [asked(X)]).as_numpy("logits")[0]
    wanted = triton.InferRequestedOutput("logits", class_count=2)

    classes = client.infer("linear", [asked(X)], outputs=[wanted]).as_numpy("logits")

    best = np.argsort(-plain)[:2]
    assert classes.tolist() == [[f"{plain[place]:f}:{place}".encode() for place in best]]
    outputs = [triton.InferRequestedOutput("y_int8"), triton.InferRequestedOutput("y_bool")]
    inputs = [asked(np.zeros((1, 3), dtype), f"x_{name}") for name, dtype in TYPES.items()]
    response = client.infer("every_type", inputs, outputs=outputs).get_response()
    assert [each.name for each in response.outputs] == ["y_int8", "y_bool"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_are_refused(
    client: triton.InferenceServerClient, algorithm: str
) -> None:
    with pytest.raises(InferenceServerException, match=f"'{algorithm}' is disabled") as caught:
        client.infer("linear", [asked(X)], compression_algorithm=algorithm)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_a_models_settings_can_be_read_and_those_of_the_process_changed(
    client: triton.InferenceServerClient,
) -> None:
    traced = client.get_trace_settings("linear", as_json=True)["settings"]
    assert traced["trace_level"] == {"value": ["OFF"]}
    assert traced["trace_rate"] == {"value": ["1"]}
    same = client.update_trace_settings(
        settings={"trace_level": ["OFF"], "trace_rate": "1", "trace_count": None}
    )
    assert same.settings["trace_level"].value == ["OFF"]
    before = client.get_log_settings(as_json=True)["settings"]
    changed = client.update_log_settings({"log_verbose_level": 1}, as_json=True)["settings"]
    client.update_log_settings({"log_verbose_level": 0, "log_info": True})
    assert changed["log_verbose_level"] == {"uint32_param": 1}
    assert before["log_error"] == {"bool_param": True}


def test_a_registered_model_can_be_unloaded_and_loaded_again(
    client: triton.InferenceServerClient,
) -> None:
    client.unload_model("spare", unload_dependents=True)
    assert not client.is_model_ready("spare")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("spare", [asked(X)])
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message() == "the model 'spare' isn't ready: unloaded"

    client.load_model("spare")

    assert client.is_model_ready("spare")


def test_the_client_of_asyncio_gets_the_same_answers(server: ServerThread) -> None:
    async def ask() -> tuple[list[Array], list[str], bool]:
        async with triton_aio.InferenceServerClient(server.grpc_url) as client:
            results = await asyncio.gather(*(client.infer("linear", [asked(X)]) for _ in range(20)))

            async def requests() -> Any:
                for number in range(3):
                    yield {
                        "model_name": "linear",
                        "inputs": [asked(X)],
                        "request_id": str(number),
                    }

            ids = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                ids.append(result.get_response().id)
            answers = [result.as_numpy("logits") for result in results]
            return answers, ids, await client.is_model_ready("linear")

    answers, ids, ready = asyncio.run(ask())

    assert all(np.allclose(answer, answers[0]) for answer in answers)
    assert sorted(ids) == ["0", "1", "2"]
    assert ready


def test_callbacks_get_their_answers(client: triton.InferenceServerClient) -> None:
    came: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    client.async_infer("linear", [asked(X)], lambda result, error: came.put((result, error)))

    result, error = came.get(timeout=PATIENCE_S)
    assert error is None
    assert result.as_numpy("logits").shape == (1, 4)


def test_no_method_of_the_service_is_missing(server: ServerThread) -> None:
    said = {}
    for name, method in METHODS.items():
        said[name] = call(server.grpc_url, name, message(method.request)())[0]

    assert len(said) == 20
    assert {name: code for name, code in said.items() if code != "OK"} == {
        "ModelMetadata": "NOT_FOUND",
        "ModelConfig": "NOT_FOUND",
        "ModelInfer": "NOT_FOUND",
        "RepositoryModelLoad": "NOT_FOUND",
        "RepositoryModelUnload": "NOT_FOUND",
        "SystemSharedMemoryRegister": "PERMISSION_DENIED",
        "CudaSharedMemoryRegister": "INVALID_ARGUMENT",
    }


# -- shared memory


@pytest.fixture
def region(client: triton.InferenceServerClient) -> Iterator[Any]:
    handle = shared_memory.create_shared_memory_region("r", REGION, 256)
    try:
        client.register_system_shared_memory("r", REGION, 256)
        yield handle
    finally:
        client.unregister_system_shared_memory("r")
        shared_memory.destroy_shared_memory_region(handle)


def test_tensors_in_shared_memory_are_read_and_written_there(
    client: triton.InferenceServerClient, region: Any
) -> None:
    plain = client.infer("linear", [asked(X)]).as_numpy("logits")
    shared_memory.set_shared_memory_region(region, [X])
    tensor = triton.InferInput("x", [1, 16], "FP32")
    tensor.set_shared_memory("r", 64)
    wanted = triton.InferRequestedOutput("logits")
    wanted.set_shared_memory("r", 64, offset=128)

    response = client.infer("linear", [tensor], outputs=[wanted]).get_response()

    assert list(response.raw_output_contents) == [b""]
    assert not response.outputs[0].parameters
    written = shared_memory.get_contents_as_numpy(region, np.float32, [1, 4], offset=128)
    assert np.array_equal(written, plain)


def test_an_input_in_shared_memory_takes_no_raw_contents(
    client: triton.InferenceServerClient, region: Any
) -> None:
    inputs = [asked(np.ones((1, 3), dtype), f"x_{name}") for name, dtype in TYPES.items()]
    shared_memory.set_shared_memory_region(region, [np.array([[7, 8, 9]], np.int32)])
    place = list(TYPES).index("int32")
    inputs[place] = triton.InferInput("x_int32", [1, 3], "INT32")
    inputs[place].set_shared_memory("r", 12)

    result = client.infer("every_type", inputs)

    assert result.as_numpy("y_int32").tolist() == [[7, 8, 9]]
    assert result.as_numpy("y_int64").tolist() == [[1, 1, 1]]


def test_registered_regions_can_be_asked_for(
    client: triton.InferenceServerClient, region: Any
) -> None:
    found = client.get_system_shared_memory_status(as_json=True)

    assert found == {"regions": {"r": {"name": "r", "key": REGION, "byte_size": "256"}}}
    assert client.get_cuda_shared_memory_status(as_json=True) == {}
    client.unregister_cuda_shared_memory()


# -- errors


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (
            lambda client: client.infer("nobody", [asked(X)]),
            "NOT_FOUND",
            "unknown model 'nobody'; see v2/repository/index",
        ),
        (
            lambda client: client.infer("linear", [asked(X)], model_version="3"),
            "NOT_FOUND",
            "the model 'linear' has no version '3'; it has 1",
        ),
        (
            lambda client: client.infer("linear", [asked(X, "z")]),
            "INVALID_ARGUMENT",
            "the model 'linear' takes the inputs x; got z",
        ),
        (
            lambda client: client.infer("linear", [asked(X[:, :5])]),
            "INVALID_ARGUMENT",
            "input 'x': the model takes FP32[batch, 16]; got FP32[1, 5]",
        ),
        (
            lambda client: client.infer("linear", [asked(X.astype(np.float64))]),
            "INVALID_ARGUMENT",
            "input 'x': the model takes FP32[batch, 16]; got FP64[1, 16]",
        ),
        (
            lambda client: client.infer(
                "linear", [asked(X)], outputs=[triton.InferRequestedOutput("y")]
            ),
            "INVALID_ARGUMENT",
            "the model 'linear' has no output 'y'; it has logits",
        ),
        (
            lambda client: client.infer(
                "linear", [asked(X)], outputs=[_in_region("logits", "nowhere")]
            ),
            "INVALID_ARGUMENT",
            "no shared memory region 'nowhere' is registered: register it first",
        ),
        (
            lambda client: client.infer("linear", [_in_region("x", "nowhere")]),
            "INVALID_ARGUMENT",
            "no shared memory region 'nowhere' is registered: register it first",
        ),
        (
            lambda client: client.infer("linear", [asked(X)], timeout=1),
            "DEADLINE_EXCEEDED",
            "the deadline had passed when the request arrived",
        ),
        (
            lambda client: client.get_model_config("nobody"),
            "NOT_FOUND",
            "unknown model 'nobody'; see v2/repository/index",
        ),
        (
            lambda client: client.load_model("nobody"),
            "NOT_FOUND",
            "no bundle is registered as 'nobody': only the bundles that the server was started "
            "with can be loaded",
        ),
        (
            lambda client: client.load_model("spare", config="{}"),
            "INVALID_ARGUMENT",
            "a registered bundle is loaded without parameters; got config: leave them out",
        ),
        (
            lambda client: client.register_cuda_shared_memory("c", b"aGFuZGxl", 0, 8),
            "INVALID_ARGUMENT",
            "this server has no CUDA shared memory: send tensors, or use system shared memory",
        ),
        (
            lambda client: client.get_cuda_shared_memory_status("c"),
            "INVALID_ARGUMENT",
            "no CUDA shared memory region 'c' is registered",
        ),
        (
            lambda client: client.register_system_shared_memory("s", "/else", 8),
            "PERMISSION_DENIED",
            "the shared memory object '/else' may not be registered here",
        ),
        (
            lambda client: client.update_trace_settings(settings={"trace_rate": "2"}),
            "PERMISSION_DENIED",
            "tracing can only be set when the server is started: --trace",
        ),
        (
            lambda client: client.update_trace_settings(settings={"color": "2"}),
            "INVALID_ARGUMENT",
            "there is no setting 'color'; there are trace_level, trace_rate, trace_count, "
            "log_frequency, trace_file, trace_mode",
        ),
        (
            lambda client: client.update_log_settings({"log_file": "/tmp/x"}),
            "INVALID_ARGUMENT",
            "log_file can only be set when the server is started",
        ),
    ],
)
def test_what_cant_be_done_is_refused_in_these_words(
    client: triton.InferenceServerClient,
    ask: Callable[[triton.InferenceServerClient], Any],
    status: str,
    words: str,
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        ask(client)

    assert (caught.value.status(), caught.value.message()) == (f"StatusCode.{status}", words)


def _in_region(name: str, region: str) -> Any:
    tensor = (
        triton.InferInput(name, [1, 16], "FP32")
        if name == "x"
        else triton.InferRequestedOutput(name)
    )
    tensor.set_shared_memory(region, 64)
    return tensor


@pytest.mark.parametrize("method", ["RepositoryIndex", "RepositoryModelLoad"])
def test_there_is_one_repository(server: ServerThread, method: str) -> None:
    request = message(METHODS[method].request)(repository_name="other")

    assert call(server.grpc_url, method, request)[:2] == (
        "INVALID_ARGUMENT",
        "this server has one repository, without a name; got 'other'",
    )


@pytest.mark.parametrize("method", ["ModelInfer", "ModelConfig"])
def test_bytes_that_are_no_message_are_refused(server: ServerThread, method: str) -> None:
    status, words, _ = call(server.grpc_url, method, b"\xff\xff\xff")

    assert status == "INVALID_ARGUMENT"
    assert words.startswith(f"the request is not a {METHODS[method].request}: ")


def test_a_message_that_is_too_large_is_refused_before_it_is_received(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("linear", [asked(np.zeros((20_000, 16), np.float32))])

    assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
    assert "larger than max" in caught.value.message()


def test_while_too_much_is_under_way_a_client_is_told_when_to_come_again(
    server: ServerThread,
) -> None:
    state = server.server.state
    most = state.limits.bodies_bytes
    request = message("ModelInferRequest")(model_name="linear")

    server.call(lambda: state.bodies.take("127.0.0.1", most))
    try:
        said = call(server.grpc_url, "ModelInfer", request)
    finally:
        server.call(lambda: state.bodies.give("127.0.0.1", most))

    assert said == (
        "RESOURCE_EXHAUSTED",
        f"overloaded: requests with {most:,} bytes are in progress; retry later",
        {"retry-after": "1"},
    )
    assert state.body_bytes == 0


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (RuntimeError("a secret"), "INTERNAL", "the server failed; its log has the reason"),
        (
            MemoryError("a secret"),
            "RESOURCE_EXHAUSTED",
            "the server is short of memory: retry later",
        ),
    ],
)
@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady"])
def test_a_fault_of_the_server_is_logged_and_not_told(
    server: ServerThread,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    error: Exception,
    status: str,
    words: str,
) -> None:
    def broken(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(server.server.state.repository, "find", broken)
    request = message(METHODS[method].request)()

    with caplog.at_level("ERROR", "hasten.serving"):
        said = call(server.grpc_url, method, request)

    assert said[:2] == (status, words)
    assert "a secret" in caplog.text


# -- deadlines and cancellation


class Captured:
    """A model that keeps the request."""

    most_rows, inputs, outputs, takes_raw = 0, (), (), False

    def __init__(self, *, over: bool) -> None:
        self.messages = MessagePlans()
        self.cancelled = 0
        self.query: Query
        self.done: Callable[[Answer | ProtocolError], None]
        self._over = over

    def accept(self, query: Query, done: Callable[[Answer | ProtocolError], None]) -> Any:
        self.query, self.done = query, done
        return SimpleNamespace(over=self._over, cancel=self._cancel)

    def check_input(self, name: str, datatype: str, shape: tuple[int, ...]) -> None:
        """Take any input."""

    def _cancel(self) -> None:
        self.cancelled += 1


def state_of(model: Captured) -> Any:
    return SimpleNamespace(
        repository=SimpleNamespace(find=lambda *_: model, clients=Clients()),
        memory=None,
        limits=Limits(),
        check_room=lambda client, size: None,
        client_of=lambda client: client,
        draining=False,
        tracing=True,
        bodies=Shares(1 << 30),
        owed=OwedAnswers(lambda client: None, 30.0),
        rights=None,
    )


def quiet_context(left_s: float | None) -> Any:
    async def read() -> bytes:
        return b""

    return SimpleNamespace(
        read=read,
        peer=lambda: "ipv4:192.0.2.1:50000",
        time_remaining=lambda: left_s,
        invocation_metadata=lambda: (("traceparent", "00-ab-cd-01"),),
    )


@pytest.mark.parametrize(
    ("timeout_us", "left_s", "timeout_ns"),
    [
        (0, None, 0),
        (1500, None, 1_500_000),
        (0, 0.25, 250_000_100),
        (1500, 0.25, 1_500_000),
        (1_000_000, 0.25, 250_000_100),
        (0, 0.0, 100),
        (0, -1.0, 1),
    ],
)
@pytest.mark.parametrize("planned", [False, True])
def test_a_deadline_is_the_earlier_of_the_requests_and_the_calls(
    timeout_us: int, left_s: float | None, timeout_ns: int, planned: bool
) -> None:
    """The call's counts from the moment at which the library states it, 100 ns after the request's arrival."""
    model = Captured(over=True)
    state, context = state_of(model), quiet_context(left_s)
    tensor = message("ModelInferRequest.InferInputTensor")(name="x", datatype="INT8", shape=[1])
    request = message("ModelInferRequest")(
        model_name="m", inputs=[tensor], raw_input_contents=[b"1"]
    )
    if timeout_us:
        request.parameters["timeout"].int64_param = timeout_us
    clock = iter((100, 200))

    data = request.SerializeToString()
    if planned:
        read, (_, _, begin, end) = read_request(data), heading_of(data) or ("", "", 0, 0)
        for _ in range(2):
            query = query_of(read, SharedMemory(), 1 << 20)
            known = begin, end, read.raw, 1, "key", False, query.timeout_ns
            model.messages.note(query, data, *known)
    call = SimpleNamespace(client="", name="")
    inference = Inference(state, context, call, data, lambda: next(clock))
    inference.read()
    inference.begin(print)

    query = model.query
    assert (query.plan is not None) == planned
    assert (query.timeout_ns, query.arrived_ns, query.parsed_ns) == (timeout_ns, 100, 200)
    assert query.trace == "00-ab-cd-01"


def test_calls_that_are_cancelled_are_dropped_from_the_queue(
    server: ServerThread, client: triton.InferenceServerClient, held: Any
) -> None:
    model, state = held, server.server.state
    executed, cancelled = model.statistics.executions, model.statistics.cancel.count
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    calls = [
        client.async_infer("slow", [HELD], lambda result, error: came.put(error)) for _ in range(6)
    ]
    until(lambda: model.queued_rows == 5)

    for one in calls:
        one.cancel()

    until(lambda: model.statistics.cancel.count == cancelled + 6)
    assert server.call(lambda: model.queued_rows) == 0
    assert [str(came.get(timeout=PATIENCE_S)) for _ in calls] == [
        "[StatusCode.CANCELLED] Locally cancelled by application!"
    ] * 6
    RELEASE.set()
    client.infer("slow", [SLOW])
    assert model.statistics.executions == executed + 2
    until(lambda: state.body_bytes == 0)


def test_calls_that_are_cancelled_harm_no_others(
    server: ServerThread, client: triton.InferenceServerClient
) -> None:
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(32):
        going = client.async_infer("linear", [asked(X)], lambda result, error: None)
        client.async_infer("linear", [asked(X)], lambda result, error: came.put(error))
        going.cancel()

    assert [came.get(timeout=PATIENCE_S) for _ in range(32)] == [None] * 32
    until(lambda: server.server.state.body_bytes == 0)


def test_an_answer_that_comes_as_its_client_leaves_is_nobodys() -> None:
    async def leave() -> bool:
        model, context = Captured(over=False), quiet_context(None)
        server = GrpcServer(state_of(model))
        going = asyncio.create_task(server._inference()(b"", context))
        await asyncio.sleep(0)
        going.cancel()
        model.done(Answer("m", "1", "", {}))
        await asyncio.gather(going, return_exceptions=True)
        return going.cancelled() and model.cancelled == 1

    assert asyncio.run(leave())


def test_a_client_whose_time_is_over_is_gone(
    client: triton.InferenceServerClient, held: Any
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("slow", [HELD], client_timeout=0.001)

    assert caught.value.status() in (
        "StatusCode.DEADLINE_EXCEEDED",
        "StatusCode.RESOURCE_EXHAUSTED",
    )
    until(lambda: held.queued_rows == 0)


# -- streams


@pytest.mark.usefixtures("held")
def test_a_stream_answers_what_is_ready_first(client: triton.InferenceServerClient) -> None:
    with Stream(client) as stream:
        stream.ask("slow", HELD, "slow")
        stream.ask("linear", asked(X), "fast")

        assert stream.next() == "fast"
        RELEASE.set()
        assert stream.next() == "slow"


def test_a_stream_goes_on_after_an_error(client: triton.InferenceServerClient) -> None:
    with Stream(client) as stream:
        stream.ask("linear", asked(X), "1")
        assert stream.next() == "1"
        stream.ask("linear", None, "2")
        assert stream.next() == "the model 'linear' takes the inputs x; got none"
        stream.ask("nobody", asked(X), "3")
        assert stream.next() == "unknown model 'nobody'; see v2/repository/index"
        stream.ask("linear", asked(X), "4")
        assert stream.next() == "4"


def test_every_answer_in_a_stream_is_marked_as_its_requests_last(
    client: triton.InferenceServerClient,
) -> None:
    with Stream(client) as stream:
        stream.ask("linear", asked(X), "1", enable_empty_final_response=True)
        marked = stream.came.get(timeout=PATIENCE_S)[0].get_response()
        stream.ask("linear", asked(X), "2")
        plain = stream.came.get(timeout=PATIENCE_S)[0].get_response()

    for answer in (marked, plain):
        assert answer.parameters["triton_final_response"].bool_param
        assert len(answer.outputs) == 1


def test_a_streams_error_carries_the_requests_id(server: ServerThread) -> None:
    request = message("ModelInferRequest")(model_name="nobody", id="7")
    with grpc.insecure_channel(server.grpc_url) as channel:
        ask = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda each: each.SerializeToString(),
            response_deserializer=message("ModelStreamInferResponse").FromString,
        )
        (answer,) = ask(iter([request]), timeout=PATIENCE_S)

    assert answer.error_message == "unknown model 'nobody'; see v2/repository/index"
    assert answer.infer_response.id == "7"


def test_every_request_of_a_long_stream_is_answered_once(
    server: ServerThread, client: triton.InferenceServerClient
) -> None:
    with Stream(client) as stream:
        for number in range(500):
            stream.ask("linear", asked(X), str(number))

        assert sorted(int(stream.next()) for _ in range(500)) == list(range(500))
    until(lambda: server.server.state.body_bytes == 0)


def test_no_more_of_a_stream_is_read_than_may_be_under_way(
    server: ServerThread, client: triton.InferenceServerClient, held: Any
) -> None:
    cancelled = held.statistics.cancel.count
    with Stream(client) as stream:
        for number in range(200):
            stream.ask("slow", HELD, str(number))
        until(lambda: held.queued_rows >= 127)
        for _ in range(20):  # while others are answered, no more is read
            client.infer("linear", [asked(X)])
        assert held.queued_rows == 127

    # The client is gone, and all of its requests with it.
    until(lambda: held.queued_rows == 0)
    until(lambda: held.statistics.cancel.count == cancelled + 128)
    until(lambda: server.server.state.body_bytes == 0)


def test_a_client_that_sends_no_more_gets_all_its_answers(
    client: triton.InferenceServerClient,
) -> None:
    stream = Stream(client)
    for number in range(3):
        stream.ask("slow", SLOW, str(number))
    client.stop_stream()

    assert [stream.next() for _ in range(3)] == ["0", "1", "2"]


# -- who may come in


def test_with_a_token_only_those_who_bring_it_come_in(tmp_path: Path, linear: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    with ServerThread(place_of(linear), grpc=True, token_file=tmp_path / "token") as server:
        said = {
            name: call(server.grpc_url, name, message(method.request)())
            for name, method in METHODS.items()
        }
        wrong = call(
            server.grpc_url, "ServerMetadata", b"", (("authorization", f"Bearer {TOKEN}x"),)
        )
        with triton.InferenceServerClient(server.grpc_url) as client:
            headers = {"authorization": f"Bearer {TOKEN}"}
            shape = client.infer("linear", [asked(X)], headers=headers).as_numpy("logits").shape
        control = call(
            server.grpc_url,
            "RepositoryModelLoad",
            message("RepositoryModelLoadRequest")(model_name="linear"),
            (("authorization", f"Bearer {TOKEN}"),),
        )

    refused: tuple[str, str, dict[str, Any]] = (
        "UNAUTHENTICATED",
        "this server requires a token: send authorization: Bearer TOKEN",
        {},
    )
    assert {name for name, each in said.items() if each == refused} == set(METHODS) - {
        "ServerLive",
        "ServerReady",
    }
    assert wrong == refused
    assert said["ServerLive"][0] == said["ServerReady"][0] == "OK"
    assert shape == (1, 4)
    assert control[:2] == (
        "PERMISSION_DENIED",
        "clients may not load and unload models: start the server with --allow-control",
    )


def test_calls_can_be_encrypted(certificate: Path, linear: Path) -> None:
    key = certificate.with_name("key.pem")
    with ServerThread(place_of(linear), grpc=True, certificate=certificate, key=key) as server:
        with triton.InferenceServerClient(
            server.grpc_url, ssl=True, root_certificates=str(certificate)
        ) as client:
            assert client.infer("linear", [asked(X)]).as_numpy("logits").shape == (1, 4)


# -- begin and end


def bare() -> GrpcServer:
    """One that serves no models; called within an event loop."""
    state = ServerState(Repository([], asyncio.get_running_loop()))
    return GrpcServer(state)


def test_a_port_in_use_is_an_error_in_one_line() -> None:
    async def start(port: int) -> None:
        await bare().start("127.0.0.1", port)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError) as caught:
            asyncio.run(start(port))

    assert str(caught.value) == f"can't listen on 127.0.0.1:{port}: Address already in use"


def test_two_servers_never_share_a_port(server: ServerThread) -> None:
    async def start() -> None:
        await bare().start("127.0.0.1", server.grpc_port)

    with pytest.raises(InputError, match="Address already in use"):
        asyncio.run(start())


@pytest.mark.parametrize("package", ["grpc", "google.protobuf"])
def test_without_grpc_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    async def start() -> None:
        await bare().start("127.0.0.1", 0)

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        asyncio.run(start())

    assert str(caught.value) == (
        "serving over gRPC needs grpcio and protobuf: pip install 'hasten[serve]'"
    )


def test_a_draining_server_isnt_ready_and_takes_no_inference(
    server: ServerThread, client: triton.InferenceServerClient
) -> None:
    state = server.server.state
    state.draining = True
    try:
        assert client.is_server_live()
        assert not client.is_server_ready()
        with pytest.raises(InferenceServerException) as caught:
            client.infer("linear", [asked(X)])
        with Stream(client) as stream:
            assert stream.next() == "the server is draining"
    finally:
        state.draining = False

    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert caught.value.message() == "the server is draining"


def test_what_is_under_way_is_answered_before_the_server_ends(slow: Path) -> None:
    """Though a stream is still open, which could last as long as the limit."""
    with (
        ServerThread(
            place_of(slow, most_rows=1), grpc=True, limits=Limits(drain_ns=FOREVER_NS)
        ) as server,
        ThreadPoolExecutor(1) as threads,
    ):
        with triton.InferenceServerClient(server.grpc_url) as client:
            model = slow_model(server)
            came: queue.SimpleQueue[Any] = queue.SimpleQueue()
            with Stream(client) as stream:
                stream.ask("slow", HELD, "in the stream")
                until(lambda: server.call(lambda: not model.idle))
                client.async_infer("slow", [HELD], lambda result, error: came.put((result, error)))
                until(lambda: model.queued_rows == 1)

                draining = threads.submit(server.call, server.server.drain)
                until(lambda: server.server.state.draining)
                RELEASE.set()
                draining.result(PATIENCE_S)
                RELEASE.clear()

                result, error = came.get(timeout=PATIENCE_S)
                assert error is None
                assert result.as_numpy("y").shape == (1, 4)
                assert [stream.next(), stream.next()] == [
                    "in the stream",
                    "the server is draining",
                ]


def test_hastens_version_is_read_from_its_installation_once(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading takes a millisecond of the event loop, for each of many questions in one piece."""
    read: list[str] = []
    distribution = importlib.metadata.distribution

    def counted(name: str) -> importlib.metadata.Distribution:
        read.append(name)
        return distribution(name)

    monkeypatch.setattr(importlib.metadata, "distribution", counted)
    for _ in range(3):
        assert call(server.grpc_url, "ServerMetadata", b"")[0] == "OK"
        with urllib.request.urlopen(f"{server.http_url}/v2", timeout=PATIENCE_S) as answer:
            assert json.loads(answer.read())["version"] == distribution("hasten").version
    assert len(read) <= 1
