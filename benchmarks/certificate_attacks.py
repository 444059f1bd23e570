"""Generators that look for the data on which each path to a certificate is most often wrong.

A path has settings that a test doesn't know: how many answers are gained, how large groups are and which
of them fail, what a search knew. Each setting's true drop is the limit, so every certificate is false. All
settings are tried on few runs, the worst six on four times as many, and the worst of these is drawn again,
with ten times as many again.

    python benchmarks/certificate.py attack --runs 20000
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import certificate_runs as runs_of
import numpy as np
from certificate_judging import Settings, deciding_alone, flipped, settings, shipped
from certificate_power import Share
from certificate_rivals import ALPHA

CLOSE = 6
"""Settings that are tried further, of those that had most false certificates on a quarter of the runs."""


@dataclass(frozen=True)
class Attack:
    """One path to a certificate, with the settings among which its worst case is looked for.

    Attributes:
        name: Name of the path in the table.
        false: Function from a source of random numbers and one setting to whether a run ends in a false
            certificate.
        settings: Settings to try.
        slowness: Number by which the runs are divided, for runs that take long.
    """

    name: str
    false: Callable[..., bool]
    settings: tuple[Settings, ...]
    slowness: int = 1


@dataclass(frozen=True)
class Found:
    """Outcome of an attack.

    Attributes:
        worst: Setting with most false certificates.
        scanned: Number of runs by which the worst few were told apart.
        runs: Number of runs that were then drawn again with the worst.
        share: Share of those that ended in a false certificate.
    """

    worst: Settings
    scanned: int
    runs: int
    share: Share


def attacked(attack: Attack, runs: int) -> Found:
    """Try every setting of an attack, and draw again with the worst."""
    seed = zlib.crc32(attack.name.encode())
    final = max(1, runs // attack.slowness)
    scanned = max(1, final // 10)

    def count(number: int, setting: Settings, times: int, phase: int) -> int:
        rng = np.random.default_rng([seed, number, phase])
        return sum(attack.false(rng, **setting) for _ in range(times))

    tried, few = attack.settings, max(1, scanned // 4)
    with deciding_alone():
        first = [count(i, one, few, 0) for i, one in enumerate(tried)]
        close = sorted(range(len(tried)), key=lambda i: -first[i])[:CLOSE]
        again = {i: count(i, tried[i], scanned, 1) for i in close}
        worst = max(again, key=again.__getitem__)
        false = count(worst, tried[worst], final, 2)
    return Found(tried[worst], scanned, final, Share.of(false, final))


def net(rng: np.random.Generator, n: int, limit: float, gained: float) -> bool:
    original, candidate = flipped(rng, n, limit + gained, gained)
    return shipped(original, {"w": candidate}, limit) is not None


def lost(rng: np.random.Generator, n: int, limit: float, gained: float) -> bool:
    original, candidate = flipped(rng, n, limit, gained)
    return shipped(original, {"w": candidate}, limit, guard="lost") is not None


def changed(rng: np.random.Generator, n: int, limit: float, repeated: float) -> bool:
    """Answers that change, and one frequent input whose answer doesn't."""
    same = rng.random(n) < repeated
    agrees = np.where(same | (rng.random(n) >= limit / (1 - repeated)), 1.0, 0.0)
    units = np.where(same, n, np.arange(n))
    return shipped(np.ones(n), {"w": agrees}, limit, guard="changed", units=units) is not None


def scores(
    rng: np.random.Generator, n: int, limit: float, rare: float, size: float, noise: float
) -> bool:
    """Rare disasters of a size; the other scores fall, or rise, by as much as makes the drop the limit."""
    ruined = rng.random(n) < rare
    usual = (limit - rare * size) / (1 - rare) + noise * (rng.random(n) - 0.5)
    original = np.where(ruined, 1.0, 0.5)
    candidate = original - np.where(ruined, size, usual)
    return shipped(original, {"w": candidate}, limit, binary=False) is not None


def unequal_groups(
    rng: np.random.Generator,
    count: int,
    limit: float,
    share: float,
    size: int,
    fails: str,
    whole: bool,
) -> bool:
    """A share of the groups has many rows, and either kind fails, whole or row by row."""
    large = rng.random(count) < share
    sizes = np.where(large, size, 1)
    chance = np.where(large, *failing(limit, share, size, fails))
    units = np.repeat(np.arange(count), sizes)
    number = rng.random(count)[units] if whole else rng.random(len(units))
    candidate = np.where(number < chance[units], 0.0, 1.0)
    return shipped(np.ones(len(units)), {"w": candidate}, limit, units=units) is not None


def failing(limit: float, share: float, size: int, fails: str) -> tuple[float, float]:
    """Return the chances that a row of a large group fails, and one of a small group.

    Args:
        limit: Share of all rows that fail.
        share: Share of groups that are large.
        size: Rows of a large group; a small one has 1.
        fails: "large" or "small" for the groups that fail, or "both".
    """
    rows = share * size + 1 - share
    if fails == "both":
        return limit, limit
    if fails == "large":
        return limit * rows / (share * size), 0.0
    return 0.0, limit * rows / (1 - share)


def repeats(
    rng: np.random.Generator, n: int, limit: float, share: float, inputs: int, wrong: bool
) -> bool:
    """Some inputs hold a share of the rows, all right or all wrong; other rows fail by themselves."""
    left = (limit - share * wrong) / (1 - share)
    same = rng.random(n) < share
    units = np.where(same, n + rng.integers(0, inputs, n), np.arange(n))
    gone = np.where(same, wrong, rng.random(n) < left)
    return shipped(np.ones(n), {"w": 1.0 - gone}, limit, units=units) is not None


