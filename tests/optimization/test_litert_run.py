"""A whole run on LiteRT, by a clock of its own."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array
from tests.support import models
from tests.support.quick import quick_runs
from tests.support.steady_rounds import steady_rounds

import hasten
from hasten.bundle import read
from hasten.testing.models import write

pytestmark = pytest.mark.seconds


def test_litert_is_searched_certified_bundled_and_loaded(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((300, 16, 16, 16), dtype=np.float32)
    with quick_runs(passes=True, races=False), steady_rounds():
        result = hasten.optimize(
            models.depthwise_cnn(tmp_path),
            data,
            max_drop=0.3,
            metric="agreement",
            out=tmp_path / "b.hasten",
            engines=("litert",),
        )
    tried = result.tried
    assert not tried["original, LiteRT"].startswith("failed")
    assert not tried["int8 (AI Edge Quantizer), LiteRT"].startswith("failed")
    assert not any("(ONNX Runtime" in name for name in tried)
    assert result.status == "certified", result.why
    winner = read(tmp_path / "b.hasten").winner
    assert winner.engine["type"] == "litert"
    with hasten.load(tmp_path / "b.hasten") as fast:
        assert fast.properties()["xnnpack"].endswith(" operators")
        assert fast(data[:1])["logits"].shape == (1, 8)


def loud(folder: Path, product: str) -> Path:
    """Write x: float32[batch, 64] -> logits: float32[batch, 8], which doesn't use the first number of x."""
    text = f"""
        loud (float[batch, 64] x) => (float[batch, 8] logits) {{
            [wide] t = {product} (x, w1)
            r = Relu (t)
            [head] logits = {product} (r, w2)
        }}"""
    path = write(folder / "loud.onnx", text, {"w1": (64, 256), "w2": (256, 8)})
    proto = onnx.load(path)
    weights = next(tensor for tensor in proto.graph.initializer if tensor.name == "w1")
    values = to_array(weights).copy()
    values[0] = 0
    weights.CopyFrom(from_array(values, "w1"))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(("product", "rounded"), [("Gemm", ", rounded by layer"), ("MatMul", "")])
def test_where_int8_loses_too_much_for_an_interpreter_elsewhere_16_bit_activations_ship(
    product: str, rounded: str, tmp_path: Path
) -> None:
    """One scale of 8 bits for all of x leaves nothing of it but the number that isn't used."""
    data = np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32)
    data[:, 0] *= 100
    with quick_runs(passes=True, races=False):
        result = hasten.optimize(
            loud(tmp_path, product),
            data,
            max_drop=0.1,
            metric="agreement",
            out=tmp_path / "b.hasten",
            target="litert",
        )
    assert result.status == "uncertified"
    assert result.shipped is not None
    assert result.shipped.label == (
        f"int8 (AI Edge Quantizer{rounded}, 16-bit activations, integers alone), LiteRT reference kernels"
    )
    assert result.estimates is not None
    lost = {row.label: row.drop for row in result.estimates.rows if "16-bit" not in row.label}
    int8 = [label for label in lost if label.startswith("int8")]
    assert len(int8) == (2 if rounded else 1)  # nothing is tried twice
    for label in int8:
        drop = lost[label]
        assert drop is not None
        assert drop.estimate > 0.1


def test_where_int8_loses_nothing_for_an_interpreter_elsewhere_nothing_else_is_tried(
    tmp_path: Path,
) -> None:
    data = np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32)
    with quick_runs(passes=True, races=False):
        result = hasten.optimize(
            loud(tmp_path, "Gemm"),
            data,
            max_drop=0.3,
            metric="agreement",
            out=tmp_path / "b.hasten",
            target="litert",
        )
    assert result.shipped is not None
    assert result.shipped.label == (
        "int8 (AI Edge Quantizer, integers alone), LiteRT reference kernels"
    )
    assert result.estimates is not None
    assert [row.label for row in result.estimates.rows if row.label.startswith("int8")] == [
        result.shipped.label
    ]


def test_a_quick_run_for_an_interpreter_elsewhere_says_that_further_settings_are_left_out(
    tmp_path: Path,
) -> None:
    data = np.random.default_rng(0).standard_normal((300, 64), dtype=np.float32)
    data[:, 0] *= 100
    with quick_runs(passes=True, races=False):
        result = hasten.optimize(
            loud(tmp_path, "Gemm"),
            data,
            max_drop=0.1,
            metric="agreement",
            out=tmp_path / "b.hasten",
            target="litert",
            effort="quick",
        )
    assert "left out at this effort: further settings that may lose less" in result.notes
    assert result.status == "exact"
    assert result.estimates is not None
    assert not any("16-bit" in row.label for row in result.estimates.rows)
