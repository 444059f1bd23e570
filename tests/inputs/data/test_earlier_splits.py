"""A split of data that earlier runs have used: what was searched on is never sealed again."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.near_copies import Remembered
from hasten.inputs.data.sequences import SequenceData
from hasten.inputs.data.splits import Earlier, Splits, former_hashes, split
from hasten.inputs.data.stepped import Stepped
from hasten.inputs.pipeline.base import Step
from hasten.optimization.labelling.wanted import Relabelled


def data_of(contents: range, groups: bool = False) -> ArrayDataset:
    return ArrayDataset(
        {"x": np.array(contents)}, groups=np.array(contents) // 5 if groups else None
    )


def short(*parts: Dataset) -> frozenset[bytes]:
    return frozenset(part.content_hash(i)[:16] for part in parts for i in range(len(part)))


def after(first: Splits, worth: float = 0.36) -> Earlier:
    """What is known after a run with such a split."""
    return Earlier(
        short(first.calibration, first.search), dict.fromkeys(short(first.sealed), worth)
    )


@given(st.integers(30, 200), st.integers(0, 9), st.integers(0, 200), st.booleans())
def test_what_was_searched_on_is_never_sealed(
    count: int, seed: int, more: int, groups: bool
) -> None:
    first = split(data_of(range(count), groups))
    known = after(first)
    second = split(data_of(range(count + more), groups), seed=seed, earlier=known)
    assert not short(second.sealed) & known.seen
    parts = (second.calibration, second.search, second.sealed)
    assert len(short(*parts)) == sum(map(len, parts))


def test_the_same_data_with_any_seed_seals_what_was_sealed() -> None:
    data = data_of(range(1000))
    first = split(data)
    for seed in range(3):
        again = split(data, seed=seed, earlier=after(first))
        assert short(again.sealed) == short(first.sealed)
    assert split(data, earlier=after(first)).sealed_hashes == first.sealed_hashes


def test_without_known_samples_nothing_is_different() -> None:
    other = after(split(data_of(range(5000, 6000))))
    one, two = split(data_of(range(1000))), split(data_of(range(1000)), earlier=other)
    assert (one.sealed_hashes, one.withheld) == (two.sealed_hashes, two.withheld)


def test_fresh_samples_are_tested_alone_where_they_tell_more() -> None:
    first = split(data_of(range(1000)))
    second = split(data_of(range(3000)), earlier=after(first))
    assert not short(second.sealed) & short(data_of(range(1000)))
    assert len(second.sealed) > 1800
    few = split(data_of(range(1050)), earlier=after(first))
    assert len(short(first.sealed) & short(few.sealed)) > 450
    some = split(data_of(range(1400)), earlier=after(first))
    assert not short(some.sealed) & short(first.sealed)
    passed = split(data_of(range(1400)), earlier=after(first, worth=1.0))
    assert short(passed.sealed) & short(first.sealed)  # all were certified: nothing is spent


def test_a_group_with_one_sample_that_was_searched_on_is_not_sealed() -> None:
    data = data_of(range(100), groups=True)
    known = Earlier(frozenset({data.content_hash(7)[:16]}))
    for seed in range(20):
        assert not short(split(data, seed=seed, earlier=known).sealed) & short(
            data_of(range(5, 10))
        )


@pytest.mark.parametrize("dtype", ["int64", "float16", "float64"])
def test_samples_are_known_by_the_hashes_of_older_versions(dtype: str) -> None:
    numbers = np.arange(300, dtype=dtype)
    first = split(ArrayDataset({"x": numbers}))

    def old(data: Dataset) -> frozenset[bytes]:
        former = [data.former_hash(i) for i in range(len(data))]
        return frozenset(one[:16] for one in former if one is not None)

    known = Earlier(
        old(first.calibration) | old(first.search), dict.fromkeys(old(first.sealed), 0.36)
    )
    assert len(known.seen) + len(known.tested) == 300
    for seed in range(3):
        again = split(ArrayDataset({"x": numbers}), seed=seed, earlier=known)
        assert short(again.sealed) == short(first.sealed)
        assert set(again.earlier.with_former([])) == set()
        looked_up = again.earlier.with_former(map(bytes.fromhex, again.sealed_hashes))
        assert frozenset(looked_up[len(again.sealed) :]) == known.tested.keys()
        resumed = split(ArrayDataset({"x": numbers}), seed=seed, earlier=again.earlier)
        assert resumed.earlier == again.earlier


STEPS = (TensorSpec("x", "float64", ("batch", 2)), TensorSpec("h", "float32", ("batch", 2)))
NUMBERS = np.arange(480, dtype=np.float64).reshape(60, 4, 2)
ARRAYS = ArrayDataset({"frames": NUMBERS})


@dataclass(frozen=True)
class Single(Step):
    """Numbers as float32, whose hash was always what it is."""

    def __call__(self, value: Array) -> Array:
        return value.astype(np.float32)


SEQUENCES = SequenceData(ARRAYS, STEPS, (("h", "hn"),))


@pytest.mark.parametrize(
    "wrapped",
    [
        SEQUENCES,
        Subset(SEQUENCES, np.arange(60)),
        Relabelled(SEQUENCES, np.arange(60)),
        Remembered(SEQUENCES, ARRAYS),
        Stepped(ARRAYS, (Single(),)),
    ],
    ids=lambda data: type(data).__name__,
)
def test_a_data_set_made_of_another_is_known_by_its_former_hashes(wrapped: Dataset) -> None:
    """These give the inputs another name or type; what was hashed is what lies in the other."""
    old = [ARRAYS.former_hash(i) for i in range(60)]
    assert None not in old
    assert [wrapped.content_hash(i) for i in range(60)] == [
        ARRAYS.content_hash(i) for i in range(60)
    ]
    assert former_hashes(wrapped) == [wrapped.former_hash(i) for i in range(60)] == old


def test_sequences_whose_own_types_have_no_former_hashes_have_none() -> None:
    """Their lengths are read as int64, but it was the archive's uint8 that was hashed."""
    arrays: dict[str, Array] = {
        "frames": NUMBERS.astype(np.float32),
        "lengths": np.full(60, 3, np.uint8),
    }
    assert former_hashes(SequenceData(ArrayDataset(arrays), STEPS, (("h", "hn"),))) == []


def test_training_data_in_another_type_is_found_in_the_data_to_judge_on() -> None:
    judged = ArrayDataset({"x": np.arange(40, dtype=np.float32).reshape(20, 2)})
    training = ArrayDataset({"x": np.arange(38, 78, dtype=np.float64).reshape(20, 2)})
    with pytest.raises(InputError, match="1 of 20 training samples are also in the data"):
        split(judged, training=training)


def test_the_samples_that_are_for_the_search_because_of_earlier_runs_are_counted() -> None:
    first = split(data_of(range(300)))
    second = split(data_of(range(300)), seed=1, calibration=10, earlier=after(first))
    assert len(second.search) == 160 - 10  # all that the first run saw, but for the calibration
    assert second.withheld == 150 - round(0.3 * 290)


def test_nothing_left_to_seal_is_one_line() -> None:
    data = data_of(range(100))
    with pytest.raises(InputError) as error:
        split(data, earlier=Earlier(short(data)))
    assert str(error.value) == (
        "earlier runs searched or calibrated on all 100 samples of the data, so none is left to "
        "certify with: add samples that none of those runs has read (hasten ledger shows what it "
        "remembers)"
    )
