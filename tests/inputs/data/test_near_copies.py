"""Near copies of training samples in data to judge on: found whatever their types, and real ones let be."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Subset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.moved import nearest_moved
from hasten.inputs.data.near_copies import (
    SURE,
    NearCopies,
    Remembered,
    check_near_copies,
    near_copies,
)
from hasten.inputs.data.neighbours import chance, coincidences, nearest
from hasten.inputs.data.ragged import RaggedDataset
from hasten.inputs.data.texts import alike
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Decode, Resize, ToLayout


def of(array: Array) -> ArrayDataset:
    return ArrayDataset({"x": array})


def shuffled(array: Array) -> Array:
    return array[np.random.default_rng(0).permutation(len(array))]


DIGITS = shuffled(datasets.load_digits().images)
CELLS = shuffled(datasets.load_breast_cancer().data)


def partners(training: Array, judged: Array) -> dict[int, int]:
    found = near_copies(of(training), of(judged))
    return dict(zip(found.judged.tolist(), found.training.tolist(), strict=True))


def test_distinct_samples_of_real_data_are_no_copies() -> None:
    rows = [datasets.load_wine().data, datasets.load_iris().data, datasets.load_diabetes().data]
    assert partners(DIGITS[:1200], DIGITS[1200:]) == {}  # 8 x 8 pixels, many much alike
    for data in (CELLS, *(shuffled(np.unique(one, axis=0)) for one in rows)):
        cut = len(data) * 7 // 10
        assert partners(data[:cut], data[cut:]) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(np.float64),
        lambda x: (x / 16).astype(np.float32),
        lambda x: ((x - 4.9) / 6).astype(np.float32),
        lambda x: (0.7 * x + 3).astype(np.float32),
        lambda x: (x + np.random.default_rng(1).normal(0, 0.3, x.shape)).astype(np.float32),
        lambda x: np.repeat(x[:, np.newaxis], 3, axis=1),
    ],
    ids=["float64", "scaled", "normalized", "contrast", "noise", "coloured"],
)
def test_images_are_found_in_any_type_and_scale_and_with_some_noise(change) -> None:  # type: ignore[no-untyped-def]
    judged = np.concatenate([DIGITS[100:160], DIGITS[1200:1500]])
    found = partners(DIGITS[:1200].astype(np.uint8), change(judged))
    assert {i: 100 + i for i in range(60)} == found


# Digits as scanned: three times as large, on a canvas of 28 x 28 pixels.
SCANS = np.pad(np.kron(DIGITS, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2))).astype(np.uint8)


def shifted(pictures: Array, down: int, across: int) -> Array:
    """Pictures on a canvas that is moved; what leaves on one side doesn't come back on the other."""
    most = max(abs(down), abs(across))
    wide = np.pad(pictures, ((0, 0), (most, most), (most, most)))
    high, broad = pictures.shape[1:]
    return wide[:, most - down : most - down + high, most - across : most - across + broad]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[:, :, ::-1],
        lambda x: shifted(x, 0, 1),
        lambda x: shifted(x, -2, 1),
        lambda x: shifted(x, 3, 3),
        lambda x: (
            0.8 * shifted(x[:, :, ::-1], 1, -1) + np.random.default_rng(2).normal(0, 0.1, x.shape)
        ),
    ],
    ids=["mirrored", "by 1", "by 2 and 1", "by 3 and 3", "mirrored, shifted, with noise"],
)
def test_moved_pictures_are_found_and_no_others(change) -> None:  # type: ignore[no-untyped-def]
    judged = np.concatenate([change(SCANS[100:160]), SCANS[1200:1500]])
    found = partners(SCANS[:1200], judged)
    assert found.items() <= {i: 100 + i for i in range(60)}.items()
    assert len(found) >= 57


def test_no_scan_is_taken_for_another_that_is_moved() -> None:
    assert partners(SCANS[:1200], SCANS[1200:]) == {}


def test_mirrored_pictures_of_few_pixels_are_found() -> None:
    judged = np.concatenate([DIGITS[100:160, :, ::-1], DIGITS[1200:1500]])
    assert {i: 100 + i for i in range(60)}.items() <= partners(DIGITS[:1200], judged).items()


