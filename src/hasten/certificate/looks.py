"""Looks at sealed data: the level at which each one is tested, and whether fresh samples do without.

Every run that tests candidates on sealed samples has a look at them. A look is refused where one of
its candidates isn't certified. The first look is tested at the whole alpha that was asked for, and
so is a further one as long as none before it was refused, as in fixed-sequence testing. After `r`
refused looks at any of its samples a look is tested at `alpha / (50 r (r + 1))`; these levels sum up
to alpha / 50 however many follow. So the chance that any certificate on the same samples is false
is at most 1.02 alpha. `design/ledger.md` has the proof, and why the first look has it all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from scipy import special

from hasten.certificate.betting import BettingPrior
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.core.records import canonical
from hasten.core.tensors import Array
from hasten.core.words import amount

Judged: TypeAlias = list[tuple[str, Judgement | str]]
"""Pairs of a candidate's key and its judgement, or the reason why it failed."""
LATER = 1 / 50
"""Share of alpha that all looks after the first refused one have together, beside the first's."""
_POWER = 0.8
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")


@dataclass(frozen=True)
class Look:
    """One look at sealed samples, as a certificate states it.

    Attributes:
        id: Number of the look in hex, by which a resumed run finds its own again.
        number: 1 for the first look at any of its samples, 2 for the next.
        refused: Number of the earlier looks that were refused.
        asked: Alpha that was asked for, 0.05 for a confidence of 95%.
        alpha: Level at which candidates are tested.
        kept: Memory that the number comes from, in words, or why earlier looks aren't known.
        repeats: Whether an earlier look tested the same models with the same answers under the same limits: then this is
            that look once more, at its level, and counts as none.
    """

    id: str
    number: int
    refused: int
    asked: float
    alpha: float
    kept: str
    repeats: bool = False

    def promise(self, promise: Promise) -> Promise:
        """Return a promise with the confidence at which this look is tested.

        Args:
            promise: Promise with the confidence that was asked for.
        """
        same = self.alpha == self.asked  # 1 - (1 - 0.95) isn't 0.95
        return promise if same else replace(promise, confidence=1 - self.alpha)

    @property
    def plain(self) -> bool:
        """Whether it is a first look, of which there is nothing to say."""
        return self.number == 1 and not self.repeats

    def in_words(self) -> str:
        """Return one line that says which look it is and at which level it is tested."""
        place = f"{_ORDINALS[self.number - 1]} look" if self.number < 10 else f"look {self.number}"
        line = f"{place} at these data"
        if self.repeats:
            line += ", with the same answers as an earlier one: a repeat, tested as that one was"
        elif self.refused:
            line += (
                f": tested at {_percent(self.alpha)} instead of {_percent(self.asked)}, because "
                f"{amount(self.refused, 'earlier look')} didn't certify everything that "
                f"{'it' if self.refused == 1 else 'they'} tested"
            )
        elif self.number > 1:
            line += f": tested at {_percent(self.asked)}, because every earlier test passed"
        return f"{line} ({self.kept})"


@dataclass(frozen=True)
class PastLook:
    """An earlier look, as it was written down.

    Attributes:
        id: Number of the look in hex.
        hashes: First 16 bytes of the content hashes of its samples.
        alpha: Level at which it was tested.
        refused: Whether a candidate wasn't certified; None where the look never came to an end.
        answers: Digest of the whole test; empty where it isn't known.
        repeats: Whether it repeated an earlier one.
    """

    id: str
    hashes: frozenset[bytes]
    alpha: float
    refused: bool | None = None
    answers: str = ""
    repeats: bool = False


def judged_at(look: Look, promise: Promise, judged: Callable[[Promise], Judged]) -> Judged:
    """Judge at the level of a look, and state the verdicts with the confidence that was asked for.

    What holds at a level holds with the confidence asked for, which is never more; the look says the rest.

    Args:
        look: Look that it is.
        promise: Promise as it was asked for.
        judged: Function that judges a ladder by a promise.
    """
    return [
        (key, entry if isinstance(entry, str) else replace(entry, confidence=promise.confidence))
        for key, entry in judged(look.promise(promise))
    ]


def level(asked: float, refused: int) -> float:
    """Return the level of a look after some refused ones.

    Args:
        asked: Alpha that was asked for.
        refused: Number of earlier looks at any of the samples that were refused, or never ended.
    """
    return asked if refused == 0 else asked * LATER / (refused * (refused + 1))


def look_at(
    hashes: Iterable[bytes], past: Iterable[PastLook], *, own: str, asked: float, kept: str
) -> Look:
    """Return the look that reads some samples now.

    Args:
        hashes: First 16 bytes of the samples' content hashes.
        past: Earlier looks; the one with this one's own number isn't earlier, and repeats don't count.
        own: Number of the look in hex.
        asked: Alpha that is asked for.
        kept: Memory that the past comes from, in words.
    """
    mine = frozenset(hashes)
    before = [
        one for one in past if one.id != own and not one.repeats and not mine.isdisjoint(one.hashes)
    ]
    refused = sum(one.refused is not False for one in before)
    return Look(own, 1 + len(before), refused, asked, level(asked, refused), kept)


def worth(asked: float, refused: int) -> float:
    """Return what a sample is worth that is tested after refused looks, in fresh samples.

    As many more samples are needed at the spent level for a power of 80%, by the normal approximation.
    """
    quantile = float(special.ndtri(_POWER))
    whole, spent = (-float(special.ndtri(a)) for a in (asked, level(asked, refused)))
    return ((whole + quantile) / (spent + quantile)) ** 2


def refused(judged: Iterable[tuple[str, Judgement | str]]) -> bool:
    """Whether a ladder's test ended with a candidate that wasn't certified; one that failed says nothing."""
    return any(
        isinstance(entry, Judgement) and entry.verdict is not Verdict.CERTIFIED
        for _, entry in judged
    )


def answers_digest(
    hashes: Sequence[bytes],
    original: Array,
    rungs: Mapping[str, str],
    scores: Mapping[str, Array | str],
    units: Array,
    promise: Promise,
    priors: Mapping[str, BettingPrior] | None = None,
) -> str:
    """Return a digest of a whole test: its samples, limits, priors, models, and every rung's scores bit for bit.

    Two looks with the same digest are the same test, so the second one spends nothing. Equal scores alone don't
    make them that: of models that change no answer here, each may have another limit to keep.

    Args:
        hashes: Content hash of each sample; the digest doesn't depend on their order.
        original: Scores of the exact model, `(n,)`.
        rungs: Key -> digest of the model that answered and of the exact one, safest first.
        scores: Key -> scores of the rung, or the reason why it failed.
        units: Number of each sample's group, `(n,)`.
        promise: Promise as it was asked for, whatever the level of the look.
        priors: Key -> prior by which a rung's bets are set; None where no prior decides anything, as in
            exact tests.
    """
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    firsts: dict[int, int] = {}
    drawn = [firsts.setdefault(int(units[i]), len(firsts)) for i in order]
    bets = [dict(priors)] if priors else []
    whole = hashlib.sha256(canonical([promise, drawn, list(rungs.values()), *bets]))
    whole.update(b"".join(hashes[i] for i in order))
    for part in (original, *(scores[key] for key in rungs)):
        whole.update(b"\0")
        whole.update(part.encode() if isinstance(part, str) else part[order].tobytes())
    return whole.hexdigest()


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
