import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.same_answers import SameAnswers


def test_an_embedding_is_kept_where_the_cosine_reaches_the_tolerance() -> None:
    exact = np.array([[1.0, 0.0]] * 3)
    angles = np.arccos([0.999, 0.98, -1])
    turned = np.stack([np.cos(angles), np.sin(angles)], 1) * 7
    assert Embedding(0.99).score({"e": turned}, {"e": exact}, None).tolist() == [1, 0, 0]


@given(arrays(np.float32, (3, 4, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_an_embedding_is_always_like_itself(vectors: Array) -> None:
    assert Embedding(1.0).score({"e": vectors}, {"e": vectors}, None).tolist() == [1, 1, 1]


def test_a_zero_vector_is_like_no_other() -> None:
    zero, one = np.zeros((1, 2)), np.ones((1, 2))
    assert Embedding(0.0).score({"e": zero}, {"e": one}, None).tolist() == [0]
    assert Embedding(0.0).score({"e": one}, {"e": zero}, None).tolist() == [0]


def test_embeddings_of_two_shapes_are_refused() -> None:
    with pytest.raises(InputError) as error:
        Embedding().score({"e": np.ones((1, 2))}, {"e": np.ones((1, 3))}, None)
    assert str(error.value) == "embedding: the output is [1, 2], the exact model's [1, 3]"


@pytest.mark.parametrize("tolerance", [-1.0, 1.5, float("nan")])
def test_an_impossible_cosine_is_refused(tolerance: float) -> None:
    with pytest.raises(InputError) as error:
        Embedding(tolerance)
    assert str(error.value) == (
        f"embedding:{tolerance:g}: the least cosine must be above -1 and at most 1"
    )


def test_regression_scores_the_share_of_numbers_within_the_tolerance() -> None:
    mine = np.array([[1.0, 2.0], [1.5, 9.0]])
    exact = np.array([[1.0, 2.25], [1.0, 1.0]])
    assert Regression(0.25).score({"y": mine}, {"y": exact}, None).tolist() == [1, 0]
    assert Regression(0.5).score({"y": mine}, {"y": exact}, None).tolist() == [1, 0.5]
    assert Regression(0.5, whole=True).score({"y": mine}, {"y": exact}, None).tolist() == [1, 0]


def test_regression_is_against_labels_where_there_are_some() -> None:
    mine = np.array([[100.0], [200.0]])
    labels = np.array([101, 250])
    metric = Regression(relative=0.02)
    assert metric.score({"y": mine}, {"y": mine}, labels).tolist() == [1, 0]
    assert metric.score({"y": mine}, {"y": mine}, None).tolist() == [1, 1]


@given(
    arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)),
    arrays(np.float64, (4, 3), elements=st.floats(-1e6, 1e6)),
    st.floats(1e-3, 1e3),
)
def test_regression_lies_in_0_1_and_grows_with_the_tolerance(
    mine: Array, exact: Array, tolerance: float
) -> None:
    narrow = Regression(tolerance).score({"y": mine}, {"y": exact}, None)
    wide = Regression(2 * tolerance).score({"y": mine}, {"y": exact}, None)
    assert ((narrow >= 0) & (narrow <= wide) & (wide <= 1)).all()
    assert narrow.dtype == np.float64


def test_a_regression_without_tolerance_is_refused() -> None:
    for absolute, relative in ((0.0, 0.0), (-1.0, 0.5), (float("inf"), 0.0)):
        with pytest.raises(InputError) as error:
            Regression(absolute, relative)
        assert str(error.value) == (
            f"regression: tolerance {absolute:g} and relative {relative:g}; "
            "give one above 0, as in regression:0.01"
        )


def test_a_regression_against_other_shapes_is_refused() -> None:
    y = {"y": np.ones((2, 3))}
    with pytest.raises(InputError) as error:
        Regression(1.0).score(y, y, np.ones((2, 2)))
    assert str(error.value) == (
        "regression compares number by number, but the output is (n, 3) and the truth (n, 2): give labels "
        "of the output's shape; if they are classes, use top1"
    )
    with pytest.raises(InputError) as error:
        Regression(1.0).score(y, y, np.array(["a", "b"]))
    assert str(error.value) == "regression reads labels that are numbers; got <U1 (n,)"


def test_a_regression_pairs_no_numbers_of_unlike_axes() -> None:
    channels_first = {"y": np.arange(24.0).reshape(1, 3, 2, 4)}
    last = np.moveaxis(channels_first["y"], 1, 3)
    with pytest.raises(InputError) as error:
        Regression(0.1).score(channels_first, channels_first, last)
    assert str(error.value) == (
        "regression compares number by number, but the output is (n, 3, 2, 4) and the truth (n, 2, 4, 3): give "
        "labels in the output's order of axes"
    )
    for shape in (
        (1, 3, 2, 4),
        (1, 1, 3, 2, 4),
        (1, 24),
        (1, 3, 2, 1, 4),
        (1, 3, 8),
        (1, 6, 4),
        (1, 3, 2, 2, 2),
    ):
        labels = channels_first["y"].reshape(shape)
        assert Regression(0.1).score(channels_first, {}, labels).tolist() == [1]
    for shape in ((1, 2, 3, 4), (1, 4, 6), (1, 8, 3), (1, 2, 12)):
        with pytest.raises(InputError, match=r"give labels in the output's order of axes$"):
            Regression(0.1).score(channels_first, {}, channels_first["y"].reshape(shape))


def test_of_several_outputs_one_is_named() -> None:
    outputs = {"a": np.ones((1, 2)), "b": np.zeros((1, 2))}
    assert Regression(1.0, output="b").score(outputs, outputs, None).tolist() == [1]
    with pytest.raises(InputError) as error:
        Embedding().score(outputs, outputs, None)
    assert str(error.value) == (
        "embedding reads one output; the model has a, b: name one, as in embedding@a, or all, as in "
        "embedding@all"
    )
    with pytest.raises(InputError, match=r"name one, as in regression@b, or all"):
        Regression(1.0).score({"a": np.array([1]), "b": np.zeros((1, 2))}, outputs, None)


def test_only_a_regression_over_whole_samples_states_that_its_scores_are_0_or_1() -> None:
    exact = {"y": np.array([[1.0, 2.0]])}
    assert Regression(0.1).score({"y": np.array([[1.0, 3.0]])}, exact, None).tolist() == [0.5]
    assert (Regression(0.1).binary, Regression(0.1, whole=True).binary) == (None, True)


def test_all_outputs_must_stay_but_for_rounding() -> None:
    own = {
        "scores": np.array([[2.0, 1.9999], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        "top": np.array([0, 0, 1, 1]),
        "mask": np.full((4, 2, 2), -np.inf),
    }
    other = {name: array.copy() for name, array in own.items()}
    assert SameAnswers().score(other, own, None).tolist() == [1, 1, 1, 1]
    other["scores"][0, 1] += 0.001  # less than 0.1% of the largest, and yet another class
    other["scores"][1, 1] += 0.0015
    other["scores"][2, 1] += 0.0025
    other["top"][3] = 0
    assert SameAnswers().score(other, own, None).tolist() == [0, 1, 0, 0]
    other["mask"][1, 0, 0] = 0
    assert SameAnswers().unchanged(other, own).tolist() == [False] * 4
    del other["mask"]
    assert SameAnswers().score(other, own, None).tolist() == [0] * 4
