"""Candidates that the device's tools call faster than what ships, and why they don't ship."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.words import amount
from hasten.measure.candidate import Trial
from hasten.optimization.estimated.trials import Estimation, comparable, rank, ranked
from hasten.optimization.judge import Verdicts

_MOST = 3
"""Largest number of candidates that are named."""


def passed_over(trials: Estimation, verdicts: Verdicts, winner: Trial) -> list[str]:
    """Return a note on each of the fastest candidates that don't ship, with the reason.

    Args:
        trials: Trials of every candidate.
        verdicts: Verdicts of the sealed data on the ladder.
        winner: Trial of what ships.
    """
    faster = [one for one in comparable(trials.estimated()) if rank(one) < rank(winner)]
    notes = []
    for trial in faster[:_MOST]:
        value, unit = ranked(trial)
        size = "smaller" if unit == "bytes" else "faster"
        notes.append(
            f"{trial.candidate.label} is {size} ({value:,.4g} {unit}) but doesn't ship: "
            f"{_why(trials, verdicts, trial)}"
        )
    more = len(faster) - len(notes)
    if more:
        notes.append(
            f"{amount(more, 'further candidate')} ranked before what ships can't ship either"
        )
    return notes


def _why(trials: Estimation, verdicts: Verdicts, trial: Trial) -> str:
    """Return the reason why a candidate doesn't ship, as a clause."""
    judged = dict(verdicts)
    own = judged.get(trial.candidate.key)
    if own is not None:
        return own.in_words() if isinstance(own, Judgement) else own
    if not trials.able(trial):
        return f"it isn't under the limit in the search ({trials.outcome(trial)})"
    stopped = _first_that_failed(verdicts)
    if stopped:
        label = trials.done[stopped].candidate.label
        return (
            f"it wasn't tested, since the test ended at the safer {label}, which wasn't certified"
        )
    return "it wasn't among the few candidates that were tested on the sealed data"


def _first_that_failed(verdicts: Sequence[tuple[str, Judgement | str]]) -> str:
    """Return the key of the first candidate that wasn't certified; empty if all were."""
    for key, entry in verdicts:
        if isinstance(entry, str) or entry.verdict is not Verdict.CERTIFIED:
            return key
    return ""
