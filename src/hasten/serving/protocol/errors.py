"""Why a request got no answer, in the words of HTTP and of gRPC."""

from __future__ import annotations

import enum

from hasten.errors import HastenError


class Kind(enum.Enum):
    """What kind of failure: its HTTP status, and the name of gRPC's."""

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
        """The HTTP status."""
        return self.value[0]

    @property
    def grpc(self) -> str:
        """The name of gRPC's status."""
        return self.value[1]


class ProtocolError(HastenError):
    """A request that gets an error for an answer.

    Attributes:
        kind: Which.
        retry_s: When it may be worth to ask again, in seconds; None where it isn't for the time.
    """

    def __init__(self, kind: Kind, message: str, retry_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_s = retry_s
