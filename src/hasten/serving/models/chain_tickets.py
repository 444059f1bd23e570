"""Request to a chain, from its acceptance to its answer, and the line in which its sample is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hasten.bundle.chains.plan import Run, Stage
from hasten.core.tensors import Tensors
from hasten.serving.models.deciding import Cancellable, RawTicket
from hasten.serving.models.scheduling import USUAL_PRIORITY
from hasten.serving.protocol.errors import Kind, ProtocolError


@dataclass
class Line:
    """Samples of one level that are under way, counted so that none has to be looked at for another.

    Attributes:
        asked: Rows that they have asked of each node's model, of each sample at most the average.
        left: Rows that those that have begun will still get from each node's model, by the average.
        count: Number of samples.
        begun: Number of those that have begun.
        clients: Client -> its priorities, and the number of its samples of each.
    """

    asked: dict[str, float]
    left: dict[str, float]
    count: int = 0
    begun: int = 0
    clients: dict[str, dict[int, int]] = field(default_factory=dict)


class ChainTicket(RawTicket):
    """A request to a chain, from its acceptance to its answer.

    Attributes:
        run: The chain's stages for the sample.
        deadline_ns: Time after which nothing more is begun.
        asked: Requests to the model whose turn it is.
        asking: Rows of these requests.
        answers: Their outputs, as far as they came.
        stages: Times of the stages that are done.
        level: Level of its requests in the models' queues.
        asked_rows: Rows that the models were asked about so far, by their nodes.
        line: Line in which it is counted; None if it isn't.
        counted: Rows of these that the line counts.
        prepare: Function that begins its stages, while it waits at the door; else None.
        left: Rows that it will still get from each node's model, by the average; empty before it has begun.
    """

    __slots__ = (
        "answers",
        "asked",
        "asked_rows",
        "asking",
        "counted",
        "left",
        "level",
        "line",
        "prepare",
        "run",
        "stages",
    )

    run: Run | None
    stages: list[Stage]
    asked: list[Cancellable]
    answers: dict[int, Tensors]
    asked_rows: dict[str, int]
    asking: int
    counted: dict[str, float]
    left: dict[str, float]
    level: int
    line: Line | None
    prepare: Callable[[], Any] | None

    def cancel(self) -> None:
        if self.over:
            return
        self._deciding.leave(self)
        self.drop()
        self.model.refused(self.query, ProtocolError(Kind.GONE, "the client went away"))

    def withdraw(self) -> bool:
        return self.prepare is not None and super().withdraw()  # else its models were asked

    def drop(self) -> None:
        """Give up what the models were asked."""
        for each in self.asked:
            if not each.over:
                each.cancel()
        self.asked, self.answers = [], {}


def priority_of(ticket: RawTicket) -> int:
    """Return the priority of a request, which is the usual one if it states none."""
    return ticket.query.priority or USUAL_PRIORITY
