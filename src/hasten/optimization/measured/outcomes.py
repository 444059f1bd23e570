"""Outcomes of every candidate of a run that measures, as records for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.measure.candidate import Candidate, Trial
from hasten.measure.intervals import quantile
from hasten.measure.race import BASELINE, Standings
from hasten.optimization.judge import Ladder, Verdicts
from hasten.optimization.measured.racing import Racing
from hasten.passes.small_model import small_model_of
from hasten.reporting.evidence import FIGURES_SCHEMA
from hasten.reporting.result import ORIGINAL, Fate, Limit, Method, Outcome, Rung


def outcomes(racing: Racing, ladder: Ladder, limits: Mapping[str, Limit]) -> tuple[Outcome, ...]:
    """Return the outcome of every candidate, in the order in which they were tried.

    Args:
        racing: Candidates of the run and their races.
        ladder: Ladder as it was frozen.
        limits: Candidate's key -> its distance from the least time that the machine allows.
    """
    trials, units = racing.trials, racing.ready.search_units
    return tuple(
        Outcome(
            label=trial.candidate.label,
            fate=_fate(racing, trial),
            said=trials.outcome(trial),
            ratio=None if trial.measurement is None or trial.failure else trials.ratio(trial),
            drop=None if _kept(trial) else trials.observed(trial, units),
            rung=ladder.rungs.index(key) if key in ladder.rungs else None,
            limit=limits.get(key),
        )
        for key, trial in trials.done.items()
    )


def rungs(racing: Racing, verdicts: Verdicts) -> tuple[Rung, ...]:
    """Return the verdicts of the sealed data, with the candidates' labels."""
    return tuple(
        Rung(racing.candidate(key).label, None, entry)
        if isinstance(entry, str)
        else Rung(racing.candidate(key).label, entry)
        for key, entry in verdicts
    )


def figures_record(racing: Racing, final: Standings, roles: Mapping[str, str]) -> dict[str, Any]:
    """Return the raw rounds behind the figures, by file name.

    Args:
        racing: Candidates of the run and their races.
        final: Rounds that the figures come from.
        roles: Row's role -> its name in these rounds.
    """
    rounds = racing.job.journal.events("round")
    return {
        "race.json": [event for event in rounds if event["race"].startswith("race/")],
        "figures.json": {
            "schema": FIGURES_SCHEMA,
            "rounds": final.rounds,
            "refused": final.refused,
            "refused_rounds": final.busy,
            "processes": final.processes,
            "threads": final.threads,
            "roles": roles,
        },
    }


def best_of_methods(racing: Racing) -> dict[str, str]:
    """Return the key of each method's best candidate.

    Under a budget that is the candidate likeliest to be accurate enough. Without a budget, or where
    no candidate meets it, that is the fastest of those that probably are accurate enough.
    """
    by_method: dict[str, list[Trial]] = {}
    for trial in racing.trials.measured():
        by_method.setdefault(method_of(trial.candidate), []).append(trial)
    limit, ratio, risk = racing.ready.promise.max_drop, racing.trials.ratio, racing.trials.risk
    budget_s = racing.job.order.budget_s
    found = {}
    for name, tried in by_method.items():
        trials = [t for t in tried if _kept(t) or t.scores] or tried
        fast = [t for t in trials if budget_s is not None and latency_ns(t) <= 1e9 * budget_s]
        safe = [t for t in trials if risk(t) <= limit]
        best = (
            min(fast, key=lambda t: (max(risk(t), limit), ratio(t).estimate))
            if fast
            else min(safe or trials, key=lambda t: ratio(t).estimate)
        )
        found[name] = best.candidate.key
    return found


def method_of(candidate: Candidate) -> str:
    """Return the name of the smaller model that a candidate is made from, or the original's."""
    small = small_model_of(candidate.passes)
    return ORIGINAL if small is None else small.name


def latency_ns(trial: Trial) -> float:
    """Return a trial's latency in nanoseconds: the median of its turns, or a cascade's mean."""
    assert trial.measurement is not None
    taken = np.concatenate([np.asarray(block) for block in trial.measurement.rounds.values()])
    return float(taken.mean() if trial.candidate.engine.uneven else np.median(taken))


def methods(
    racing: Racing, final: Standings, verdicts: Verdicts, best: Mapping[str, str]
) -> tuple[Method, ...]:
    """Return the best candidate of each method, fastest first in the fresh rounds.

    A candidate that dropped out of these rounds is left out.

    Args:
        racing: Candidates of the run and their races.
        final: Standings after the fresh rounds.
        verdicts: Verdicts of the sealed data, safest first.
        best: Method -> key of its best candidate; for the winner's method, the winner.
    """
    units = racing.ready.search_units
    said = {key: e if isinstance(e, str) else e.in_words() for key, e in verdicts}
    baseline, found = racing.trials.baseline.key, []
    for name, key in best.items():
        who = BASELINE if key == baseline else key
        if not final.stands(who):
            continue
        trial = racing.trials.done[key]
        exact = key == baseline or _kept(trial)
        untested = "exact" if exact else "not tested on the sealed data"
        if not exact and not trial.scores:
            untested = "not judged, because it isn't faster than an exact form"
        found.append(
            Method(
                name=name,
                label=racing.candidate(key).label,
                ratio=final.ratio(who),
                p50=quantile(final.rounds[who], 0.5),
                drop=None if exact else racing.trials.observed(trial, units),
                said=said.get(key, untested),
                trained=racing.ready.trained.get(name, ""),
            )
        )
    return tuple(sorted(found, key=lambda method: method.ratio.estimate))


def _kept(trial: Trial) -> bool:
    """Whether a trial's settings are exact, and no answer that was compared had changed."""
    return trial.candidate.exact and not trial.changed


def _fate(racing: Racing, trial: Trial) -> Fate:
    if trial.skipped or trial.failure:
        return "skipped" if trial.skipped else "failed"
    if trial.measurement is None and not trial.candidate.least:
        return "baseline"
    if _kept(trial):
        return "exact"
    if trial.scores is None:
        return "not judged"
    return "judged" if len(trial.scores) == len(racing.ready.parts.search) else "left early"
