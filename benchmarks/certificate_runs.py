"""Paths to a certificate that are more than one judgement: cascades, resumed runs, reruns and `certify`."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import certificate_reruns
import numpy as np
from certificate_judging import Floats, Ints, flipped, settings, shipped
from certificate_rivals import ALPHA

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_ladder, last_certified
from hasten.certificate.ledger import Ledger
from hasten.certificate.looks import Judged, Look, answers_digest
from hasten.certificate.promise import Promise
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Session
from hasten.engines.cascade import CascadeSession, margins
from hasten.evaluation.seen import Chosen, Seen, fresh, looked
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.splits import Earlier
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.candidate import Trial
from hasten.optimization.measured.escalation import Escalation
from hasten.optimization.measured.exploration import Exploration
from hasten.optimization.trials import Trials

CASCADES = settings(
    n=(500,),
    limit=(0.02,),
    searched=(60, 400),
    where=("close", "anywhere", "clear"),
    drop=(1.1, 1.5, 3.0),
)
RESUMED = settings(
    n=(506,),
    limit=(0.02,),
    gained=(0.0, 0.05),
    killed=("before the judging", "after the judging"),
    then=("the same", "others"),
    common=(0.0, 0.5),
)
RERUNS = settings(
    habit=tuple(name for name in certificate_reruns.HABITS if name != "as many data again")
)
"""All habits but that of bringing as many fresh samples again, which is a further experiment each time."""
CERTIFIED = settings(
    n=(500,),
    limit=(0.02,),
    kind=("flips", "groups", "fractions", "rare fractions"),
    prior=((0.0, 0.0, 0), (0.0, 0.001, 150), (-0.2, 0.0, 5000), (0.02, 0.02, 150)),
    commits=(1, 3),
)


@dataclasses.dataclass
class Answers(Session):
    """Model whose answers are known beforehand.

    Attributes:
        scores: Class scores of every input, `(inputs, classes)`.
    """

    scores: Floats

    def __post_init__(self) -> None:
        self.inputs, self.outputs, self.batch_sizes = (), (), None

    def run(self, inputs: Tensors) -> dict[str, Array]:
        return {"y": self.scores[inputs["number"]]}

    def properties(self) -> dict[str, str]:
        return {}


@dataclasses.dataclass(frozen=True)
class Population:
    """All inputs that there are, so that the true drop of each cascade is known.

    Attributes:
        fast: Class scores of the fast model, `(inputs, classes)`.
        careful: Class scores of the original.
        margins: Margins of the fast model, `(inputs,)`.
        fast_right: Whether the fast model is right, as 0 or 1.
        careful_right: Whether the original is right.
    """

    fast: Floats
    careful: Floats
    margins: Floats
    fast_right: Floats
    careful_right: Floats

    def drop(self, threshold: float) -> float:
        """Return the drop of the cascade that asks again below a margin."""
        kept = self.margins >= threshold
        return float((kept * (self.careful_right - self.fast_right)).mean())


@cache
def _population(where: str, drop: float, size: int = 50_000) -> Population:
    """Make inputs of class 0 on which the fast model errs where its margin is small, anywhere, or large."""
    rng = np.random.default_rng(0)
    margin = rng.random(size)
    weight = {"close": 3 * (1 - margin) ** 2, "anywhere": np.ones(size), "clear": 3 * margin**2}[
        where
    ]
    careful_right = rng.random(size) < 0.95
    won = ~careful_right & (rng.random(size) < 0.2)  # 1% of all inputs
    fast_right = np.where(careful_right, rng.random(size) >= (drop + 0.01) / 0.95 * weight, won)

    def class_scores(right: Array, margin: Floats) -> Floats:
        made = np.full((size, 3), -1.0)
        made[np.arange(size), np.where(right, 0, 1)] = margin
        made[np.arange(size), np.where(right, 1, 0)] = 0.0
        return made

    fast, careful = class_scores(fast_right, margin), class_scores(careful_right, np.ones(size))
    exact = margins(fast)
    return Population(fast, careful, exact, 1.0 * fast_right, 1.0 * careful_right)


def cascade(
    rng: np.random.Generator, n: int, limit: float, searched: int, where: str, drop: float
) -> bool:
    """Thresholds from a search split, then a ladder of the cascades and the fast model alone.

    Args:
        rng: Source of random numbers.
        n: Number of sealed samples.
        limit: Limit on the drop.
        searched: Number of samples of the search split.
        where: Margins at which the fast model errs.
        drop: Drop of the fast model, in limits.
    """
    people = _population(where, drop * limit)
    search, sealed = (
        rng.integers(0, len(people.margins), searched),
        rng.integers(0, len(people.margins), n),
    )
    own = people.careful_right[sealed]
    rungs, truth = {}, {}
    for number, threshold in enumerate(sorted(_thresholds(people, search, n, limit), reverse=True)):
        session = CascadeSession(Answers(people.fast), Answers(people.careful), threshold, "y", 1)
        answers = session.run({"number": sealed})["y"]
        rungs[str(number)] = Top1().score({"y": answers}, {"y": answers}, np.zeros(n, np.int64))
        truth[str(number)] = people.drop(threshold)
    rungs["fast"], truth["fast"] = people.fast_right[sealed], people.drop(0.0)
    winner = shipped(own, rungs, limit)
    return winner is not None and truth[winner] >= limit


def _thresholds(people: Population, search: Ints, sealed: int, limit: float) -> list[float]:
    """Return the thresholds that a search would propose where half of the answers may be asked again."""
    trials: Any = SimpleNamespace(
        exact_scores=people.careful_right[search],
        promise=Promise(Top1(), max_drop=limit, confidence=1 - ALPHA),
        binary=True,
    )
    trials.probably_certified = partial(Trials.probably_certified, trials)
    searching: Any = SimpleNamespace(
        trials=trials, _units=np.arange(len(search)), _sealed_draws=sealed
    )
    fast: Any = SimpleNamespace(exact=False)
    scores = people.fast_right[search]
    trial = Trial(fast, scores=tuple(map(float, scores)))

    def likely(trial: Trial, scale: float) -> bool:
        return Exploration._likely_passes(searching, trial, scale)

    def surely(trial: Trial, scale: float) -> bool:
        return Exploration._likely_passes(searching, trial, scale, doubt=1.0)

    escalation = Escalation(trials, lambda _: None, likely, surely, [])
    return escalation._thresholds(trial, people.margins[search], scores, 0.5)


@contextmanager
def _ledger() -> Iterator[Ledger]:
    """Keep a ledger for the life of one user, in memory where that can be: it waits for the disk."""
    fast = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=fast) as folder:
        yield Ledger.at(Path(folder))


@cache
def _hashes(n: int) -> tuple[bytes, ...]:
    data = ArrayDataset({"x": np.arange(n)})
    return tuple(data.content_hash(i) for i in range(n))


def _model(scores: Floats) -> dict[str, str]:
    """Return what stands for a digest of a candidate's files: one of its scores."""
    return {"w": hashlib.sha256(scores.tobytes()).hexdigest()}


