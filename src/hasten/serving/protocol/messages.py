"""Provide the messages and methods of the Open Inference Protocol over gRPC, with Triton's extensions.

`inference.proto` is the source; `scripts/proto` compiles it to `inference.binpb`, which is read here
at the first use. The messages live in their own pool: in protobuf's common pool they would collide
with the equally named messages of a client that is imported into the same process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from hasten.errors import InputError

_COMPILED = Path(__file__).with_name("inference.binpb")
_PACKAGE = "inference"

SERVICE = f"{_PACKAGE}.GRPCInferenceService"
METHODS: Mapping[str, Method]
"""Name of each method of the service -> the method, in the order of `inference.proto`."""


class Method(NamedTuple):
    """One method of the service.

    Attributes:
        request: Name of the request's message, as `message` takes it.
        response: Name of the answer's message, as `message` takes it.
        streaming: Whether requests and answers come in streams, with any number of each.
    """

    request: str
    response: str
    streaming: bool


@cache
def message(name: str) -> type[Any]:
    """Return the class of a message, which is the same object at each call.

    Type checkers don't know the fields of the class, so it is returned as `type[Any]`.

    Args:
        name: Name in `inference.proto`, such as `ModelInferRequest`, or
            `ModelInferRequest.InferInputTensor` for a message inside another.

    Raises:
        InputError: protobuf isn't installed.
        KeyError: there is no such message.
    """
    pool = _pool()
    from google.protobuf import message_factory

    found: type[Any] = message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")
    )
    return found


def __getattr__(name: str) -> Any:
    if name != "METHODS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _methods()


@cache
def _methods() -> Mapping[str, Method]:
    return MappingProxyType(
        {
            method.name: Method(
                method.input_type.name,
                method.output_type.name,
                method.client_streaming and method.server_streaming,
            )
            for method in _pool().FindServiceByName(SERVICE).methods
        }
    )


@cache
def _pool() -> Any:
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool
    except ImportError as error:
        raise InputError(
            "serving over gRPC needs protobuf and grpcio: pip install 'hasten[serve]'"
        ) from error
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_COMPILED.read_bytes()).file:
        pool.Add(file)
    return pool
