"""Every candidate of a device that isn't here goes its whole way: passes, build, answers, estimate."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from tests.devices.edge.edge_models import Digits

from hasten.core.devices import find_target
from hasten.core.records import from_record, to_record
from hasten.engines.base import Artifact
from hasten.engines.installed import tried_on
from hasten.errors import InputError
from hasten.optimization.grid import grid, variations
from hasten.passes.base import Skipped

NEEDED = {
    "qnn:sm8650": ("onnxruntime_qnn",),
    "coreml": ("coremltools", "onnx2coreml"),
    "litert": ("ai_edge_litert", "ai_edge_quantizer"),
}
EXPECTED = {
    "qnn:sm8650": {
        "Qnn",
        "Qnn <- QnnQuantization nearest",
        "Qnn <- QnnQuantization layer",
        "Qnn <- QnnQuantization uint16 layer",
    },
    "coreml": {
        "CoreMl f32 float",
        "CoreMl f16 float",
        "CoreMl f16 int8",
    },
    "litert": {
        "LiteRtReference",
        "LiteRtReference <- LitertQuantization nearest int8",
        "LiteRtReference <- LitertQuantization layer int8",
        "LiteRtReference <- LitertQuantization layer int16",
    },
}


def label(value: object) -> str:
    """Return a value's type and the words among its settings."""
    words = [v for v in vars(value).values() if isinstance(v, str) and v and v != "uint8"]
    return " ".join([type(value).__name__, *words])


@pytest.mark.parametrize("name", NEEDED)
def test_every_candidate_of_a_device_is_built_answered_and_estimated(
    name: str, digits: Digits, tmp_path: Path
) -> None:
    if missing := [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'hasten[edge]'")
    target = find_target(name)
    assert target.kind == "compile-only"
    first = grid(digits.model, target, engine_names=tried_on(target.family))
    found = set()
    for number, candidate in enumerate([*first, *variations(first, digits.model, target)]):
        model = digits.model
        try:
            for step in candidate.passes:
                workdir = tmp_path / f"{number}-{type(step).__name__}"
                workdir.mkdir()
                model = step(model, digits.calibration, workdir)
        except Skipped:  # the network's ONNX is as simple as can be
            continue
        (tmp_path / f"{number}-built").mkdir()
        artifact = candidate.engine.build(model, target, tmp_path / f"{number}-built")
        record = json.loads(json.dumps(to_record(artifact)))
        assert from_record(Artifact, record) == artifact
        with candidate.engine.open(artifact, target) as session:
            rows = [session.run({"x": image[None]})["output"] for image in digits.images[:50]]
        right = np.concatenate(rows).argmax(1) == digits.labels[:50]
        assert np.mean(right) >= 0.9, candidate
        (tmp_path / f"{number}-tools").mkdir()
        estimate = candidate.engine.estimate(artifact, target, tmp_path / f"{number}-tools")
        assert estimate.latency_ns is None
        assert all(figure > 0 for figure in estimate.figures.values())
        assert not candidate.engine.faithful
        found.add(" <- ".join(label(value) for value in (candidate.engine, *candidate.passes)))
    assert found == EXPECTED[name]


def test_a_part_that_is_unknown_gets_those_that_are_known() -> None:
    with pytest.raises(InputError) as caught:
        find_target("qnn:sm9999")
    assert str(caught.value) == (
        "no Qualcomm chip is called 'sm9999'; choose one of: sm8550, sm8450, sm8650, sm8750, sm8850, "
        "sc8380xp"
    )
