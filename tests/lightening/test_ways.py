"""What the ways share: names, and when one of them is left early."""

from __future__ import annotations

from hasten.lightening.training.loop import Training
from hasten.lightening.ways import folder_name, hopeless


def training(score: float, middle: float) -> Training:
    return Training(score, ((0.5, middle), (0.75, score), (1.0, score)), 8, 1.0, 1.0, None)


def test_a_way_that_could_still_reach_the_best_goes_on() -> None:
    doomed = hopeless([training(0.9, 0.8)])
    assert doomed(0.5, 0.75) is None  # with half as much again as the other gained, and a point
    assert doomed(0.25, 0.1) is None  # too early to tell


def test_a_way_that_can_not_reach_the_best_is_left() -> None:
    doomed = hopeless([training(0.9, 0.8), training(0.6, 0.59)])
    assert doomed(0.5, 0.7) == (
        "stopped early: another training reached 90.0%, and this one could reach 86.0% at best"
    )


def test_the_first_way_is_never_left_early() -> None:
    assert hopeless([])(1.0, 0.0) is None


def test_a_name_becomes_a_folder_that_stays_where_it_is() -> None:
    assert folder_name("../a b, c/d") == "a-b-c-d"
    assert folder_name("..") == "way"