def resumed(
    rng: np.random.Generator,
    n: int,
    limit: float,
    gained: float,
    killed: str,
    then: str,
    common: float,
) -> bool:
    """A run is killed around the judging of its sealed data and goes on, then a user runs twice more.

    Args:
        rng: Source of random numbers.
        n: Number of sealed samples.
        limit: Limit on the drop, and the drop of every candidate.
        gained: Share of answers gained.
        killed: Whether the run is killed before the judging or after it: then its user saw the outcome.
        then: Whether the resumed run and those after it have the same candidate or others.
        common: Share of the samples on which other candidates answer as the first one.
    """
    hashes, units = _hashes(n), np.arange(n)
    original, first = np.ones(n), rng.random(n)
    original[rng.random(n) < 0.1] = 0.0

    def candidate(number: Floats) -> Floats:
        lose, won = number < (limit + gained) / 0.9, number < gained / 0.1
        return np.where(original > 0, ~lose, won).astype(np.float64)

    promise = Promise(Top1(), max_drop=limit, confidence=1 - ALPHA)

    def begin(scores: Floats) -> Look:
        test = answers_digest(hashes, original, _model(scores), {"w": scores}, units, promise)
        return ledger.look(hashes, test, asked=ALPHA)

    def judged(look: Look, scores: Floats) -> Judged:
        return judge_ladder(original, ("w",), {"w": scores}, units, {}, look.promise(promise))

    with _ledger() as ledger:
        own = candidate(first)
        look = begin(own)
        if killed == "after the judging" and last_certified(judged(look, own)):
            return True
        for _ in range(3):
            if then == "others":
                own = candidate(np.where(rng.random(n) < common, first, rng.random(n)))
            look = begin(own)
            outcome = judged(look, own)
            ledger.end(look, outcome)
            if last_certified(outcome):
                return True
    return False


