"""What a model version did: counts, sums and histograms, written on the hot path and read elsewhere.

Only the event loop's thread writes. A reader on the same thread sees whole requests.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hasten.core.tensors import Array
from hasten.serving.models.window import Window

BOUNDS_NS = tuple(round(1000 * base * 10**power) for power in range(7) for base in (1, 2, 5))
"""Upper bounds of the latency histograms: 1 us to 5 s, three to each power of ten."""
STAGES = ("parse", "queue", "batch", "compute", "encode", "request")
_BOUNDS = np.array(BOUNDS_NS)
_AT_ONCE = 256


class Histogram:
    """Counts of spans by upper bound, and their sum.

    Attributes:
        counts: One per bound, and one for what is above all.
        sum_ns: Of all spans.
    """

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.sum_ns = 0

    def add_all(self, spans_ns: Array) -> None:
        """Count spans."""
        places = np.searchsorted(_BOUNDS, spans_ns)
        counts = np.bincount(places, minlength=len(self.counts))
        self.counts = [old + new for old, new in zip(self.counts, counts.tolist(), strict=True)]
        self.sum_ns += int(spans_ns.sum())

    @property
    def count(self) -> int:
        """How many."""
        return sum(self.counts)


@dataclass(slots=True)
class Duration:
    """How often, and how long together."""

    count: int = 0
    ns: int = 0

    def add(self, span_ns: int, count: int = 1) -> None:
        """Count one, or several alike."""
        self.count += count
        self.ns += span_ns


@dataclass(slots=True)
class BatchStatistics:
    """What batches of one size came to.

    Attributes:
        compute_input: Stacking the requests' rows.
        compute_infer: The engine.
        compute_output: Cutting the answers apart.
    """

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class Served(NamedTuple):
    """A request that was answered; spans in nanoseconds.

    Attributes:
        at_ns: When, on the monotonic clock.
        request_ns: From its last byte to its answer.
        parse_ns: Of this, until it was decoded.
        rows: Its samples.
        queue_ns: In the queue; -1 where it was answered without a run: out of the cache.
        batch_ns: Stacking the rows of its batch.
        compute_ns: The engine.
        split_ns: From then on.
        batch: Rows of the batch that it ran in; 0 without a run.
    """

    at_ns: int
    request_ns: int
    parse_ns: int
    rows: int
    queue_ns: int
    batch_ns: int
    compute_ns: int
    split_ns: int
    batch: int


NOT_RUN = (-1, 0, 0, 0, 0)
"""The last spans of a request that was answered without a run."""


_AT, _REQUEST, _PARSE, _ROWS, _QUEUE, _BATCH, _COMPUTE, _SPLIT = range(8)
"""Columns: see `Served`."""
_TOTALS = {
    "success": _REQUEST,
    "queue": _QUEUE,
    "compute_input": _BATCH,
    "compute_infer": _COMPUTE,
    "compute_output": _SPLIT,
}


class Statistics:
    """Of one version of a model.

    What is answered is only noted down, and counted many at a time: when somebody reads, or when
    there is much of it.

    Attributes:
        fail: Requests that got an error.
        cancel: Requests whose client went away before.
        cache_hit, cache_miss: Look-ups.
        executions: Batches run.
        refusals: Kind of failure -> how many.
        batches: Rows -> what such batches came to.
        shadowed: Samples that the exact model was asked, too.
        disagreed: Of these, those whose answers differ.
        replaced: Requests that the exact model answered since the fast one gave no numbers.
        last_ns: Wall clock of the last request that was counted, nanoseconds since 1970.
    """

    def __init__(self) -> None:
        self.fail, self.cancel = Duration(), Duration()
        self.cache_hit, self.cache_miss = Duration(), Duration()
        self.executions = self.shadowed = self.disagreed = self.replaced = self.last_ns = 0
        self.refusals: dict[str, int] = {}
        self.batches: dict[int, BatchStatistics] = {}
        self._totals = {name: Duration() for name in _TOTALS}
        self._rows = 0
        self._stages = {stage: Histogram() for stage in STAGES}
        self._noted: list[Served] = []
        self._encoded: list[int] = []
        self._window = Window()

    def answered(self, served: Served) -> None:
        """Note a request that was answered."""
        self._noted.append(served)
        if len(self._noted) >= _AT_ONCE:
            self._count()

    def encoded(self, span_ns: int) -> None:
        """Note how long an answer took to write."""
        self._encoded.append(span_ns)

    def refused(self, kind: str, arrived_ns: int, now_ns: int) -> None:
        """Count a request that got an error."""
        self.refusals[kind] = self.refusals.get(kind, 0) + 1
        self.fail.add(now_ns - arrived_ns)
        self.last_ns = time.time_ns()

    def ran(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a batch."""
        self.executions += 1
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStatistics()
        batch.compute_input.add(input_ns)
        batch.compute_infer.add(infer_ns)
        batch.compute_output.add(output_ns)

    def _count(self) -> None:
        """Count what was noted."""
        if self._encoded:
            self._stages["encode"].add_all(np.array(self._encoded))
            self._encoded.clear()
        if not self._noted:
            return
        spans = np.array(self._noted, np.int64)
        self.last_ns = time.time_ns() - (time.perf_counter_ns() - self._noted[-1].at_ns)
        self._noted.clear()
        run = spans[spans[:, _QUEUE] >= 0]
        self._totals["success"].add(int(spans[:, _REQUEST].sum()), len(spans))
        self._rows += int(spans[:, _ROWS].sum())
        for name, column in _TOTALS.items():
            if name != "success":
                self._totals[name].add(int(run[:, column].sum()), len(run))
        self._stages["request"].add_all(spans[:, _REQUEST])
        self._window.add_all(spans[:, _AT], spans[:, _REQUEST])
        self._stages["parse"].add_all(spans[:, _PARSE])
        for stage, column in (("queue", _QUEUE), ("batch", _BATCH), ("compute", _COMPUTE)):
            self._stages[stage].add_all(run[:, column])

    # -- what readers see

    @property
    def totals(self) -> dict[str, Duration]:
        """Requests answered ("success"), and of those that were run: "queue", "compute_input",
        "compute_infer", "compute_output", each request counting its batch's spans whole."""
        self._count()
        return self._totals

    @property
    def rows(self) -> int:
        """Samples answered."""
        self._count()
        return self._rows

    @property
    def stages(self) -> dict[str, Histogram]:
        """Stage -> its histogram."""
        self._count()
        return self._stages

    @property
    def window(self) -> Window:
        """The last minute, however many came."""
        self._count()
        return self._window
