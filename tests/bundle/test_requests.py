"""The few requests of the data that a bundle keeps: bounded, checked, and read when they are wanted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import models
from tests.support.bundles import built, forge, stated

from hasten.bundle import Part, kept_requests, load, read, room_for, write
from hasten.bundle.requests import MOST_BYTES, MOST_REQUESTS, REQUESTS, in_words
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.null import Null
from hasten.errors import InputError, IntegrityError

RATES = (16_000, 8_000)


def spoken(rate: int) -> dict[str, Array]:
    """A request of the voice detector's."""
    rng = np.random.default_rng(rate)
    return {
        "rate": np.array(rate),
        "state": rng.standard_normal((1, 8), np.float32),
        "audio": rng.standard_normal((1, 256), np.float32),
    }


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A bundle with two requests, their inputs in another order than the model's."""
    path = tmp_path / "detector.hasten"
    part = built(tmp_path, models.voice_detector(tmp_path), Null())
    write(path, stated(part, None), {}, requests=[spoken(rate) for rate in RATES])
    return path


def test_requests_come_back_as_they_were_kept(detector: Path) -> None:
    assert read(detector).requests == 2
    with load(detector) as loaded:
        assert len(loaded.requests) == 2
        for found, rate in zip(loaded.requests, RATES, strict=True):
            assert list(found) == ["audio", "state", "rate"]
            for name, array in spoken(rate).items():
                assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
                np.testing.assert_array_equal(found[name], array)
                assert found[name].flags.aligned
                assert found[name].flags.writeable
            assert set(loaded(found)) == {"speech", "next"}
        assert loaded.requests is loaded.requests


def test_requests_of_another_model_are_not_written(tmp_path: Path, winner: Part) -> None:
    with pytest.raises(InputError) as error:
        write(tmp_path / "b", stated(winner, None), {}, requests=[{"x": np.zeros((2, 16))}])
    assert str(error.value) == ("input 'x': the model takes x: float32[1, 16]; got float64[2, 16]")
    assert not (tmp_path / "b").exists()


def test_a_bundle_keeps_none_unless_it_is_given_some(bundle: Path) -> None:
    assert read(bundle).requests == 0
    assert not (bundle / REQUESTS).exists()
    with load(bundle) as loaded:
        assert loaded.requests == ()


def test_a_bundle_of_before_keeps_none(bundle: Path) -> None:
    forge(bundle, lambda record: record.pop("requests"))
    assert kept_requests(bundle, read(bundle)) == ()


def test_loading_reads_no_request(detector: Path) -> None:
    with load(detector) as loaded:
        (detector / REQUESTS).unlink()
        with pytest.raises(IntegrityError) as error:
            _ = loaded.requests
    assert str(error.value) == f"{detector}: {REQUESTS} can't be read: No such file or directory"


@pytest.mark.parametrize("change", [lambda old: old[:-1], lambda old: old + b"\0", bytes.swapcase])
def test_a_file_that_changed_since_is_refused(
    detector: Path, change: Callable[[bytes], bytes]
) -> None:
    with load(detector) as loaded:
        (detector / REQUESTS).write_bytes(change((detector / REQUESTS).read_bytes()))
        with pytest.raises(IntegrityError) as error:
            _ = loaded.requests
    assert str(error.value) == f"{detector}: {REQUESTS} was changed after it was written"


def with_count(count: Any) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.update(requests=count)


def with_input(shape: Sequence[Any], dtype: str = "float32") -> Callable[[dict[str, Any]], object]:
    def change(record: dict[str, Any]) -> None:
        for role in ("inputs", "request"):
            record["winner"]["artifact"][role][0].update(shape=shape, dtype=dtype)

    return change


MANY = "it states {} requests of {:,} bytes; a bundle has 4 and 16 MiB of them at most"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (with_count(5), MANY.format(5, 1064)),
        (with_count(-1), MANY.format(-1, 1064)),
        (with_count(2**62), MANY.format(2**62, 1064)),
        (with_count(3), "3 requests of its inputs take 3,192 bytes, but requests.raw has 2,128"),
        (with_input([2**31 - 1, 2**31 - 1]), MANY.format(2, 4 * (2**31 - 1) ** 2 + 40)),
        (
            with_input([1, 255]),
            "2 requests of its inputs take 2,120 bytes, but requests.raw has 2,128",
        ),
        (
            with_input([1, 256], "object"),
            "audio: object[1, 256] has a type that numpy doesn't support here",
        ),
        (with_input([1, -256]), "audio: float32[1, -256] is not a possible tensor shape"),
        (
            lambda record: record["files"].pop(REQUESTS),
            "2 requests of its inputs take 2,128 bytes, but requests.raw is not listed",
        ),
    ],
)
def test_what_cant_be_is_refused_before_memory_is_taken(
    detector: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    forge(detector, change)
    with pytest.raises(IntegrityError) as error:
        read(detector)
    assert str(error.value) == f"{detector}: the manifest is damaged: {why}"


def test_a_count_that_is_no_number_is_refused(detector: Path) -> None:
    forge(detector, with_count("2"))
    with pytest.raises(IntegrityError, match="the manifest is damaged: a Manifest record can't be"):
        read(detector)


def test_a_truth_value_that_is_neither_is_refused(detector: Path) -> None:
    forge(detector, with_input([1, 1024], "bool"))
    with pytest.raises(IntegrityError) as error:
        kept_requests(detector, read(detector))
    assert str(error.value) == (
        f"{detector}: {REQUESTS} is damaged: audio: bool[1, 1024] is neither 0 nor 1"
    )


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        (1, MOST_REQUESTS),
        (0, MOST_REQUESTS),
        (MOST_BYTES // 4, 4),
        (MOST_BYTES // 2, 2),
        (MOST_BYTES, 1),
        (MOST_BYTES + 1, 0),
    ],
)
def test_large_requests_are_fewer_or_none(size: int, kept: int) -> None:
    assert room_for((TensorSpec("x", "uint8", (1, size)),)) == kept


def test_whose_data_it_was_reads_how_many_are_in_it() -> None:
    assert [in_words(count) for count in (0, 1, 4)] == [
        "none of the data is in the bundle",
        "1 of the data is in the bundle, to warm up with",
        "4 of the data are in the bundle, to warm up with",
    ]


def test_the_manifest_lists_the_requests_as_every_other_file(
    detector: Path,
) -> None:
    assert read(detector).files[REQUESTS][1] == 2 * (4 * 256 + 4 * 8 + 8)
    whole = bytearray((detector / REQUESTS).read_bytes())
    whole[0] ^= 1
    (detector / REQUESTS).write_bytes(whole)
    for call in (lambda: read(detector), lambda: load(detector, cache=False).requests):
        with pytest.raises(IntegrityError) as error:
            call()
        assert str(error.value) == f"{detector}: {REQUESTS} was changed after it was written"
