"""Messages of inference over HTTP: the bytes of a request, and the check of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import msgspec

from hasten.core.tensors import Tensors
from hasten.evaluation.loadtest.address import Access, Address
from hasten.evaluation.loadtest.metadata import (
    Described,
    Metadata,
    check_bytes,
    check_elements,
    check_names,
)
from hasten.evaluation.loadtest.traffic import Fate
from hasten.serving.protocol.datatypes import to_bytes

_OK = Fate("ok", "200")
_BROKEN = Fate("broken", "200")
_MOST_DEPTH = 64
"""Largest number of levels of nested lists of numbers."""
_UNREADABLE = (ValueError, msgspec.DecodeError, RecursionError)
"""Exceptions that decoding arbitrary JSON may raise."""


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] = {}
    data: Any = None


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _Described(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]


class _Metadata(msgspec.Struct):
    inputs: list[_Described]
    outputs: list[_Described]


class _Refusal(msgspec.Struct):
    error: str


class _Decided(msgspec.Struct):
    decision: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    decisions: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_answer = msgspec.json.Decoder(_Answer)
_decided = msgspec.json.Decoder(_Decided)
_metadata = msgspec.json.Decoder(_Metadata)
_refusal = msgspec.json.Decoder(_Refusal)


def model_path(address: Address, model: str, version: str) -> str:
    """Return the path of a model on a server."""
    path = f"{address.path}/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def get(address: Address, access: Access, path: str) -> bytes:
    """Return a GET request for a path."""
    return _head(f"GET {path}", address, access, []).encode("ascii")


def infer(
    address: Address,
    access: Access,
    path: str,
    inputs: Sequence[Described],
    outputs: Sequence[Described],
    tensors: Tensors,
    *,
    binary: bool,
    timeout_us: int | None,
) -> bytes:
    """Return a complete inference request.

    Args:
        address: Address of the server.
        access: Credentials for the server.
        path: Path of the model.
        inputs: Inputs of the model, in this order.
        outputs: Outputs to ask for.
        tensors: Arrays by input name, in C order.
        binary: Whether tensors follow the JSON as raw bytes (the protocol's binary tensor
            extension), in the answer too; otherwise they are in the JSON.
        timeout_us: Time after which the server may give up, in microseconds.
    """
    arrays = {one.name: tensors[one.name] for one in inputs}
    raws = [to_bytes(array) for array in arrays.values()]
    header: dict[str, Any] = {
        "inputs": [
            {"name": one.name, "datatype": one.datatype, "shape": list(arrays[one.name].shape)}
            | (
                {"parameters": {"binary_data_size": len(raw)}}
                if binary
                else {"data": arrays[one.name].reshape(-1).tolist()}
            )
            for one, raw in zip(inputs, raws, strict=True)
        ],
        "outputs": [
            {"name": one.name} | ({"parameters": {"binary_data": True}} if binary else {})
            for one in outputs
        ],
    }
    if timeout_us is not None:
        header["parameters"] = {"timeout": timeout_us}
    text = msgspec.json.encode(header)
    body = b"".join([text, *raws]) if binary else text
    kind = "application/octet-stream" if binary else "application/json"
    fields = [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    if binary:
        fields.append(f"Inference-Header-Content-Length: {len(text)}")
    return _head(f"POST {path}/infer", address, access, fields).encode("ascii") + body


def infer_sample(address: Address, access: Access, path: str, sample: bytes, kind: str) -> bytes:
    """Return a complete request whose body is one raw sample.

    Args:
        address: Address of the server.
        access: Credentials for the server.
        path: Path of the model.
        sample: Content of the sample's file.
        kind: Content type of the sample.
    """
    fields = [f"Content-Type: {kind}", f"Content-Length: {len(sample)}"]
    return _head(f"POST {path}/infer", address, access, fields).encode("ascii") + sample


def _head(first: str, address: Address, access: Access, fields: list[str]) -> str:
    secret = [f"Authorization: Bearer {access.token}"] if access.token else []
    lines = [f"{first} HTTP/1.1", f"Host: {address.authority}", *secret, *fields]
    return "\r\n".join(lines) + "\r\n\r\n"


def metadata_of(body: bytes) -> Metadata:
    """Read a server's description of a model.

    Raises:
        ValueError: it is something else.
    """
    try:
        read = _metadata.decode(body)
    except _UNREADABLE as error:
        raise ValueError(str(error)) from error
    inputs, outputs = (
        tuple(Described(one.name, one.datatype, tuple(one.shape)) for one in tensors)
        for tensors in (read.inputs, read.outputs)
    )
    return Metadata(inputs, outputs)


def error_message(body: bytes) -> str:
    """Return a server's error message, in the protocol's form or any other."""
    try:
        return _refusal.decode(body).error
    except _UNREADABLE:
        return body[:2000].decode("utf-8", "replace")


def judge(
    status: int, body: bytes, header_length: bytes | None, outputs: Sequence[str] | None
) -> tuple[Fate, str]:
    """Return the fate of a request that was answered.

    Args:
        status: Status of the answer.
        body: Complete body of the answer.
        header_length: Value of the field Inference-Header-Content-Length; None if there is none.
        outputs: Names of the model's outputs; None if the answer is a decision alone.

    Returns:
        The fate, and the server's message or what is wrong with the answer.
    """
    if status == 200:
        try:
            if outputs is None:
                _check_decision(body)
            else:
                _check(body, header_length, outputs)
        except _UNREADABLE as error:
            return _BROKEN, str(error)
        return _OK, ""
    if status == 503:
        return Fate("refused", "503"), error_message(body)
    if status == 504:
        return Fate("late", "504"), error_message(body)
    return Fate("error", str(status)), error_message(body)


def _check(body: bytes, header_length: bytes | None, outputs: Sequence[str]) -> None:
    """Check that an answer holds every output completely, and nothing else.

    Raises:
        ValueError: something is wrong with the answer.
    """
    view = memoryview(body)
    at = len(view) if header_length is None else _length(header_length, len(view))
    answer = _answer.decode(view[:at])
    for output in answer.outputs:
        size_bytes = output.parameters.get("binary_data_size")
        if size_bytes is None:
            check_elements(output.name, output.shape, _numbers(output.data, _MOST_DEPTH))
            continue
        if not isinstance(size_bytes, int) or not 0 <= size_bytes <= len(view) - at:
            raise ValueError(
                f"output {output.name!r:.100}: {size_bytes!r:.40} bytes are announced, but "
                f"{len(view) - at} came"
            )
        check_bytes(output.name, output.datatype, output.shape, view[at : at + size_bytes])
        at += size_bytes
    if at != len(view):
        raise ValueError(f"{len(view) - at} bytes came after the last output")
    check_names(outputs, [output.name for output in answer.outputs])


def _check_decision(body: bytes) -> None:
    """Check that an answer holds a decision.

    Raises:
        ValueError: it has none.
    """
    answer = _decided.decode(body)
    if answer.decision is answer.decisions is msgspec.UNSET:
        raise ValueError("the answer has no decision")


def _length(field: bytes, most: int) -> int:
    length = int(field) if field.isdigit() and len(field) < 20 else -1
    if not 0 < length <= most:
        raise ValueError(
            f"Inference-Header-Content-Length is {field[:40].decode('latin-1')!r}, but the body "
            f"has {most} bytes"
        )
    return length


def _numbers(data: Any, depth: int) -> int:
    """Count the elements of a tensor in JSON, which may be nested; 0 where there is no tensor."""
    if not isinstance(data, list) or not depth:
        return 0
    if data and isinstance(data[0], list):
        return sum(_numbers(row, depth - 1) for row in data)
    return len(data)