def copies(rng: np.random.Generator, count: int, limit: float, most: int, growing: bool) -> bool:
    """Samples copied up to some times, as oversampling does; those with many copies may fail oftener."""
    sizes = rng.integers(1, most + 1, count)
    usual = (1 + most) / 2
    square = (most + 1) * (2 * most + 1) / 6
    chance = limit * sizes * usual / square if growing else np.full(count, limit)
    units = np.repeat(np.arange(count), sizes)
    candidate = 1.0 - (rng.random(count) < chance)[units]
    return shipped(np.ones(len(units)), {"w": candidate}, limit, units=units) is not None


def four_rungs(
    rng: np.random.Generator, n: int, limit: float, gained: float, common: float, safe: int
) -> bool:
    """Rungs that share some of their losses; after some safe ones all drop by the limit."""
    both = rng.random(n)
    original = np.where(rng.random(n) < 0.9, 1.0, 0.0)
    rungs = {}
    for number in range(4):
        lose = (limit / 10 if number < safe else limit + gained) / 0.9
        own = np.where(rng.random(n) < common, both, rng.random(n))
        won = rng.random(n) < (0.0 if number < safe else gained) / 0.1
        rungs[str(number)] = np.where(original > 0, own >= lose, won).astype(np.float64)
    winner = shipped(original, rungs, limit)
    return winner is not None and int(winner) >= safe


def _possible(grid: tuple[Settings, ...], chances: Callable[..., Any]) -> tuple[Settings, ...]:
    """Leave out settings that would need a chance outside 0 to 1."""
    return tuple(one for one in grid if np.all(((p := np.array(chances(**one))) >= 0) & (p <= 1)))


ATTACKS = (
    Attack(
        "net",
        net,
        settings(n=(200, 506, 1204), limit=(0.01, 0.02), gained=(0.0, 0.001, 0.01, 0.05, 0.2)),
    ),
    Attack(
        "lost", lost, settings(n=(149, 299, 473, 1000), limit=(0.01, 0.02), gained=(0.0, 0.05, 0.3))
    ),
    Attack(
        "changed",
        changed,
        settings(n=(149, 299, 473, 1000), limit=(0.01, 0.02), repeated=(0.0, 0.002, 0.05)),
    ),
    Attack(
        "fractional scores",
        scores,
        settings(
            n=(300, 900),
            limit=(0.02,),
            rare=(0.0, 0.003, 0.01, 0.03, 0.1),
            size=(0.3, 1.0),
            noise=(0.0, 0.5),
        ),
    ),
    Attack(
        "groups of unequal size",
        unequal_groups,
        _possible(
            settings(
                count=(400,),
                limit=(0.05, 0.2),
                share=(0.03, 0.3),
                size=(3, 20),
                fails=("large", "small", "both"),
                whole=(True, False),
            ),
            lambda limit, share, size, fails, **_: failing(limit, share, size, fails),
        ),
    ),
    Attack(
        "repeats",
        repeats,
        _possible(
            settings(
                n=(500, 1000),
                limit=(0.01, 0.03),
                share=(0.002, 0.005, 0.03, 0.3),
                inputs=(1, 3),
                wrong=(False, True),
            ),
            lambda limit, share, wrong, **_: (limit - share * wrong) / (1 - share),
        ),
    ),
    Attack(
        "rows copied",
        copies,
        settings(count=(120, 400), limit=(0.02, 0.05), most=(2, 8, 20), growing=(False, True)),
    ),
    Attack(
        "four rungs",
        four_rungs,
        settings(
            n=(506, 900), limit=(0.02,), gained=(0.0, 0.02), common=(0.0, 0.7, 1.0), safe=(0, 1, 3)
        ),
        slowness=2,
    ),
    Attack("cascades", runs_of.cascade, runs_of.CASCADES, slowness=8),
    Attack("resumed runs", runs_of.resumed, runs_of.RESUMED, slowness=16),
    Attack("ten reruns", runs_of.reruns, runs_of.RERUNS, slowness=40),
    Attack("`certify`", runs_of.certified_again, runs_of.CERTIFIED, slowness=8),
)

UNCLAIMED = Attack(
    "not claimed: large groups that the data may lack",
    unequal_groups,
    settings(
        count=(400,), limit=(0.05,), share=(0.003,), size=(20,), fails=("large",), whole=(True,)
    ),
)


def attack(runs: int, only: str) -> None:
    """Print the worst case that was found for each path."""
    print(
        f"limit at the true drop, level {100 * ALPHA:g}%, {runs:,} runs in the last column or as stated, a tenth "
        "of that for the six worst settings before and a fortieth for all, 95% intervals\n"
    )
    print("| path | settings tried | worst setting | false certificates there |\n|---|---|---|---|")
    for one in (*ATTACKS, UNCLAIMED):
        if only not in one.name:
            continue
        found = attacked(one, runs)
        said = "" if found.runs == runs else f", {found.runs:,} runs"
        worst = ", ".join(f"{name} {value}" for name, value in found.worst.items())
        print(
            f"| {one.name} | {len(one.settings)} | {worst} | {found.share.words}{said} |",
            flush=True,
        )
