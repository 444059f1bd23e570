"""The default engine's answers against others': what alarms, and what doesn't."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.support.faults import Faulty
from tests.support.rivals import ExactAndWrong

from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.onnx import load
from hasten.measure.candidate import Single
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.cross_check import cross_check

ORT = OnnxRuntime(threads=1)
RIGHT = "y = Relu(x)"
EVALUATED_WRONGLY = "y = Hardmax <axis = 1> (x)"
EVALUATED_IN_ANOTHER_SHAPE = (
    'y = MaxPool <kernel_shape = [3], strides = [2], auto_pad = "SAME_LOWER"> (x)'
)
RIGHT_ONCE_UPGRADED = "y = Softmax <axis = 1> (x)"
"""Of opset 11: over both axes at once by the standard, and over the first alone by the evaluator."""
NOT_EVALUATED = "y = GlobalLpPool(x)"


def noted(
    folder: Path, operator: str, baseline: Engine, others: Sequence[Engine], opset: int = 11
) -> str:
    """The note on a model of one operator, where an engine is the default one."""
    text = f"""<ir_version: 8, opset_import: ["": {opset}]>
        one (float[batch, 4, 3] x) => (float[batch, p, q] y) {{ {operator} }}"""
    onnx.save(onnx.parser.parse_model(text), folder / "one.onnx")
    x = np.random.default_rng(0).standard_normal((3, 4, 3), np.float32)
    samples = write_spool(ArrayDataset({"x": x}, None), folder / "spool")
    target = Target.host().with_threads(1)
    (folder / "bench").mkdir()
    bench = Workbench(
        folder / "bench",
        target,
        model=load(folder / "one.onnx").settled_by({"x": x[0]}),
        calibration=samples,
        calibration_hash="0",
    )
    single = Single((), baseline)
    opened = bench.open(single)
    own = bench.predict_one(opened, samples)
    opened.worker.kill()
    asked = [Single((), other) for other in others]
    return cross_check(bench, single, own, samples, asked, limit_s=300.0)


ANOTHER = Faulty(ORT)
"""An engine that isn't the default one, and answers right."""
WRONG = ExactAndWrong(ORT, "wrong")
ADVICE = (
    "this run treats the answers of {} as right, so compare them with the answers of the "
    "framework that the model comes from"
)


@pytest.mark.parametrize(
    "operator", [RIGHT, RIGHT_ONCE_UPGRADED, NOT_EVALUATED, EVALUATED_IN_ANOTHER_SHAPE]
)
def test_an_evaluator_that_agrees_or_fails_is_no_news(tmp_path: Path, operator: str) -> None:
    assert noted(tmp_path, operator, ORT, (WRONG,)) == ""


def test_an_evaluator_that_a_second_engine_contradicts_is_no_news(tmp_path: Path) -> None:
    assert noted(tmp_path, EVALUATED_WRONGLY, ORT, (ORT, ANOTHER, WRONG)) == ""


def test_an_engine_that_two_others_contradict_is_named(tmp_path: Path) -> None:
    assert noted(tmp_path, RIGHT, WRONG, (WRONG, ORT)) == (
        f"{WRONG.words()} may answer wrongly: on one sample it differs by 2.0e+00 of the largest output from "
        f"{ORT.words()} and from onnx's own evaluator, which agree; {ADVICE.format(WRONG.words())}"
    )


def test_without_a_second_engine_it_is_said_that_none_can_tell(tmp_path: Path) -> None:
    others = (Faulty(ORT, "build"), dataclasses.replace(ORT, threads=2))
    assert noted(tmp_path, EVALUATED_WRONGLY, ORT, others) == (
        f"{ORT.words()} and onnx's own evaluator give different answers to one sample, by "
        "1.0e+00 of the largest output, and no other engine here runs the model to show which is "
        "right; "
        f"{ADVICE.format(ORT.words())}"
    )


def test_where_all_three_differ_nobody_is_blamed(tmp_path: Path) -> None:
    assert noted(tmp_path, EVALUATED_WRONGLY, ORT, (WRONG,)) == (
        f"{ORT.words()} and {WRONG.words()} give different answers to one sample, by 2.0e+00 of "
        "the largest output, and onnx's own evaluator agrees with neither: the model may magnify "
        "rounding, or one of them is "
        f"wrong; {ADVICE.format(ORT.words())}"
    )


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("r = RandomNormalLike(x) y = Add(x, r)", "RandomNormalLike ('r')"),
        ("r = RandomUniform<shape = [1, 4, 3]>() y = Add(x, r)", "RandomUniform ('r')"),
        (
            "f = Flatten(x) i = Multinomial<sample_size = 3>(f) c = Cast<to = 1>(i) y = Add(x, c)",
            "Multinomial ('i')",
        ),
    ],
)
def test_random_numbers_are_named_in_place_of_a_wrong_engine(
    tmp_path: Path, operator: str, kind: str
) -> None:
    said = noted(tmp_path, operator, ORT, (ANOTHER,))
    assert said == (
        f"the model draws random numbers by {kind}, so its answers to the same input differ, and no other form of "
        "it can be compared with it: export it without that operator, or with the numbers as an input"
    )


@pytest.mark.parametrize("trains", [True, False])
def test_dropout_is_named_only_if_it_is_in_training_mode(tmp_path: Path, trains: bool) -> None:
    operator = f"half = Constant<value_float = 0.5>() on = Constant<value = bool {{{int(trains)}}}>() y = Dropout(x, half, on)"
    said = noted(tmp_path, operator, ORT, (ANOTHER,), opset=17)
    assert said == (
        "the model draws random numbers by Dropout in training mode ('y'), so its answers to the same input differ, and "
        "no other form of it can be compared with it: export it in evaluation mode, such as after model.eval() of PyTorch"
        if trains
        else ""
    )
