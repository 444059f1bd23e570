"""Where a model's time goes, and how far that is from the least that this machine can take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError, InputError
from hasten.measure.candidate import Candidate
from hasten.measure.ceilings import measure
from hasten.measure.intervals import Rounds
from hasten.measure.race import Standings
from hasten.measure.roofline import LayerWork, floor, precisions
from hasten.measure.work import work
from hasten.optimization.run import Run
from hasten.passes.base import Skipped
from hasten.passes.little import Little, little_of
from hasten.report.result import Limit

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
                    candidate.engine,
                    artifact,
                    run.parts.search,
                    requests=_REQUESTS,
                    named=little_of(candidate.passes) is None,
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
) -> tuple[tuple[Limit, ...], dict[str, Limit]]:
    """Set latencies against the least that the machine can take.

    Args:
        run: Behind it the choice.
        final: The fresh rounds.
        shown: Role -> the candidate's key, and its name in the fresh rounds.
        steps: Role -> its profile.

    Returns:
        One for each role that was timed anew, in the precisions that its profile shows or, without
        one, that it is set to; and by key one for each candidate of the search that was timed on as
        many threads, by its few turns there. Nothing, and a note, where the ceilings or the work
        can't be told.
    """
    try:
        layers: dict[Little | None, tuple[LayerWork, ...]] = {None: work(run.bench.model)}
        for trial in run.trials.measured():
            little = little_of(trial.candidate.passes)
            if little is not None and little not in layers:
                layers[little] = work(run.bench.transform((little,)))
        ceilings = measure(run.bench.target.with_threads(final.threads), run.bench.folder)

        def limit(role: str, key: str, rounds: Rounds, seen: Mapping[str, str] | None) -> Limit:
            candidate, trial = run.candidate(key), run.trials.done.get(key)
            stored = trial.artifact if trial is not None else None
            own = floor(
                layers[little_of(candidate.passes)],
                ceilings,
                seen or intended(candidate, layers[little_of(candidate.passes)]),
                stored_bytes=stored.size_bytes if stored and stored.path.exists() else None,
            )
            blocks = np.concatenate([np.asarray(block) for block in rounds.values()])
            latency_ns = float(blocks.mean() if candidate.engine.uneven else np.median(blocks))
            return Limit(role, own.floor_ns, own.ratio(latency_ns, final.threads), own.binds)

        of_roles = tuple(
            limit(
                role, key, final.rounds[entrant], precisions(steps[role]) if role in steps else None
            )
            for role, (key, entrant) in shown.items()
            if final.stands(entrant)
        )
        of_candidates = {
            t.candidate.key: limit(t.candidate.label, t.candidate.key, t.measurement.rounds, None)
            for t in run.trials.measured()
            if t.measurement is not None and t.measurement.threads == final.threads
        }
    except (CandidateError, InputError, Skipped) as why:
        run.notes.append(f"how far this is from the machine's limit isn't known: {why}")
        return (), {}
    return of_roles, of_candidates


def intended(candidate: Candidate, layers: Sequence[LayerWork]) -> dict[str, str]:
    """Return the precision that each layer is set to, by what a candidate's passes and engine say.

    Args:
        candidate: A cascade counts as its fast model, which every request takes.
        layers: Of the model.

    Returns:
        Layer's name -> "i8" where a pass quantizes, else the engine's precision for what it
        doesn't.
    """
    engine = candidate.engine.runtimes[0]
    lossless = all(not step.quantized or isinstance(step, Little) for step in candidate.passes)
    kept: set[str] = set()
    for step in candidate.passes:
        kept.update(step.keep_float)
    plain = engine.precision or "f32"
    return {layer.name: plain if lossless or layer.name in kept else "i8" for layer in layers}
