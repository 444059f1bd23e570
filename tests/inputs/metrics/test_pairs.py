"""Disjoint comparisons of the two classes, by which the AUROC is certified."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from hasten.errors import InputError
from hasten.inputs.metrics import parse_metric
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.pairs import Pairing

METRIC = Auroc()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(2, 80), groups=st.integers(2, 80))
def test_no_two_draws_share_a_sample_or_a_group_and_each_has_both_classes(
    seed: int, rows: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    classes, units = rng.integers(0, 2, rows), rng.integers(0, groups, rows)
    try:
        pairing = Pairing.of(classes, units)
    except InputError:
        return
    counted = np.flatnonzero(pairing.counted)
    assert len(np.unique(units[counted])) == len(counted) == len(np.unique(units))
    for block in np.unique(pairing.blocks):
        members = counted[pairing.blocks[counted] == block]
        assert set(classes[members]) == {0, 1}
        assert min(np.bincount(classes[members])) == 1
    for unit in np.unique(units):
        assert len(np.unique(pairing.blocks[units == unit])) == 1


def test_the_mean_over_pairings_is_the_auroc() -> None:
    rng = np.random.default_rng(0)
    scores, classes = rng.integers(0, 5, 12).astype(float), np.array([0, 1, 1] * 4)
    found = []
    for _ in range(3000):
        order = rng.permutation(12)
        drawn = Pairing.of(classes[order], np.arange(12)).scores(scores[order], classes[order])
        found.append(drawn.mean())
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - roc_auc_score(classes, scores)) < 4 * error


def test_a_draw_scores_the_share_of_its_pairs_in_the_right_order() -> None:
    classes = np.array([1, 0, 0, 0, 0])
    pairing = Pairing.of(classes, np.arange(5))
    assert pairing.scores(np.array([2.0, 1, 2, 3, 0]), classes).tolist() == [2.5 / 4]
    flipped = Pairing.of(1 - classes, np.arange(5))
    assert flipped.scores(np.array([2.0, 1, 2, 3, 0]), 1 - classes).tolist() == [1.5 / 4]


def test_the_pairing_is_the_same_for_both_models() -> None:
    labels, units = np.array([0, 1] * 10), np.arange(20)
    readings = np.random.default_rng(0).standard_normal(20)
    once = METRIC.over(readings, labels, units)
    assert np.array_equal(once, METRIC.over(2 * readings, labels, units))
    draws = METRIC.draws(labels, units)
    assert all(len(np.unique(once[draws == draw])) == 1 for draw in np.unique(draws))


def test_two_columns_rank_alike_as_logits_and_as_probabilities() -> None:
    z = np.random.default_rng(0).standard_normal((50, 2))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    labels = np.arange(50) % 2
    ranks = [METRIC.score({"s": one}, {"s": one}, labels).argsort().tolist() for one in (z, p)]
    assert ranks[0] == ranks[1]


@pytest.mark.parametrize(
    ("columns", "labels", "message"),
    [
        (1, [1, 1], "auroc needs samples of both classes; there are 2 of class 1 and 0 of class 0"),
        (1, [1, 3], "auroc reads labels that are 0 or 1; sample 1 of 2 has 3"),
        (
            3,
            [0, 1],
            "auroc can be certified for two classes, but the model has 3: report='auroc' states "
            "the mean over the classes instead",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(columns: int, labels: list[int], message: str) -> None:
    outputs, classes = {"p": np.zeros((2, columns))}, np.array(labels)
    with pytest.raises(InputError) as error:
        METRIC.over(METRIC.score(outputs, outputs, classes), classes, np.arange(2))
    assert str(error.value) == message


def test_brier_scores_one_minus_the_squared_distance_and_never_guesses_logits() -> None:
    p, labels = {"p": np.array([0.25, 1.0, 1.004])}, np.array([0, 0, 1])
    exact = {"p": np.array([0.25, 1.0, 1.0])}
    assert Brier().score(p, exact, labels).tolist() == [1 - 0.0625, 0, 1]
    z = {"p": np.array([0.0, 3.0])}
    with pytest.raises(InputError, match="name the activation, as in brier:sigmoid"):
        Brier().score(z, z, labels[:2])
    named = parse_metric("brier:sigmoid")
    assert named.score(z, z, labels[:2])[0] == 0.75
    assert parse_metric("brier:p") == Brier(output="p")
    with pytest.raises(
        InputError,
        match="activation='tanh': give 'sigmoid' or 'softmax', which turns outputs into probabil",
    ):
        Brier("tanh")


def test_a_function_that_needs_the_whole_set_is_no_metric_of_samples(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("def gini(outputs, labels): return 0.5\ngini.over_set = True\n")
    outputs = {"p": np.zeros(2)}
    with pytest.raises(InputError, match=r"own\.py:gini needs the whole set, as its over_set"):
        parse_metric(f"{path}:gini").score(outputs, outputs, None)
