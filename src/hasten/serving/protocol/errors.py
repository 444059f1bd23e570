"""Define the kinds of errors that requests get, with their HTTP and gRPC statuses."""

from __future__ import annotations

import enum
from typing import TypeVar

from hasten.errors import HastenError

Failure = TypeVar("Failure", bound=BaseException)


class Kind(enum.Enum):
    """Kind of an error, with its HTTP status and the name of its gRPC status."""

    INVALID = (400, "INVALID_ARGUMENT")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    FORBIDDEN = (403, "PERMISSION_DENIED")
    NOT_FOUND = (404, "NOT_FOUND")
    NO_METHOD = (405, "UNIMPLEMENTED")
    SLOW = (408, "CANCELLED")
    TOO_LARGE = (413, "INVALID_ARGUMENT")
    HEADERS = (431, "INVALID_ARGUMENT")
    GONE = (499, "CANCELLED")
    INTERNAL = (500, "INTERNAL")
    OVERLOADED = (503, "RESOURCE_EXHAUSTED")
    UNAVAILABLE = (503, "UNAVAILABLE")
    LATE = (504, "DEADLINE_EXCEEDED")

    @property
    def http(self) -> int:
        """HTTP status of the error."""
        return self.value[0]

    @property
    def grpc(self) -> str:
        """Name of the error's gRPC status."""
        return self.value[1]


class ProtocolError(HastenError):
    """Error that a request gets as its answer, in one line whatever names the request has.

    Attributes:
        kind: Kind of the error.
        retry_s: Seconds after which a retry may succeed; None if waiting doesn't help.
    """

    def __init__(self, kind: Kind, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_s = retry_s


def without_frames(error: Failure) -> Failure:
    """Return an error that is kept, without the frames that it came through and the errors behind it.

    If a variable of such a frame keeps the error, the two keep each other, and with them all that the frames'
    variables hold, such as a client's picture. Only a garbage collection would free it, and a server collects
    rarely.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def own_fault(error: BaseException | None) -> ProtocolError:
    """Return the error that a client gets when the server's own code raises something else.

    Memory that runs out is no fault of the request, and what is under way now gives some back.
    """
    if isinstance(error, MemoryError):
        return ProtocolError(
            Kind.OVERLOADED, "the server is short of memory: retry later", retry_s=1.0
        )
    return ProtocolError(Kind.INTERNAL, "the server failed; its log has the reason")
