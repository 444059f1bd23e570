from pathlib import Path

import numpy as np
import pytest

from hasten.core.records import from_record, to_record
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.custom import Custom

CODE = """
import numpy as np
def right(outputs, labels): return outputs["y"] == labels
def close(outputs, labels, exact): return np.abs(outputs["y"] - exact["y"]) < 1
def optional(outputs, labels, strict=False): return [float(strict)] * 3
def one(outputs): return [1, 1, 1]
def short(outputs, labels): return [1, 1]
def high(outputs, labels): return [0.5, 1.5, 0]
def nan(outputs, labels): return [0, 0, float("nan")]
def text(outputs, labels): return "good"
value = 3
"""
Y = {"y": np.array([1.0, 2.0, 3.0])}
CAME = "it was given the outputs y float64 [3] (1, 2, 3), and no labels"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(CODE)
    return path


def test_a_function_of_outputs_and_labels_scores(file: Path) -> None:
    scores = Custom(f"{file}:right").score(Y, {}, np.array([1, 2, 0]))
    assert scores.tolist() == [1, 1, 0]
    assert scores.dtype == np.float64


def test_a_function_of_three_gets_the_exact_outputs_too(file: Path) -> None:
    exact = {"y": np.array([1.0, 9.0, 3.0])}
    assert Custom(f"{file}:close").score(Y, exact, None).tolist() == [1, 0, 1]


def test_a_third_argument_with_a_default_stays_the_functions_own(file: Path) -> None:
    assert Custom(f"{file}:optional").score(Y, {}, None).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "one",
            "takes 1 arguments; a metric takes (outputs, labels) or (outputs, labels, exact)",
        ),
        ("short", f"returned [2] for 3 samples; a metric returns (3,); {CAME}"),
        ("high", f"returned 1.5 for sample 1 of 3; a score lies in [0, 1]; {CAME}"),
        ("nan", f"returned nan for sample 2 of 3; a score lies in [0, 1]; {CAME}"),
        ("text", f"returned a str; a metric returns (3,) numbers; {CAME}"),
        ("value", "is a int, not a function"),
    ],
)
def test_a_function_that_gives_no_scores_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        Custom(f"{file}:{name}").score(Y, Y, None)
    assert str(error.value) == f"{file}:{name} {message}"


def test_a_missing_function_is_named(file: Path) -> None:
    with pytest.raises(InputError) as error:
        Custom(f"{file}:none").score(Y, Y, None)
    assert str(error.value).startswith(f"can't import '{file}:none': ")


def test_the_users_own_failure_is_told_with_its_line_and_what_came(file: Path) -> None:
    labels = np.arange(12).reshape(3, 4)
    with pytest.raises(InputError) as error:
        Custom(f"{file}:right").score({"z": Y["y"].astype(np.float32)}, {}, labels)
    assert str(error.value) == (
        f"{file}:right failed: KeyError at line 3 of my.py: 'y'; it was given the outputs "
        "z float32 [3] (1, 2, 3), and the labels int64 [3, 4] (0, 1, 2, ...)"
    )
    assert isinstance(error.value.__cause__, KeyError)


def test_a_custom_metric_is_written_and_read_back() -> None:
    metric = Custom("my.py:score")
    assert from_record(Metric, to_record(metric)) == metric
