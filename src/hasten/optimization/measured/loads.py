"""Measurements of what ships under load, in MLCommons' scenarios."""

from __future__ import annotations

from hasten.errors import CandidateError
from hasten.measure.scenario import LoadTest, Scenario
from hasten.measure.under_load import Generator
from hasten.optimization.measured.racing import Racing

_LONGEST_S = {"single-stream": 20.0, "server": 300.0, "offline": 20.0}


def loads(racing: Racing, key: str) -> tuple[LoadTest, ...]:
    """Put the chosen candidate under load, with one session and one sample in a request.

    The server scenario runs where the order has a bound on latency.

    Args:
        racing: Candidates of the run and their races.
        key: Key of the chosen candidate.

    Returns:
        One test for each scenario. A scenario that would take long is left out with a note. So is
        one that fails, with those after it, since the session is lost.
    """
    job, load_s, latency_bound_s = (
        racing.job,
        racing.effort.load_s,
        racing.job.order.latency_bound_s,
    )
    if load_s <= 0:
        return ()
    if job.late:
        job.notes.append("the time limit left no time for the load scenarios")
        return ()
    wanted: list[tuple[Scenario, float | None]] = [("single-stream", None), ("offline", None)]
    if latency_bound_s is not None:
        wanted.append(("server", latency_bound_s))
    candidate, found = racing.candidate(key), []
    left = [name for name, _ in wanted]
    try:
        artifact = racing.artifact(candidate)
        bench = racing.bench_of_single
        with bench.open_built(candidate.engine, artifact).worker as worker:
            for number, (scenario, bound_s) in enumerate(wanted):
                job.tell("load", scenario, number, len(wanted))
                asking = Generator(worker, racing.ready.single, scenario, load_s)
                left_s = job.deadline.left_s()
                if asking.likely_s > min(left_s, _LONGEST_S[scenario]):
                    job.notes.append(
                        f"{scenario}: left out, because it would take {asking.likely_s:.0f} s; "
                        "to measure it, run "
                        f"hasten bench --scenario {scenario}"
                    )
                    left.remove(scenario)
                    continue
                seed = job.order.seed
                load = (
                    asking.once(seed)
                    if bound_s is None
                    else asking.best(max(1, round(1e9 * bound_s)), seed)
                )
                found.append(
                    LoadTest(
                        scenario=scenario,
                        load=load,
                        tries=tuple(asking.tries),
                        threads=candidate.engine.threads or racing.bench.target.threads,
                        sessions=1,
                        requests="samples of the data",
                    )
                )
                left.remove(scenario)
    except CandidateError as why:
        job.notes.append(f"under load ({', '.join(left)}): {why}")
    return tuple(found)
