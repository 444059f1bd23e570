"""How often a bad candidate is certified by someone who runs again until one is, with and without the ledger.

    python benchmarks/certificate_reruns.py [--histories 2000] [--runs 10] [--seed 0] [--only NAME]

A history is one user's runs, one after the other, on the same data or on more of it. Every candidate
lies at the limit, so each certificate is false. The split, the ladder, the
ledger and the judging are those of a run; models are simulated by the samples on which they answer
otherwise. Prints a Markdown table: false certificates in the first run, in any run without the ledger, in
any with it, and in any after a refused one (95% intervals of Clopper and Pearson); and how often a good
candidate passes its second look.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from hasten.certificate import draws
from hasten.certificate.certification import judge_ladder, last_certified, prior_of
from hasten.certificate.exact import clopper_pearson_upper, paired_certifies
from hasten.certificate.ledger import Ledger, Past
from hasten.certificate.looks import answers_digest
from hasten.certificate.promise import Promise
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.splits import Earlier, Splits, split
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.intervals import Ratio
from hasten.optimization.choose import Standing, ladder
from hasten.optimization.trials import risk

Floats = NDArray[np.float64]

ALPHA, LIMIT, SAMPLES, POOL = 0.05, 0.02, 1000, 20
"""Of 1,000 samples 300 calibrate, 210 are searched on, and 490 are sealed."""
HEAD = (
    "| what users do | first run | any run, no ledger | any run, with it | runs after a "
    "refusal, with it |\n| --- | --- | --- | --- | --- |"
)
BASELINE = Standing("baseline", True, Ratio(1.0, 1.0, 1.0, 24), 0.0, 0.0)
_certifies = cache(paired_certifies)


@dataclass
class User:
    """One user with data and a state folder.

    Attributes:
        rng: Source of all that is random.
        ledger: The user's ledger; None for a user without.
        right: Whether the original is right on each sample that the user will ever have, `(n,)`.
        known: Candidates that this user has heard figures of, with their drop on sealed samples.
        paid: Whether the last run's look came after a refused one.
    """

    rng: np.random.Generator
    ledger: Ledger | None
    right: Floats
    known: list[tuple[float, Floats]] = field(default_factory=list)
    paid: bool = False

    def past(self) -> Past:
        """Return what the user's ledger knows."""
        return Past() if self.ledger is None else self.ledger.past()

    def candidates(self, drop: float, count: int = POOL) -> Floats:
        """Return scores of candidates of a drop, `(count, n)`: three losses for one gain."""
        chance = np.where(self.right > 0, 0.75 / 0.8, 0.25 / 0.2) * 2 * drop
        hit = self.rng.random((count, len(self.right))) < chance
        return np.where(hit, 1 - self.right, self.right)

    def variants(self, of: Floats, drop: float, count: int = POOL) -> Floats:
        """Return candidates that share half of one's hits and have others of their own instead."""
        new = self.candidates(drop, count)
        kept = self.rng.random(new.shape) < 0.5
        return np.where(kept, of, new)


def one_run(user: User, pool: Floats, samples: int, seed: int, limit: float = LIMIT) -> int | None:
    """Search and certify once; return the candidate that is certified, by its place in the pool."""
    earlier = user.past().earlier(ALPHA)
    parts = _split(samples, seed, earlier.seen, tuple(sorted(earlier.tested.items())))
    searched, sealed = parts.search.indices, parts.sealed.indices
    if user.ledger is not None:
        user.ledger.saw(_contents(samples)[i] for i in (*parts.calibration.indices, *searched))  # type: ignore[attr-defined]
    falls = user.right[searched] - pool[:, searched]
    rungs = ladder(_standings(falls, len(sealed)), "baseline", spread=0.01, max_drop=limit)
    if not rungs:
        return None
    scores = {key: pool[int(key), sealed] for key in rungs}
    hashes, units = [_contents(samples)[i] for i in sealed], np.arange(len(sealed))
    promise = Promise(Top1(), max_drop=limit, confidence=1 - ALPHA)
    priors = {key: prior_of(falls[int(key)], np.arange(len(searched))) for key in rungs}
    own = user.right[sealed]
    look = None
    if user.ledger is not None:
        test = answers_digest(hashes, own, _models(pool, rungs), scores, units, promise)
        look = user.ledger.look(hashes, test, asked=ALPHA)
        promise, user.paid = look.promise(promise), look.refused > 0
    judged = judge_ladder(own, rungs, scores, units, priors, promise)
    if user.ledger is not None and look is not None:
        user.ledger.end(look, judged)
    for key, _ in judged:
        user.known.append((float((own - scores[key]).mean()), pool[int(key)]))
    passed = last_certified(judged)
    return None if passed is None else int(passed[0])


