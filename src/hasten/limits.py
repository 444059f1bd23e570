"""Where a model's time goes, and how far that is from the least that this machine can take."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, InputError
from hasten.measure.ceilings import measure
from hasten.measure.roofline import Floor, floor, precisions
from hasten.measure.work import work
from hasten.result import Limit
from hasten.run import Run
from hasten.search.race import Standings

_REQUESTS = 30


def profiles(run: Run, shown: Mapping[str, str]) -> dict[str, tuple[LayerTime, ...]]:
    """Return the time of each step of some candidates; whoever can't be profiled is left out.

    Args:
        run: Behind it the choice.
        shown: Role -> the candidate's key.
    """
    found: dict[str, tuple[LayerTime, ...]] = {}
    by_key: dict[str, tuple[LayerTime, ...]] = {}
    for role, key in shown.items():
        candidate = run.candidate(key)
        try:
            if key not in by_key:
                artifact = run.artifact(candidate)
                by_key[key] = run.bench.profile(
                    candidate.engine, artifact, run.parts.search, requests=_REQUESTS
                )
            found[role] = by_key[key]
        except CandidateError as why:
            run.notes.append(f"no profile of {candidate.label}: {why}")
    return found


def limits(
    run: Run,
    final: Standings,
    shown: Mapping[str, tuple[str, str]],
    steps: Mapping[str, tuple[LayerTime, ...]],
) -> tuple[Limit, ...]:
    """Set fresh latencies against the least that the machine can take.

    Args:
        run: Behind it the choice.
        final: The fresh rounds.
        shown: Role -> the candidate's key, and its name in the fresh rounds.
        steps: Role -> its profile.

    Returns:
        One for each that was timed; none where the ceilings or the work can't be told, with a note.
        What has no profile is taken as in f32 where it is exact, else as in the fastest precision.
    """
    wanted = {role: who for role, who in shown.items() if final.stands(who[1])}
    if not wanted:
        return ()
    try:
        layers = work(run.bench.model)
        ceilings = measure(run.bench.target.with_threads(final.threads), run.bench.folder)
        return tuple(
            _limit(
                role,
                floor(
                    layers,
                    ceilings,
                    precisions(steps[role])
                    if role in steps
                    else {layer.name: "f32" for layer in layers}
                    if run.candidate(key).exact
                    else None,
                    stored_bytes=run.artifact(run.candidate(key)).size_bytes,
                ),
                final,
                entrant,
            )
            for role, (key, entrant) in wanted.items()
        )
    except (CandidateError, InputError) as why:
        run.notes.append(f"how far this is from the machine's limit isn't known: {why}")
        return ()


def _limit(role: str, own: Floor, final: Standings, entrant: str) -> Limit:
    blocks = [np.asarray(block) for block in final.rounds[entrant].values()]
    p50_ns = float(np.median(np.concatenate(blocks)))
    return Limit(role, own.floor_ns, own.ratio(p50_ns, final.threads), own.binds)
