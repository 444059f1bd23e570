"""How what ships does under load, in MLCommons' scenarios."""

from __future__ import annotations

import time
from math import inf

from hasten.core.progress import Progress
from hasten.errors import CandidateError
from hasten.measure.scenario import LoadTest, Scenario
from hasten.measure.under_load import Generator
from hasten.optimization.run import Run

LOAD_S = 1.0
"""How long each scenario is run, at least; 0 for none."""
_LONGEST_S = {"single-stream": 20.0, "server": 300.0, "offline": 20.0}


def loads(run: Run, key: str, latency_bound_s: float | None) -> tuple[LoadTest, ...]:
    """Put what was chosen under load, one session, one sample in a request.

    Args:
        run: Behind it the choice.
        key: Of the candidate.
        latency_bound_s: Of the server's scenario, in seconds; None leaves that one out.

    Returns:
        One for each scenario; one that would take long is left out with a note, and so are one that
        fails and those behind it, since the session is lost.
    """
    deadline = run.order.deadline
    if LOAD_S <= 0 or (deadline is not None and time.monotonic() > deadline):
        return ()
    wanted: list[tuple[Scenario, float | None]] = [("single-stream", None), ("offline", None)]
    if latency_bound_s is not None:
        wanted.append(("server", latency_bound_s))
    candidate, found = run.candidate(key), []
    left = [name for name, _ in wanted]
    try:
        artifact = run.artifact(candidate)
        with run.bench.open_built(candidate.engine, artifact).worker as worker:
            for number, (scenario, bound_s) in enumerate(wanted):
                run.listen(Progress("load", scenario, number, len(wanted)))
                asking = Generator(worker, run.parts.search, scenario, LOAD_S)
                left_s = inf if deadline is None else deadline - time.monotonic()
                if asking.likely_s > min(left_s, _LONGEST_S[scenario]):
                    run.notes.append(
                        f"{scenario}: left out, it would take {asking.likely_s:.0f} s: ask for it by "
                        f"hasten bench --scenario {scenario}"
                    )
                    left.remove(scenario)
                    continue
                seed = run.order.seed
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
                        threads=getattr(candidate.engine, "threads", None)
                        or run.bench.target.threads,
                        sessions=1,
                        requests="samples of the data",
                    )
                )
                left.remove(scenario)
    except CandidateError as why:
        run.notes.append(f"under load ({', '.join(left)}): {why}")
    return tuple(found)
