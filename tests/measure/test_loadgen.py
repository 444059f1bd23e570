"""MLCommons LoadGen asks for real."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hasten.errors import CandidateError
from hasten.measure import loadgen
from hasten.measure.closed_loop import Request
from hasten.measure.scenario import Offer, Scenario, rarely_over

pytest.importorskip("mlperf_loadgen", reason="MLCommons LoadGen: pip install 'hasten[loadgen]'")
REQUESTS: list[Request] = [{"x": np.array([i])} for i in range(8)]


class Sessions:
    """Sessions that note who asked for what."""

    def __init__(self, count: int, busy_s: float = 0.0) -> None:
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.runs = [self._run] * count
        self.busy_s = busy_s

    def _run(self, request: Request) -> None:
        self.asked.append(int(request["x"][0]))
        self.threads.add(threading.get_ident())
        time.sleep(self.busy_s)


@pytest.mark.parametrize(
    ("scenario", "bound_ns"), [("single-stream", 0), ("server", 10**9), ("offline", 0)]
)
def test_each_scenario_is_loadgens_own(scenario: Scenario, bound_ns: int, tmp_path: Path) -> None:
    sessions = Sessions(2)
    offer = Offer(scenario, 600, 0.2, 2000.0, bound_ns, seed=1)
    found = loadgen.take(offer, sessions.runs, REQUESTS, tmp_path)
    assert found.offer == offer
    assert found.generator.startswith("MLCommons LoadGen ")
    assert 600 <= found.requests < len(sessions.asked)  # what warmed up isn't LoadGen's
    assert set(sessions.asked) == set(range(8))
    assert found.throughput_per_s > 0
    assert 0 < found.p50_ns <= found.p90_ns <= found.p99_ns
    assert found.over_bound == 0
    assert found.holds is (scenario == "server")
    assert found.latency_ns == ()


def test_a_server_waits_for_requests_and_offline_does_not(tmp_path: Path) -> None:
    server = loadgen.take(
        Offer("server", 100, 0.5, 200.0, 10**9), Sessions(1).runs, REQUESTS, tmp_path
    )
    assert 100 < server.throughput_per_s < 400
    (tmp_path / "offline").mkdir()
    offline = loadgen.take(
        Offer("offline", 100, 0.1, 200.0), Sessions(1).runs, REQUESTS, tmp_path / "offline"
    )
    assert offline.throughput_per_s > 400


def test_what_is_over_the_bound_is_counted_and_judged_as_hasten_does(tmp_path: Path) -> None:
    for number, bound_ns in enumerate((1, 10**9)):
        (tmp_path / str(number)).mkdir()
        found = loadgen.take(
            Offer("server", 500, 0.1, 2000.0, bound_ns),
            Sessions(1).runs,
            REQUESTS,
            tmp_path / str(number),
        )
        assert found.over_bound == (found.requests if bound_ns == 1 else 0)
        assert found.holds is rarely_over(found.over_bound, found.requests)


def test_a_queue_that_grows_is_over_the_bound(tmp_path: Path) -> None:
    offer = Offer("server", 500, 0.1, 2000.0, bound_ns=20_000_000)
    found = loadgen.take(offer, Sessions(1, busy_s=0.001).runs, REQUESTS, tmp_path)
    assert found.over_bound > 250  # twice as many come as can be answered
    assert not found.holds


@pytest.mark.parametrize("scenario", ["single-stream", "server", "offline"])
def test_a_session_that_fails_ends_the_run_and_is_named(scenario: Scenario, tmp_path: Path) -> None:
    begun = time.monotonic()

    def bad(request: Request) -> None:
        time.sleep(0.001)
        if time.monotonic() > begun + 0.3:  # after the warm-up
            raise CandidateError("it broke")

    with pytest.raises(CandidateError) as error:
        loadgen.take(Offer(scenario, 1000, 1.0, 1000.0, 10**9), [bad], REQUESTS, tmp_path)
    assert str(error.value) == "it broke"
