"""Scores of rankings: of one sample's candidates, and of a group's samples."""

import numpy as np
import pytest

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.queries import GroupNdcg, GroupRecall
from hasten.inputs.metrics.ranking import Ndcg, Recall
from hasten.inputs.set_metrics import parse_set_metric
from hasten.inputs.set_metrics.retrieval import Retrieval

SCORES = np.array([[0.9, 0.1, 0.5, 0.3], [0.1, 0.2, 0.3, 0.4]])
GRADES = np.array([[0, 1, 2, 0], [0, 0, 0, 1]])


def test_ndcg_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    scores, grades = rng.normal(size=(40, 12)), rng.integers(0, 4, (40, 12))
    for k in (1, 3, 12, 20):
        own = Ndcg(k).score({"y": scores}, {}, grades).mean()
        assert own == pytest.approx(metrics.ndcg_score(grades, scores, k=k))


def test_recall_is_the_share_of_the_relevant_that_are_found() -> None:
    assert Recall(2).score({"y": SCORES}, {}, GRADES).tolist() == [1 / 2, 1]
    assert Recall(1).score({"y": SCORES}, {}, GRADES).tolist() == [0, 1]


def test_padding_is_no_candidate_and_nothing_relevant_scores_nothing() -> None:
    grades = np.array([[-1, 1, 2, -1], [0, 0, 0, 0]])
    assert Recall(2).score({"y": SCORES}, {}, grades).tolist() == [1, 0]
    assert Ndcg(2).score({"y": SCORES}, {}, grades).tolist() == [1, 0]


def test_of_equal_scores_the_first_candidate_comes_first() -> None:
    flat = {"y": np.zeros((1, 4))}
    assert Recall(1).score(flat, {}, np.array([[0, 0, 0, 1]])).tolist() == [0]


def test_without_labels_what_the_exact_model_finds_is_relevant() -> None:
    found = Recall(2).score({"y": SCORES[:, ::-1]}, {"y": SCORES}, None)
    assert found.tolist() == [0, 0]
    assert Recall(3).score({"y": SCORES[:, ::-1]}, {"y": SCORES}, None).tolist() == [2 / 3, 2 / 3]
    assert Ndcg(2).score({"y": SCORES}, {"y": SCORES}, None).tolist() == [1, 1]


UNITS = np.array([7, 3, 7, 3, 3, 7])


def over(
    metric: Metric, outputs: Array, labels: Array | None, exact: Array | None = None
) -> list[float]:
    """Scores of six samples in two groups, as a run finds them."""
    own = {"y": outputs if exact is None else exact}
    readings = metric.checked(metric.score({"y": outputs}, own, labels), len(outputs))
    found = metric.over(readings, labels, metric.draws(labels, UNITS))
    return found.tolist()  # type: ignore[no-any-return]


def test_a_rerankers_samples_are_ranked_within_their_group() -> None:
    scores = np.array([[0.9], [0.8], [0.1], [0.2], [0.3], [0.5]])
    labels = np.array([0, 1, 0, 0, 0, 1])
    assert over(GroupRecall(1), scores, labels) == [0, 1, 0, 1, 1, 0]
    two = np.hstack([-scores, scores])
    assert over(GroupNdcg(2), two, labels) == pytest.approx(
        [1 / np.log2(3), 1, 1 / np.log2(3), 1, 1, 1 / np.log2(3)]
    )


def test_a_reranker_without_labels_is_held_to_what_the_exact_one_finds() -> None:
    exact = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.5])
    moved = np.array([0.9, 0.1, 0.1, 0.2, 0.3, 0.5])
    assert over(GroupRecall(1), moved, None, exact) == [1, 0, 1, 0, 0, 1]


