"""Inputs that the data never changes: the compiled engine takes them for constants, and refuses other numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support import models

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Session
from hasten.engines.buckets import Buckets
from hasten.engines.cascade import Cascade
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.padding import Axis, Bucket, Dimension
from hasten.errors import CandidateError, InputError, NotCovered
from hasten.inputs.models.onnx import load
from hasten.testing.models import write

ENGINE = CompiledC()
REFUSED = (
    "input 'rate' must be 16000, as in all of the data that the model was optimized with: got 8000; for "
    "other values, optimize the model with data that has them"
)
CHOOSING = """
    choosing (float[1, 4] x, bool[1] turned, int64[2] order, int64 unused)
        => (float[1, 4] y, int64[2] same) <int64[1] first = {0}, int64 two = {2}> {
        kept = Equal(unused, unused)
        y = If (turned) <
            then_branch = yes () => (float[1, 4] minus) { minus = Neg(x) },
            else_branch = no () => (float[1, 4] plus) { plus = Identity(x) }>
        same = Mul(order, two)
    }
"""
CHOICE = {"turned": (1,), "order": (1, 0), "unused": (7,)}


def voice(folder: Path) -> Model:
    made = load(models.voice_detector(folder)).settled_by(
        {name: array[0] for name, array in request().items() if name != "rate"}
        | {"rate": np.array(16_000)}
    )
    return replace(made, constant_inputs=(("rate", (16_000,)),))


def request(rate: int = 16_000, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "audio": rng.standard_normal((1, 256), np.float32),
        "state": rng.standard_normal((1, 8), np.float32),
        "rate": np.array(rate),
    }


def choosing(folder: Path, *constant: str) -> Model:
    made = load(write(folder / "choosing.onnx", CHOOSING, {})).settled_by(
        {
            "x": np.zeros(4, np.float32),
            "turned": np.array(True),
            "order": np.array([1, 0]),
            "unused": np.array(7),
        }
    )
    return replace(made, constant_inputs=tuple((name, CHOICE[name]) for name in constant))


@contextmanager
def opened(artifact: Artifact) -> Iterator[Session]:
    with ENGINE.open(artifact, Target.host()) as session:
        yield session


@pytest.fixture
def built(tmp_path: Path) -> Artifact:
    return ENGINE.build(voice(tmp_path), Target.host(), tmp_path)


def test_a_branch_that_hangs_on_a_constant_input_is_taken(built: Artifact, tmp_path: Path) -> None:
    assert ENGINE.constant_inputs(built) == {"rate": (16_000,)}
    assert [spec.name for spec in built.inputs] == ["audio", "state", "rate"]
    reference = OnnxRuntime(threads=1)
    (tmp_path / "reference").mkdir()
    usual = reference.build(voice(tmp_path), Target.host(), tmp_path / "reference")
    with opened(built) as session, reference.open(usual, Target.host()) as other:
        assert session.properties()["input rate"] == "always 16000"
        for seed in range(3):
            asked = request(seed=seed)
            wanted = other.run(asked)
            for name, array in session.run(asked).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def test_without_the_data_the_branch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotCovered) as caught:
        ENGINE.build(replace(voice(tmp_path), constant_inputs=()), Target.host(), tmp_path)
    assert str(caught.value) == (
        "the compiled engine doesn't take If (node that gives 'frames'): its condition must be constant"
    )


def test_another_number_is_refused_in_one_line(built: Artifact) -> None:
    with opened(built) as session:
        with pytest.raises(InputError) as caught:
            session.run(request(8_000))
        assert str(caught.value) == REFUSED
        assert session.run(request())["speech"].shape == (1, 2)


def test_a_bound_call_refuses_another_number_until_it_is_set_back(built: Artifact) -> None:
    asked = request()
    answer = {"speech": np.zeros((1, 2), np.float32), "next": np.zeros((1, 8), np.float32)}
    with opened(built) as session:
        call = session.bind(asked, answer)
        call()
        before = answer["speech"].copy()
        assert before.any()
        asked["rate"][...] = 8_000
        answer["speech"][...] = 0
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == REFUSED
        assert not answer["speech"].any()
        asked["rate"][...] = 16_000
        call()
        np.testing.assert_array_equal(answer["speech"], before)
    with pytest.raises(CandidateError):
        call()


def test_only_inputs_that_the_model_needs_constant_are_held_to_their_numbers(
    tmp_path: Path,
) -> None:
    built = ENGINE.build(choosing(tmp_path, *CHOICE), Target.host(), tmp_path)
    assert ENGINE.constant_inputs(built) == {"turned": (1,)}
    x = np.arange(4, dtype=np.float32)[np.newaxis]
    asked = {"x": x, "turned": np.array([True]), "order": np.array([3, 4]), "unused": np.array(9)}
    with opened(built) as session:
        answer = session.run(asked)
        np.testing.assert_array_equal(answer["y"], -x)
        np.testing.assert_array_equal(answer["same"], [6, 8])
        with pytest.raises(InputError, match=r"^input 'turned' must be 1, .*: got 0; "):
            session.run({**asked, "turned": np.array([False])})


def test_a_model_that_is_covered_anyway_takes_every_number(tmp_path: Path) -> None:
    made = load(write(tmp_path / "scaled.onnx", _SCALED, {})).settled_by(
        {"x": np.zeros(4, np.float32), "rate": np.array(2)}
    )
    held = replace(made, constant_inputs=(("rate", (2,)),))
    built = ENGINE.build(held, Target.host(), tmp_path)
    assert ENGINE.constant_inputs(built) == {}
    assert json.loads(built.path.read_text())["format"] == 1  # so that earlier versions read it
    with opened(built) as session:
        answer = session.run({"x": np.ones((1, 4), np.float32), "rate": np.array(5)})
    np.testing.assert_array_equal(answer["y"], np.full((1, 4), 5, np.float32))


_SCALED = """
    scaled (float[1, 4] x, int64 rate) => (float[1, 4] y) {
        factor = Cast <to = 1> (rate)
        y = Mul(x, factor)
    }