def test_photos_that_are_cut_again_are_found() -> None:
    photos = datasets.load_sample_images().images
    places = [(y, x) for y in range(8, 340, 80) for x in range(8, 550, 80)]

    def windows(size: int, off: int) -> Array:
        """Pictures of 96 x 96 pixels, of windows of another size and place."""
        cut = [
            p[y + off : y + off + size, x + off : x + off + size] for p in photos for y, x in places
        ]
        return np.stack([np.asarray(Image.fromarray(one).resize((96, 96))) for one in cut])

    whole = windows(80, 0)
    assert partners(whole[::2], whole[1::2]) == {}
    for again in (windows(80, 1), windows(78, 1), windows(78, 1)[:, :, ::-1]):
        found = partners(whole[::2], np.concatenate([again[::2], whole[1::2]]))
        assert found.items() <= {i: i for i in range(35)}.items()
        assert len(found) >= 18


def test_pictures_that_resemble_none_are_let_be() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 28, 28), np.uint8)
    assert partners(noise[:600], noise[600:]) == {}


def test_samples_of_another_size_are_not_compared() -> None:
    assert partners(DIGITS[:100], np.repeat(DIGITS[:50], 2, axis=1)) == {}
    assert partners(CELLS[:100], CELLS[:50, :20]) == {}


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.01, 0.03])
def test_rows_are_found_in_another_type_and_with_some_noise(noise: float) -> None:
    copies = CELLS[:60] + noise * CELLS.std(axis=0) * np.random.default_rng(1).normal(size=(60, 30))
    judged = np.concatenate([copies, CELLS[400:]]).astype(np.float32)
    assert partners(CELLS[:400], judged) == {i: i for i in range(60)}


def test_rows_in_other_units_are_found() -> None:
    judged = np.concatenate([CELLS[:200], CELLS[400:]])
    scaled = (judged - CELLS.mean(axis=0)) / CELLS.std(axis=0) * 100
    found = partners(CELLS[:400], scaled)
    assert sum(found.get(i) == i for i in range(200)) > 150


def random_columns(kind: str, count: int) -> Array:
    rng = np.random.default_rng(0)
    columns = {
        "normal": rng.standard_normal((count, 5)),
        "four values": rng.integers(0, 4, (count, 5)),
        "two values": rng.integers(0, 2, (count, 5)),
        "twelve of two values": rng.integers(0, 2, (count, 12)),
        "counts": rng.poisson(2, (count, 5)),
        "hundredths": rng.random((count, 2)).round(2),
        "one among classes": np.column_stack(
            [rng.integers(0, 2, (count, 4)), rng.standard_normal((count, 1))]
        ),
    }
    return columns[kind].astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    [
        "normal",
        "four values",
        "two values",
        "twelve of two values",
        "counts",
        "hundredths",
        "one among classes",
    ],
)
def test_independent_random_columns_have_no_copies(kind: str) -> None:
    rows = random_columns(kind, 300)
    assert partners(rows[:225], rows[225:]) == {}


def test_copies_among_columns_of_few_values_are_found_by_a_column_that_tells_rows_apart() -> None:
    rows = random_columns("one among classes", 300)
    found = partners(rows[:225], np.concatenate([rows[225:], rows[:30]]))
    assert found == {75 + place: place for place in range(30)}


def test_coincidences_are_counted_by_the_values_of_each_column() -> None:
    others = np.array([[0, 1], [0, 2], [0, 3], [1, 4]], np.float32)
    row = np.array([[0, 3]], np.float32)
    # Three of four have the first value, two but for the partner; no other has the second one, which never occurs again.
    assert coincidences(row, others[2:3], others).tolist() == [0.0]
    # Without the second column: 4 rows, each with a chance of 2 in 4.
    assert coincidences(row[:, :1], others[2:3, :1], others[:, :1]).tolist() == [2.0]


def test_several_noisy_copies_of_a_sample_hide_it_no_better_than_one() -> None:
    rng = np.random.default_rng(1)
    copies = np.repeat(DIGITS[1200:1300], 5, axis=0)
    training = np.concatenate([DIGITS[:1000], copies + rng.normal(0, 0.3, copies.shape)])
    found = partners(training, DIGITS[1200:1500])
    assert set(found) <= set(range(100))
    assert len(found) >= 90


def test_texts_are_found_with_some_words_changed_and_others_are_let_be() -> None:
    rng = np.random.default_rng(0)
    words = np.minimum(rng.zipf(1.3, (900, 64)), 5000)
    words[:, 50:] = 0
    judged = words[550:].astype(np.int32)
    judged[:50] = words[:50]
    judged[:50, 20] = 4999
    assert partners(words[:500], judged) == {i: i for i in range(50)}


