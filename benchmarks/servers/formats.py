"""How a tensor is asked for and answered over HTTP, format by format: requests made, answers read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FLOAT32 = np.dtype(np.float32)
SHARED = "open-shared"
"""The format whose inputs lie in shared memory; the answer comes over the connection."""
ID = "1"
"""Of each request: a server that makes one up would answer the same request with other bytes."""


@dataclass(frozen=True)
class Names:
    """What a model and its tensors are called.

    Attributes:
        model: Name of the model in the path.
        input: Name of the only input.
        output: Name of the first output.
        answer_bytes: Size of the first output, for servers that run no model.
        region: Name of the shared memory that holds the inputs of all requests, one after another.
    """

    model: str
    input: str
    output: str
    answer_bytes: int
    region: str = ""


@dataclass(frozen=True)
class Ask:
    """What a request asks.

    Attributes:
        names: Names of the model and its tensors.
        array: The model's input.
        turn: Index of the request.
        timeout_us: Microseconds until the deadline; 0 for none.
    """

    names: Names
    array: np.ndarray
    turn: int = 0
    timeout_us: int = 0


@dataclass(frozen=True)
class Format:
    """One way to ask.

    Attributes:
        title: Name of the format in a table.
        body: Function from what is asked to headers and body.
        numbers: Function from an answer's body and the number of values expected in it to these
            values.
    """

    title: str
    body: Callable[[Ask], tuple[dict[str, str], bytes]]
    numbers: Callable[[bytes, int], np.ndarray]

    def request(self, path: str, ask: Ask) -> bytes:
        """Return a whole HTTP/1.1 request; `{model}` and `{answer_bytes}` in the path are known."""
        headers, body = self.body(ask)
        names = ask.names
        lines = [
            f"POST {path.format(model=names.model, answer_bytes=names.answer_bytes)} HTTP/1.1",
            "Host: 127.0.0.1",
            *(f"{name}: {value}" for name, value in headers.items()),
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _raw(ask: Ask) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/octet-stream"}, ask.array.tobytes()


def _raw_numbers(body: bytes, count: int) -> np.ndarray:
    if len(body) != FLOAT32.itemsize * count:
        raise ValueError(f"{count} float32 are {FLOAT32.itemsize * count} bytes; got {len(body)}")
    return np.frombuffer(body, FLOAT32)


def _json(ask: Ask) -> tuple[dict[str, str], bytes]:
    document = {"data": ask.array.reshape(-1).tolist()}
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def _json_numbers(body: bytes, count: int) -> np.ndarray:
    found = json.loads(body)
    return _flat(found["data"] if isinstance(found, dict) else found)


_BOUNDARY = "hasten-benchmark"


def _form(ask: Ask) -> tuple[dict[str, str], bytes]:
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="x"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + ask.array.tobytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


def _open_json(ask: Ask) -> tuple[dict[str, str], bytes]:
    tensor = _tensor(ask) | {"data": ask.array.reshape(-1).tolist()}
    document = {"id": ID, "inputs": [tensor]} | _parameters(ask)
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def _open_json_numbers(body: bytes, count: int) -> np.ndarray:
    return _flat(json.loads(body)["outputs"][0]["data"])


def _open_binary(ask: Ask) -> tuple[dict[str, str], bytes]:
    tensor = _tensor(ask) | {"parameters": {"binary_data_size": ask.array.nbytes}}
    document = {"id": ID, "inputs": [tensor], "outputs": [_output(ask)]} | _parameters(ask)
    head = json.dumps(document).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return headers, head + ask.array.tobytes()


def _open_shared(ask: Ask) -> tuple[dict[str, str], bytes]:
    place = {
        "shared_memory_region": ask.names.region,
        "shared_memory_byte_size": ask.array.nbytes,
        "shared_memory_offset": ask.turn * ask.array.nbytes,
    }
    tensor = _tensor(ask) | {"parameters": place}
    document = {"id": ID, "inputs": [tensor], "outputs": [_output(ask)]} | _parameters(ask)
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def _open_binary_numbers(body: bytes, count: int) -> np.ndarray:
    """The one output asked for lies behind the JSON, to the end."""
    return np.frombuffer(body[-FLOAT32.itemsize * count :], FLOAT32)


def _tensor(ask: Ask) -> dict[str, object]:
    return {"name": ask.names.input, "shape": list(ask.array.shape), "datatype": "FP32"}


def _output(ask: Ask) -> dict[str, object]:
    return {"name": ask.names.output, "parameters": {"binary_data": True}}


def _parameters(ask: Ask) -> dict[str, object]:
    return {"parameters": {"timeout": ask.timeout_us}} if ask.timeout_us else {}


def _flat(nested: Sequence[object]) -> np.ndarray:
    return np.asarray(nested, FLOAT32).reshape(-1)


FORMATS = {
    "raw": Format("raw bytes", _raw, _raw_numbers),
    "json": Format("JSON", _json, _json_numbers),
    "form": Format("a form with a file", _form, _raw_numbers),
    "open-json": Format("Open Inference, JSON", _open_json, _open_json_numbers),
    "open-binary": Format("Open Inference, binary", _open_binary, _open_binary_numbers),
    SHARED: Format("Open Inference, shared memory", _open_shared, _open_binary_numbers),
}
"""By name."""
