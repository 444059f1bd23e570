"""Counts of a chain's samples under way: what they asked of its models, and what they will still ask of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from hasten.serving.models.chain_tickets import ChainTicket, Line, priority_of
from hasten.serving.models.served import ServedModel
from hasten.serving.protocol.requests import is_named

_WEIGHT = 1 / 16
"""Weight of a sample in the average of what recent ones asked of the models."""


class ChainCounts:
    """Counts of a chain's accepted samples.

    Args:
        nodes: Names of the chain's models.

    Attributes:
        rows: Rows that a recent sample asked of each node's model on average; one before the first answer.
        lines: Level -> accepted samples of it that are under way.
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        self.rows, self._finished = dict.fromkeys(nodes, 1.0), 0
        self.lines: dict[int, Line] = {}

    @property
    def waiting(self) -> int:
        """Number of samples that were accepted and haven't begun."""
        return sum(line.count - line.begun for line in self.lines.values())

    def share(self, asked: ServedModel, models: Mapping[str, ServedModel]) -> float:
        """Return the most of recent samples that can have asked a model, as a share."""
        return min(1.0, sum(self.rows[node] for node, model in models.items() if model is asked))

    def ahead_ns(self, ticket: ChainTicket, models: Mapping[str, ServedModel]) -> float:
        """Predict how long the models take for what samples before a new one haven't asked yet, in nanoseconds."""
        lines = [line for level, line in self.lines.items() if level <= ticket.level]
        count = sum(line.count for line in lines)
        client, left_ns = ticket.query.client, 0.0
        mine = [of for line in lines for of in line.clients.get(client, {}).items()]
        lower = 0
        if is_named(ticket.query):  # the models let its more urgent samples go first
            lower = sum(of for priority, of in mine if priority > priority_of(ticket))
        before = count - lower
        if not before:
            return 0.0
        clients = {client}.union(*(line.clients for line in lines))
        own = 1 + sum(of for _, of in mine) - lower
        for node, model in models.items():
            rows = self.rows[node] * count - sum(line.asked[node] for line in lines)
            left_ns += max(0.0, rows) * model.cost_of(1)
        # Clients take turns: of each, no more samples come before than are this client's.
        return left_ns / count * min(before, len(clients) * own)

    def enter(self, ticket: ChainTicket) -> None:
        """Count a sample that was accepted among those that others come after."""
        asked, left = (dict.fromkeys(self.rows, 0.0) for _ in range(2))
        line = self.lines.setdefault(ticket.level, Line(asked, left))
        line.count += 1
        own, priority = line.clients.setdefault(ticket.query.client, {}), priority_of(ticket)
        own[priority] = own.get(priority, 0) + 1
        ticket.line, ticket.counted = line, dict.fromkeys(self.rows, 0.0)

    def asks(self, ticket: ChainTicket, node: str, rows: int) -> None:
        """Count what a sample asks of a model: up to the average, which was foreseen."""
        self.count_begun(ticket)
        ticket.asked_rows[node] += rows
        ticket.asking = rows
        if ticket.line is not None:
            counted = min(float(ticket.asked_rows[node]), self.rows[node])
            ticket.line.asked[node] += counted - ticket.counted[node]
            ticket.counted[node] = counted

    def uncount(self, ticket: ChainTicket) -> None:
        """Count a sample no more that is over."""
        line, client = ticket.line, ticket.query.client
        if line is None:
            return
        ticket.line = None
        line.count -= 1
        if not line.count:
            del self.lines[ticket.level]
        own, priority = line.clients[client], priority_of(ticket)
        own[priority] -= 1
        if not own[priority]:
            del own[priority]
        if not own:
            del line.clients[client]
        for node, rows in ticket.counted.items():
            line.asked[node] -= rows
        uncount_begun(ticket, line)

    def count_begun(self, ticket: ChainTicket) -> None:
        """Count a sample among those that have begun."""
        if ticket.line is not None and not ticket.left:
            ticket.line.begun += 1
            ticket.left = dict(self.rows)
            for node, rows in ticket.left.items():
                ticket.line.left[node] += rows

    def got(self, ticket: ChainTicket, node: str) -> None:
        """Count the rows that a sample got from a model."""
        if ticket.line is not None and ticket.left:
            got = min(float(ticket.asking), ticket.left[node])
            ticket.left[node] -= got
            ticket.line.left[node] -= got

    def answered(self, ticket: ChainTicket) -> None:
        """Learn from a sample that is answered how many rows one asks of each model."""
        self._finished += 1
        for node, rows in ticket.asked_rows.items():
            self.rows[node] += max(_WEIGHT, 1 / self._finished) * (rows - self.rows[node])


def uncount_begun(ticket: ChainTicket, line: Line) -> None:
    """Count a sample no more among those that have begun, if it is."""
    line.begun -= bool(ticket.left)
    for node, rows in ticket.left.items():
        line.left[node] -= rows
    ticket.left = {}
