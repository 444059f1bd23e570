"""What ships, by what was certified and by fresh rounds."""

import dataclasses
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from hasten.certificate.betting import BettingPrior
from hasten.certificate.verdict import Judgement, Verdict, judge
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.measure.candidate import Measurement, Single, Trial
from hasten.measure.deadline import Deadline
from hasten.measure.effort import EFFORTS
from hasten.measure.intervals import Ratio
from hasten.measure.race import AGAIN, BASELINE, Standings
from hasten.optimization.choose import Standing
from hasten.optimization.judge import Ladder
from hasten.optimization.measured.choice import Choice, decide, settled_by_sealed_data
from hasten.optimization.measured.ending import Finish
from hasten.optimization.measured.judge import Measured
from hasten.reporting.summary import NO_FASTER

Judged = list[tuple[str, Judgement | str]]


def judgement(lost: int) -> Judgement:
    """Of 400 answers so many lost, where two in a hundred may be."""
    return judge(
        np.ones(400),
        (np.arange(400) >= lost).astype(np.float64),
        guard="net",
        max_drop=0.02,
        confidence=0.95,
        metric="top1",
        prior=BettingPrior(),
    )


PASSED, FAILED = judgement(0), judgement(40)
KEPT = "what ships keeps the original's precision; no inexact form (such as int8) ships: "
ORIGINAL = (
    "what ships is the original model on the default engine; no inexact form (such as int8) ships: "
)
BEATEN = "wasn't faster than the fastest exact form by more than the noise"


def standings(**ratios: float) -> Standings:
    """Fresh rounds of the twins, about a percent apart, and of others at a ratio to them."""
    rng = np.random.default_rng(0)
    found = Standings("figures/1", 1)
    for name, ratio in {BASELINE: 1.0, AGAIN: 1.0, **ratios}.items():
        blocks = ratio * 1e6 * rng.uniform(0.95, 1.05, (24, 8))
        found.rounds[name] = {r: tuple(map(int, block)) for r, block in enumerate(blocks)}
    return found


def only_rounds(final: Standings, name: str, *kept: int) -> Standings:
    """Let an entrant have run in these rounds alone."""
    final.rounds[name] = {number: final.rounds[name][number] for number in kept}
    return final


def settled(
    final: Standings, exact: str, judged: Judged, loose: str | None = None, *, accept: bool = False
) -> Choice:
    return decide(
        Ladder(exact, ()),
        judged,
        final,
        baseline="default",
        loose=loose,
        accept_uncertified=accept,
    )


@pytest.mark.parametrize(
    ("fast", "rungs"), [(0.5, ("fast",)), (0.95, ())], ids=["surely faster", "within the noise"]
)
def test_a_noisy_race_has_what_is_surely_faster_certified(
    fast: float, rungs: tuple[str, ...]
) -> None:
    """A model that took a fifth of the time didn't ship, because a busy host slowed the twin by two thirds at times."""
    race = standings(fast=fast)
    for number, block in race.rounds[AGAIN].items():
        race.rounds[AGAIN][number] = tuple(int(x * (3.0 if number % 2 else 0.4)) for x in block)
    assert race.spread > 0.5
    candidate, notes = SimpleNamespace(key="fast"), list[str]()
    trials = SimpleNamespace(baseline=SimpleNamespace(key="default"), done={"fast": candidate})
    racing = SimpleNamespace(
        trials=trials,
        effort=EFFORTS["normal"],
        asked_threads=1,
        affordable=lambda wanted: wanted,
        race=lambda _: race,
        standing=lambda trial, ratio: Standing(trial.key, False, ratio, 0.0, 0.01),
    )
    judge = SimpleNamespace(
        racing=racing,
        job=SimpleNamespace(notes=notes, deadline=Deadline()),
        ready=SimpleNamespace(search_promise=SimpleNamespace(max_drop=0.05)),
    )
    chosen = Measured._chosen(cast("Any", judge), cast("Any", [candidate]))
    assert chosen == Ladder("default", rungs, 1)
    assert "smaller gains may have been missed" in notes[0]


