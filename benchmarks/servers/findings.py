"""What is found of servers that serve one subject, and the tables that people read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from catalogue import FLOOR, HASTEN
from formats import FORMATS
from turns import Block, Rounds

from hasten.measure.intervals import Ratio

MANY = 16
"""Clients, beside the one."""
OVERLOAD = 2.0
"""Of what is answered at most."""


@dataclass
class Overload:
    """Twice what can be answered was asked.

    Attributes:
        name: Name of the contestant.
        deadline_ns: Deadline of each request, in nanoseconds after it was due.
        blocks: Results, one for each round.
        goodput_per_s: Requests answered in time per second, for each round.
        capacity_per_s: For each round, requests per second with 16 clients of a closed loop: the mean
            of those before and after it.
        memory_bytes: Proportional set size (PSS) before and after all rounds.
    """

    name: str
    deadline_ns: float
    blocks: list[Block] = field(default_factory=list)
    goodput_per_s: list[float] = field(default_factory=list)
    capacity_per_s: list[float] = field(default_factory=list)
    memory_bytes: list[int] = field(default_factory=list)


@dataclass
class Found:
    """What was found of one subject.

    Attributes:
        base: Name of the contestant that the others are compared with.
        rounds: Results with closed loops by contestant.
        idle: Share of one processor that each server uses while nobody asks.
        memory_bytes: Proportional set size (PSS) of each server once it was up.
        left_out: Reasons why servers are missing, by server.
        versions: Package and version of each server that was up.
        rate_per_s: Requests per second of the open loops.
        open: Results with open loops by contestant.
        overload: hasten's results under overload, one for each way to ask and each deadline.
    """

    base: str
    rounds: dict[str, Rounds] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    rate_per_s: float = 0.0
    open: dict[str, list[Block]] = field(default_factory=dict)
    overload: list[Overload] = field(default_factory=list)


def closed_table(found: Found) -> str:
    """Return the table of the closed loops, the fastest first."""
    base = next((one for name, one in found.rounds.items() if name.startswith(found.base)), None)
    named = "the floor" if found.base == FLOOR else found.base
    head = ("server", "asked by", "p50, 1 client", f"over {named}", "added")
    rows = [(*head, f"req/s, {MANY} clients", f"of {named}", "idle CPU", "memory")]
    for name, one in sorted(found.rounds.items(), key=_p50):
        server, way = _parted(name)
        if one.failed:
            rows.append((server, way, one.failed.replace("|", "/"), *["-"] * 6))
            continue
        over, added, share = "-", "-", "-"
        if base is not None and not base.failed:
            over = _ratio(one.p50_over(base))
            added = f"{(one.p50.estimate - base.p50.estimate) / 1e6:.3f} ms"
            share = f"{100 * one.rate_over(base).estimate:.0f}%"
        idle, memory = "-", "-"
        if server in found.idle:
            idle = f"{100 * found.idle[server]:.1f}%"
            memory = f"{found.memory_bytes[server] / 2**20:.0f} MiB"
        rows.append(
            (server, way, _milliseconds(one.p50), over, added, _rate(one.rate), share, idle, memory)
        )
    return table(rows)


def server_line(found: Found) -> str:
    """Say what hasten adds to the model, beyond what it takes to bring and take the same bytes."""
    named: dict[str, Rounds] = {}
    for name, one in found.rounds.items():
        named.setdefault(_parted(name)[0], one)  # its leanest way over a connection
    parts = [named.get(name) for name in (HASTEN, found.base, FLOOR)]
    if found.base == FLOOR or any(one is None or one.failed for one in parts):
        return ""
    hasten, model, floor = (
        {place: block.p50_ns for place, block in one.one.items()} for one in parts if one
    )
    added = [hasten[place] - model[place] for place in hasten]
    beyond = [hasten[place] - model[place] - floor[place] for place in hasten]
    low, middle, high = np.quantile(beyond, (0.25, 0.5, 0.75)) / 1e6
    return (
        f"With one client hasten adds {np.median(added) / 1e6:.3f} ms to {found.base} (median of "
        f"{len(added)} rounds); bringing and taking the same bytes without a model takes "
        f"{np.median(list(floor.values())) / 1e6:.3f} ms, and beyond both are {middle:.3f} ms (half of "
        f"the rounds: {low:.3f} to {high:.3f})."
    )


def client_line(found: Found) -> str:
    """Say whether the client itself was the bound."""
    blocks = [
        block for one in found.rounds.values() for block in (*one.one.values(), *one.many.values())
    ]
    most = max((block.client_cpu for block in blocks), default=0.0)
    return f"The client used at most {100 * most:.0f}% of one processor."


def open_table(found: Found) -> str:
    """Return the table of the open loops."""
    rows = [("server", "asked by", "answered", "p50", "p99")]
    for name, blocks in found.open.items():
        right = sum(block.right for block in blocks)
        asked = sum(sum(block.statuses.values()) + block.unanswered for block in blocks)
        quantiles = []
        for of in ("p50_ns", "p99_ns"):
            each = sorted(ns for block in blocks if (ns := getattr(block, of)) is not None)
            quantiles.append(f"{each[len(each) // 2] / 1e6:.2f} ms" if each else "-")
        failed = next((f": {block.failed}" for block in blocks if block.failed), "")
        rows.append((*_parted(name), f"{right} of {asked}{failed}", *quantiles))
    return table(rows)


def overload_table(found: Found) -> str:
    """Return what came of the overload."""
    head = ("server", "asked by", "deadline", "asked", "in time", "of what it answers at most")
    rows = [(*head, "p99 of the answered", "late", "memory before, after")]
    for one in found.overload:
        share = np.array(one.goodput_per_s) / np.array(one.capacity_per_s)
        p99_ns = [block.p99_ns for block in one.blocks if block.p99_ns is not None]
        statuses = [block.statuses for block in one.blocks]
        late = sum(each.get("504", 0) for each in statuses) + sum(b.unanswered for b in one.blocks)
        asked = sum(sum(each.values()) for each in statuses)
        rows.append(
            (
                *_parted(one.name),
                f"{one.deadline_ns / 1e6:.1f} ms",
                f"{OVERLOAD * np.median(one.capacity_per_s):.0f}/s",
                f"{np.median(one.goodput_per_s):.0f}/s",
                f"{100 * np.median(share):.0f}% ({100 * share.min():.0f} to {100 * share.max():.0f})",
                f"{np.median(p99_ns) / 1e6:.1f} ms" if p99_ns else "-",
                f"{late} of {asked:,}",
                ", ".join(f"{size / 2**20:.0f} MiB" for size in one.memory_bytes),
            )
        )
    return table(rows)


def _p50(item: tuple[str, Rounds]) -> float:
    return float("inf") if item[1].failed else item[1].p50.estimate


def _parted(name: str) -> tuple[str, str]:
    server, _, way = name.partition(" / ")
    return server, FORMATS[way].title if way else "a call"


def _milliseconds(level: Ratio) -> str:
    return f"{level.estimate / 1e6:.3f} ms ({level.low / 1e6:.3f} to {level.high / 1e6:.3f})"


def _rate(level: Ratio) -> str:
    return f"{level.estimate:,.0f} ({level.low:,.0f} to {level.high:,.0f})"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.estimate:.2f}x ({ratio.low:.2f} to {ratio.high:.2f})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first row its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])
