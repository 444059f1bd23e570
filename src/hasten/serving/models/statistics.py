"""Keep statistics of a model version: counts, sums and histograms, cheap to write per request.

Only the event loop's thread writes. A reader on the same thread sees whole requests.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hasten.core.tensors import Array
from hasten.serving.models.window import Window

BOUNDS_NS = tuple(round(1000 * base * 10**power) for power in range(7) for base in (1, 2, 5))
"""Upper bounds of the latency histograms' bins: 1 us to 5 s, three per power of ten."""
STAGES = ("parse", "prepare", "queue", "batch", "compute", "decide", "encode", "request")
_BOUNDS = np.array(BOUNDS_NS)
_AT_ONCE, _MANY_AT_ONCE = 256, 1024


class Histogram:
    """Histogram of spans by upper bound, and their sum.

    Attributes:
        counts: Number of spans per bound, followed by the number above all bounds.
        sum_ns: Sum of all spans, in nanoseconds.
    """

    __slots__ = ("counts", "sum_ns")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_NS) + 1)
        self.sum_ns = 0

    def add_all(self, spans_ns: Array) -> None:
        """Count spans in nanoseconds."""
        places = np.searchsorted(_BOUNDS, spans_ns)
        counts = np.bincount(places, minlength=len(self.counts))
        self.counts = [old + new for old, new in zip(self.counts, counts.tolist(), strict=True)]
        self.sum_ns += int(spans_ns.sum())

    def add(self, span_ns: int) -> None:
        """Count a span in nanoseconds."""
        self.counts[bisect.bisect_left(BOUNDS_NS, span_ns)] += 1
        self.sum_ns += span_ns

    @property
    def count(self) -> int:
        """Number of all spans."""
        return sum(self.counts)

    def bound_ns(self, share: float) -> int | None:
        """Return the least bound that a share of the spans doesn't exceed; None above all bounds."""
        places = np.cumsum(self.counts) >= share * self.count
        place = int(np.argmax(places))
        return BOUNDS_NS[place] if place < len(BOUNDS_NS) else None


@dataclass(slots=True)
class Duration:
    """Number of events and their total duration.

    Attributes:
        count: Number of events.
        ns: Total duration, in nanoseconds.
    """

    count: int = 0
    ns: int = 0

    def add(self, span_ns: int, count: int = 1) -> None:
        """Add one event, or `count` events that took `span_ns` together."""
        self.count += count
        self.ns += span_ns


@dataclass(slots=True)
class BatchStatistics:
    """Statistics of the batches of one size.

    Attributes:
        compute_input: Time to stack the requests' rows.
        compute_infer: Time in the engine.
        compute_output: Time to split the answers by request.
    """

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