def test_what_was_certified_ships_where_fresh_rounds_find_it_faster() -> None:
    final = standings(fast=0.5, exact=0.8)
    choice = settled(final, "exact", [("safe", PASSED), ("fast", PASSED)])
    assert choice == Choice("fast", "exact", "certified", PASSED.in_words(), PASSED)


@pytest.mark.parametrize("fast", [0.795, 0.8, 0.9])
def test_what_is_not_faster_than_the_exact_model_in_fresh_rounds_does_not_ship(fast: float) -> None:
    choice = settled(standings(fast=fast, exact=0.8), "exact", [("fast", PASSED)])
    reason = f"fast was certified, but in the final timing it {BEATEN}"
    assert choice == Choice("exact", "exact", "exact", f"{KEPT}{reason}", inexact=reason)


def test_what_is_faster_mostly_and_slower_in_the_mean_does_not_ship() -> None:
    final = standings(fast=0.8, exact=1.0)
    for number in (
        3,
        9,
        15,
    ):  # a tenth of the rounds, which the paired mean of rounds hardly counts
        stalled = list(final.rounds["fast"][number])
        final.rounds["fast"][number] = (*stalled[:4], *(int(20 * x) for x in stalled[4:]))
    assert final.ratio("fast").high < 0.85
    choice = settled(final, "default", [("fast", PASSED)])
    means = final.means("fast")
    assert means.estimate > 1.4
    assert (choice.winner, choice.status) == ("default", "exact")
    assert choice.inexact == (
        f"fast was certified, but in the final timing it took {means.estimate:.2f} times the mean latency of "
        f"the fastest exact form ({means.low:.2f} to {means.high:.2f})"
    )


def test_a_cascade_that_is_faster_in_most_rounds_and_slower_in_all_does_not_ship() -> None:
    final = standings(fast=0.8)
    final.uneven = {"fast"}
    final.rounds["fast"][5] = tuple(100 * x for x in final.rounds["fast"][5])
    assert final.ratio("fast").high < 0.85  # the mean of rounds, where one hardly counts
    assert settled(final, "default", [("fast", PASSED)]).winner == "default"


@pytest.mark.parametrize(("on_two", "ships"), [(0.9, "fast"), (1.3, "default")])
def test_what_is_slower_on_the_threads_that_ship_does_not_ship(on_two: float, ships: str) -> None:
    choice = decide(
        Ladder("default", ()),
        [("fast", PASSED)],
        standings(fast=0.5),
        baseline="default",
        as_it_was=dataclasses.replace(standings(fast=on_two), threads=2),
    )
    assert choice.winner == ships
    if ships == "default":
        assert choice.inexact == (
            "fast was certified, but in the final timing it was slower than the fastest exact form on 2 "
            "threads, as it would ship"
        )


def in_processes(rng: np.random.Generator, count: int, **ratios: float) -> Standings:
    """Fresh rounds whose models differ from process to process by a percent, and from round to round."""
    found = Standings("figures/1", 1)
    for number in range(40):
        found.processes[number] = number // (40 // count)
    for name, ratio in {BASELINE: 1.0, AGAIN: 1.0, **ratios}.items():
        lasting = rng.normal(0, 0.01, count)
        found.rounds[name] = {
            r: tuple(map(int, 1e6 * ratio * np.exp(lasting[p] + rng.normal(0, 0.01, 3))))
            for r, p in found.processes.items()
        }
    return found


def test_a_lasting_difference_between_processes_makes_nothing_faster() -> None:
    rng = np.random.default_rng(0)

    def shipped(runs: int, count: int, ratio: float) -> float:
        found = (in_processes(rng, count, fast=ratio) for _ in range(runs))
        judged: Judged = [("fast", PASSED)]
        return sum(settled(one, "default", judged).winner == "fast" for one in found) / runs

    assert shipped(100, 5, 1.0) <= 0.08  # 2.5% are expected
    assert shipped(40, 1, 1.0) > 0.08  # what one process of each makes of it
    assert shipped(20, 5, 0.93) > 0.8