def test_texts_too_short_to_tell_are_let_be() -> None:
    texts = np.zeros((40, 12), np.int64)
    texts[:, :4] = np.arange(160).reshape(40, 4)
    mine, _ = alike([texts[:5]], [texts])
    assert len(mine) == 0


def test_missing_values_stand_for_themselves() -> None:
    holes = CELLS.copy()
    holes[::3, 4] = np.nan
    training = ArrayDataset({"x": holes[:400]}, missing=True)
    judged = ArrayDataset({"x": holes[390:].astype(np.float32)}, missing=True)
    found = near_copies(training, judged)
    assert sorted(found.training.tolist()) == list(range(390, 400))


def test_blank_images_are_no_copies_of_each_other() -> None:
    blank = np.zeros((5, 8, 8))
    assert (
        partners(np.concatenate([DIGITS[:900], blank]), np.concatenate([DIGITS[900:], blank])) == {}
    )


def test_few_are_told_with_examples_and_many_refused() -> None:
    training = of(DIGITS[:1200])
    few = check_near_copies(training, of(np.concatenate([DIGITS[7:9], DIGITS[1200:]]) / 16))
    assert few is not None
    assert few.note() == (
        "2 of 599 samples to judge on (0.33%) are near copies of training samples, whatever their types "
        "and scales: judged sample 0 and training sample 7; judged sample 1 and training sample 8; "
        "remove them if they are copies"
    )
    assert few.reservation() == ""
    many = of(np.concatenate([DIGITS[:100], DIGITS[1200:]]) / 16)
    with pytest.raises(InputError) as error:
        check_near_copies(training, many)
    assert str(error.value).endswith(
        "; and 97 more: training data can't judge a model; remove the samples from one of the "
        "two, or add allow_near_copies=True if you know that they aren't copies"
    )
    allowed = check_near_copies(training, many, True)
    assert allowed is not None
    assert allowed.reservation() == (
        "14% of the samples to judge on look like near copies of training samples, which was "
        "allowed: the certificate holds for new data only if they aren't copies"
    )
    assert check_near_copies(training, of(DIGITS[1200:])) is None


def test_image_files_are_named(tmp_path: Path) -> None:
    for which, numbers in (("a", range(12)), ("b", range(11, 23))):
        (tmp_path / which).mkdir()
        for number in numbers:
            pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
            picture = Image.fromarray(pixels).resize((40, 40))
            name = tmp_path / which / f"{number:02}"
            picture.save(name.with_suffix(".png" if which == "a" else ".jpg"))
    pipeline = Pipeline((Decode(), Resize(32), ToLayout()))
    one, other = (ImageFolder(tmp_path / which, pipeline, "x") for which in "ab")
    found = near_copies(one, Subset(other, np.arange(len(other))))
    assert found.examples == (f"{tmp_path / 'b' / '11.jpg'} and {tmp_path / 'a' / '11.png'}",)


def test_sealed_samples_are_remembered_as_they_are_read() -> None:
    search = of(DIGITS[:600])
    sealed = Remembered(of(np.concatenate([DIGITS[600:], DIGITS[5:6] + 0.01])), search)
    for start in range(0, len(sealed), 100):
        sealed.inputs(range(start, min(start + 100, len(sealed))))
    found = sealed.near_known()
    assert found.examples == ("sealed sample 1197 and search sample 5",)


def test_sealed_pictures_that_are_mirrored_are_remembered_too() -> None:
    sealed = of(np.concatenate([SCANS[100:120, :, ::-1], SCANS[1200:1400]]))
    remembered = Remembered(sealed, of(SCANS[:1200]))
    for start in range(0, len(sealed), 50):
        remembered.inputs(range(start, min(start + 50, len(sealed))))
    assert sorted(remembered.near_known().judged) == list(range(20))


def pictures(*sizes: tuple[int, ...]) -> list[Array]:
    """One picture of each size, each of coarse patches of its own."""
    found = []
    for number, size in enumerate(sizes):
        coarse = np.random.default_rng(number).integers(0, 256, (6, 6), np.uint8)
        image = Image.fromarray(coarse).resize((size[-1], size[-2]), Image.Resampling.BILINEAR)
        found.append(np.asarray(image).reshape(size))
    return found


SEARCHED = pictures(*((1, 20 + number % 3, 24) for number in range(30)))


