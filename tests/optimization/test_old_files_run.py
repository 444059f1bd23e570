"""A whole run on a file of an old operator set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tests.passes.test_old_operator_sets import recurrent
from tests.support.quick import quick_runs

import hasten

pytestmark = pytest.mark.seconds


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(passes=True):
        yield


def test_an_old_recurrent_network_is_tried_in_int8_and_ships_with_its_own_answers(
    tmp_path: Path,
) -> None:
    model = recurrent(tmp_path, 7).path
    x = np.random.default_rng(0).standard_normal((300, 1, 6, 10)).astype(np.float32)
    result = hasten.optimize(
        model,
        {"x": x},
        out=tmp_path / "b",
        effort="quick",
        engines=["onnxruntime"],
        passes=("static_quantization", "dynamic_quantization"),
    )
    tried = {name: said for name, said in result.tried.items() if "int8" in name}
    assert len(tried) == 2
    assert not any(said.startswith(("failed", "skipped")) for said in tried.values()), tried
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with hasten.load(tmp_path / "b", which="exact") as loaded:
        (own,) = session.run(None, {"x": x[:1]})
        np.testing.assert_allclose(loaded(x=x[:1])["y"], own, atol=1e-5)
