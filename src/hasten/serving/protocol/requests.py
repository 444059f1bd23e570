"""An inference request and its answer, whatever brought them: HTTP, gRPC, a test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hasten.core.tensors import Array, Tensors

Parameters: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a registered shared memory region.

    Attributes:
        name: As registered.
        offset: In bytes, from the region's begin.
        size_bytes: Of the tensor; of an output, what there is room for.
    """

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that a request asks for.

    Attributes:
        name: The model's name of it.
        binary: As bytes behind the JSON; of HTTP alone.
        classes: So many of the highest scores as "score:index" instead of the tensor; 0 for it.
        region: Where to write it instead of sending it.
    """

    name: str
    binary: bool = False
    classes: int = 0
    region: Region | None = None


@dataclass(slots=True)
class Query:
    """A request, its tensors decoded.

    Attributes:
        model: Its name.
        version: "" for the newest.
        id: Echoed.
        inputs: Arrays by input name, as they came: not yet checked against the model.
        outputs: What is asked for; empty for all.
        binary: Whether all come as bytes where `outputs` names none.
        priority: 0 where none is stated, else from 1, the highest.
        timeout_ns: From its arrival; 0 for the server's own.
        arrived_ns: Monotonic clock, when its last byte was there.
        parsed_ns: When it was decoded.
        trace: The caller's W3C `traceparent`, or "".
        source: Which connection brought it; 0 where nobody says.
        plan: What was known of it beforehand: it needs no check. Of the server's own.
    """

    model: str
    version: str
    id: str
    inputs: dict[str, Array]
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool = False
    priority: int = 0
    timeout_ns: int = 0
    arrived_ns: int = 0
    parsed_ns: int = 0
    trace: str = ""
    source: int = 0
    plan: Any = None


@dataclass(slots=True)
class Answer:
    """What a request gets back.

    Attributes:
        model: Name of what answered.
        version: Of what answered.
        id: The request's.
        outputs: Arrays by output name, in the order asked for; those in shared memory stay there.
        parameters: Beside the outputs.
    """

    model: str
    version: str
    id: str
    outputs: Tensors
    parameters: dict[str, Any] = field(default_factory=dict)
