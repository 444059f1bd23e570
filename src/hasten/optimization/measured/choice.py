"""The decision on what ships, from certificates and fresh rounds. Pure: records in, choice out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hasten.bundle import Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement, Verdict
from hasten.measure.intervals import Ratio
from hasten.measure.race import BASELINE, Standings
from hasten.optimization.choose import faster, slower
from hasten.optimization.judge import Ladder, Verdicts
from hasten.reporting.summary import NO_FASTER, allowed, exact_why, refused


@dataclass(frozen=True)
class Choice:
    """Choice of what ships, by the candidates' keys.

    Attributes:
        winner: Key of the candidate that the bundle serves.
        exact: Key of the exact candidate that the bundle falls back on.
        status: "certified", "exact" or "uncertified".
        why: Reason for the status, in words.
        judgement: Judgement of the sealed data on the winner; None where it isn't certified.
        inexact: Reason why no inexact candidate ships with a certificate; empty where one does.
    """

    winner: str
    exact: str
    status: Status
    why: str
    judgement: Judgement | None = None
    inexact: str = ""


def decide(
    ladder: Ladder,
    verdicts: Verdicts,
    final: Standings,
    *,
    baseline: str,
    loose: str | None = None,
    compared: int = 0,
    accept_uncertified: bool = False,
    as_it_was: Standings | None = None,
    label: Callable[[str], str] = str,
    untested: str = NO_FASTER,
    model: Callable[[str], str] = str,
) -> Choice:
    """Decide what ships: what is certified and faster in fresh rounds too, else an exact model.

    Args:
        ladder: Ladder as it was frozen.
        verdicts: Verdicts of the sealed data on the ladder.
        final: Standings after the fresh rounds.
        baseline: Key of the default engine's candidate.
        loose: Key of the fastest uncertified candidate; None where none is faster than the winner.
        compared: Number of samples on which no answer of the exact candidate changed.
        accept_uncertified: Whether the uncertified candidate may ship.
        as_it_was: Standings on the threads that ship, where the fresh rounds are of fewer.
        label: Label of a candidate for people, by its key.
        untested: Reason why the ladder has no inexact model.
        model: Key of a candidate's model, which differs from its own where its pictures are decoded smaller. That
            such a candidate is faster than its model was raced before, over the whole way.
    """

    def short_of(one: str, exact: str) -> str | None:
        return _short_of(final, one, exact, baseline, as_it_was)

    passed = last_certified(verdicts)
    exact = ladder.exact
    winner = passed[0] if passed else exact
    if exact != baseline and short_of(exact, baseline) is not None:
        winner, exact = (baseline if winner == exact else winner), baseline
    short = None if winner == exact else short_of(winner, exact)
    if winner != exact == model(winner):
        short = None if final.stands(winner) else "failed"
    if passed and winner == passed[0] and short is None:
        return Choice(winner, exact, "certified", passed[1].in_words(), passed[1])
    safest = verdicts[0][0] if verdicts else exact
    # Where that is the exact model with smaller pictures, no inexact model was worth testing.
    decoded = safest != exact and model(safest) == ladder.exact
    reason = untested if decoded else _why_no_inexact(verdicts, short, label, untested)
    if accept_uncertified and loose is not None and short_of(loose, exact) is None:
        return Choice(loose, exact, "uncertified", allowed(reason), inexact=reason)
    why = exact_why(reason, compared, default=exact == baseline)
    return Choice(exact, exact, "exact", why, inexact=reason)


def settled_by_sealed_data(verdicts: Verdicts) -> set[str]:
    """Return the keys that were certified, that surely aren't accurate enough, or that failed."""
    return {
        key
        for key, entry in verdicts
        if isinstance(entry, str) or entry.verdict is not Verdict.NOT_ENOUGH_DATA
    }


def _short_of(
    final: Standings, one: str, exact: str, baseline: str, as_it_was: Standings | None
) -> str | None:
    """Return what a candidate lacks to replace the exact one; None where it beats it.

    It must be faster by more than the noise, and no slower in the mean over all requests, where rare
    stalls count in full.
    """
    if not final.stands(one):
        return "failed"
    runs = exact != baseline and final.stands(exact)
    other = exact if runs else BASELINE
    even = Ratio(1.0, 1.0, 1.0, final.counted)
    if not faster(final.ratio(one, other), even, final.spread):
        return "wasn't faster than the fastest exact form by more than the noise"
    means = final.means(one, other)
    if slower(means, final.spread_of_means):
        return (
            f"took {means.estimate:.2f} times the mean latency of the fastest exact form "
            f"({means.low:.2f} to {means.high:.2f})"
        )
    if as_it_was is None or not (as_it_was.stands(one) and as_it_was.stands(other)):
        return None
    if slower(as_it_was.ratio(one, other), as_it_was.spread):
        return f"was slower than the fastest exact form on {as_it_was.threads} threads, as it would ship"
    return None


def _why_no_inexact(
    verdicts: Verdicts, short: str | None, label: Callable[[str], str], untested: str
) -> str:
    """Return the reason why nothing inexact ships with a certificate.

    Args:
        verdicts: Verdicts of the sealed data on the ladder.
        short: Reason that kept the certified candidate from shipping; None where none was certified.
        label: Label of a candidate for people, by its key.
        untested: Reason why there are no verdicts, where there are none.
    """
    passed = last_certified(verdicts)
    if passed is not None:
        return f"{label(passed[0])} was certified, but in the final timing it {short}"
    if not verdicts:
        return untested
    key, entry = verdicts[0]
    return refused(label(key), entry)
