"""The level of each look: whole for the first, little for what follows a refusal, never too much in all."""

import numpy as np
import pytest

from hasten.certificate.looks import (
    LATER,
    Look,
    PastLook,
    answers_digest,
    level,
    look_at,
    refused,
    worth,
)
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict
from hasten.inputs.metrics.top_k import Top1

A, B, C = (bytes([i]) * 16 for i in (1, 2, 3))


def past(number: int, hashes: set[bytes], refused: bool | None, repeats: bool = False) -> PastLook:
    return PastLook(f"{number:016x}", frozenset(hashes), 0.05, refused, "", repeats)


def look(hashes: set[bytes], *before: PastLook) -> Look:
    return look_at(
        hashes, before, own="f" * 16, asked=0.05, kept="according to a ledger kept since today"
    )


def test_a_first_look_has_all_of_alpha_and_nothing_to_say() -> None:
    first = look({A})
    assert (first.number, first.alpha, first.plain) == (1, 0.05, True)
    promise = Promise(Top1(), confidence=0.95)
    assert look_at({A}, (), own="", asked=1 - 0.95, kept="").promise(promise) is promise


def test_a_look_after_certified_ones_has_all_of_alpha_too() -> None:
    third = look({A}, past(1, {A}, False), past(2, {A, B}, False))
    assert (third.number, third.alpha) == (3, 0.05)
    assert third.in_words() == (
        "third look at these data: tested at 5%, because every earlier test passed "
        "(according to a ledger kept since today)"
    )


@pytest.mark.parametrize("outcome", [True, None])
def test_a_look_after_a_refusal_or_one_that_never_ended_pays(outcome: bool | None) -> None:
    second = look({A, C}, past(1, {A, B}, outcome))
    assert second.alpha == pytest.approx(0.0005)
    assert second.promise(Promise(Top1())).confidence == pytest.approx(0.9995)
    assert second.in_words() == (
        "second look at these data: tested at 0.05% instead of 5%, because 1 earlier look didn't "
        "certify everything that it tested (according to a ledger kept since today)"
    )


def test_only_looks_at_the_same_samples_count_and_repeats_do_not() -> None:
    assert look({A}, past(1, {B}, True)).number == 1
    assert look({A}, past(1, {A}, True, repeats=True)).alpha == 0.05
    own = PastLook("f" * 16, frozenset({A}), 0.05, None)
    assert look({A}, own).number == 1


def test_all_levels_together_are_a_fiftieth_more_than_alpha() -> None:
    spent = sum(level(0.05, count) for count in range(100_000))
    assert 1.019 * 0.05 < spent < (1 + LATER) * 0.05
    assert level(0.05, 3) < level(0.05, 2) < level(0.05, 1) < level(0.05, 0) == 0.05


def test_a_sample_tested_on_is_worth_less_the_more_was_refused() -> None:
    assert worth(0.05, 0) == 1
    assert 0.34 < worth(0.05, 1) < 0.38  # a second look takes about 2.8 times the samples
    assert worth(0.05, 5) < worth(0.05, 1)


def test_the_tenth_look_is_called_by_its_number() -> None:
    tenth = look({A}, *(past(i, {A}, False) for i in range(9)))
    assert tenth.in_words().startswith("look 10 at these data: tested at 5%")


# -- what is the same test


def digest(
    order: list[int], scores: list[float], *, n: int = 3, model: str = "a model", **promise: float
) -> str:
    hashes = [bytes([i]) * 32 for i in range(n)]
    return answers_digest(
        [hashes[i] for i in order],
        np.ones(n)[order],
        {"key": model},
        {"key": np.array(scores)[order]},
        np.array([0, 0, 1])[order],
        Promise(Top1(), **promise),  # type: ignore[arg-type]
    )


def test_the_same_answers_are_the_same_test_in_any_order() -> None:
    assert digest([0, 1, 2], [1, 0, 1]) == digest([2, 0, 1], [1, 0, 1])


def test_another_score_limit_or_group_is_another_test() -> None:
    one = digest([0, 1, 2], [1, 0, 1])
    assert digest([0, 1, 2], [1, 1, 1]) != one
    assert digest([0, 1, 2], [1, 0, 1], max_drop=0.02) != one
    assert digest([0, 1, 2], [1, 0, 1], confidence=0.9) != one


def test_equal_answers_of_another_model_are_another_test() -> None:
    """Models that change no answer here may change more elsewhere, each of them with a chance of its own."""
    one = digest([0, 1, 2], [1, 1, 1])
    assert digest([0, 1, 2], [1, 1, 1], model="another model") != one


def test_equal_answers_on_other_samples_are_another_test() -> None:
    def of(content: int) -> str:
        ones = np.ones(1)
        return answers_digest(
            [bytes([content]) * 32], ones, {"k": ""}, {"k": ones}, np.arange(1), Promise(Top1())
        )

    assert of(1) != of(2)


def judgement(verdict: Verdict) -> Judgement:
    return Judgement(verdict, "net", "top1", "exact", 0.01, 0.95, 9, None, 0, 0, 0.0, 0.0)


def test_one_rung_that_is_not_certified_makes_a_refusal_and_a_crash_does_not() -> None:
    passed, failed = judgement(Verdict.CERTIFIED), judgement(Verdict.NOT_ENOUGH_DATA)
    assert not refused([("a", passed), ("b", "its process died")])
    assert refused([("a", passed), ("b", failed)])
