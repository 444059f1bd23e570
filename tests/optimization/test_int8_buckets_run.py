"""A whole run in which int8 in buckets on compiled C ships: what was proposed, loaded and served."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.optimization.test_ragged_batches import int8_wins
from tests.serving.test_ragged_requests import asked
from tests.support import ragged
from tests.support.servers import ServerThread, place_of

import hasten
from hasten.bundle import load, read
from hasten.core.tensors import Array
from hasten.reporting.result import Result

pytestmark = pytest.mark.seconds

FORM = "int8 (ONNX Runtime, per channel, minmax)"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Bundle of a network of convolutions for pictures of three sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch, int8_wins(patch):
        result = hasten.optimize(
            ragged.convolutional(folder),
            ragged.pictures(400),
            out=folder / "pictures.hasten",
            passes=["static_quantization"],
            engines=["onnxruntime", "compiled"],
            metric="regression:0.05",
            max_drop=0.1,
        )
    return folder / "pictures.hasten", result


def requests(count: int) -> list[dict[str, Array]]:
    return [{"x": one[None]} for one in ragged.pictures(count, seed=7)["x"]]


def test_the_likeliest_int8_form_is_tried_in_buckets_on_compiled_c(
    made: tuple[Path, Result],
) -> None:
    path, result = made
    tried = {label: said for label, said in result.tried.items() if "compiled for 3" in label}
    own = tried[
        f"{FORM}, compiled C, compiled for 3 shapes, 16x16 to 32x16, beyond them ONNX Runtime"
    ]
    assert "points lost" in own
    assert result.status == "certified", result.why
    engine = read(path).winner.engine
    kinds = [engine["type"], engine["inner"]["type"], engine["beyond"]["type"]]
    assert kinds == ["buckets", "compiled", "onnxruntime"]


def test_threads_and_a_server_get_the_answers_that_one_request_gets(
    made: tuple[Path, Result],
) -> None:
    given = requests(60)
    with load(made[0], sessions=3) as loaded, warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = [loaded(one)["y"] for one in given]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda one: loaded(one)["y"], given))
    for got, own in zip(together, alone, strict=True):
        np.testing.assert_array_equal(got, own)
    with ServerThread(place_of(made[0])) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: asked(server.http_url, one, "pictures")["y"], given))
    for served, own in zip(answers, alone, strict=True):
        np.testing.assert_allclose(served, own, atol=0.05 * np.abs(own).max())
