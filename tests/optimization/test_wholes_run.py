"""Whole runs on OpenVINO of a model that computes with whole numbers."""

from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of
from tritonclient.utils import InferenceServerException

import hasten
from hasten.core.tensors import Array
from hasten.errors import BeyondRange, InputError
from hasten.testing import models

pytestmark = pytest.mark.seconds


def hashing(folder: Path) -> Path:
    """Write a classifier by the rest of a whole number."""
    text = """hashing (int64[n, 1] ids) => (float[n, 7] logits)
        <int64 seven = {7}, int64[1] last = {1}, float[2] values = {0, 3}> {
        rest = Mod (ids, seven)  row = Squeeze (rest, last)  logits = OneHot (row, seven, values) }"""
    return models.write(folder / "hashing.onnx", text, {})


def data(largest: int) -> dict[str, Array]:
    """Return 600 samples, of which half are near the largest one."""
    ids = np.arange(600, dtype=np.int64)[:, None]
    ids[-300:] += largest - ids.max()
    return {"ids": ids}


def test_a_bundle_of_openvino_refuses_larger_numbers_than_it_can_compute_with(
    tmp_path: Path,
) -> None:
    out = tmp_path / "hashing.hasten"
    with quick_runs():
        hasten.optimize(
            hashing(tmp_path), data(2**20), out=out, engines=["openvino"], passes=[], effort="quick"
        )
    fine, large = np.array([[2**24]]), np.array([[2**24 + 1]])
    with hasten.load(out) as loaded:
        assert int(loaded(fine)["logits"].argmax()) == 2**24 % 7
        with pytest.raises(
            BeyondRange, match=r"FloorMod .* in float32, and the input 'ids' has 16777217"
        ):
            loaded(large)
    place = place_of(out)
    with ServerThread(place) as server, triton.InferenceServerClient(server.host) as client:

        def answer(ids: Array) -> int:
            tensor = triton.InferInput("ids", list(ids.shape), "INT64")
            tensor.set_data_from_numpy(ids)
            return int(client.infer("hashing", [tensor]).as_numpy("logits").argmax())

        assert answer(fine) == 2**24 % 7
        with pytest.raises(InferenceServerException, match="has 16777217") as refused:
            answer(large)
        assert refused.value.status() == "400"
        assert answer(fine) == 2**24 % 7


def test_a_run_whose_data_has_larger_numbers_does_not_use_openvino(tmp_path: Path) -> None:
    with quick_runs(), pytest.raises(InputError, match="has 16777"):
        hasten.optimize(
            hashing(tmp_path), data(2**24 + 9), out=tmp_path / "b", engines=["openvino"], passes=[]
        )
