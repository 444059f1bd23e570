"""Hold the state of one server process: models, memory regions, connections and limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from hasten.serving.coding import Coding
from hasten.serving.fairness import Shares
from hasten.serving.loop_budget import LoopBudget
from hasten.serving.models.room import ROOM_BYTES
from hasten.serving.monitoring.line import Line
from hasten.serving.owed_answers import Holding, OwedAnswers
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.origins import Origins
from hasten.serving.protocol.rights import Rights
from hasten.serving.wire.shared_memory import SharedMemory

if TYPE_CHECKING:
    from hasten.serving.models.repository import Repository

_RECEIVE_BYTES = 64 << 10
_HANDED_BYTES = 4 << 20
_JSON_BYTES = 16 << 20
"""Size that JSON of an inference may have, however small bodies are."""
_GRPC_ANSWER_BYTES = 64 << 20
"""Size that an answer over gRPC may have, however small bodies are."""


@dataclass(frozen=True)
class Limits:
    """Limits on sizes, counts and times that a server accepts.

    Attributes:
        header_bytes: Largest size of a request line with its headers.
        body_bytes: Largest size of one body, and of one request's tensors.
        bodies_bytes: Largest total size of all bodies that are being received or processed, and of
            answers that their clients haven't read.
        connections: Largest number of connections open at once.
        receive_ns: Longest time to receive a whole request, from its first byte.
        send_ns: Longest time in which a client may read nothing of its answer; over HTTP less than 4 KiB of it,
            or than its rest.
        sample_bytes: Memory of all raw samples together, beyond what their own bytes pay for.
        drain_ns: Longest wait at shutdown for running requests to finish.
        stall_ns: Longest time for which the event loop may stand still before its process is replaced; 0
            for any.
        fair: Whether clients are told apart, so that one doesn't starve the rest.
    """

    header_bytes: int = 32 << 10
    body_bytes: int = 64 << 20
    bodies_bytes: int = 1 << 30
    connections: int = 1024
    sample_bytes: int = ROOM_BYTES
    receive_ns: int = 30_000_000_000
    send_ns: int = 30_000_000_000
    drain_ns: int = 30_000_000_000
    stall_ns: int = 30_000_000_000
    fair: bool = True

    @cached_property
    def json_bytes(self) -> int:
        """Largest size of one inference's JSON; the tensors after it aren't counted."""
        return max(_JSON_BYTES, self.body_bytes // 4)

    @cached_property
    def grpc_answer_bytes(self) -> int:
        """Largest size of all outputs in one answer over gRPC, whose library copies them on the loop's thread."""
        return max(_GRPC_ANSWER_BYTES, self.body_bytes)


