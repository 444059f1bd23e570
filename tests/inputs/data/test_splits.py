import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset, Subset
from hasten.inputs.data.parts import groups_seen, hashed_groups, lay_out
from hasten.inputs.data.splits import KNOWN_BYTES, Earlier, Splits, split, units_of


def data_of(contents: list[int], groups: Sequence[int | str] | None = None) -> ArrayDataset:
    return ArrayDataset(
        {"x": np.array(contents)}, groups=None if groups is None else np.array(groups)
    )


def contents(part: Dataset) -> list[int]:
    return part.inputs(range(len(part)))["x"].tolist()  # type: ignore[no-any-return]


def parts(splits: Splits) -> tuple[list[int], list[int], list[int]]:
    return contents(splits.calibration), contents(splits.search), contents(splits.sealed)


def test_up_to_300_samples_calibrate_and_the_rest_is_parted_30_to_70() -> None:
    splits = split(data_of(list(range(5300))))
    assert [len(p) for p in parts(splits)] == [300, 1500, 3500]


def test_small_data_calibrates_with_a_third() -> None:
    assert [len(p) for p in parts(split(data_of(list(range(30)))))] == [10, 6, 14]
    assert [len(p) for p in parts(split(data_of([1, 2, 3])))] == [1, 1, 1]


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=60, unique=True), st.integers(0, 9))
def test_a_split_depends_on_seed_and_content_not_on_order(values: list[int], seed: int) -> None:
    one, other = split(data_of(values), seed=seed), split(data_of(values[::-1]), seed=seed)
    assert parts(one) == parts(other)
    assert one.sealed_hashes == other.sealed_hashes
    assert sorted(value for part in parts(one) for value in part) == sorted(values)


def test_another_seed_gives_another_split() -> None:
    data = data_of(list(range(100)))
    assert parts(split(data, seed=0)) != parts(split(data, seed=1))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=3, max_size=80),
    st.integers(0, 9),
)
def test_content_and_groups_never_lie_on_two_sides(rows: list[tuple[int, int]], seed: int) -> None:
    data = data_of([content for content, _ in rows], [group for _, group in rows])
    try:
        splits = split(data, seed=seed)
    except InputError:
        return
    sides = [splits.calibration, splits.search, splits.sealed]
    for i, one in enumerate(sides):
        for other in sides[i + 1 :]:
            assert not set(contents(one)) & set(contents(other))
            assert one.groups is not None
            assert other.groups is not None
            assert not set(one.groups.tolist()) & set(other.groups.tolist())


def test_content_shared_between_groups_chains_them() -> None:
    # a-b share content 1, b-c share content 2: all three are one unit.
    data = data_of([0, 1, 1, 2, 2, 5, 6, 7], [0, 0, 1, 1, 2, 3, 4, 5])
    for seed in range(8):
        sides = [set(p) & {0, 1, 2} for p in parts(split(data, seed=seed, calibration=8))]
        assert [side for side in sides if side] == [{0, 1, 2}] or not any(sides[1:])


