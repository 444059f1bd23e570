"""Notes on masks that contradict their tokens."""

from pathlib import Path

import numpy as np
import pytest

import hasten
from hasten.core.progress import Progress
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.ragged import RaggedDataset
from hasten.optimization.masks import check_sizes, mask_notes
from hasten.testing.models import write

COUNT, LENGTH, WORDS = 20, 12, 100
SIZES = np.random.default_rng(1).integers(4, LENGTH - 1, COUNT)


def tokens(padding: int = 0) -> Array:
    ids = np.random.default_rng(0).integers(2, WORDS, (COUNT, LENGTH))
    ids[np.arange(LENGTH) >= SIZES[:, None]] = padding
    return ids


def right_mask() -> Array:
    return (np.arange(LENGTH) < SIZES[:, None]).astype(np.int64)


def said(ids: Array, mask: Array, name: str = "attention_mask") -> list[str]:
    specs = [
        TensorSpec("input_ids", "int64", ("batch", "length")),
        TensorSpec(name, str(mask.dtype), ("batch", "length")),
    ]
    return mask_notes(specs, ArrayDataset({"input_ids": ids, name: mask}))


@pytest.mark.parametrize("kind", [np.int64, np.float32, np.bool_])
def test_a_mask_that_fits_gets_no_note(kind: type) -> None:
    assert said(tokens(), right_mask().astype(kind)) == []
    assert said(tokens()[:, ::-1], right_mask()[:, ::-1].astype(kind)) == []
    assert (
        said(np.arange(COUNT * LENGTH).reshape(COUNT, LENGTH), np.ones((COUNT, LENGTH), kind)) == []
    )


def test_what_contradicts_is_counted_in_one_line() -> None:
    mask = right_mask()
    mask[3] = 0
    mask[5, 1] = mask[6, 2] = 0
    mask[8, :] = 1
    assert said(tokens(), mask) == [
        "attention_mask doesn't seem to fit input_ids: of the 20 samples that were looked at, it "
        "hides 1 sample wholly, has zeros between ones in 2 samples; if that isn't meant, repair the data"
    ]


def test_ones_over_padding_are_told_from_what_other_masks_hide() -> None:
    mask = right_mask()
    mask[8, :] = 1
    assert said(tokens(), mask) == [
        "attention_mask doesn't seem to fit input_ids: of the 20 samples that were looked at, it is "
        "1 over padding (token 0) in 1 sample; if that isn't meant, repair the data"
    ]


def test_a_mask_that_hides_no_padding_at_all_is_told_from_the_ends_of_the_samples() -> None:
    (line,) = said(tokens(7), np.ones((COUNT, LENGTH), np.int64))
    assert "is 1 over padding (token 7) in 20 samples" in line


def test_a_last_token_that_ends_each_sentence_isnt_padding() -> None:
    ids, mask = tokens(), right_mask()
    ids[np.arange(COUNT), SIZES - 1] = 0
    assert said(ids, mask) == []


def test_a_mask_whose_ones_may_leave_tokens_out_gets_no_note() -> None:
    nothing = np.zeros((COUNT, LENGTH), np.int64)
    assert said(tokens(), nothing, "mask") == []
    assert said(tokens(), 1 - right_mask(), "key_padding_mask") == []
    (line,) = said(tokens(), nothing, "attention_mask")
    assert "hides 20 samples wholly" in line


def test_an_inverted_mask_is_told() -> None:
    looked_at = "of the 20 samples that were looked at"
    assert said(tokens(7), 1 - right_mask()) == [
        f"attention_mask looks inverted: {looked_at}, it is 1 only over token 7, which looks like "
        "padding, and 0 over all others of input_ids; give 1 for each token that counts"
    ]
    whole = np.arange(LENGTH) < np.where(np.arange(COUNT) < 3, LENGTH, SIZES)[:, None]
    some_without_padding = np.where(whole, tokens() + 2, 1)
    (line,) = said(some_without_padding, 1 - whole.astype(np.int64))
    assert "looks inverted" in line
    assert "looks inverted" not in "".join(said(tokens(), np.zeros((COUNT, LENGTH), np.int64)))
    assert said(np.zeros((COUNT, LENGTH), np.int64), right_mask()) == [
        f"attention_mask doesn't seem to fit input_ids: {looked_at}, it is 1 over padding (token 0) "
        "in 20 samples; if that isn't meant, repair the data"
    ]