@pytest.mark.parametrize("kept", [[], [0], range(23), [*range(11), *range(12, 24)]])
def test_what_fell_out_of_the_fresh_rounds_does_not_ship(kept: Iterable[int]) -> None:
    final = only_rounds(standings(fast=0.5, exact=0.8), "fast", *kept)
    judged: Judged = [("fast", PASSED)]
    choice = settled(final, "exact", judged, "fast", accept=True)
    reason = "fast was certified, but in the final timing it failed"
    assert choice == Choice("exact", "exact", "exact", f"{KEPT}{reason}", inexact=reason)


@pytest.mark.parametrize("kept", [[0], range(23)])
def test_an_exact_candidate_that_fell_out_leaves_the_default_engine(kept: Iterable[int]) -> None:
    final = only_rounds(standings(exact=0.5, fast=0.8), "exact", *kept)
    choice = settled(final, "exact", [])
    assert (choice.winner, choice.exact, choice.status) == ("default", "default", "exact")
    choice = settled(final, "exact", [("fast", PASSED)])
    assert choice == Choice("fast", "default", "certified", PASSED.in_words(), PASSED)


def test_where_nothing_inexact_was_tested_the_reason_is_the_search() -> None:
    choice = settled(standings(exact=0.8), "exact", [])
    assert choice == Choice("exact", "exact", "exact", f"{KEPT}{NO_FASTER}", inexact=NO_FASTER)


def test_an_exact_model_says_on_how_many_samples_its_answers_were_compared() -> None:
    final = standings(exact=0.8)
    choice = decide(Ladder("exact", ()), [], final, baseline="default", compared=1290)
    assert choice.why == (
        "what ships keeps the original's precision, and no answer changed on 1,290 samples; no inexact form "
        f"(such as int8) ships: {NO_FASTER}"
    )


@pytest.mark.parametrize("exact", [0.987, 1.2])
def test_an_exact_candidate_must_beat_the_default_engine_in_fresh_rounds_too(exact: float) -> None:
    choice = settled(standings(exact=exact), "exact", [])
    why = f"{ORIGINAL}{NO_FASTER}"
    assert choice == Choice("default", "default", "exact", why, inexact=NO_FASTER)
    # What was certified is then to beat the default engine.
    choice = settled(standings(exact=exact, fast=0.9), "exact", [("fast", PASSED)])
    assert choice == Choice("fast", "default", "certified", PASSED.in_words(), PASSED)


def test_where_nothing_is_certified_the_bundle_says_what_failed_first() -> None:
    for judged, why in (
        (
            [("fast", FAILED)],
            f"the safest one, fast, isn't certified: {FAILED.in_words()}",
        ),
        (
            [("fast", "it crashed")],
            "the safest one, fast, failed and couldn't be tested: it crashed",
        ),
    ):
        choice = settled(standings(exact=0.8), "exact", cast(Judged, judged))
        assert choice == Choice("exact", "exact", "exact", f"{KEPT}{why}", inexact=why)
    assert FAILED.verdict is Verdict.NOT_ACCURATE_ENOUGH


@pytest.mark.parametrize("loose", [0.5, 0.9])
def test_the_uncertified_ships_when_asked_for_and_faster_than_the_exact_model(
    loose: float,
) -> None:
    final, judged = standings(loose=loose, exact=0.8), cast(Judged, [("loose", FAILED)])
    asked = settled(final, "exact", judged, "loose", accept=True)
    unasked = settled(final, "exact", judged, "loose")
    why = f"the safest one, loose, isn't certified: {FAILED.in_words()}"
    allowed = f"it ships without a certificate, as you allowed: {why}"
    marked = Choice("loose", "exact", "uncertified", allowed, inexact=why)
    assert unasked == Choice("exact", "exact", "exact", f"{KEPT}{why}", inexact=why)
    assert asked == (marked if loose < 0.8 else unasked)


def test_only_what_the_sealed_data_left_open_may_ship_uncertified() -> None:
    few = judgement(7)
    assert (PASSED.verdict, few.verdict, FAILED.verdict) == (
        Verdict.CERTIFIED,
        Verdict.NOT_ENOUGH_DATA,
        Verdict.NOT_ACCURATE_ENOUGH,
    )
    judged: Judged = [("a", PASSED), ("b", few), ("c", FAILED), ("d", "it crashed")]
    assert settled_by_sealed_data(judged) == {"a", "c", "d"}