def test_a_group_larger_than_the_calibration_set_is_cut_not_moved() -> None:
    data = data_of(list(range(90)), [i // 30 for i in range(90)])
    splits = split(data, calibration=5)
    assert [len(p) for p in parts(splits)] == [5, 30, 30]


def test_sealed_hashes_are_the_sealed_samples_in_order() -> None:
    splits = split(data_of(list(range(40))))
    sealed = splits.sealed
    assert splits.sealed_hashes == tuple(sealed.content_hash(i).hex() for i in range(len(sealed)))


def test_units_tell_which_samples_were_drawn_together() -> None:
    alone = split(data_of(list(range(40))))
    assert len(set(alone.sealed_units.tolist())) == len(alone.sealed)
    twice = split(data_of(list(range(20)) * 2))
    assert len(set(twice.sealed_units.tolist())) * 2 == len(twice.sealed)
    assert len(set(twice.search_units.tolist())) * 2 == len(twice.search)


def test_training_data_calibrates_where_there_is_some() -> None:
    splits = split(data_of(list(range(100))), training=data_of(list(range(1000, 2000))))
    calibration, search, sealed = parts(splits)
    assert len(calibration) == 300
    assert min(calibration) >= 1000
    assert [len(search), len(sealed)] == [30, 70]
    again = split(data_of(list(range(100))), training=data_of(list(range(1999, 999, -1))))
    assert contents(again.calibration) == calibration


def refused(data: Dataset, **how: object) -> str:
    with pytest.raises(InputError) as error:
        split(data, **how)  # type: ignore[arg-type]
    return str(error.value)


def test_training_data_that_is_judged_on_too_is_refused() -> None:
    training = data_of([500, 7, 8, 501])
    assert refused(data_of(list(range(100))), training=training) == (
        "2 of 4 training samples are also in the data to judge on (training sample 1 is the "
        "first); remove them from one of the two"
    )


def test_a_group_in_training_and_judged_data_is_refused() -> None:
    training = data_of([500, 501], [9, 3])
    assert refused(data_of(list(range(4)), [1, 2, 3, 4]), training=training) == (
        "1 groups are in the training data and in the data to judge on (3 is the first); remove "
        "them from one of the two"
    )


def test_a_note_says_where_only_one_of_training_and_judged_data_has_groups(tmp_path: Path) -> None:
    values, others = list(range(20)), list(range(100, 110))
    for number, (judged, training, said) in enumerate(
        (
            (
                data_of(values, values),
                data_of(others),
                ("the data to judge on", "the training data"),
            ),
            (
                data_of(values),
                data_of(others, others),
                ("the training data", "the data to judge on"),
            ),
            (data_of(values, values), data_of(others, others), None),
            (data_of(values), data_of(others), None),
            (data_of(values, values), None, None),
        )
    ):
        laid = lay_out(judged, tmp_path / f"{number}", calibration=4, seed=0, training=training)
        notes = [note for note in laid.notes if "groups" in note]
        assert notes == (
            []
            if said is None
            else [
                f"{said[0]} has groups, but {said[1]} has none, so nothing shows whether both have samples of one "
                f"group: give groups with {said[1]} too"
            ]
        )


def test_training_data_with_other_inputs_is_refused() -> None:
    training = ArrayDataset({"y": np.arange(3)})
    assert refused(data_of([1, 2, 3]), training=training) == (
        "the training data has the inputs y; the data to judge on has x"
    )


def test_too_few_samples_are_told_how_many_would_do() -> None:
    assert refused(data_of([1, 2])) == (
        "the data has 2 samples; give at least 3: one each to calibrate, to search and to certify"
    )
    assert refused(data_of([1]), training=data_of([5])) == (
        "the data has 1 samples; give at least 2: one each to search and to certify"
    )
    assert refused(data_of([1, 1, 1, 2])) == (
        "the data has 2 different samples in 4 samples; give at least 3 different samples: "
        "one each to calibrate, to search and to certify"
    )
    assert refused(data_of([1, 2, 3, 4], [0, 0, 1, 1])) == (
        "the data has 2 groups in 4 samples; give at least 3 groups: "
        "one each to calibrate, to search and to certify"
    )


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan")])
def test_a_search_share_out_of_range_is_refused(share: float) -> None:
    assert refused(data_of([1, 2, 3]), search=share) == (
        f"search={share}: give a share between 0 and 1, such as 0.3"
    )


def test_no_calibration_is_refused() -> None:
    assert refused(data_of([1, 2, 3]), calibration=0) == (
        "calibration=0: give at least 1 sample to calibrate with"
    )


def test_a_subset_reads_through_to_the_whole() -> None:
    whole = ArrayDataset({"x": np.arange(9)}, np.arange(9) * 10, np.arange(9) % 3)
    part = Subset(whole, np.array([8, 1]))
    assert contents(part) == [8, 1]
    assert part.labels is not None
    assert part.groups is not None
    assert part.labels.tolist() == [80, 10]
    assert part.groups.tolist() == [2, 1]
    assert part.content_hash(1) == whole.content_hash(1)


def test_the_same_sealed_samples_come_in_the_same_order_whatever_the_seed() -> None:
    """A bet depends on the order, so a rerun by another seed isn't another try."""
    training = data_of(list(range(10_000, 10_060)))
    first = split(data_of(list(range(100))), training=training)
    tested = {bytes.fromhex(one)[:KNOWN_BYTES]: 0.1 for one in first.sealed_hashes}
    searched = {first.search.content_hash(i)[:KNOWN_BYTES] for i in range(len(first.search))}
    earlier = Earlier(frozenset(searched), tested)
    for seed in (1, 2, 3):
        again = split(data_of(list(range(100))), training=training, seed=seed, earlier=earlier)
        assert again.sealed_hashes == first.sealed_hashes


def test_names_of_groups_decide_on_no_order() -> None:
    values, groups = list(range(90)), [value // 3 for value in range(90)]
    one = split(data_of(values, groups))
    other = split(data_of(values, [-group for group in groups]))
    assert one.sealed_hashes == other.sealed_hashes
    assert one.sealed_units.tolist() == other.sealed_units.tolist()
    assert one.search_units.tolist() == other.search_units.tolist()
    assert units_of(data_of(values, groups)).tolist() == groups


def test_a_group_is_the_same_in_every_type_in_which_data_name_it() -> None:
    numbers = [7, 8, -9]
    spelled: list[Any] = [np.array(numbers, kind) for kind in ("i8", "i1", "f8", ">f4", "U2", "S2")]
    spelled.append(np.array(["7.0", "8.0", "-9.0"]))
    first = hashed_groups(spelled[0])
    for groups in spelled:
        assert hashed_groups(groups) == first
        assert groups_seen(groups, {first[1]}) == [False, True, False]
        for older in ("8.0", "b'8'"):
            seen = {hashlib.sha256(older.encode()).hexdigest()}
            assert groups_seen(groups, seen) == [False, True, False]
    for name, older in (("x", "x.0"), ("07", "07.0"), ("7.5", "7.5.0")):
        seen = {hashlib.sha256(older.encode()).hexdigest()}
        assert groups_seen(np.array([name, older]), seen) == [False, True]
    assert len({*hashed_groups(np.array(["7", "07", "7.5", "7.00", "x.0", ".0"]))}) == 6


def test_groups_of_training_data_are_known_whatever_their_type() -> None:
    judged = data_of(list(range(9)), list(range(9)))
    for groups in ([20.0, 3.0], ["20", "3"], [b"20", b"3"]):
        training = ArrayDataset({"x": np.array([100, 101])}, groups=np.array(groups))
        with pytest.raises(InputError, match=r"data to judge on \(3 is the first\)"):
            split(judged, training=training)


@pytest.mark.parametrize("unit", ["h", "m", "s", "ms", "us", "ns"])
def test_dates_of_older_bundles_are_known_in_every_form_of_data(unit: str) -> None:
    days = np.array(["2020-01-01", "2021-02-03"], f"M8[{unit}]")
    older = {hashlib.sha256(str(days[0]).encode()).hexdigest()}
    texts = np.array(["2020-01-01", "2021-02-03 00:00:00"])
    for groups in (days, days.astype("M8[D]"), texts, np.array(days.astype("M8[us]").tolist())):
        assert groups_seen(groups, older) == [True, False]
        assert hashed_groups(groups) == hashed_groups(days)
    assert groups_seen(days + np.timedelta64(1, "s"), older) == [False, False]
    assert groups_seen(days + np.timedelta64(1, "ms"), older) == [False, False]


def test_a_group_that_is_written_in_two_ways_is_not_divided() -> None:
    """In a CSV file, 7 and 7.0 of one column are texts if another group is one."""
    groups = ["7", "a", "7.0", "2020-01-01", "2020-01-01 00:00:00"]
    assert units_of(data_of(list(range(5)), groups)).tolist() == [0, 1, 0, 2, 2]
