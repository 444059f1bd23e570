"""What became of every candidate of a run, as records that a report can be made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from hasten.certificate.drop import Drop, observed_drop
from hasten.certificate.verdict import Judgement
from hasten.core.invocation import Invocation
from hasten.core.records import to_record, type_name
from hasten.measure.candidate import Candidate, Trial
from hasten.measure.intervals import quantile
from hasten.measure.race import BASELINE, Standings
from hasten.optimization.run import Run
from hasten.passes.little import little_of
from hasten.report.result import Asked, Fate, Limit, Outcome, Rung, Way

ORIGINAL = "as it is"
"""The way of whoever changes no architecture: the original, in whatever precision."""


def outcomes(run: Run, limits: Mapping[str, Limit] = MappingProxyType({})) -> tuple[Outcome, ...]:
    """Return what became of every candidate, in the order in which they were tried.

    Args:
        run: Behind it the search.
        limits: Candidate's key -> how far it is from the least that the machine can take.
    """
    frozen = run.journal.last("ladder")
    rungs: list[str] = [] if frozen is None else frozen["choice"]["rungs"]
    return tuple(
        Outcome(
            label=trial.candidate.label,
            fate=_fate(run, trial),
            said=run.trials.outcome(trial),
            ratio=None if trial.measurement is None or trial.failure else run.trials.ratio(trial),
            drop=_drop(run, trial),
            rung=rungs.index(key) if key in rungs else None,
            limit=limits.get(key),
        )
        for key, trial in run.trials.done.items()
    )


def ladder(run: Run, judged: Sequence[tuple[str, Judgement | str]]) -> tuple[Rung, ...]:
    """Return what the sealed data said, with the candidates' labels."""
    return tuple(
        Rung(run.candidate(key).label, None, entry)
        if isinstance(entry, str)
        else Rung(run.candidate(key).label, entry)
        for key, entry in judged
    )


def asked(run: Run, invocation: Invocation) -> Asked:
    """Return what a run was asked for."""
    order = run.order
    return Asked(
        invocation=invocation,
        metric=type_name(order.metric),
        noun=order.metric.noun,
        guard=order.guard,
        max_drop=order.max_drop,
        confidence=order.confidence,
        seed=order.seed,
        searched=len(run.parts.search),
        sealed=len(run.parts.sealed),
    )


def evidence(
    run: Run,
    final: Standings,
    judged: Sequence[tuple[str, Judgement | str]],
    roles: Mapping[str, str],
) -> dict[str, Any]:
    """Return the raw records that the figures and the certificate rest on, by file name.

    Args:
        run: Behind it all but the last rounds.
        final: The rounds that the figures come from.
        judged: What the sealed data said, safest first.
        roles: Row's role -> its name in these rounds.
    """
    return {
        "trials.json": [to_record(trial) for trial in run.trials.done.values()],
        "race.json": [e for e in run.journal.events("round") if e["race"].startswith("race/")],
        "figures.json": {
            "rounds": final.rounds,
            "refused": final.refused,
            "threads": final.threads,
            "roles": roles,
        },
        "sealed.json": {
            "judged": [[k, to_record(e)] for k, e in judged],
            "hashes": run.parts.sealed_hashes,
            "seen": run.parts.seen_hashes,
            "groups": run.parts.group_hashes,
        },
    }


def best_of_ways(run: Run, budget_s: float | None) -> dict[str, str]:
    """Return for each way its best candidate's key: under the budget the one that is likeliest to be
    accurate enough, without one the fastest of those that probably are.

    Args:
        run: Behind it the search.
        budget_s: In seconds, or None.
    """
    by_way: dict[str, list[Trial]] = {}
    for trial in run.trials.measured():
        by_way.setdefault(way_of(trial.candidate), []).append(trial)
    limit, ratio, risk = run.order.max_drop, run.trials.ratio, run.trials.risk
    found = {}
    for name, tried in by_way.items():
        trials = [t for t in tried if t.candidate.exact or t.scores] or tried
        fast = [t for t in trials if budget_s is not None and latency_ns(t) <= 1e9 * budget_s]
        safe = [t for t in trials if risk(t) <= limit]
        best = (
            min(fast, key=lambda t: (max(risk(t), limit), ratio(t).estimate))
            if fast
            else min(safe or trials, key=lambda t: ratio(t).estimate)
        )
        found[name] = best.candidate.key
    return found


def way_of(candidate: Candidate) -> str:
    """Return the name of the smaller model that a candidate is made of, or the original's."""
    little = little_of(candidate.passes)
    return ORIGINAL if little is None else little.name


def latency_ns(trial: Trial) -> float:
    """Return a measured trial's p50 in its few turns, in nanoseconds; of a cascade its mean."""
    assert trial.measurement is not None
    taken = np.concatenate([np.asarray(block) for block in trial.measurement.rounds.values()])
    return float(taken.mean() if trial.candidate.engine.uneven else np.median(taken))


def ways(
    run: Run,
    final: Standings,
    judged: Sequence[tuple[str, Judgement | str]],
    best: Mapping[str, str],
    trained: Mapping[str, str],
) -> tuple[Way, ...]:
    """Return the ways' best, fastest first, by the fresh rounds; whoever fell out of them is left out.

    Args:
        run: Behind it the search.
        final: The fresh rounds.
        judged: What the sealed data said, safest first.
        best: Way -> its best candidate's key; what ships, for its own way.
        trained: Way -> how it came about.
    """
    said = {key: e if isinstance(e, str) else e.in_words() for key, e in judged}
    baseline, found = run.trials.baseline.key, []
    for name, key in best.items():
        who = BASELINE if key == baseline else key
        if not final.stands(who):
            continue
        trial, exact = run.trials.done[key], run.candidate(key).exact
        untested = "exact" if exact else "not tested on the sealed data"
        if not exact and not trial.scores:
            untested = "not faster than what there is: not judged"
        found.append(
            Way(
                name=name,
                label=run.candidate(key).label,
                ratio=final.ratio(who),
                p50=quantile(final.rounds[who], 0.5),
                drop=_drop(run, trial),
                said=said.get(key, untested),
                trained=trained.get(name, ""),
            )
        )
    return tuple(sorted(found, key=lambda way: way.ratio.estimate))


def _fate(run: Run, trial: Trial) -> Fate:
    if trial.skipped or trial.failure:
        return "skipped" if trial.skipped else "failed"
    if trial.measurement is None:
        return "baseline"
    if trial.candidate.exact:
        return "exact"
    if trial.scores is None:
        return "not judged"
    return "judged" if len(trial.scores) == len(run.parts.search) else "left early"


def _drop(run: Run, trial: Trial) -> Drop | None:
    """The drop of a judged trial; an exact one has none to speak of."""
    if not trial.scores or trial.failure or trial.candidate.exact:
        return None
    differences = run.trials.drops(trial)
    return observed_drop(
        differences,
        run.parts.search_units[: len(differences)],
        binary=run.trials.binary,
        only_falls=run.order.guard == "lost" or bool((run.trials.exact_scores == 1).all()),
    )