def reruns(rng: np.random.Generator, habit: str) -> bool:
    """One user who runs ten times, with a ledger."""
    seed = int(rng.integers(2**31))
    return certificate_reruns.simulated(habit, 1, 10, seed, remembers=True).any > 0


@cache
def _fresh(n: int, grouped: bool) -> Chosen:
    groups = np.arange(n) // 2 if grouped else None
    data = ArrayDataset({"x": np.arange(n)}, groups=groups)
    return fresh(data, Seen(frozenset(), frozenset(), frozenset()), Earlier())


def certified_again(
    rng: np.random.Generator,
    n: int,
    limit: float,
    kind: str,
    prior: tuple[float, float, int],
    commits: int,
) -> bool:
    """`certify` of some commits' bundles on one set of fresh samples, with what each one's search left.

    Args:
        rng: Source of random numbers.
        n: Number of samples.
        limit: Limit on the drop, and the drop of every bundle.
        kind: Kind of scores: of single samples, of groups, fractional, or 0/1 but for rare ones.
        prior: Mean, variance and number of draws of the search, which may have been wrong.
        commits: Number of bundles.
    """
    chosen = _fresh(n, kind == "groups")
    promise = Promise(Top1(), max_drop=limit, confidence=1 - ALPHA)
    with _ledger() as ledger:
        for _ in range(commits):
            original, scores = _bundle(rng, n, limit, kind)
            priors = {"w": BettingPrior(*prior)}
            binary = "fractions" not in kind  # by the certificate, and not by these scores
            test = answers_digest(
                chosen.hashes,
                original,
                _model(scores),
                {"w": scores},
                chosen.units,
                promise,
                priors={} if binary and kind != "groups" else priors,
            )

            def judged(
                promise: Promise,
                original: Floats = original,
                scores: Floats = scores,
                priors: Mapping[str, BettingPrior] = priors,
                binary: bool = binary,
            ) -> Judged:
                return judge_ladder(
                    original, ("w",), {"w": scores}, chosen.units, priors, promise, binary=binary
                )

            verdicts, _, _ = looked(ledger, chosen, test, promise, judged)
            if last_certified(verdicts):
                return True
    return False


def _bundle(rng: np.random.Generator, n: int, limit: float, kind: str) -> tuple[Floats, Floats]:
    """Draw scores of an original and of a bundle whose drop is the limit."""
    if kind == "groups":
        gone = np.repeat(rng.random(n // 2) < limit, 2)
        return np.ones(n), 1.0 - gone
    if kind == "fractions":
        ruined = rng.random(n) < 2 * limit
        return np.ones(n), np.where(ruined, 0.5, 1.0)
    if kind == "rare fractions":  # a sample or so decides whether scores count as 0/1
        rare = 1 / n
        number = rng.random(n)
        lose = limit - 0.9 * rare
        return np.ones(n), np.where(number < lose, 0.0, np.where(number > 1 - rare, 0.1, 1.0))
    return flipped(rng, n, limit + 0.01, 0.01)
