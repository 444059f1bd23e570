"""Every candidate of a device that isn't here goes its whole way: passes, build, answers, estimate."""

import importlib.util
from pathlib import Path

import pytest
from tests.devices.edge.edge_models import Digits
from tests.support.at_hand import at_hand
from tests.support.quick import quick_runs

import hasten
from hasten.core.devices import find_target
from hasten.engines.base import Engine
from hasten.engines.installed import tried_on
from hasten.errors import InputError

NEEDED = {
    "qnn:sm8650": ("onnxruntime_qnn",),
    "coreml": ("coremltools", "onnx2coreml"),
    "litert": ("ai_edge_litert", "ai_edge_quantizer"),
}
EXPECTED = {
    "qnn:sm8650": {
        "f16, QNN",
        "int8 (QNN), f16, QNN",
        "int8 (QNN, rounded by layer), f16, QNN",
        "int8 (QNN, 16-bit activations, rounded by layer), f16, QNN",
    },
    "coreml": {"original, Core ML", "f16, Core ML", "f16, int8 weights, Core ML"},
    "litert": {
        "original, LiteRT reference kernels",
        "int8 (AI Edge Quantizer, integers alone), LiteRT reference kernels",
        "int8 (AI Edge Quantizer, rounded by layer, integers alone), LiteRT reference kernels",
        "int8 (AI Edge Quantizer, rounded by layer, 16-bit activations, integers alone), "
        "LiteRT reference kernels",
    },
}


@pytest.mark.parametrize("name", NEEDED)
def test_every_candidate_of_a_device_is_built_answered_and_estimated(
    name: str, digits: Digits, tmp_path: Path
) -> None:
    """So few digits make nothing inexact sure to pass, so that a run tries all that it knows."""
    if missing := [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'hasten[edge]'")
    target = find_target(name)
    assert target.kind == "compile-only"
    with quick_runs(passes=True, races=False), at_hand(*NEEDED[name]):
        result = hasten.optimize(
            digits.model.path,
            ({"x": digits.images[:200]}, digits.labels[:200]),
            target=name,
            max_drop=0.02,
            out=tmp_path / "digits.hasten",
        )
    assert result.estimates is not None
    # The network's ONNX is as simple as can be, so what only simplifies it is skipped.
    rows = [row for row in result.estimates.rows if not row.said.startswith("skipped")]
    assert {row.label for row in rows} == EXPECTED[name], [row.said for row in rows]
    for row in rows:
        assert row.drop is not None, row
        assert row.drop.estimate < 0.1, row
        assert row.latency_ns is None
        if row.drop.estimate < 0.02:
            assert row.figures, row
            assert all(figure > 0 for figure in row.figures.values())
    kinds = [Engine.member(engine, trusted=True) for engine in tried_on(target.family)]
    assert not any(kind.faithful for kind in kinds)


def test_a_part_that_is_unknown_gets_those_that_are_known() -> None:
    with pytest.raises(InputError) as caught:
        find_target("qnn:sm9999")
    assert str(caught.value) == (
        "no Qualcomm chip is called 'sm9999'; choose one of: sm8550, sm8450, sm8650, sm8750, sm8850, "
        "sc8380xp"
    )