"""


def _other_count(plan: dict[str, Any], rate: str) -> None:
    plan["constant_inputs"][rate] = [16_000, 16_000]


def _too_large(plan: dict[str, Any], rate: str) -> None:
    plan["constant_inputs"][rate] = [2**63]


def _of_floats(plan: dict[str, Any], rate: str) -> None:
    plan["constant_inputs"] = {plan["inputs"][1]: [0] * 8}


def _no_input(plan: dict[str, Any], rate: str) -> None:
    plan["constant_inputs"] = {"other": [1]}


def _of_a_result(plan: dict[str, Any], rate: str) -> None:
    plan["tensors"]["more"] = {"dtype": "int64", "size": 1, "offset": None}
    plan["constant_inputs"] = {"more": [1]}


@pytest.mark.parametrize("damage", [_other_count, _too_large, _of_floats, _no_input, _of_a_result])
def test_damaged_constants_are_refused_before_anything_is_compiled(
    built: Artifact, damage: Callable[[dict[str, Any], str], None]
) -> None:
    record = json.loads(built.path.read_text())
    damage(record["plan"], record["plan"]["inputs"][2])
    built.path.write_text(json.dumps(record))
    with (
        pytest.raises(CandidateError, match=r"^the compiled engine can't open the model: "),
        opened(built),
    ):
        pass
    assert ENGINE.constant_inputs(built) == {}


def test_an_input_that_a_step_reads_cannot_be_constant(tmp_path: Path) -> None:
    made = load(write(tmp_path / "scaled.onnx", _SCALED, {})).settled_by(
        {"x": np.zeros(4, np.float32), "rate": np.array(2)}
    )
    built = ENGINE.build(made, Target.host(), tmp_path)
    record = json.loads(built.path.read_text())
    rate = record["plan"]["inputs"][1]
    record["plan"]["constant_inputs"] = {rate: [2]}
    built.path.write_text(json.dumps({"format": 2, "plan": record["plan"]}))
    with pytest.raises(CandidateError) as caught, opened(built):
        pass
    assert str(caught.value) == (
        f"the compiled engine can't open the model: the plan is damaged: {rate!r} can't be an input that is "
        "constant"
    )


def test_a_plan_with_constants_is_one_that_earlier_versions_refuse(built: Artifact) -> None:
    assert json.loads(built.path.read_text())["format"] == 2


def test_the_reference_in_numpy_refuses_the_same(tmp_path: Path) -> None:
    text = """
        bytes_of (float[1, 4] x, bool turned) => (uint8[1, 4] y)
            <float half = {0.5}, float two = {2.0}, uint8 zero = {128}> {
            y = If (turned) <
                then_branch = yes () => (uint8[1, 4] fine) {
                    fine = QuantizeLinear(x, half, zero)
                },
                else_branch = no () => (uint8[1, 4] coarse) {
                    coarse = QuantizeLinear(x, two, zero)
                }>
        }"""
    made = load(write(tmp_path / "bytes.onnx", text, {})).settled_by(
        {"x": np.zeros(4, np.float32), "turned": np.array(True)}
    )
    reference = ENGINE.reference()
    assert reference is not None
    held = replace(made, constant_inputs=(("turned", (1,)),))
    built = reference.build(held, Target.host(), tmp_path)
    x = np.array([[0, 1, -2, 3]], np.float32)
    with reference.open(built, Target.host()) as slow, opened(built) as fast:
        for session in (slow, fast):
            answer = session.run({"x": x, "turned": np.array(True)})
            np.testing.assert_array_equal(answer["y"], [[128, 130, 124, 134]])
            with pytest.raises(InputError, match=r"^input 'turned' must be 1, .*: got 0; "):
                session.run({"x": x, "turned": np.array(False)})


def test_a_cascade_says_what_one_of_its_models_takes(tmp_path: Path) -> None:
    made = voice(tmp_path)
    cascade = Cascade(ENGINE, OnnxRuntime(threads=1), 0.1, "speech")
    built = cascade.build(replace(made, origin=made), Target.host(), tmp_path)
    assert cascade.constant_inputs(built) == {"rate": (16_000,)}
    with cascade.open(built, Target.host()) as session, pytest.raises(InputError) as caught:
        session.run(request(8_000))
    assert str(caught.value) == REFUSED


def test_models_of_buckets_rely_on_no_number(tmp_path: Path) -> None:
    text = """
        turning (float[1, length] x, bool turned) => (float[1, length] y) {
            y = If (turned) <
                then_branch = yes () => (float[1, n] minus) { minus = Neg(x) },
                else_branch = no () => (float[1, n] plus) { plus = Abs(x) }>
        }"""
    made = load(write(tmp_path / "turning.onnx", text, {})).settled_by(
        {"x": np.zeros(4, np.float32), "turned": np.array(True)}
    )
    held = replace(made, constant_inputs=(("turned", (1,)),))
    assert ENGINE.constant_inputs(ENGINE.build(held, Target.host(), tmp_path)) == {"turned": (1,)}
    length = Dimension((Axis("x", 1),), (Axis("y", 1),))
    buckets = Buckets(ENGINE, OnnxRuntime(threads=1), (length,), (Bucket((4,)), Bucket((8,))))
    (tmp_path / "buckets").mkdir()
    with pytest.raises(NotCovered, match=r"doesn't take If "):
        buckets.build(held, Target.host(), tmp_path / "buckets")
