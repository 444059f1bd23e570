"""Sessions under load, in MLCommons' scenarios."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from hasten.core.records import from_record, to_record
from hasten.inputs.data.spool import Spool
from hasten.measure.closed_loop import Block
from hasten.measure.process import Worker
from hasten.measure.scenario import LONGEST_RUN_S, Load, Offer, Scenario, highest_rate

_CAPACITY_NS = 1_000_000_000
_REQUESTS = {"single-stream": 100, "server": 1000, "offline": 100}
_LEAST = 500
"""Of a server's requests, where a thousand would take longer than half a minute: 459 show something."""
_LONGEST_S = 30.0
_SLOWEST_PER_S = 5.0
"""Lower rates aren't tried: they would take minutes each."""
_TRIES = 6
_LOWER = (1.0, 0.95, 0.9, 0.8)
"""What of the best rate is tried anew, until one holds: the best of a few tries was lucky too."""
_SLACK = 4.0
"""How many times as long as foretold a run may take before its worker counts as hung."""


@dataclass
class Generator:
    """Who asks one worker's sessions, run after run.

    Attributes:
        worker: With open sessions.
        samples: What is asked, rotated through.
        scenario: In which way.
        duration_s: Of each run, at least.
        listen: Told of each run.
        tries: Of a server's scenario the rates that were tried, without raw latencies.
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
        """About how long its runs take together: a server's are several, at half the load."""
        if self.scenario != "server":
            return max(self.duration_s, _REQUESTS[self.scenario] / self._capacity_per_s)
        each_s = min(_LONGEST_S, 2 * _REQUESTS[self.scenario] / self._capacity_per_s)
        return (_TRIES + 2) * max(self.duration_s, each_s, 2 * _LEAST / self._capacity_per_s)

    def once(self, seed: int) -> Load:
        """One run."""
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

        tries = _TRIES if self._quickest_ns <= bound_ns else 1  # what none meets, one try shows
        least_per_s = min(_SLOWEST_PER_S, self._capacity_per_s / 2)  # one is always tried
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
            offer=to_record(offer),
            samples=str(self.samples.folder),
        )
        load = from_record(Load, record)
        self.listen(load)
        return load

    def _capacity(self) -> tuple[float, int]:
        """How many requests all sessions answer in a second, where each asks again at once.

        Returns:
            That, and the shortest latency seen.
        """
        record = self.worker.ask(
            "drive",
            limit_s=LONGEST_RUN_S,
            samples=str(self.samples.folder),
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