def test_what_a_mask_contradicts_is_told_before_the_search(tmp_path: Path) -> None:
    text = f"""
        shown (int64[n, {LENGTH}] input_ids, int64[n, {LENGTH}] attention_mask) => (float[n, {LENGTH}] y) {{
            seen = Mul(input_ids, attention_mask)
            numbers = Cast <to = 1> (seen)
            y = Mul(numbers, scale)
        }}"""
    model = write(tmp_path / "shown.onnx", text, {"scale": (LENGTH,)})
    data = {
        "input_ids": np.tile(tokens(), (5, 1)),
        "attention_mask": np.tile(1 - right_mask(), (5, 1)),
    }

    class StopError(Exception):
        pass

    told: list[str] = []

    def stop(progress: Progress) -> None:
        if progress.outline is not None:
            told.extend(text for name, text in progress.outline.facts if name == "check")
            raise StopError

    with pytest.raises(StopError):
        hasten.optimize(model, data, metric="embedding", out=tmp_path / "a.hasten", listen=stop)
    (line,) = told
    assert line.startswith("attention_mask looks inverted: ")


def refused(samples: dict[str, list[Array]]) -> str:
    """Check samples of their own shapes; why they are refused, or ""."""
    specs = [
        TensorSpec(
            name, str(rows[0].dtype), ("batch", *(f"{name}{n}" for n in range(rows[0].ndim)))
        )
        for name, rows in samples.items()
    ]
    try:
        check_sizes(specs, RaggedDataset(samples))
    except InputError as error:
        return str(error)
    return ""


def test_a_mask_of_another_length_than_its_tokens_is_refused() -> None:
    ids = [np.arange(1, n + 1) for n in (4, 7, 5)]
    masks = [np.ones(n, np.int64) for n in (4, 7, 6)]
    said = "attention_mask has 6 numbers in a sample with 5 of input_ids: give one for each token"
    assert refused({"input_ids": ids, "attention_mask": masks}) == said
    assert refused({"input_ids": ids, "attention_mask": [np.ones_like(one) for one in ids]}) == ""
    cache = [np.zeros((2, n), np.float32) for n in (0, 1, 1)]
    assert refused({"input_ids": ids, "attention_mask": masks, "past_key": cache}) == ""
    users = [np.array([3])] * 3
    assert refused({"user_ids": users, "input_ids": masks, "attention_mask": masks}) == ""


@pytest.mark.parametrize("name", ["lengths", "x_lens", "input_length", "seq_len"])
def test_a_length_beyond_its_array_is_refused(name: str) -> None:
    sounds = [np.zeros((n, 3), np.float32) for n in (40, 70, 50)]
    counts = [np.array([n]) for n in (40, 60, 51)]
    said = f"{name} is 51 in a sample whose other inputs have at most 50 along any axis: give the length of what counts"
    assert refused({"sound": sounds, name: counts}) == said
    assert refused({"sound": sounds, name: [np.array([5])] * 3}) == ""
    assert refused({"sound": sounds, name: [np.array([-1])] * 3}).startswith(f"{name} is -1 in ")
    assert refused({"sound": sounds, f"max_{name}": [np.array([999])] * 3}) == ""


def test_columns_of_rows_and_samples_of_one_shape_may_be_called_lengths() -> None:
    specs = [TensorSpec(name, "int64", ("batch", 1)) for name in ("length", "dots")]
    check_sizes(
        specs, ArrayDataset({"length": np.full((3, 1), 116), "dots": np.ones((3, 1), np.int64)})
    )
    words = [np.arange(n) for n in (3, 4, 5)]
    for name in ("url_length", "hop_length", "past_len", "audio_len"):
        assert refused({"words": words, name: [np.array([116])] * 3}) == ""
