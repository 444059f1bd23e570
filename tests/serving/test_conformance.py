"""Every path and method of the protocol and its extensions, and what Triton's client makes of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.utils.shared_memory as shm
from hypothesis import given
from hypothesis import strategies as st
from tests.support.models import identity
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S
from tritonclient.utils import InferenceServerException

from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.wire.http_bodies import read_body
from hasten.serving.wire.shared_memory import SharedMemory
from hasten.testing import models

# numpy's type -> ONNX's and the protocol's
TYPES = {
    "bool": ("bool", "BOOL"),
    "uint8": ("uint8", "UINT8"),
    "uint16": ("uint16", "UINT16"),
    "uint32": ("uint32", "UINT32"),
    "uint64": ("uint64", "UINT64"),
    "int8": ("int8", "INT8"),
    "int16": ("int16", "INT16"),
    "int32": ("int32", "INT32"),
    "int64": ("int64", "INT64"),
    "float16": ("float16", "FP16"),
    "float32": ("float", "FP32"),
    "float64": ("double", "FP64"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerThread]:
    """Serves an identity of each type, named by it, and `two_inputs`; clients may do everything."""
    places = [
        place_of(bundle_of(folder, identity(folder, onnx, "3"), name))
        for name, (onnx, _) in TYPES.items()
    ]
    two = place_of(bundle_of(folder, models.two_inputs(folder)))
    with ServerThread(*places, two, control=True, shared_memory="/?hasten-test-.*") as one:
        yield one


@pytest.fixture
def client(server: ServerThread) -> Iterator[triton.InferenceServerClient]:
    one = triton.InferenceServerClient(server.host)
    yield one
    one.close()


MODEL = "/v2/models/float32"
INFER = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}
IN, OUT = (f"/hasten-test-{way}-{os.getpid()}" for way in ("in", "out"))
"""Names of shared memory, which all processes of this machine have in common."""
REGION = {"key": "/hasten-test-none", "offset": 0, "byte_size": 16}

TABLE: list[tuple[str, str, Any, int, Any]] = [
    # method, path, JSON body, status, what the answer has
    ("GET", "/v2", None, 200, {"name": "hasten"}),
    ("GET", "/v2/", None, 200, {"name": "hasten"}),
    ("GET", "/v2/health/live", None, 200, None),
    ("GET", "/v2/health/ready", None, 200, None),
    ("GET", MODEL, None, 200, {"name": "float32", "versions": ["1"], "platform": "hasten_onnxruntime"}),
    ("GET", f"{MODEL}/versions/1", None, 200, {"name": "float32", "versions": ["1"]}),
    ("GET", f"{MODEL}/versions/2", None, 404, {"error": "the model 'float32' has no version '2'; it has 1"}),
    ("GET", "/v2/models/none", None, 404, {"error": "unknown model 'none'; see v2/repository/index"}),
    ("GET", f"{MODEL}/ready", None, 200, None),
    ("GET", f"{MODEL}/versions/1/ready", None, 200, None),
    ("GET", "/v2/models/none/ready", None, 404, {"error": "unknown model 'none'; see v2/repository/index"}),
    ("GET", f"{MODEL}/config", None, 200, {"name": "float32", "backend": "hasten", "max_batch_size": 32}),
    ("GET", f"{MODEL}/versions/1/config", None, 200, {"name": "float32"}),
    ("GET", f"{MODEL}/stats", None, 200, None),
    ("GET", f"{MODEL}/versions/1/stats", None, 200, None),
    ("GET", "/v2/models/stats", None, 200, None),
    ("GET", "/v2/models/none/stats", None, 404, {"error": "unknown model 'none'; see v2/repository/index"}),
    ("POST", f"{MODEL}/infer", INFER, 200, {"model_name": "float32", "model_version": "1"}),
    ("POST", f"{MODEL}/versions/1/infer", INFER, 200, {"model_name": "float32"}),
    ("POST", f"{MODEL}/versions/2/infer", INFER, 404, {"error": "the model 'float32' has no version '2'; it has 1"}),
    ("POST", "/v2/models/none/infer", INFER, 404, {"error": "unknown model 'none'; see v2/repository/index"}),
    ("POST", "/v2/repository/index", None, 200, None),
    ("POST", "/v2/repository/index", {"ready": True}, 200, None),
    ("POST", "/v2/repository/index", {"ready": 1}, 400, {"error": "ready must be true or false; got 1"}),
    ("POST", "/v2/repository/models/int8/unload", {"parameters": {"unload_dependents": False}}, 200, None),
    ("POST", "/v2/repository/models/int8/load", None, 200, None),
    ("POST", "/v2/repository/models/int8/load", {"parameters": {"config": "{}"}}, 400,
     {"error": "a registered bundle is loaded without parameters; got config: leave them out"}),
    ("POST", "/v2/repository/models/none/load", None, 404,
     {"error": "no bundle is registered as 'none': only the bundles that the server was started with can be loaded"}),
    ("GET", "/v2/trace/setting", None, 200, {"trace_level": ["OFF"]}),
    ("POST", "/v2/trace/setting", {"trace_level": ["OFF"]}, 200, {"trace_level": ["OFF"]}),
    ("POST", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}, 403,
     {"error": "tracing can only be set when the server is started: --trace"}),
    ("GET", f"{MODEL}/trace/setting", None, 200, {"trace_level": ["OFF"]}),
    ("POST", f"{MODEL}/trace/setting", {"trace_rate": None}, 200, {"trace_level": ["OFF"]}),
    ("GET", "/v2/logging", None, 200, {"log_error": True, "log_verbose_level": 0}),
    ("POST", "/v2/logging", {"log_info": True}, 200, {"log_info": True}),
    ("POST", "/v2/logging", {"log_info": 1}, 400, {"error": "log_info must be true or false; got 1"}),
    ("GET", "/v2/systemsharedmemory/status", None, 200, []),
    ("GET", "/v2/systemsharedmemory/region/r/status", None, 400,
     {"error": "no shared memory region 'r' is registered: register it first"}),
    ("POST", "/v2/systemsharedmemory/region/r/register", REGION, 400,
     {"error": "can't open the shared memory object '/hasten-test-none': No such file or directory"}),
    ("POST", "/v2/systemsharedmemory/region/r/register", {**REGION, "key": "/other"}, 403,
     {"error": "the shared memory object '/other' may not be registered here"}),
    ("POST", "/v2/systemsharedmemory/region/r/register", {**REGION, "key": "../hasten-test-x"}, 403,
     {"error": "the shared memory object '../hasten-test-x' may not be registered here"}),
    ("POST", "/v2/systemsharedmemory/region/r/unregister", None, 200, None),
    ("POST", "/v2/systemsharedmemory/unregister", None, 200, None),
    ("GET", "/v2/cudasharedmemory/status", None, 200, []),
    ("GET", "/v2/cudasharedmemory/region/r/status", None, 400,
     {"error": "no CUDA shared memory region 'r' is registered"}),
    ("POST", "/v2/cudasharedmemory/region/r/register", {}, 400,
     {"error": "this server has no CUDA shared memory: send tensors, or use system shared memory"}),
    ("POST", "/v2/cudasharedmemory/region/r/unregister", None, 200, None),
    ("POST", "/v2/cudasharedmemory/unregister", None, 200, None),
    ("GET", "/metrics", None, 200, None),
    ("GET", "/", None, 200, None),
    ("GET", "/live.json", None, 200, None),
    ("GET", "/nothing", None, 404, {"error": "there is nothing at /nothing"}),
    ("GET", "/v2/models", None, 404, {"error": "there is nothing at /v2/models"}),
    ("POST", "/v2/logging", "{", 400, None),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "value", "status", "has"), TABLE)
def test_every_path_answers_as_the_protocol_says(
    server: ServerThread, method: str, path: str, value: Any, status: int, has: Any
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
    body = value if isinstance(value, str) else None if value is None else json.dumps(value)
    connection.request(method, path, body)
    response = connection.getresponse()
    said = response.read()
    connection.close()
    assert response.status == status, said
    if status != 200:
        assert json.loads(said).keys() == {"error"}
    if isinstance(has, dict):
        answer = json.loads(said)
        assert {name: answer[name] for name in has} == has
    elif has is not None:
        assert json.loads(said) == has


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("binary", [True, False])
def test_every_type_comes_back_as_it_went(
    client: triton.InferenceServerClient, name: str, binary: bool
) -> None:
    dtype = np.dtype(name)
    if dtype.kind == "b":
        rows = np.array([[True, False, True], [False, False, True]])
    elif dtype.kind == "f":
        rows = np.array([[0.1, -1e4, 3], [4, 5, 6.5]], dtype)
    else:
        limits = np.iinfo(dtype)
        rows = np.array([[limits.min, limits.max, 0], [1, 2, 3]], dtype)
    tensor = triton.InferInput("x", [2, 3], TYPES[name][1])
    if binary or name != "float16":  # the client itself has no JSON form of float16
        tensor.set_data_from_numpy(rows, binary_data=binary)
    else:
        tensor.set_data_from_numpy(rows, binary_data=True)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    answer = client.infer(name, [tensor], outputs=[wanted]).as_numpy("y")
    assert answer.dtype == dtype
    assert (answer == rows).all()


def test_the_client_reads_metadata_config_and_statistics(
    client: triton.InferenceServerClient,
) -> None:
    metadata = client.get_model_metadata("two_inputs")
    assert metadata["inputs"] == [
        {"name": "features", "datatype": "FP32", "shape": [-1, 8]},
        {"name": "ids", "datatype": "INT64", "shape": [-1, 3]},
    ]
    config = client.get_model_config("two_inputs")
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == [
        ("features", "TYPE_FP32", [8]),
        ("ids", "TYPE_INT64", [3]),
    ]
    before = client.get_inference_statistics("two_inputs")["model_stats"][0]
    features = triton.InferInput("features", [2, 8], "FP32")
    features.set_data_from_numpy(np.ones((2, 8), np.float32))
    ids = triton.InferInput("ids", [2, 3], "INT64")
    ids.set_data_from_numpy(np.array([[0, 1, 2], [3, 4, 5]]))
    client.infer("two_inputs", [features, ids])
    after = client.get_inference_statistics("two_inputs")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["execution_count"] == before["execution_count"] + 1
    success = after["inference_stats"]["success"]
    assert success["count"] == before["inference_stats"]["success"]["count"] + 1
    assert success["ns"] > after["inference_stats"]["compute_infer"]["ns"] > 0
    assert [each["batch_size"] for each in after["batch_stats"]] == [2]


def test_only_the_outputs_asked_for_come_in_that_order(
    client: triton.InferenceServerClient,
) -> None:
    features = triton.InferInput("features", [1, 8], "FP32")
    features.set_data_from_numpy(np.ones((1, 8), np.float32))
    ids = triton.InferInput("ids", [1, 3], "INT64")
    ids.set_data_from_numpy(np.array([[7, 8, 9]]), binary_data=False)
    outputs = [triton.InferRequestedOutput("same_ids", binary_data=False)]
    answer = client.infer("two_inputs", [features, ids], outputs=outputs, request_id="here")
    said = answer.get_response()
    assert said["id"] == "here"
    assert [each["name"] for each in said["outputs"]] == ["same_ids"]
    assert answer.as_numpy("same_ids").tolist() == [[7, 8, 9]]


def test_tensors_come_and_go_in_shared_memory(client: triton.InferenceServerClient) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    into = shm.create_shared_memory_region("in", IN, rows.nbytes + 8)
    out = shm.create_shared_memory_region("out", OUT, rows.nbytes)
    try:
        shm.set_shared_memory_region(into, [rows], offset=8)
        client.register_system_shared_memory("in", IN, rows.nbytes + 8)
        client.register_system_shared_memory("out", OUT, rows.nbytes)
        names = {each["name"] for each in client.get_system_shared_memory_status()}
        assert names == {"in", "out"}
        tensor = triton.InferInput("x", [2, 3], "FP32")
        tensor.set_shared_memory("in", rows.nbytes, offset=8)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("out", rows.nbytes)
        answer = client.infer("float32", [tensor], outputs=[wanted])
        assert answer.get_output("y") == {"name": "y", "datatype": "FP32", "shape": [2, 3]}
        assert (shm.get_contents_as_numpy(out, np.float32, [2, 3]) == rows).all()
        wanted.set_shared_memory("out", rows.nbytes - 4)
        with pytest.raises(
            InferenceServerException,
            match="an output of 24 bytes doesn't fit in the 20 bytes given for it in the region 'out'",
        ):
            client.infer("float32", [tensor], outputs=[wanted])
        tensor.set_shared_memory("in", rows.nbytes, offset=16)
        with pytest.raises(
            InferenceServerException,
            match="24 bytes at offset 16 don't fit in the region 'in' of 32 bytes",
        ):
            client.infer("float32", [tensor])
        with pytest.raises(InferenceServerException, match="a region 'in' is already registered"):
            client.register_system_shared_memory("in", IN, rows.nbytes)
        with pytest.raises(InferenceServerException, match="has 32 bytes, but the region needs 33"):
            client.register_system_shared_memory("more", IN, 33)
    finally:
        client.unregister_system_shared_memory()
        shm.destroy_shared_memory_region(into)
        shm.destroy_shared_memory_region(out)
    assert client.get_system_shared_memory_status() == []


def test_the_client_may_compress(client: triton.InferenceServerClient) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = triton.InferInput("x", [2, 3], "FP32")
    tensor.set_data_from_numpy(rows)
    for way in ("gzip", "deflate"):
        answer = client.infer(
            "float32",
            [tensor],
            request_compression_algorithm=way,
            response_compression_algorithm=way,
        )
        assert (answer.as_numpy("y") == rows).all()


def test_many_requests_of_one_client_at_once(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host, concurrency=8)
    tensors = []
    for number in range(100):
        tensor = triton.InferInput("x", [1, 3], "INT64")
        tensor.set_data_from_numpy(np.full((1, 3), number))
        tensors.append(tensor)
    calls = [client.async_infer("int64", [tensor]) for tensor in tensors]
    for number, call in enumerate(calls):
        assert call.get_result().as_numpy("y").tolist() == [[number] * 3]
    client.close()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["FP32", "BYTES", "INT8", "BF16", "x"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["name", "datatype", "shape", "data", "parameters", "binary_data_size", "inputs"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)
TENSOR = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "z"]),
        "datatype": st.sampled_from(["FP32", "BYTES", "INT8", "BOOL", "UINT64", "FP16"])
        | st.text(),
        "shape": st.lists(st.integers(-1, 5) | st.integers(), max_size=4),
    },
    optional={
        "data": JSON | st.lists(st.integers() | st.floats(), max_size=12),
        "parameters": JSON
        | st.fixed_dictionaries({"binary_data_size": st.integers(-2, 40)})
        | st.fixed_dictionaries({"shared_memory_region": st.text()}),
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(TENSOR, max_size=3) | JSON},
        optional={"id": JSON, "outputs": JSON, "parameters": JSON},
    ),
    st.binary(max_size=40),
    st.none() | st.integers(-1, 200),
)
def test_whatever_comes_is_a_request_or_an_error_of_the_clients(
    value: Any, tail: bytes, length: int | None
) -> None:
    head = json.dumps(value).encode()
    body = head + tail if length is not None else head
    where = length if length is None or length > 50 else len(head)
    with contextlib.suppress(ProtocolError):
        query = read_body(body, where, "m", "", SharedMemory(), 1 << 16)
        assert sum(array.nbytes for array in query.inputs.values()) <= 1 << 17


@given(st.binary(max_size=200), st.none() | st.integers(0, 200))
def test_any_bytes_at_all_are_an_error_of_the_clients(body: bytes, length: int | None) -> None:
    with pytest.raises(ProtocolError):
        read_body(body, length, "m", "", SharedMemory(), 1 << 16)
