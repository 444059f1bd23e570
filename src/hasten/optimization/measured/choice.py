"""The decision on what ships, from certificates and fresh rounds. Pure: records in, choice out."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.bundle import Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement, Verdict
from hasten.measure.exactness import unchanged_in_words
from hasten.measure.intervals import Ratio
from hasten.measure.race import BASELINE, Standings
from hasten.optimization.choose import faster, slower
from hasten.optimization.judge import Ladder, Verdicts


@dataclass(frozen=True)
class Choice:
    """What ships, by the candidates' keys.

    Attributes:
        winner: Key of the candidate that the bundle serves.
        exact: Key of the exact candidate that the bundle falls back on.
        status: "certified", "exact" or "uncertified".
        why: Reason for the status, in words.
        judgement: Judgement of the sealed data on the winner; None where it isn't certified.
        beaten: Key of a candidate that was certified, but not faster than the exact model in fresh
            rounds; None where there is none.
        short: What kept that candidate from shipping, in words.
    """

    winner: str
    exact: str
    status: Status
    why: str
    judgement: Judgement | None = None
    beaten: str | None = None
    short: str = ""


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
    """

    def short_of(one: str, exact: str) -> str | None:
        return _short_of(final, one, exact, baseline, as_it_was)

    passed = last_certified(verdicts)
    exact = ladder.exact
    winner = passed[0] if passed else exact
    if exact != baseline and short_of(exact, baseline) is not None:
        winner, exact = (baseline if winner == exact else winner), baseline
    beaten, short = None, None
    if winner != exact and (short := short_of(winner, exact)) is not None:
        beaten, winner = (winner if final.stands(winner) else None), exact
    if passed and passed[0] == winner:
        return Choice(winner, exact, "certified", passed[1].in_words(), passed[1])
    lacks = short or "" if beaten else ""
    why = _why_exact(verdicts, short)
    if accept_uncertified and loose is not None and short_of(loose, exact) is None:
        allowed = f"shipped without a certificate, as was allowed: {why}"
        return Choice(loose, exact, "uncertified", allowed, beaten=beaten, short=lacks)
    if exact != baseline:
        speedup = 1 / final.ratio(exact).estimate
        kept = f", and {unchanged_in_words(compared)}" if compared else ""
        why = (
            f"the exact model itself is {speedup:.2f}x faster than the default engine{kept}; {why}"
        )
    return Choice(winner, exact, "exact", why, beaten=beaten, short=lacks)


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
        return "dropped out of the fresh rounds"
    runs = exact != baseline and final.stands(exact)
    other = exact if runs else BASELINE
    even = Ratio(1.0, 1.0, 1.0, final.counted)
    if not faster(final.ratio(one, other), even, final.spread):
        return "was not faster than the exact model"
    means = final.means(one, other)
    if slower(means, final.spread_of_means):
        return (
            f"took {means.estimate:.2f} times the exact model's mean latency "
            f"({means.low:.2f} to {means.high:.2f})"
        )
    if as_it_was is None or not (as_it_was.stands(one) and as_it_was.stands(other)):
        return None
    if slower(as_it_was.ratio(one, other), as_it_was.spread):
        return f"was slower than the exact model on {as_it_was.threads} threads, as it would ship"
    return None


def _why_exact(verdicts: Verdicts, short: str | None) -> str:
    """Return the reason why nothing inexact ships.

    Args:
        verdicts: Verdicts of the sealed data on the ladder.
        short: What kept the certified candidate from shipping; None where none was certified.
    """
    if last_certified(verdicts) is not None:
        if short == "dropped out of the fresh rounds":
            return f"the certified candidate {short}"
        return f"in fresh rounds the certified candidate {short}"
    if not verdicts:
        return (
            "no inexact candidate (such as int8) under the limit on the search split was faster "
            "than the exact model beyond the noise"
        )
    entry = verdicts[0][1]
    reason = entry.in_words() if isinstance(entry, Judgement) else f"the safest failed: {entry}"
    return f"no inexact candidate was certified: {reason}"
