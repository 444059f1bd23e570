"""The decision on what ships, from certificates and fresh rounds. Pure: records in, choice out."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.bundle import Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement, Verdict
from hasten.measure.exactness import unchanged_in_words
from hasten.measure.race import BASELINE, Standings
from hasten.optimization.choose import faster
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
    """

    winner: str
    exact: str
    status: Status
    why: str
    judgement: Judgement | None = None
    beaten: str | None = None


def decide(
    ladder: Ladder,
    verdicts: Verdicts,
    final: Standings,
    *,
    baseline: str,
    loose: str | None = None,
    compared: int = 0,
    accept_uncertified: bool = False,
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
    """
    passed = last_certified(verdicts)
    exact = ladder.exact
    winner = passed[0] if passed else exact
    if exact != baseline and not _beats(final, exact, baseline, baseline):
        winner, exact = (baseline if winner == exact else winner), baseline
    beaten = None
    if winner != exact and not _beats(final, winner, exact, baseline):
        beaten, winner = (winner if final.stands(winner) else None), exact
    if passed and passed[0] == winner:
        return Choice(winner, exact, "certified", passed[1].in_words(), passed[1])
    why = _why_exact(verdicts, final)
    if accept_uncertified and loose is not None and _beats(final, loose, exact, baseline):
        allowed = f"shipped without a certificate, as was allowed: {why}"
        return Choice(loose, exact, "uncertified", allowed, beaten=beaten)
    if exact != baseline:
        speedup = 1 / final.ratio(exact).estimate
        kept = f", and {unchanged_in_words(compared)}" if compared else ""
        why = (
            f"the exact model itself is {speedup:.2f}x faster than the default engine{kept}; {why}"
        )
    return Choice(winner, exact, "exact", why, beaten=beaten)


def settled_by_sealed_data(verdicts: Verdicts) -> set[str]:
    """Return the keys that were certified, that surely aren't accurate enough, or that failed."""
    return {
        key
        for key, entry in verdicts
        if isinstance(entry, str) or entry.verdict is not Verdict.NOT_ENOUGH_DATA
    }


def _beats(final: Standings, one: str, exact: str, baseline: str) -> bool:
    """Whether a candidate beats the exact one in the fresh rounds by more than the noise."""
    if not final.stands(one):
        return False
    runs = exact != baseline and final.stands(exact)
    return faster(final.ratio(one), final.ratio(exact if runs else BASELINE), final.spread)


def _why_exact(verdicts: Verdicts, final: Standings) -> str:
    """Return the reason why nothing inexact ships."""
    passed = last_certified(verdicts)
    if passed is not None and not final.stands(passed[0]):
        return "the certified candidate dropped out of the fresh rounds"
    if passed is not None:
        return "in fresh rounds the certified candidate was not faster than the exact model"
    if not verdicts:
        return (
            "no inexact candidate (such as int8) under the limit on the search split was faster "
            "than the exact model beyond the noise"
        )
    entry = verdicts[0][1]
    reason = entry.in_words() if isinstance(entry, Judgement) else f"the safest failed: {entry}"
    return f"no inexact candidate was certified: {reason}"
