"""Profiles of models, and their distance from the least time that this machine allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hasten.engines.base import Artifact
from hasten.engines.buckets import Buckets
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, InputError
from hasten.measure.candidate import Candidate
from hasten.measure.ceilings import measure
from hasten.measure.intervals import Rounds
from hasten.measure.race import Standings
from hasten.measure.roofline import LayerWork, floor, precisions
from hasten.optimization.measured.racing import Racing
from hasten.passes.base import Skipped
from hasten.passes.small_model import SmallModel, small_model_of
from hasten.reporting.result import Limit

_REQUESTS = 30


def profiles(racing: Racing, shown: Mapping[str, str]) -> dict[str, tuple[LayerTime, ...]]:
    """Return the time of each step of some candidates, without those that can't be profiled.

    Args:
        racing: Candidates of the run and their races.
        shown: Role -> key of its candidate.
    """
    found: dict[str, tuple[LayerTime, ...]] = {}
    by_key: dict[str, tuple[LayerTime, ...]] = {}
    for role, key in shown.items():
        candidate = racing.candidate(key)
        try:
            if key not in by_key:
                artifact = racing.artifact(candidate)
                by_key[key] = racing.bench.profile(
                    candidate.engine,
                    artifact,
                    racing.ready.single,
                    requests=_REQUESTS,
                    named=small_model_of(candidate.passes) is None,
                )
            found[role] = by_key[key]
        except CandidateError as why:
            racing.job.notes.append(f"no profile of {candidate.label}: {why}")
    return found


def limits(
    racing: Racing,
    final: Standings,
    shown: Mapping[str, tuple[str, str]],
    steps: Mapping[str, tuple[LayerTime, ...]],
) -> tuple[tuple[Limit, ...], dict[str, Limit]]:
    """Compare latencies with the least time that the machine allows.

    Args:
        racing: Candidates of the run and their races.
        final: Standings after the fresh rounds.
        shown: Role -> its candidate's key, and its name in the fresh rounds.
        steps: Role -> its profile.

    Returns:
        Limits of the roles that were timed again, with the precisions that their profiles show or,
        without a profile, that they are set to; and by key, from their few turns, limits of the
        searched candidates that ran on as many threads. Both are empty, with a note, where the
        ceilings or the work are unknown; a latency below its floor is left out.
    """
    unknown: dict[str, list[str]] = {}
    try:
        ceilings = measure(
            racing.bench.target.with_threads(final.threads),
            racing.bench.folder,
            deadline=racing.job.deadline,
        )
    except (CandidateError, InputError) as why:
        racing.job.notes.append(f"it isn't known how far this is from the machine's limit: {why}")
        return (), {}

    def limit(
        role: str, key: str, rounds: Rounds, seen: Mapping[str, str] | None
    ) -> Iterator[Limit]:
        candidate, trial = racing.candidate(key), racing.trials.done.get(key)
        stored = trial.artifact if trial is not None else None
        small = small_model_of(candidate.passes)
        try:
            layers = racing.bench.work(() if small is None else (small,))
            own = floor(
                layers,
                ceilings,
                seen or intended(candidate, layers),
                stored_bytes=_stored_bytes(candidate, stored),
            )
            blocks = np.concatenate([np.asarray(block) for block in rounds.values()])
            latency_ns = float(blocks.mean() if candidate.engine.uneven else np.median(blocks))
            latency_ns /= racing.ready.steps_each  # the floor is of one step
            ratio = own.ratio(latency_ns, final.threads)
            if ratio < 1:
                raise CandidateError(
                    "they took less time than the machine's ceilings allow, so the ceilings were "
                    "measured too low: run again while nothing else runs"
                )
            yield Limit(role, own.floor_ns, ratio, own.binds)
        except (CandidateError, InputError, Skipped) as why:
            unknown.setdefault(str(why), []).append(role)

    of_roles = tuple(
        one
        for role, (key, entrant) in shown.items()
        if final.stands(entrant)
        for one in limit(
            role, key, final.rounds[entrant], precisions(steps[role]) if role in steps else None
        )
    )
    racing.job.notes += [
        f"it isn't known how far {' and '.join(roles)} are from the machine's limit: {why}"
        for why, roles in unknown.items()
    ]
    of_candidates = {
        t.candidate.key: one
        for t in racing.trials.measured()
        if t.measurement is not None and t.measurement.threads == final.threads
        for one in limit(t.candidate.label, t.candidate.key, t.measurement.rounds, None)
    }
    return of_roles, of_candidates


def _stored_bytes(candidate: Candidate, stored: Artifact | None) -> int | None:
    """Return the size of the files that a request reads; None where that isn't known.

    Buckets have a file each, of which a request reads one.
    """
    if stored is None or isinstance(candidate.engine, Buckets) or not stored.path.exists():
        return None
    return stored.size_bytes


def intended(candidate: Candidate, layers: Sequence[LayerWork]) -> dict[str, str]:
    """Return the precision that each layer is set to by a candidate's passes and engine.

    Args:
        candidate: Candidate; a cascade counts as its fast model, which every request goes through.
        layers: Layers of the model.

    Returns:
        Name of each layer -> "i8" where a pass quantizes it, else the engine's own precision.
    """
    engine = candidate.engine.runtimes[0]
    lossless = all(not step.quantized or isinstance(step, SmallModel) for step in candidate.passes)
    kept: set[str] = set()
    for step in candidate.passes:
        kept.update(step.keep_float)
    plain = engine.precision or "f32"
    return {layer.name: plain if lossless or layer.name in kept else "i8" for layer in layers}
