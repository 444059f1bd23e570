import numpy as np
import pytest

from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.made_up import MadeUpInputs, make_up, plans

IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))


def test_open_axes_of_one_name_get_one_size() -> None:
    made = make_up((IDS, MASK), plans((IDS, MASK))[0], {"input_ids": 50}, 8, 0)
    assert made["input_ids"].shape == made["attention_mask"].shape == (8, 64)


def test_numbers_stay_below_the_rows_of_their_table_and_masks_are_ones() -> None:
    made = make_up((IDS, MASK), MadeUpInputs({"sequence": 400}), {"input_ids": 5}, 64, 0)
    assert made["input_ids"].dtype == np.int64
    assert set(np.unique(made["input_ids"])) == {0, 1, 2, 3, 4}
    assert set(np.unique(made["attention_mask"])) == {1}


@pytest.mark.parametrize(
    ("name", "ones"),
    [("attention_mask", True), ("Lengths_1", True), ("masked_image", False), ("x", False)],
)
def test_a_mask_of_floats_is_ones_and_no_other_float_is(name: str, ones: bool) -> None:
    spec = TensorSpec(name, "float16", ("batch", 3))
    made = make_up((spec,), MadeUpInputs({}), {}, 8, 0)[name]
    assert made.dtype == np.float16
    assert bool((made == 1).all()) == ones


def test_integers_without_a_known_table_are_0_and_1() -> None:
    made = make_up((IDS,), MadeUpInputs({"sequence": 400}), {}, 8, 0)
    assert set(np.unique(made["input_ids"])) == {0, 1}


@pytest.mark.parametrize(
    ("shape", "made"), [(("n", 3, "h", "w"), (3, 224, 224)), (("n", "h", "w", 3), (224, 224, 3))]
)
def test_open_pictures_are_as_large_as_most(shape: tuple[int | str, ...], made: object) -> None:
    spec = TensorSpec("x", "float32", shape)
    assert make_up((spec,), plans((spec,))[0], {}, 4, 0)["x"].shape == (4, *made)  # type: ignore[misc]


def test_a_model_of_one_batch_size_gets_whole_batches() -> None:
    spec = TensorSpec("x", "float32", (8, 3))
    assert make_up((spec,), MadeUpInputs({}), {}, 5, 0)["x"].shape == (5, 8, 3)


def test_a_single_number_cant_be_made_up() -> None:
    with pytest.raises(
        InputError,
        match=r"^input 'sr' is a single number, and a made-up number may take a branch that no real request "
        r"takes: give data= that contains it$",
    ):
        plans((TensorSpec("x", "float32", ("batch", 8)), TensorSpec("sr", "int64", ())))


@pytest.mark.parametrize("dtype", ["int64", "float32"])
def test_a_number_of_shape_1_is_made_up_only_where_it_chooses_no_branch(dtype: str) -> None:
    sound = TensorSpec("x", "float32", (1, 512))
    rate, lengths = TensorSpec("rate", dtype, (1,)), TensorSpec("lengths", "int64", (1,))
    both = {"rate", "lengths"}
    with pytest.raises(
        InputError, match=r"^input 'rate' is a single number, and a made-up number "
    ):
        plans((sound, rate), both)
    assert plans((sound, rate), {"x"})
    assert plans((sound, lengths), both)
    assert plans((rate,), both)
    assert plans((sound, TensorSpec("rate", dtype, ("batch",))), both)


def test_a_sample_too_large_to_make_up() -> None:
    with pytest.raises(
        InputError,
        match=r"^a made-up sample of this model would take 4,000 MiB: give data=$",
    ):
        make_up((TensorSpec("x", "float32", (1, 1000, 1 << 20)),), MadeUpInputs({}), {}, 4, 0)