def smaller(final: Standings, ladder: Ladder, judged: Judged) -> Choice:
    """Decide where "x small" is the candidate x on pictures that are decoded smaller."""
    return decide(
        ladder,
        judged,
        final,
        baseline="default",
        untested="none was tried",
        model=lambda key: key.removesuffix(" small"),
    )


def test_a_smaller_decoding_of_the_exact_model_ships_without_a_faster_model() -> None:
    """Fresh rounds time models, and it is the same one: only that it ran counts."""
    final = standings(**{"default small": 1.0})
    choice = smaller(final, Ladder("default", ("default small",)), [("default small", PASSED)])
    assert choice == Choice(
        "default small", "default", "certified", PASSED.in_words(), judgement=PASSED
    )
    for failed in (standings(), only_rounds(final, "default small", 3)):
        choice = smaller(failed, Ladder("default", ("default small",)), [("default small", PASSED)])
        assert (choice.winner, choice.status) == ("default", "exact")


@pytest.mark.parametrize("exact", ["default", "exact"])
@pytest.mark.parametrize("entry", [FAILED, PASSED, "it crashed"])
def test_a_decoding_of_the_exact_model_says_nothing_of_inexact_forms(
    exact: str, entry: Judgement | str
) -> None:
    """It is the only rung, and fails on the sealed data or in the fresh rounds."""
    small = f"{exact} small"
    choice = smaller(standings(exact=0.8), Ladder(exact, (small,)), [(small, entry)])
    assert (choice.winner, choice.status, choice.inexact) == (exact, "exact", "none was tried")


def test_a_smaller_decoding_of_a_model_that_isnt_faster_doesnt_ship() -> None:
    judged: Judged = [("fast", PASSED), ("fast small", PASSED)]
    ladder = Ladder("default", ("fast", "fast small"))
    faster = smaller(standings(**{"fast small": 0.5}), ladder, judged)
    assert (faster.winner, faster.exact, faster.status) == ("fast small", "default", "certified")
    as_fast = smaller(standings(**{"fast small": 1.0}), ladder, judged)
    assert (as_fast.winner, as_fast.status) == ("default", "exact")


def test_what_is_slower_than_the_model_that_ships_with_smaller_pictures_isnt_shown() -> None:
    """Its own latencies are the model's, since a trial of a decoding has none."""
    original, fast, slower = (Single((), OnnxRuntime(threads=count)) for count in (0, 1, 2))
    ships = dataclasses.replace(fast, least=36)
    ran = Measurement("measured", 1, {})
    done = {each.key: Trial(each, measurement=ran) for each in (fast, slower)}
    done |= {ships.key: Trial(ships), original.key: Trial(original)}
    ratios = {fast: 0.25, slower: 0.9}
    racing: Any = SimpleNamespace(
        trials=SimpleNamespace(
            done=done,
            measured=lambda: [
                SimpleNamespace(candidate=each.candidate, exact=False)
                for each in done.values()
                if each.measurement
            ],
            drop=lambda trial: 0.0,
            ratio=lambda trial: Ratio(*3 * (ratios[trial.candidate],), 6),
            baseline=original,
        ),
        candidate=lambda key: done[key].candidate,
        ready=SimpleNamespace(promise=SimpleNamespace(max_drop=0.01)),
    )
    judged: Judged = [(fast.key, PASSED), (ships.key, PASSED)]
    finish = Finish(racing, Ladder(original.key, (fast.key, ships.key)), judged, lambda _: None)
    assert finish._fastest_uncertified(ships.key) is None
    ratios[slower] = 0.2
    assert finish._fastest_uncertified(ships.key) == slower.key


def test_where_a_smaller_decoding_isnt_certified_its_model_ships() -> None:
    judged: Judged = [("fast", PASSED), ("fast small", FAILED)]
    choice = smaller(standings(fast=0.5), Ladder("default", ("fast", "fast small")), judged)
    assert (choice.winner, choice.status, choice.judgement) == ("fast", "certified", PASSED)