def test_an_encoder_ranks_by_its_own_embedding_of_the_query() -> None:
    vectors = np.array(
        [[1.0, 0, 0], [0, 1, 0], [2, 0.1, 0], [0, 0, 1], [0, 5, 0.1], [3, 9, 0]], np.float32
    )
    labels = np.array([-1, -1, 1, 1, 0, 0])
    assert over(GroupRecall(1), vectors, labels) == [1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.zeros(6),
            "group_ndcg: each group of embeddings needs one sample with the label -1, its query; "
            "a group of 3 samples has 0",
        ),
        (
            None,
            "group_ndcg: the model returns embeddings, but no labels state which sample is a "
            "group's query: give labels, with -1 for the query, or use the metric embedding",
        ),
        (
            np.zeros((6, 2)),
            "group_ndcg reads labels (n,) that are grades; got float64 (n, 2)",
        ),
    ],
)
def test_embeddings_without_a_query_are_refused(labels: Array | None, message: str) -> None:
    with pytest.raises(InputError) as error:
        over(GroupNdcg(), np.ones((6, 4)), labels)
    assert str(error.value) == message


def test_samples_without_groups_are_no_queries() -> None:
    with pytest.raises(InputError) as error:
        GroupRecall().draws(None, np.arange(5))
    assert str(error.value) == (
        "group_recall ranks the samples of a group, but no two samples share a group: give "
        "groups, one for each query, as an array next to the inputs"
    )


def test_one_score_a_sample_is_no_ranking() -> None:
    with pytest.raises(InputError) as error:
        Ndcg().score({"y": np.zeros((3, 1))}, {}, None)
    assert str(error.value) == (
        "ndcg reads scores (n, candidates) of at least 2; the output is float64 (n, 1): if each "
        "sample is one candidate, use group_ndcg"
    )


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        (
            Ndcg(),
            None,
            "ndcg:10: there are 4 candidates, so without labels every order scores the same: "
            "give a smaller K, "
            "or labels",
        ),
        (
            Recall(4),
            None,
            "recall:4: there are 4 candidates, so without labels every order scores the same: "
            "give a smaller "
            "K, or labels",
        ),
        (
            Recall(4),
            GRADES,
            "recall:4: there are 4 candidates, so every order scores the same: give a smaller K",
        ),
    ],
)
def test_as_many_places_as_candidates_tell_no_order_from_another(
    metric: Metric, labels: Array | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        metric.score({"y": SCORES[:, ::-1]}, {"y": SCORES}, labels)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("metric", "labels", "message"),
    [
        (
            GroupNdcg(3),
            None,
            "group_ndcg:3: a group has 3 samples, so without labels every order scores the same: "
            "give a "
            "smaller K, or labels",
        ),
        (
            GroupRecall(),
            np.array([0, 1, 0, 0, 0, 1]),
            "group_recall:10: a group has 3 samples, so every order scores the same: give a "
            "smaller K",
        ),
    ],
)
def test_as_many_places_as_a_group_has_samples_tell_no_order_from_another(
    metric: Metric, labels: Array | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        over(metric, np.arange(6.0), labels)
    assert str(error.value) == message


VECTORS = {"y": np.array([[1.0, 0], [2, 0.1], [0, 1], [0.1, 3], [5, 5]])}
KINDS = np.array([0, 0, 1, 0, 2])


def test_retrieval_finds_a_neighbour_of_the_own_label() -> None:
    assert Retrieval(1).value(VECTORS, KINDS) == pytest.approx(2 / 3)
    assert Retrieval(3).value(VECTORS, KINDS) == 1
    assert parse_set_metric("retrieval:10@y") == Retrieval(10, "y")


def test_a_sample_drawn_twice_is_not_its_own_neighbour() -> None:
    counts = np.array([[1, 1, 1, 1, 1], [0, 0, 2, 2, 1], [0, 0, 3, 0, 2]])
    found = Retrieval(1).values(VECTORS, KINDS, counts)
    assert found[:2].tolist() == pytest.approx([2 / 3, 0])
    assert np.isnan(found[2])


def test_retrieval_needs_samples_that_belong_together() -> None:
    with pytest.raises(InputError) as error:
        Retrieval().value(VECTORS, np.arange(5))
    assert str(error.value) == "retrieval needs labels that two samples share; no two do"
