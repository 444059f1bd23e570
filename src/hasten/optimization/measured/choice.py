"""What ships, by what was certified and by fresh rounds. Pure: records in, a choice out."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.bundle import Status
from hasten.certificate.certification import last_certified
from hasten.certificate.verdict import Judgement, Verdict
from hasten.measure.race import BASELINE, Standings
from hasten.optimization.choose import faster
from hasten.optimization.judge import Ladder, Verdicts


@dataclass(frozen=True)
class Choice:
    """What ships, by candidates' keys.

    Attributes:
        winner: Key of the candidate that the bundle serves.
        exact: Key of the exact one that it falls back on.
        status: "certified", "exact" or "uncertified".
        why: The status in words.
        judgement: What the sealed data showed of the winner, where it is certified.
        beaten: Key of a candidate that passed and was then not faster than the exact model; None
            where there is none.
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
    accept_uncertified: bool = False,
) -> Choice:
    """Say what ships: what passed, if fresh rounds find it faster too, else an exact model.

    Args:
        ladder: As it was frozen.
        verdicts: What the sealed data showed of it.
        final: The fresh rounds.
        baseline: Key of the default engine's candidate.
        loose: Key of the fastest that isn't certified; None where none is faster than what ships.
        accept_uncertified: Whether that one may ship.
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
        return Choice(loose, exact, "uncertified", f"accepted uncertified: {why}", beaten=beaten)
    return Choice(winner, exact, "exact", why, beaten=beaten)


def settled_by_sealed_data(verdicts: Verdicts) -> set[str]:
    """Return the keys that passed, that surely aren't accurate enough, or that failed there."""
    return {
        key
        for key, entry in verdicts
        if isinstance(entry, str) or entry.verdict is not Verdict.NOT_ENOUGH_DATA
    }


def _beats(final: Standings, one: str, exact: str, baseline: str) -> bool:
    """Whether a candidate is faster than the exact one in the fresh rounds, beyond the noise."""
    if not final.stands(one):
        return False
    runs = exact != baseline and final.stands(exact)
    return faster(final.ratio(one), final.ratio(exact if runs else BASELINE), final.spread)


def _why_exact(verdicts: Verdicts, final: Standings) -> str:
    """Say why nothing inexact ships."""
    passed = last_certified(verdicts)
    if passed is not None and not final.stands(passed[0]):
        return "what was certified fell out of the fresh rounds"
    if passed is not None:
        return "what was certified was not faster than the exact model in fresh rounds"
    if not verdicts:
        return "nothing under the limit on the search split beat the exact model beyond the noise"
    entry = verdicts[0][1]
    return entry.in_words() if isinstance(entry, Judgement) else f"the candidate failed: {entry}"
