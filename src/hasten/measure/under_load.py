"""Sessions under load, in MLCommons' scenarios."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from hasten.core.records import from_record
from hasten.core.workers import Worker
from hasten.inputs.data.spool import Spool
from hasten.measure.closed_loop import Block
from hasten.measure.scenario import LONGEST_RUN_S, Load, Offer, Scenario, highest_rate

_CAPACITY_NS = 1_000_000_000
_REQUESTS = {"single-stream": 100, "server": 1000, "offline": 100}
_LEAST = 500
"""Fewest requests of the server scenario where 1000 would take over half a minute; 459 suffice."""
_LONGEST_S = 30.0
_SLOWEST_PER_S = 5.0
"""Lowest rate to try; lower ones would take minutes each."""
_TRIES = 6
_LOWER = (1.0, 0.95, 0.9, 0.8)
"""Shares of the best rate to try again until one holds, since the best of a few tries was lucky."""
_SLACK = 4.0
"""Factor on the expected time of a run after which its worker counts as hung."""


@dataclass
class Generator:
    """Sends requests to one worker's sessions, run after run.

    Attributes:
        worker: Worker with open sessions.
        samples: Samples that requests rotate through.
        scenario: Scenario of the runs.
        duration_s: Shortest duration of each run, in seconds.
        listen: Callback that receives each run's result.
        tries: Rates tried in the server scenario, without raw latencies.
    """

    worker: Worker
    samples: Spool
    scenario: Scenario
    duration_s: float
    listen: Callable[[Load], None] = lambda load: None

    def __post_init__(self) -> None:
        self.tries: list[Load] = []
        self._capacity_per_s, self._quickest_ns = self._capacity()

    @property
    def likely_s(self) -> float:
        """Return about how long the runs take together; the server's are several, at half load."""
        if self.scenario != "server":
            return max(self.duration_s, _REQUESTS[self.scenario] / self._capacity_per_s)
        each_s = min(_LONGEST_S, 2 * _REQUESTS[self.scenario] / self._capacity_per_s)
        return (_TRIES + 2) * max(self.duration_s, each_s, 2 * _LEAST / self._capacity_per_s)

    def once(self, seed: int) -> Load:
        """Take one run."""
        return self._run(
            Offer(
                self.scenario,
                _REQUESTS[self.scenario],
                self.duration_s,
                self._capacity_per_s,
                seed=seed,
            )
        )

    def best(self, bound_ns: int, seed: int) -> Load | None:
        """Find the highest rate at which a bound holds; take its figures from a fresh run."""
        seeds = itertools.count(seed)

        def offered(rate_per_s: float) -> Load:
            most = max(_LEAST, min(_REQUESTS[self.scenario], round(_LONGEST_S * rate_per_s)))
            offer = Offer(self.scenario, most, self.duration_s, rate_per_s, bound_ns, next(seeds))
            return self._run(offer)

        def holds(rate_per_s: float) -> bool:
            load = offered(rate_per_s)
            self.tries.append(replace(load, latency_ns=()))
            return load.holds

        tries = (
            _TRIES if self._quickest_ns <= bound_ns else 1
        )  # if none can meet it, one try shows it
        least_per_s = min(_SLOWEST_PER_S, self._capacity_per_s / 2)  # so that one is always tried
        rate_per_s = highest_rate(self._capacity_per_s, holds, tries, least_per_s)
        if rate_per_s is None:
            return None
        for share in _LOWER:
            load = offered(share * rate_per_s)
            if load.holds:
                return load
            self.tries.append(replace(load, latency_ns=()))
        return None

    def _run(self, offer: Offer) -> Load:
        per_s = min(offer.rate_per_s, self._capacity_per_s)
        longest_s = max(offer.duration_s, offer.requests / per_s)
        record = self.worker.ask(
            "load",
            limit_s=LONGEST_RUN_S + _SLACK * longest_s,
            offer=offer,
            samples=self.samples.folder,
        )
        load = from_record(Load, record)
        self.listen(load)
        return load

    def _capacity(self) -> tuple[float, int]:
        """Return how many requests the sessions answer per second if each is never idle.

        Returns:
            The rate, and the shortest latency seen, in nanoseconds.
        """
        record = self.worker.ask(
            "drive",
            limit_s=LONGEST_RUN_S,
            samples=self.samples.folder,
            batch=1,
            first=0,
            requests=len(self.samples),
            warmup_ns=_CAPACITY_NS // 4,
            block_ns=_CAPACITY_NS,
            at_least=3,
            at_most=2**63,
        )
        block = from_record(Block, record)
        return 1e9 * len(block.latency_ns) / block.elapsed_ns, min(block.latency_ns)