def _models(pool: Floats, rungs: Sequence[str]) -> dict[str, str]:
    """Return what stands for a digest of each candidate's files: one of its scores on all samples."""
    return {key: hashlib.sha256(pool[int(key)].tobytes()).hexdigest() for key in rungs}


def _standings(falls: Floats, sealed: int) -> list[Standing]:
    ratios = [Ratio(x, x - 0.01, x + 0.01, 24) for x in np.linspace(0.3, 0.9, len(falls)).tolist()]
    return [BASELINE] + [
        Standing(str(i), False, ratio, float(own.mean()), risk(own, sealed))
        for i, (ratio, own) in enumerate(zip(ratios, falls, strict=True))
    ]


@cache
def _data(samples: int) -> ArrayDataset:
    return ArrayDataset({"x": np.arange(samples)})


@cache
def _contents(samples: int) -> list[bytes]:
    return [_data(samples).content_hash(i) for i in range(samples)]


@cache
def _split(
    samples: int,
    seed: int,
    seen: frozenset[bytes],
    tested: tuple[tuple[bytes, float], ...],
    *,
    training: bool = False,
) -> Splits:
    """Split the data: what lies where doesn't depend on any answer, so users share it."""
    other = ArrayDataset({"x": np.arange(-100, 0)}) if training else None
    return split(_data(samples), seed=seed, training=other, earlier=Earlier(seen, dict(tested)))


# -- what users do; each yields whether a run of theirs certified a bad candidate


def other_seeds(user: User, runs: int) -> Iterator[bool]:
    """The same candidates on the same data, split anew each time."""
    pool = user.candidates(LIMIT)
    for seed in range(runs):
        yield one_run(user, pool, SAMPLES, seed) is not None


def other_candidates(user: User, runs: int) -> Iterator[bool]:
    """New candidates each time, with the same split where nothing is known of earlier runs."""
    for _ in range(runs):
        yield one_run(user, user.candidates(LIMIT), SAMPLES, 0) is not None


def near_misses(user: User, runs: int) -> Iterator[bool]:
    """An attack: each time variants of the candidate with the best figures that were printed so far."""
    for _ in range(runs):
        best = min(user.known, key=lambda one: one[0])[1] if user.known else None
        pool = user.candidates(LIMIT) if best is None else user.variants(best, LIMIT)
        yield one_run(user, pool, SAMPLES, 0) is not None


def raised_limits(user: User, runs: int) -> Iterator[bool]:
    """The advice to allow a larger drop: half as much again each time, with candidates at that limit."""
    for count in range(min(runs, 5)):
        limit = LIMIT * 1.5**count
        yield one_run(user, user.candidates(limit), SAMPLES, 0, limit) is not None


def more_data(user: User, runs: int) -> Iterator[bool]:
    """The advice to bring more data: as many again each time, beside the old, for the same candidates."""
    pool = user.candidates(LIMIT)
    for count in range(1, min(runs, 3) + 1):
        yield one_run(user, pool, count * SAMPLES, 0) is not None