class Held(Holding, Protocol):
    """Interface of a connection that the server uses; its request may be taken back unless `begun_ns` is 0.

    Attributes:
        client: Client that the connection is counted under.
    """

    client: str

    @property
    def idle(self) -> bool:
        """Whether no request is being received, processed or answered on the connection."""

    @property
    def quiet(self) -> int:
        """Number of consecutive checks, up to the latest, at which the server waited for the client."""

    @property
    def spare(self) -> bool:
        """Whether the connection may be closed to make room for others."""

    def overdue(self, now_ns: int) -> bool:
        """Whether the connection's client is too slow."""

    def rest(self) -> None:
        """Count a check at which the client let the server wait; record whether it is idle."""

    def end_slow(self) -> None:
        """Close the connection because its client is too slow."""

    def leave(self) -> bool:
        """Close the connection once what it asked is answered; False if it is being closed already."""

    def take_back(self) -> None:
        """Close the connection if memory is held for a body that isn't whole, or for an unread answer."""

    def hurry(self, now_ns: int) -> int | None:
        """End the connection if its client has read nothing of an answer for a second.

        Returns:
            Bytes that the client has received so far; None if it has no answer to read, or was ended.
        """

    def give_way(self) -> None:
        """Close the connection to make room for others."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(eq=False)
class ServerState:
    """State of one server process; used on its event loop's thread only.

    Attributes:
        repository: Models by name and version.
        memory: Shared memory regions that clients registered.
        limits: Limits on sizes, counts and times.
        rights: Clients that the server knows, and what each may ask for; None to serve all alike.
        behind_door: Whether the only token is a door's, which sends it for all its clients.
        origins: Names of the server, by which requests of foreign web pages are told.
        may_control: Whether clients may load and unload registered models, and change the log
            settings.
        tracing: Whether spans are sent.
        connections: Open connections.
        crowd: Number of connections of each client.
        bodies: Sizes of all bodies of each client that are being received or processed, and of answers
            that it hasn't read.
        owed: Answers that each client is to read over all its connections, made or foreseen.
        draining: Whether the server is shutting down.
        began_ns: Time of the start, on the monotonic clock.
        coding: Threads that decompress bodies and encode long answers.
        labelling: Line of requests of labels, which wait to be scored.
        parsing: Bytes of long bodies that each turn of the loop parses.
        handing: Bytes of answers that each turn of the loop hands to gRPC's library, which copies them.
        begun_calls: Function that returns a client's requests over gRPC that are with their models and can be taken back.
        end_unread: Function that ends a client's connections of gRPC on which it has left answers unread.
        received: Buffer that all connections receive into; its content is parsed before the next
            receive.
    """

    repository: Repository
    memory: SharedMemory = field(default_factory=SharedMemory)
    limits: Limits = field(default_factory=Limits)
    rights: Rights | None = None
    behind_door: bool = False
    origins: Origins = field(default_factory=Origins)
    may_control: bool = False
    tracing: bool = False
    connections: set[Held] = field(default_factory=set)
    crowd: Shares = field(init=False)
    bodies: Shares = field(init=False)
    owed: OwedAnswers = field(init=False)
    draining: bool = False
    began_ns: int = field(default_factory=time.perf_counter_ns)
    coding: Coding = field(default_factory=Coding)
    labelling: Line = field(default_factory=Line)
    parsing: LoopBudget = field(default_factory=LoopBudget)
    handing: LoopBudget = field(default_factory=lambda: LoopBudget(_HANDED_BYTES))
    begun_calls: Callable[[str], Iterable[Holding]] = lambda client: ()
    end_unread: Callable[[str], None] = lambda client: None
    received: memoryview = field(default_factory=lambda: memoryview(bytearray(_RECEIVE_BYTES)))

    def __post_init__(self) -> None:
        self.crowd = Shares(self.limits.connections)
        self.bodies = Shares(self.limits.bodies_bytes, least=self.limits.body_bytes)
        patience_s, fair = self.limits.receive_ns / 1e9, self.limits.fair
        self.owed = OwedAnswers(self._hurry, patience_s, self._begun, fair=fair)

    def client_of(self, client: str) -> str:
        """Return what a client is counted under: itself, or "" where all clients are counted as one."""
        return client if self.limits.fair else ""

    @property
    def body_bytes(self) -> int:
        """Total size of all bodies that are being received or processed, and of unread answers."""
        return self.bodies.taken

    @property
    def ready(self) -> bool:
        """Whether the server answers requests."""
        return not self.draining and self.repository.ready

    def check_room(self, client: str, size_bytes: int) -> None:
        """Check that a further body or answer may take memory.

        Raises:
            ProtocolError: all bodies and answers together would exceed the limit, or the client's would
                exceed its share.
        """
        bodies = self.bodies
        if bodies.may_take(client, size_bytes):
            return
        if self._take_back(client, size_bytes) and bodies.may_take(client, size_bytes):
            return
        most = self.limits.bodies_bytes
        said = f"overloaded: requests with {most:,} bytes are in progress; retry later"
        if bodies.taken + size_bytes <= most:
            said = (
                f"overloaded: {bodies.of(client):,} of the {most:,} bytes that may be in "
                "progress are this client's, and other clients are waiting; retry later"
            )
        raise ProtocolError(Kind.OVERLOADED, said, retry_s=1.0)

    def _take_back(self, client: str, size_bytes: int) -> bool:
        """End what the greediest client lets the server wait for, where another finds no room for a body.

        Returns:
            Whether there is room now.
        """
        bodies, greedy = self.bodies, self.bodies.greediest()
        for one in list(self.connections) if greedy != client else ():
            if bodies.taken + size_bytes <= bodies.total or 2 * bodies.of(greedy) <= bodies.total:
                break
            if one.client == greedy:
                one.take_back()
        is_room = bodies.taken + size_bytes <= bodies.total
        if not is_room and greedy != client and 2 * bodies.of(greedy) > bodies.total:
            self.end_unread(greedy)  # which takes a moment
        return is_room

    def _begun(self, client: str) -> list[Holding]:
        """Return the requests of a client that are with their models and can be taken back."""
        begun = [one for one in self.connections if one.client == client and one.begun_ns]
        return [*begun, *self.begun_calls(client)]

    def _hurry(self, client: str) -> None:
        """Look at how a client reads, since its further requests wait for that; end what it doesn't read at all."""
        now_ns = time.perf_counter_ns()
        for one in list(self.connections):
            if one.client == client and (read := one.hurry(now_ns)) is not None:
                self.owed.looked(client, one, read, one.take_back)
        self.end_unread(client)

    def admits(self, connection: Held) -> bool:
        """Whether a connection may ask for more than health.

        Beyond the allowed number it may if its client has fewer than another, which gives one up.
        """
        if len(self.connections) <= self.limits.connections:
            return True
        greedy = self.crowd.greediest()
        if self.crowd.of(greedy) <= self.crowd.of(connection.client):
            return False
        theirs = [one for one in self.connections if one.client == greedy]
        return any(one.leave() for one in sorted(theirs, key=lambda one: -one.quiet))

    def check_control(self, what: str) -> None:
        """Check that clients may control the server.

        Args:
            what: Action that the client asked for, for the message.

        Raises:
            ProtocolError: the server was started without allowing control.
        """
        if not self.may_control:
            raise ProtocolError(
                Kind.FORBIDDEN, f"clients may not {what}: start the server with --allow-control"
            )