class Served(NamedTuple):
    """Record of an answered request; spans are in nanoseconds.

    Attributes:
        at_ns: Time when the request was answered, on the monotonic clock.
        request_ns: Span from the request's last byte to its answer.
        parse_ns: Span from the request's last byte until it was decoded.
        rows: Samples in the request.
        queue_ns: Span in the queue; -1 if the request was answered without a run, from the cache.
        batch_ns: Span in which the rows of the request's batch were stacked.
        compute_ns: Span in the engine.
        split_ns: Span from the engine's end to the answer.
        batch: Rows in the request's batch; 0 without a run.
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
"""Last five fields of `Served` for a request that was answered without a run."""


_AT, _REQUEST, _PARSE, _ROWS, _QUEUE, _BATCH, _COMPUTE, _SPLIT = range(8)
"""Columns of an array of `Served` records."""
_TOTALS = {
    "success": _REQUEST,
    "queue": _QUEUE,
    "compute_input": _BATCH,
    "compute_infer": _COMPUTE,
    "compute_output": _SPLIT,
}


class Statistics:
    """Statistics of one version of a model.

    Answered requests are only recorded at first, and counted many at a time: when the statistics are
    read, or when many records have gathered.

    Attributes:
        fail: Requests that got an error.
        cancel: Requests whose client went away before the answer.
        cache_hit: Cache look-ups that found an answer.
        cache_miss: Cache look-ups that found no answer.
        prepared_hits: Number of samples that the cache had as the model takes them.
        prepared_misses: Number of samples that were prepared, since the cache didn't have them.
        refusals: Kind of error -> number of requests that got it.
        shadowed: Number of samples that the exact model answered too.
        disagreed: Number of shadowed samples whose two answers disagree.
        replaced: Number of requests that the exact model answered in the fast one's place.
        last_ns: Wall-clock time of the last counted request, in nanoseconds since 1970.
        chain: Node and part of it -> histogram of its spans, in their order; empty unless it is a chain.
    """

    def __init__(self) -> None:
        self.fail, self.cancel = Duration(), Duration()
        self.cache_hit, self.cache_miss = Duration(), Duration()
        self.prepared_hits = self.prepared_misses = 0
        self._executions = self.shadowed = self.disagreed = self.replaced = self.last_ns = 0
        self.refusals: dict[str, int] = {}
        self._batches: dict[int, BatchStatistics] = {}
        self._totals = {name: Duration() for name in _TOTALS}
        self._rows = 0
        self._stages = {stage: Histogram() for stage in STAGES}
        self._noted: list[tuple[int, ...]] = []
        self._spans: dict[str, list[int]] = {"prepare": [], "decide": [], "encode": []}
        self._rows_at_once: list[tuple[int, int, int, int, int]] = []
        self._window = Window()
        self.chain: dict[tuple[str, str], Histogram] = {}

    def answered(self, served: tuple[int, ...]) -> None:
        """Record a request that was answered, by the fields of `Served`."""
        self._noted.append(served)
        if len(self._noted) >= _AT_ONCE:
            self._count()

    def answered_row(
        self, arrived_ns: int, read_ns: int, computed_ns: int, decided_ns: int, sent_ns: int
    ) -> None:
        """Record a row that was answered without waiting, by the times of its stages.

        Args:
            arrived_ns: Time of the request's last byte, on the monotonic clock.
            read_ns: Time when the row was read into the model's input.
            computed_ns: Time when the engine was done.
            decided_ns: Time when the decision was there, as JSON.
            sent_ns: Time when the answer was handed over.
        """
        self._rows_at_once.append((arrived_ns, read_ns, computed_ns, decided_ns, sent_ns))
        if len(self._rows_at_once) >= _MANY_AT_ONCE:
            self._count()

    def encoded(self, span_ns: int) -> None:
        """Record how long it took to encode an answer, in nanoseconds."""
        self._spans["encode"].append(span_ns)

    def staged(self, stage: str, span_ns: int) -> None:
        """Record how long it took to "prepare" a raw sample, or to "decide" on it, in nanoseconds."""
        spans = self._spans[stage]
        spans.append(span_ns)
        if len(spans) >= _AT_ONCE:
            self._count()

    def follow(self, parts: Iterable[tuple[str, str]]) -> None:
        """Keep histograms of a chain's parts, in this order; those that there were go on."""
        self.chain = {part: self.chain.get(part) or Histogram() for part in parts}

    def passed(self, spans_ns: Mapping[tuple[str, str], int]) -> None:
        """Count what each part of a chain took of an answered request, in nanoseconds."""
        for part, span_ns in spans_ns.items():
            self.chain[part].add(span_ns)

    def refused(self, kind: str, arrived_ns: int, now_ns: int) -> None:
        """Count a request that got an error."""
        self.refusals[kind] = self.refusals.get(kind, 0) + 1
        self.fail.add(now_ns - arrived_ns)
        self.last_ns = time.time_ns()

    def ran(self, rows: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count a batch that was run."""
        self._executions += 1
        batch = self._batches.get(rows)
        if batch is None:
            batch = self._batches[rows] = BatchStatistics()
        for spans, span_ns in (
            (batch.compute_input, input_ns),
            (batch.compute_infer, infer_ns),
            (batch.compute_output, output_ns),
        ):
            spans.count += 1
            spans.ns += span_ns

    def _count(self) -> None:
        """Count the recorded requests, and discard the records."""
        for stage, spans_ns in self._spans.items():
            if spans_ns:
                self._stages[stage].add_all(np.array(spans_ns))
                spans_ns.clear()
        if not self._noted and not self._rows_at_once:
            return
        spans = np.array(self._noted, np.int64).reshape(-1, len(Served._fields))
        self._noted.clear()
        if self._rows_at_once:
            spans = np.concatenate((spans, self._counted_rows()))
        last_ns = int(spans[:, _AT].max())
        self.last_ns = time.time_ns() - (time.perf_counter_ns() - last_ns)
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

    def _counted_rows(self) -> Array:
        """Count the rows that were answered at once; return them in the columns of `Served`."""
        times = np.array(self._rows_at_once, np.int64).reshape(-1, 5)
        self._rows_at_once.clear()
        spans = np.diff(times, axis=1)
        served = np.zeros((len(times), len(Served._fields)), np.int64)
        if len(times):
            for stage, column in (("prepare", 0), ("decide", 2), ("encode", 3)):
                self._stages[stage].add_all(spans[:, column])
            served[:, _AT], served[:, _REQUEST] = times[:, 3], times[:, 3] - times[:, 0]
            served[:, _COMPUTE], served[:, _SPLIT] = spans[:, 1], spans[:, 2]
            served[:, _ROWS] = served[:, -1] = 1
            self._executions += len(times)
            batch = self._batches.setdefault(1, BatchStatistics())
            batch.compute_input.add(0, len(times))
            batch.compute_infer.add(int(spans[:, 1].sum()), len(times))
            batch.compute_output.add(int(spans[:, 2].sum()), len(times))
        return served

    # -- what readers see

    @property
    def executions(self) -> int:
        """Number of batches that were run."""
        self._count()
        return self._executions

    @property
    def batches(self) -> dict[int, BatchStatistics]:
        """Rows -> statistics of the batches of that size."""
        self._count()
        return self._batches

    @property
    def totals(self) -> dict[str, Duration]:
        """Total durations by name: "success" of all answered requests, and of those that were run
        "queue", "compute_input", "compute_infer" and "compute_output". Each request counts the
        whole spans of its batch."""
        self._count()
        return self._totals

    @property
    def rows(self) -> int:
        """Number of samples that were answered."""
        self._count()
        return self._rows

    @property
    def stages(self) -> dict[str, Histogram]:
        """Stage -> histogram of its spans."""
        self._count()
        return self._stages

    @property
    def window(self) -> Window:
        """Histograms of the last minute's latencies."""
        self._count()
        return self._window
