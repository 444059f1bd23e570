"""How a run was asked for, in words that ask the same again."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.invocation import Invocation, invocation, typed
from hasten.core.records import from_record, to_record

plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = plain | st.lists(plain, max_size=3)


def optimize(model: Any, data: Any, **options: Any) -> Invocation:
    return invocation("optimize", {"model": model, "data": data, **options})


def python(words: str) -> dict[str, Any]:
    """Run what was written, and return how `hasten.optimize` was called."""
    called: dict[str, Any] = {}

    class Hasten:
        optimize = staticmethod(called.update)

    exec(words.removeprefix("import hasten\n"), {"hasten": Hasten, "model": "the live one"})
    return called


def test_what_was_typed_is_kept_word_for_word() -> None:
    with typed(("optimize", "my model.onnx", "--data", "a;b.npz", "--resume")):
        asked = optimize("ignored", "ignored")
    assert asked == Invocation(("optimize", "my model.onnx", "--data", "a;b.npz"))
    assert asked.in_words() == "hasten optimize 'my model.onnx' --data 'a;b.npz'"
    assert optimize("m.onnx", "d.npz").words == ()


@given(st.lists(st.text(), min_size=1))
def test_no_word_is_more_than_one_word(words: list[str]) -> None:
    said = Invocation(tuple(words)).in_words()
    assert shlex.split(said) == ["hasten", *words]


def test_python_is_asked_again_as_it_was_asked() -> None:
    asked = optimize(Path("m.onnx"), np.zeros(3), max_drop=0.05, training=None)
    assert asked.in_words() == (
        "import hasten\n"
        "\n"
        "hasten.optimize(\n"
        "    model='m.onnx',\n"
        "    data=data,  # an object of type numpy ndarray\n"
        "    max_drop=0.05,\n"
        ")"
    )


def test_a_list_of_live_objects_is_an_object() -> None:
    assert optimize([object()], "d").arguments["model"] == {"live": "an object of type list"}
    assert optimize([Path("a"), "b"], "d").arguments["model"] == ["a", "b"]


@given(st.dictionaries(st.sampled_from(["model", "data", "out"]), values))
def test_arguments_of_a_file_are_values_and_never_code(arguments: dict[str, Any]) -> None:
    assert python(Invocation(arguments=arguments).in_words()) == arguments


def test_a_number_that_json_does_not_have_is_named() -> None:
    asked = optimize("m", "d", max_drop=float("inf"))
    assert asked.arguments["max_drop"] == {"live": "the number inf"}
    assert "max_drop=max_drop,  # the number inf" in asked.in_words()
    assert python(Invocation(arguments={"out": float("inf")}).in_words()) == {}


def test_what_is_no_argument_is_left_out() -> None:
    hostile = {
        "a=1); import os; (b": "x",
        "model": {"live": "x\nimport os"},
        "data": [["nested"]],
        "out": "'); import os; ('",
    }
    assert python(Invocation(arguments=hostile).in_words()) == {
        "model": "the live one",
        "out": "'); import os; ('",
    }


def test_an_invocation_is_a_record() -> None:
    for asked in (Invocation(("optimize", "m")), optimize(Path("m"), 3, max_drop=0.5)):
        assert from_record(Invocation, to_record(asked)) == asked
