"""Define an inference request and its answer, independent of HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hasten.core.tensors import Array, Tensors

Parameters: TypeAlias = Mapping[str, Any]

RAW = "raw"
"""Name of the input that takes raw samples: datatype BYTES, one element per sample."""
DECISION = "decision"
"""Name of the output with the decision on each raw sample as JSON: datatype BYTES."""


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a registered shared memory region.

    Attributes:
        name: Name under which the region was registered.
        offset: Offset from the region's start, in bytes.
        size_bytes: Size of the tensor; for an output, the size that is available.
        number: Number of the registration that an output is written to; 0 before it was looked up.
    """

    name: str
    offset: int
    size_bytes: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that a request asks for.

    Attributes:
        name: Name of the model's output.
        binary: Whether to send the output as bytes after the JSON; for HTTP only.
        classes: Number of highest scores to send as "score:index"; 0 to send the tensor itself.
        region: Shared memory to write the output to instead of sending it; None to send it.
    """

    name: str
    binary: bool = False
    classes: int = 0
    region: Region | None = None


SequenceId: TypeAlias = int | str
"""Name of a sequence that a client chose; a number and the same digits as text are two."""


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """Place of a request in a sequence whose states the server carries.

    Attributes:
        id: Name of the sequence; not 0, nor "".
        start: Whether the sequence begins here, with the start states.
        end: Whether it ends here, so that its states go.
    """

    id: SequenceId
    start: bool = False
    end: bool = False

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the answer, as Triton sends them."""
        return {
            "sequence_id": self.id,
            "sequence_start": self.start,
            "sequence_end": self.end,
        }


@dataclass(slots=True)
class Query:
    """A request with decoded tensors.

    Attributes:
        model: Name of the model.
        version: Version of the model; "" for the newest.
        id: Identifier that the answer repeats.
        inputs: Arrays by input name, not yet checked against the model.
        outputs: Outputs that are asked for; empty for all.
        binary: Whether to send all outputs as bytes if `outputs` is empty.
        priority: Priority from 1, the highest; 0 if none is stated.
        timeout_ns: Time limit from the request's arrival; 0 for the server's own.
        arrived_ns: Time when the request's last byte arrived, on the monotonic clock.
        parsed_ns: Time when the request was decoded, on the monotonic clock.
        trace: Caller's W3C `traceparent`, or "".
        source: Number of the connection that sent the request; 0 if unknown.
        plain: Whether the body was one raw sample, so that the answer is the decision alone.
        several: Whether the body was a list of samples, so that the answer is a list of decisions.
        plan: `RequestPlan` or `MessagePlan` by which the request was decoded and thus needs no check; None if there was none.
        sequence: Place of the request in a sequence; None for a request that stands alone.
        own: Whether the server itself asks, to compare two bundles; such requests are neither counted nor audited.
        client: Client that the request is counted under.
        name: Name of the client, where the server can tell several; else "".
        sent_bytes: Size of the body as it was sent, where it came compressed; else 0.
        accepted: Whether the request is one of a chain's for a sample that it has accepted.
        raw: Samples that the rows were made from, where the exact model takes them prepared otherwise; else none.
        part: List that gets the record and the ticket of the answer, if it is a part of a request that is counted as a
            whole; None for a request that is counted itself.
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
    plain: bool = False
    several: bool = False
    plan: Any = None
    sequence: SequenceStep | None = None
    own: bool = False
    client: str = ""
    name: str = ""
    sent_bytes: int = 0
    accepted: bool = False
    raw: Sequence[bytes] = ()
    part: list[Any] | None = None


def is_named(query: Query) -> bool:
    """Return whether a request's client is known by a token or a certificate, and others are too."""
    return bool(query.client and query.name)


@dataclass(slots=True)
class Answer:
    """Answer to a request.

    Attributes:
        model: Name of the model that answered.
        version: Version of the model that answered.
        id: Identifier of the request.
        outputs: Arrays by output name, in the order asked for; those in shared memory stay there.
        parameters: Parameters that are sent beside the outputs.
        decisions_bytes: Size of the decisions among the outputs, which their arrays only point to.
    """

    model: str
    version: str
    id: str
    outputs: Tensors
    parameters: dict[str, Any] = field(default_factory=dict)
    decisions_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Size of the outputs' arrays and of the decisions; a text of the model's own counts as 8 bytes."""
        size = self.decisions_bytes
        for array in self.outputs.values():
            size += array.nbytes
        return size
