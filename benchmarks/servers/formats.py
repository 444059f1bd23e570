"""How a tensor is asked for and answered over HTTP, format by format: requests made, answers read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FLOAT32 = np.dtype(np.float32)
ID = "1"
"""Of each request: a server that makes one up would answer the same request with other bytes."""


@dataclass(frozen=True)
class Names:
    """What a model and its tensors are called.

    Attributes:
        model: As in the path.
        input: Of the one input.
        output: Of the first output.
        answer_bytes: Of the first output, for who only pretends.
    """

    model: str
    input: str
    output: str
    answer_bytes: int


@dataclass(frozen=True)
class Format:
    """One way to ask.

    Attributes:
        title: For the table.
        body: Names, array and microseconds until the deadline (0 for none) -> headers and body.
        numbers: An answer's body, and how many numbers it should hold -> the numbers.
    """

    title: str
    body: Callable[[Names, np.ndarray, int], tuple[dict[str, str], bytes]]
    numbers: Callable[[bytes, int], np.ndarray]

    def request(self, path: str, names: Names, array: np.ndarray, timeout_us: int = 0) -> bytes:
        """Return a whole HTTP/1.1 request; `{model}` and `{answer_bytes}` in the path are known."""
        headers, body = self.body(names, array, timeout_us)
        lines = [
            f"POST {path.format(model=names.model, answer_bytes=names.answer_bytes)} HTTP/1.1",
            "Host: 127.0.0.1",
            *(f"{name}: {value}" for name, value in headers.items()),
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _raw(names: Names, array: np.ndarray, timeout_us: int) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/octet-stream"}, array.tobytes()


def _raw_numbers(body: bytes, count: int) -> np.ndarray:
    if len(body) != FLOAT32.itemsize * count:
        raise ValueError(f"{count} float32 are {FLOAT32.itemsize * count} bytes; got {len(body)}")
    return np.frombuffer(body, FLOAT32)


def _json(names: Names, array: np.ndarray, timeout_us: int) -> tuple[dict[str, str], bytes]:
    document = {"data": array.reshape(-1).tolist()}
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def _json_numbers(body: bytes, count: int) -> np.ndarray:
    found = json.loads(body)
    return _flat(found["data"] if isinstance(found, dict) else found)


_BOUNDARY = "hasten-benchmark"


def _form(names: Names, array: np.ndarray, timeout_us: int) -> tuple[dict[str, str], bytes]:
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="file"; filename="x"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + array.tobytes() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


def _open_json(names: Names, array: np.ndarray, timeout_us: int) -> tuple[dict[str, str], bytes]:
    tensor = _tensor(names, array) | {"data": array.reshape(-1).tolist()}
    document = {"id": ID, "inputs": [tensor]} | _parameters(timeout_us)
    return {"Content-Type": "application/json"}, json.dumps(document).encode()


def _open_json_numbers(body: bytes, count: int) -> np.ndarray:
    return _flat(json.loads(body)["outputs"][0]["data"])


def _open_binary(names: Names, array: np.ndarray, timeout_us: int) -> tuple[dict[str, str], bytes]:
    tensor = _tensor(names, array) | {"parameters": {"binary_data_size": array.nbytes}}
    output = {"name": names.output, "parameters": {"binary_data": True}}
    document = {"id": ID, "inputs": [tensor], "outputs": [output]} | _parameters(timeout_us)
    head = json.dumps(document).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(head)),
    }
    return headers, head + array.tobytes()


def _open_binary_numbers(body: bytes, count: int) -> np.ndarray:
    """The one output asked for lies behind the JSON, to the end."""
    return np.frombuffer(body[-FLOAT32.itemsize * count :], FLOAT32)


def _tensor(names: Names, array: np.ndarray) -> dict[str, object]:
    return {"name": names.input, "shape": list(array.shape), "datatype": "FP32"}


def _parameters(timeout_us: int) -> dict[str, object]:
    return {"parameters": {"timeout": timeout_us}} if timeout_us else {}


def _flat(nested: Sequence[object]) -> np.ndarray:
    return np.asarray(nested, FLOAT32).reshape(-1)


FORMATS = {
    "raw": Format("raw bytes", _raw, _raw_numbers),
    "json": Format("JSON", _json, _json_numbers),
    "form": Format("a form with a file", _form, _raw_numbers),
    "open-json": Format("Open Inference, JSON", _open_json, _open_json_numbers),
    "open-binary": Format("Open Inference, binary", _open_binary, _open_binary_numbers),
}
"""By name."""
