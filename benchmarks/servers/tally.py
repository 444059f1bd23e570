"""What a client counts: which answers are right, and how long each took."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from formats import FORMATS

REQUESTS, EXPECTED = "request-{}.http", "expected.npy"
_SHOWN = 300
"""Characters of a failure."""


class Answers:
    """The requests of a job, and whether what came is right.

    An answer that is the same as the last checked one to the same request, byte by byte, is right;
    any other is read and held against what is expected.

    Args:
        folder: Folder with the requests and the numbers expected of each.
        name: Name of the format.
        tolerance: Error that an answer may have, as a share of the largest expected number.

    Attributes:
        requests: Whole HTTP requests, to be sent as they are.
        read: Number of answers that weren't the same bytes as an earlier right one.
    """

    def __init__(self, folder: Path, name: str, tolerance: float) -> None:
        self._expected = np.load(folder / EXPECTED)
        self.requests = [
            (folder / REQUESTS.format(turn)).read_bytes() for turn in range(len(self._expected))
        ]
        self._numbers = FORMATS[name].numbers
        self._margins = tolerance * np.abs(self._expected).max(axis=1)
        self._right: list[bytes | None] = [None] * len(self.requests)
        self.read = 0

    def right(self, turn: int, body: bytes) -> bool:
        """Whether it answers that request."""
        if body == self._right[turn]:
            return True
        self.read += 1
        expected = self._expected[turn]
        try:
            found = self._numbers(body, len(expected))
        except (ValueError, KeyError, IndexError, TypeError):
            return False
        if found.shape != expected.shape:
            return False
        if not (np.abs(found - expected) <= self._margins[turn]).all():
            return False
        self._right[turn] = body
        return True


class Tally:
    """What came of a job.

    Attributes:
        counted: Set once an answer counts.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.latency_ns: list[int] = []
        self.statuses: Counter[int] = Counter()
        self.wrong = self.reconnected = 0
        self.sample = ""
        self.counted = asyncio.Event()
        self._begin_ns: float = float("inf")
        self._end_ns: float = float("inf")

    def count_within(self, begin_ns: float, end_ns: float) -> None:
        """Count what is answered between these moments, and nothing else."""
        self._begin_ns, self._end_ns = begin_ns, end_ns

    def take(self, turn: int, begin_ns: int, status: int, body: bytes) -> None:
        """Note an answer; status 0 is that of none."""
        now_ns = time.perf_counter_ns()
        right = status == 200 and self._answers.right(turn, body)
        if not self._begin_ns <= now_ns <= self._end_ns:
            return
        self.statuses[status] += 1
        self.counted.set()
        if right:
            self.latency_ns.append(now_ns - begin_ns)
        elif status == 200:
            self.wrong += 1
        if not right and not self.sample:
            self.sample = body[:_SHOWN].decode(errors="replace")

    def record(self, elapsed_s: float, cpu_s: float, **more: Any) -> dict[str, Any]:
        """Return the job's result."""
        return {
            "latency_ns": self.latency_ns,
            "elapsed_s": elapsed_s,
            "right": len(self.latency_ns),
            "wrong": self.wrong,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "reconnected": self.reconnected,
            "read": self._answers.read,
            "first_failure": self.sample,
            "client_cpu": cpu_s / elapsed_s,
            **more,
        }
