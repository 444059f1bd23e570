"""MLCommons LoadGen as the load generator, by its Python bindings. What it gives is no MLPerf result."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata, util
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from hasten.errors import CandidateError
from hasten.measure.closed_loop import Request, drive
from hasten.measure.scenario import QUANTILE, Load, Offer, Run

_PACKAGE, _MODULE = "mlcommons-loadgen", "mlperf_loadgen"
MISSING = "MLCommons LoadGen isn't installed: pip install 'hasten[loadgen]'"
_WARMUP_NS = 100_000_000
_SCENARIOS = {"single-stream": "SingleStream", "server": "Server", "offline": "Offline"}
_THROUGHPUT = {
    "single-stream": "result_qps_with_loadgen_overhead",
    "server": "result_completed_samples_per_sec",
    "offline": "result_samples_per_second",
}
_DETAIL = "mlperf_log_detail.txt"


def installed() -> bool:
    """Whether it is there: `pip install 'hasten[loadgen]'`."""
    return util.find_spec(_MODULE) is not None


def take(offer: Offer, runs: Sequence[Run], requests: Sequence[Request], folder: Path) -> Load:
    """Put sessions under a load, after a warm-up.

    Args:
        offer: What is asked.
        runs: One per session; answers a request, blocking.
        requests: What LoadGen draws from.
        folder: Empty; LoadGen's logs go there.

    Raises:
        CandidateError: a session failed, or LoadGen said nothing of the run.
    """
    import mlperf_loadgen as loadgen

    drive(runs, requests, warmup_ns=_WARMUP_NS, block_ns=0, at_least=1, at_most=1)
    failures: list[Exception] = []
    answered: list[int] = []

    def answer(run: Run, sample: int, index: int) -> None:
        try:
            if not failures:
                run(requests[index])
            answered.append(index)
        except Exception as error:  # LoadGen waits for ever for a sample that isn't completed
            failures.append(error)
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(sample, 0, 0)])

    with _lanes(runs, answer) as queue:

        def issue(samples: Sequence[int], indices: Sequence[int]) -> None:
            for sample, index in zip(samples, indices, strict=True):
                if offer.scenario == "single-stream":
                    answer(runs[0], sample, index)  # it waits anyway: no other thread is needed
                else:
                    queue.put((sample, index))

        system = loadgen.ConstructFastSUT(issue, lambda: None)
        library = loadgen.ConstructQSL(
            len(requests), len(requests), lambda indices: None, lambda indices: None
        )
        loadgen.StartTestWithLogSettings(
            system, library, _settings(loadgen, offer), _logs(loadgen, folder), str(folder / "none")
        )
        loadgen.DestroyQSL(library)
        loadgen.DestroyFastSUT(system)
    if failures:
        raise failures[0]
    return _read(offer, folder, len(answered))


@contextmanager
def _lanes(runs: Sequence[Run], answer: Any) -> Iterator[SimpleQueue[tuple[int, int] | None]]:
    """A queue that a thread of each session takes samples from."""
    queue: SimpleQueue[tuple[int, int] | None] = SimpleQueue()

    def lane(run: Run) -> None:
        while (sample := queue.get()) is not None:
            answer(run, *sample)

    lanes = [Thread(target=lane, args=(run,)) for run in runs]
    for one in lanes:
        one.start()
    try:
        yield queue
    finally:
        for _ in lanes:
            queue.put(None)
        for one in lanes:
            one.join()


def _settings(loadgen: Any, offer: Offer) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, _SCENARIOS[offer.scenario])
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_query_count = offer.requests
    settings.min_duration_ms = round(1e3 * offer.duration_s)
    # It makes up its requests beforehand, as many as this speed needs, and no more.
    settings.single_stream_expected_latency_ns = max(1, round(0.5e9 / offer.rate_per_s))
    settings.offline_expected_qps = offer.rate_per_s
    settings.server_target_qps = offer.rate_per_s
    settings.server_target_latency_ns = offer.bound_ns
    settings.server_target_latency_percentile = QUANTILE
    for number, name in enumerate(("qsl", "sample_index", "schedule")):
        setattr(settings, f"{name}_rng_seed", 3 * offer.seed + number + 1)
    return settings


def _logs(loadgen: Any, folder: Path) -> Any:
    logs = loadgen.LogSettings()
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    logs.log_output = output
    logs.enable_trace = False
    return logs


def _read(offer: Offer, folder: Path, answered: int) -> Load:
    """Read what LoadGen says of a run from its log."""
    said: dict[str, Any] = {}
    for line in (folder / _DETAIL).read_text().splitlines():
        head, _, entry = line.partition("{")
        if head.strip() == ":::MLLOG":
            record = json.loads("{" + entry)
            said[record["key"]] = record["value"]
    try:
        server = offer.scenario == "server"
        return Load(
            offer=offer,
            generator=f"MLCommons LoadGen {metadata.version(_PACKAGE)}",
            requests=answered,
            throughput_per_s=float(said[_THROUGHPUT[offer.scenario]]),
            mean_ns=float(said["result_mean_latency_ns"]),
            p50_ns=float(said["result_50.00_percentile_latency_ns"]),
            p90_ns=float(said["result_90.00_percentile_latency_ns"]),
            p99_ns=float(said["result_99.00_percentile_latency_ns"]),
            over_bound=int(said["result_overlatency_query_count"]) if server else 0,
            holds=server
            and said["result_perf_constraints_met"] is True
            and said["early_stopping_met"] is True,
        )
    except KeyError as error:
        raise CandidateError(f"LoadGen's log says nothing of {error.args[0]}") from error