def a_few_more(user: User, runs: int) -> Iterator[bool]:
    """More data, a tenth of the old each time: too few to be tested alone."""
    pool = user.candidates(LIMIT)
    for count in range(min(runs, 5)):
        yield one_run(user, pool, SAMPLES + count * SAMPLES // 10, 0) is not None


def commits(user: User, runs: int) -> Iterator[bool]:
    """`certify` on one file of fresh data for the bundle of each commit; every other one is good."""
    hashes, units = _contents(500), np.arange(500)
    own = user.right[:500]
    for count in range(runs):
        bad = count % 2 == 0
        score = user.candidates(LIMIT if bad else LIMIT / 10, 1)[0, :500]
        promise, look = Promise(Top1(), max_drop=LIMIT, confidence=1 - ALPHA), None
        if user.ledger is not None:
            test = answers_digest(hashes, own, {"w": str(count)}, {"w": score}, units, promise)
            look = user.ledger.look(hashes, test, asked=ALPHA)
            promise, user.paid = look.promise(promise), look.refused > 0
        judged = judge_ladder(own, ("w",), {"w": score}, units, {}, promise)
        if user.ledger is not None and look is not None:
            user.ledger.end(look, judged)
        yield bad and last_certified(judged) is not None


def equal_answers(user: User, runs: int) -> Iterator[bool]:
    """`certify` of a bundle that changes no answer, then of others at the limit; few samples show no change."""
    count = 150
    hashes, units, own = _contents(count), np.arange(count), np.ones(count)
    promise = Promise(Top1(), guard="changed", max_drop=LIMIT, confidence=1 - ALPHA)
    for run in range(runs):
        bad, asked, look = run > 0, promise, None
        score = np.where(user.rng.random(count) < (LIMIT if bad else 0), 0.0, 1.0)
        if user.ledger is not None:
            test = answers_digest(hashes, own, {"w": str(run)}, {"w": score}, units, promise)
            look = user.ledger.look(hashes, test, asked=ALPHA)
            asked, user.paid = look.promise(promise), look.refused > 0
        judged = judge_ladder(own, ("w",), {"w": score}, units, {}, asked)
        if user.ledger is not None and look is not None:
            user.ledger.end(look, judged)
        yield bad and last_certified(judged) is not None


def seeds_of_fractions(user: User, runs: int) -> Iterator[bool]:
    """One candidate with scores between 0 and 1, split anew each time; training data calibrates."""
    ruined = user.rng.random(len(user.right)) < 0.03
    own = np.where(ruined, 1.0, 0.5)
    noise = 0.45 * (user.rng.random(len(own)) - 0.5)
    score = own - np.where(ruined, 1.0, noise - (LIMIT - 0.03) / -0.97)
    for seed in range(runs):
        earlier = user.past().earlier(ALPHA)
        known = earlier.seen, tuple(sorted(earlier.tested.items()))
        parts = _split(SAMPLES, seed, *known, training=True)
        searched, sealed = parts.search.indices, parts.sealed.indices
        hashes, units = [_contents(SAMPLES)[i] for i in sealed], np.arange(len(sealed))
        scores = {"w": score[sealed]}
        priors = {"w": prior_of((own - score)[searched], np.arange(len(searched)))}
        promise, look = Promise(Top1(), max_drop=LIMIT, confidence=1 - ALPHA), None
        if user.ledger is not None:
            user.ledger.saw(_contents(SAMPLES)[i] for i in searched)
            test = answers_digest(hashes, own[sealed], {"w": ""}, scores, units, promise, priors)
            look = user.ledger.look(hashes, test, asked=ALPHA)
            promise, user.paid = look.promise(promise), look.refused > 0
        judged = judge_ladder(own[sealed], ("w",), scores, units, priors, promise, binary=False)
        if user.ledger is not None and look is not None:
            user.ledger.end(look, judged)
        yield last_certified(judged) is not None


HABITS: dict[str, Callable[[User, int], Iterator[bool]]] = {
    "other seeds": other_seeds,
    "other candidates": other_candidates,
    "variants of near misses": near_misses,
    "raised limits": raised_limits,
    "a few more data": a_few_more,
    "as many data again": more_data,
    "commits of a pipeline": commits,
    "others after a perfect one": equal_answers,
    "other seeds, fractional scores": seeds_of_fractions,
}


@dataclass(frozen=True)
class Outcome:
    """Histories of one habit.

    Attributes:
        histories: Number of histories.
        first: Number in which the first run certified a bad candidate.
        any: Number in which any run did.
        paying: Number with a look after a refused one.
        fooled: Number of those in which such a look certified a bad candidate.
    """

    histories: int
    first: int
    any: int
    paying: int
    fooled: int


def simulated(name: str, histories: int, runs: int, seed: int, *, remembers: bool) -> Outcome:
    """Simulate users with a habit, each with data, candidates and a ledger of their own."""
    counts = np.zeros(4, np.int64)
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder, quick_judging():
        for number in range(histories):
            rng = np.random.default_rng([seed, number])
            ledger = Ledger.at(Path(folder, str(number))) if remembers else None
            user = User(rng, ledger, (rng.random(3 * SAMPLES) < 0.8).astype(np.float64))
            each = [(false, user.paid) for false in HABITS[name](user, runs)]
            paying = [false for false, paid in each if paid]
            counts += (each[0][0], any(false for false, _ in each), bool(paying), any(paying))
    return Outcome(histories, *map(int, counts))


def second_looks(histories: int, seed: int) -> int:
    """Return how many users whose first run was refused get a good candidate certified on the same data."""
    passed = 0
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder, quick_judging():
        for number in range(histories):
            rng = np.random.default_rng([seed, number])
            right = (rng.random(SAMPLES) < 0.8).astype(np.float64)
            user = User(rng, Ledger.at(Path(folder, str(number))), right)
            while not any(look.refused for look in user.past().looks):
                one_run(user, user.candidates(LIMIT), SAMPLES, 0)
            passed += one_run(user, user.candidates(0.0005), SAMPLES, 0) is not None
    return passed


@contextmanager
def quick_judging() -> Iterator[None]:
    """Judge the same counts once, and leave out all beside whether a candidate is certified."""
    with ExitStack() as stack:
        for name, stand_in in (
            ("paired_certifies", _certifies),
            ("paired_upper_bound", lambda *_: 1.0),
            ("paired_refutes", lambda *_: False),
        ):
            stack.enter_context(patch.object(draws, name, stand_in))
        yield


def _fast_folder() -> str | None:
    """Return a folder in memory, where there is one: the ledger waits for the disk at each look."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def interval(count: int, of: int) -> str:
    """Return a share with its 95% interval, in percent."""
    if of == 0:
        return "-"
    low = 1 - clopper_pearson_upper(of - count, of, 0.025)
    high = clopper_pearson_upper(count, of, 0.025)
    return f"{100 * count / of:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def row(name: str, without: Outcome, with_it: Outcome) -> str:
    """Return one row of the table of false certificates."""
    shares = (
        (without.first, without.histories),
        (without.any, without.histories),
        (with_it.any, with_it.histories),
        (with_it.fooled, with_it.paying),
    )
    return f"| {name} | " + " | ".join(interval(*one) for one in shares) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=HABITS)
    args = parser.parse_args()
    print(HEAD)
    for name in [args.only] if args.only else HABITS:
        both = [
            simulated(name, args.histories, args.runs, args.seed, remembers=remembers)
            for remembers in (False, True)
        ]
        print(row(name, *both), flush=True)
    count = args.histories // 4
    print(
        "\ngood candidates that pass a second look at the same data after a refusal: "
        + interval(second_looks(count, args.seed), count)
    )


if __name__ == "__main__":
    main()
