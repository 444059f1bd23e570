"""Messages of inference over gRPC: the bytes of a request, and the check of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.core.extras import missing_extra
from hasten.core.protobufs import parse_errors
from hasten.core.tensors import Tensors
from hasten.core.words import amount
from hasten.evaluation.loadtest.metadata import (
    Described,
    Metadata,
    check_bytes,
    check_elements,
    check_names,
)
from hasten.evaluation.loadtest.traffic import Fate
from hasten.serving.protocol.datatypes import to_bytes
from hasten.serving.protocol.messages import message

try:
    _DAMAGED = parse_errors()
except ImportError as error:
    raise missing_extra("a load test over gRPC", "serve") from error

_NO_ANSWER: tuple[type[Exception], ...] = (ValueError, *_DAMAGED)
_OK = Fate("ok", "OK")
_BROKEN = Fate("broken", "OK")


def metadata_request(model: str, version: str) -> bytes:
    """Return a ModelMetadataRequest."""
    return _written(message("ModelMetadataRequest")(name=model, version=version))


def infer(
    model: str,
    version: str,
    inputs: Sequence[Described],
    outputs: Sequence[Described],
    tensors: Tensors,
    *,
    timeout_us: int | None,
) -> bytes:
    """Return a ModelInferRequest with raw tensors.

    Args:
        model: Name of the model.
        version: Version of the model; empty for the server's choice.
        inputs: Inputs of the model, in this order.
        outputs: Outputs to ask for.
        tensors: Arrays by input name, in C order.
        timeout_us: Time after which the server may give up, in microseconds.
    """
    request = message("ModelInferRequest")(
        model_name=model,
        model_version=version,
        inputs=[
            {"name": one.name, "datatype": one.datatype, "shape": tensors[one.name].shape}
            for one in inputs
        ],
        outputs=[{"name": one.name} for one in outputs],
        raw_input_contents=[bytes(to_bytes(tensors[one.name])) for one in inputs],
    )
    if timeout_us is not None:
        request.parameters["timeout"].int64_param = timeout_us
    return _written(request)


def _written(request: Any) -> bytes:
    data: bytes = request.SerializeToString()
    return data


def metadata_of(answer: bytes) -> Metadata:
    """Read a ModelMetadataResponse.

    Raises:
        ValueError: the answer isn't one.
    """
    try:
        read = message("ModelMetadataResponse").FromString(answer)
    except _DAMAGED as error:
        raise ValueError(str(error)) from error
    inputs, outputs = (
        tuple(Described(one.name, one.datatype, tuple(one.shape)) for one in tensors)
        for tensors in (read.inputs, read.outputs)
    )
    return Metadata(inputs, outputs)


def judge(answer: bytes, outputs: Sequence[str]) -> tuple[Fate, str]:
    """Return the fate of a request that was answered with success.

    Args:
        answer: Bytes of a ModelInferResponse.
        outputs: Names of the model's outputs.

    Returns:
        The fate, and what is wrong with the answer.
    """
    try:
        _check(message("ModelInferResponse").FromString(answer), outputs)
    except _NO_ANSWER as error:
        return _BROKEN, str(error)
    return _OK, ""


def _check(answer: Any, outputs: Sequence[str]) -> None:
    """Check that an answer holds every output completely, and nothing else.

    Raises:
        ValueError: something is wrong with the answer.
    """
    raws = answer.raw_output_contents
    if raws and len(raws) != len(answer.outputs):
        raise ValueError(f"{amount(len(answer.outputs), 'output')} announced, but {len(raws)} came")
    for number, one in enumerate(answer.outputs):
        if raws:
            check_bytes(one.name, one.datatype, one.shape, memoryview(raws[number]))
        else:
            found = sum(len(values) for _, values in one.contents.ListFields())
            check_elements(one.name, one.shape, found)
    check_names(outputs, [one.name for one in answer.outputs])
