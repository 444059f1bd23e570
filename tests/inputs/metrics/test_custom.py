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
def of_all(outputs, labels): return np.full(len(labels), np.mean(outputs["y"] == labels))
def ranked(outputs, labels): return np.argsort(np.argsort(outputs["y"])) / len(labels)
def centered(outputs, labels, exact): return np.clip(outputs["y"] - exact["y"].mean(), 0, 1)
def products(outputs, labels):
    return np.clip(0.5 + (outputs["x"] @ np.ones((512, 8), np.float32))[:, 0] / 999, 0, 1)
calls = []
def counted(outputs, labels):
    calls.append(len(labels))
    return outputs["y"] == labels
value = 3
def nothing(outputs, labels): return None
def mean(outputs, labels): return 0.5
def none_at_all(): return [1, 1, 1]
def any_number(*given): return [len(given) == 2] * 3
def keyword(outputs, labels, *, strict): return [1, 1, 1]
def yes(outputs, labels): return outputs["y"] > 1
yes.binary = True
def part(outputs, labels): return [0, 0.25, 1]
part.binary = True
def fractions(outputs, labels): return [0, 0.25, 1]
fractions.binary = False
def vague(outputs, labels): return [0, 1, 1]
vague.binary = "often"
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
            "takes 1 argument; a metric takes (outputs, labels) or (outputs, labels, exact)",
        ),
        ("short", f"returned [2] for 3 samples; a metric returns (3,); {CAME}"),
        ("high", f"returned 1.5 for sample 1 of 3; a score lies in [0, 1]; {CAME}"),
        ("nan", f"returned nan for sample 2 of 3; a score lies in [0, 1]; {CAME}"),
        ("text", f"returned a str; a metric returns (3,) numbers; {CAME}"),
        ("value", "is an int, not a function"),
        ("nothing", f"returned None; a metric returns (3,) numbers; {CAME}"),
        ("mean", f"returned a float; a metric returns (3,) numbers; {CAME}"),
    ],
)
def test_a_function_that_gives_no_scores_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        Custom(f"{file}:{name}").score(Y, Y, None)
    assert str(error.value) == f"{file}:{name} {message}"


@pytest.mark.parametrize(
    ("name", "count"),
    [("one", "1 argument"), ("none_at_all", "0 arguments"), ("keyword", "2 arguments and strict=")],
)
def test_a_function_of_other_arguments_is_refused_as_soon_as_it_is_imported(
    file: Path, name: str, count: str
) -> None:
    with pytest.raises(InputError) as error:
        _ = Custom(f"{file}:{name}").source_sha256
    assert str(error.value).startswith(f"{file}:{name} takes {count}; a metric takes ")


def test_a_function_of_any_number_of_arguments_gets_two(file: Path) -> None:
    assert Custom(f"{file}:any_number").score(Y, Y, None).tolist() == [1, 1, 1]


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


@pytest.mark.parametrize("name", ["of_all", "ranked", "centered"])
def test_a_score_that_depends_on_the_other_samples_of_a_call_is_refused(
    file: Path, name: str
) -> None:
    y = np.random.default_rng(0).random(64).round(1)
    labels = np.where(np.arange(64) % 3 > 0, y, 2)
    with pytest.raises(InputError) as error:
        Custom(f"{file}:{name}").score({"y": y}, {"y": y}, labels)
    said = str(error.value)
    assert said.startswith(f"{file}:{name} gave sample ")
    assert " among 64 samples and " in said
    assert said.endswith(
        " of them. A certificate needs scores that don't depend on the other samples in the call: "
        f"if it is a figure of the whole set, use report='{file}:{name}' together with another metric"
    )


def test_a_figure_of_the_call_that_begins_perfect_is_refused_once_it_is_not(file: Path) -> None:
    y, metric = np.arange(64), Custom(f"{file}:of_all")
    for _ in range(5):
        assert metric.score({"y": y}, {}, y).tolist() == [1.0] * 64
    with pytest.raises(
        InputError, match="A certificate needs scores that don't depend on the other"
    ):
        metric.score({"y": y}, {}, np.where(y < 3, 99, y))


def test_scores_of_single_samples_pass_with_their_rounding_and_cost_few_more_calls(
    file: Path,
) -> None:
    x = np.random.default_rng(1).standard_normal((64, 512), dtype=np.float32)
    assert Custom(f"{file}:products").score({"x": x}, {}, None).shape == (64,)
    metric, y = Custom(f"{file}:counted"), np.arange(64)
    for _ in range(10):
        metric.score({"y": y}, {}, np.where(y % 5 > 0, y, 0))
    calls = metric._function.__globals__["calls"]
    assert len(calls) == 10 + 2 * 3
    metric.score({"y": y[:3]}, {}, y[:3])
    Custom(f"{file}:counted").score({"y": y[:3]}, {}, y[:3])  # too few to be divided
    assert calls[-2:] == [3, 3]


def test_a_function_states_whether_its_scores_are_0_or_1(file: Path) -> None:
    assert Custom(f"{file}:right").binary is None
    assert Custom(f"{file}:yes").binary is True
    assert Custom(f"{file}:fractions").binary is False
    assert Custom(f"{file}:yes").score(Y, {}, None).tolist() == [0, 1, 1]


def test_a_score_between_0_and_1_of_a_function_that_states_none_is_refused(file: Path) -> None:
    message = "part returned 0.25 for sample 1 of 3, but its binary = True states that each score is 0 or 1"
    with pytest.raises(InputError, match=message):
        Custom(f"{file}:part").score(Y, {}, None)
    with pytest.raises(
        InputError, match=r"vague has binary = 'often'; it is True where all scores"
    ):
        _ = Custom(f"{file}:vague").binary