@pytest.mark.parametrize("small", [(1, 12, 24), (1, 24, 6)])
@pytest.mark.parametrize("ragged", [True, False], ids=["unlike", "alike"])
def test_sealed_pictures_too_small_to_compare_are_let_be(
    small: tuple[int, ...], ragged: bool
) -> None:
    """The search samples tell what is compared; a sealed one may be smaller than all of them."""
    searched = SEARCHED if ragged else SEARCHED[::3]
    sealed = [*pictures(small, small), *searched[:4], *pictures(small)]
    known = RaggedDataset({"x": searched}) if ragged else of(np.stack(searched))
    remembered = Remembered(RaggedDataset({"x": sealed}), known)
    for index in range(len(sealed)):
        read = remembered.inputs([index])["x"]
        assert read.shape == (1, *sealed[index].shape)
    found = remembered.near_known()
    assert found.samples == 4
    assert sorted(found.judged) == [2, 3, 4, 5]
    assert sorted(found.training) == [0, 1, 2, 3]


def test_sealed_rows_of_unlike_lengths_are_let_be() -> None:
    """None of the search samples may have another length."""
    rows = [CELLS[200, :20], *CELLS[:5]]
    remembered = Remembered(RaggedDataset({"x": rows}), of(CELLS[:100]))
    for index in range(len(rows)):
        remembered.inputs([index])
    assert len(remembered.near_known().judged) == 0


def test_pictures_a_few_pixels_wide_are_not_compared() -> None:
    """A side of 1, 3 or 4 pixels isn't taken for channels where these stand on another axis."""
    training = RaggedDataset({"x": pictures(*((1, 20, 24),) * 20)})
    judged = RaggedDataset({"x": pictures((1, 20, 24), (1, 4, 24))})
    assert len(near_copies(training, judged).judged) == 0
    assert len(near_copies(judged, training).judged) == 0


def test_chances_are_those_of_samples_that_are_no_copies() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6000, 6)).astype(np.float32)
    distances, _ = nearest(rows[:3000], rows[3000:])
    odds = chance(distances)
    assert (odds < 0.1).mean() < 0.13
    assert (odds < SURE).sum() <= 1


def test_neighbours_are_those_of_all_distances_in_blocks_and_little_memory() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(600, 3)).astype(np.float32)
    others = rng.normal(size=(20000, 3)).astype(np.float32)
    tracemalloc.start()
    distances, places = nearest(rows, others)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150 * 2**20
    every = np.linalg.norm(rows[:50, np.newaxis].astype(np.float64) - others, axis=2)
    assert np.array_equal(places[:50], np.argsort(every, axis=1)[:, :10])
    assert np.allclose(distances[:50], np.sort(every, axis=1)[:, :10])


def test_signatures_of_much_training_data_are_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes 1 KiB, and 2 KiB more for the picture in detail."""
    monkeypatch.setattr("hasten.inputs.data.near_copies._CHUNK_BYTES", 2**20)
    count, side = 30_000, 32
    training = np.random.default_rng(0).integers(0, 256, (count, side, side), np.uint8)
    judged = np.concatenate([training[100:110], training[200:210, :, ::-1]])
    found: list[NearCopies] = []
    peak = peak_bytes(lambda: found.append(near_copies(of(training), of(judged))))
    assert sorted(found[0].training) == [*range(100, 110), *range(200, 210)]
    assert peak < 1.4 * count * 3 * 2**10


def peak_bytes(work: Callable[[], object]) -> int:
    """Largest memory that some work takes."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_neighbours_are_looked_up_without_a_copy_of_all_others() -> None:
    others = np.random.default_rng(0).normal(size=(40_000, 256)).astype(np.float32)
    assert peak_bytes(lambda: nearest(others[:50], others)) < 0.8 * others.nbytes


def test_moved_pictures_are_looked_up_by_one_array_of_waves() -> None:
    """A picture of 8 x 8 pixels is laid on 90 waves, which make 25 amplitudes."""
    others = np.random.default_rng(0).normal(size=(40_000, 8, 8)).astype(np.float32)
    far = np.ones(5)
    peak = peak_bytes(lambda: nearest_moved(others[:5], others, others[:5], others, far))
    assert peak < 1.7 * len(others) * 90 * 4


def test_moved_pictures_are_found_wherever_the_parts_end_in_which_all_are_read() -> None:
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(9000, 8, 8)).astype(np.float32)
    whole /= np.linalg.norm(whole, axis=(1, 2), keepdims=True)
    own = whole[[0, 2047, 2048, 4095, 4096, 8191, 8192, 8999], :, ::-1]
    far = np.ones(len(own))
    fits, places = nearest_moved(own, whole, own, whole, far)
    assert places.tolist() == [0, 2047, 2048, 4095, 4096, 8191, 8192, 8999]
    assert (fits < 1e-3).all()
