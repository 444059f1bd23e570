"""Numbers out of JSON: the quick way and the slow one say the same, or the quick one says nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.requests import Query
from hasten.serving.wire import http_bodies, json_numbers
from hasten.serving.wire.http_bodies import read_body
from hasten.serving.wire.json_numbers import numbers
from hasten.serving.wire.plans import Plans
from hasten.serving.wire.shared_memory import SharedMemory

simdjson = pytest.importorskip("simdjson", reason="pysimdjson has no wheel for this Python")

LARGEST = float(np.finfo(np.float32).max)
"""A Python number, since numpy would make a float32 of what is compared with one of its own."""
RANGES = {"INT8": 2**7, "INT32": 2**31, "INT64": 2**63, "UINT8": 2**8, "UINT64": 2**64}


def read(body: bytes) -> Query:
    return read_body(body, None, "m", "", SharedMemory(), 1 << 20)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, tuple[int, ...], list[Any]]:
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    datatype = draw(st.sampled_from(["FP32", "FP64", *RANGES]))
    if datatype.startswith("FP"):
        each: Any = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)
    else:
        most = RANGES[datatype]
        each = st.integers(0 if datatype[0] == "U" else -most, most - 1)
    count = int(np.prod(shape))
    return datatype, shape, draw(st.lists(each, min_size=count, max_size=count))


def nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    array = np.empty(len(flat), object)
    array[:] = flat
    return list(array.reshape(shape).tolist())


@example(("FP32", (2,), [LARGEST, -LARGEST]), True, None)
@example(("FP32", (1,), [1e39]), True, None)
@given(tensors(), st.booleans(), st.sampled_from([None, 0, 2]))
def test_numbers_are_what_was_written(
    tensor: tuple[str, tuple[int, ...], list[Any]], flat: bool, indent: int | None
) -> None:
    datatype, shape, values = tensor
    text = json.dumps(values if flat else nested(values, shape), indent=indent).encode()
    found = numbers(memoryview(text), datatype, shape)
    if datatype == "FP32" and max(map(abs, values)) > LARGEST:
        return
    assert found is not None
    want = np.array(values, np.float64 if datatype[0] == "F" else found.dtype)
    np.testing.assert_array_equal(found, want.astype(found.dtype).reshape(shape))


@pytest.mark.parametrize(
    ("text", "datatype", "shape"),
    [
        ("[1, true]", "FP32", (2,)),
        ('[1, "2"]', "FP32", (2,)),
        ("[1, null]", "FP32", (2,)),
        ("[1, {}]", "FP32", (2,)),
        ("[1.0]", "INT32", (1,)),
        ("[128]", "INT8", (1,)),
        ("[-1]", "UINT8", (1,)),
        ("[[1, 2], [3]]", "FP32", (3,)),
        ("[[1], [2, 3]]", "FP32", (3,)),
        ("[[1, 2, 3], []]", "FP32", (3,)),
        ("[[1, 2], [3, 4], [5, 6]]", "FP32", (2, 3)),
        ("[[[1, 2, 3]]]", "FP32", (1, 3)),
        ("[1, 2, 3]", "FP32", (2,)),
        ("[]", "FP32", (0,)),
        ("[0]", "BOOL", (1,)),
        ("7", "FP32", (1,)),
        ("[1e39]", "FP32", (1,)),
        ("[70000]", "FP16", (1,)),
        ("[-70000]", "FP16", (1,)),
        (str([1] * 99 + [-1e39]), "FP32", (100,)),
    ],
)
def test_anything_else_is_left_to_who_says_why(
    text: str, datatype: str, shape: tuple[int, ...]
) -> None:
    assert numbers(memoryview(text.encode()), datatype, shape) is None


@given(tensors(), st.booleans())
def test_without_it_json_reads_the_same(
    tensor: tuple[str, tuple[int, ...], list[Any]], flat: bool
) -> None:
    datatype, shape, values = tensor
    data = values if flat else nested(values, shape)
    body = json.dumps(
        {"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]}
    ).encode()

    def told() -> Any:
        try:
            return read(body).inputs["x"]
        except ProtocolError as failure:
            return str(failure)

    quick = told()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_bodies, "numbers", lambda *given: None)
        slow = told()
    np.testing.assert_array_equal(quick, slow)
    assert getattr(quick, "dtype", None) == getattr(slow, "dtype", None)


def test_a_number_that_is_too_large_for_its_type_isnt_taken_for_infinity() -> None:
    x = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1e39]}
    with pytest.raises(ProtocolError, match=r"^input 'x': its data has a value that is not FP32$"):
        read(json.dumps({"inputs": [x]}).encode())


def test_a_parser_that_is_in_use_is_no_failure() -> None:
    held = json_numbers._parser.parse(b"[1]")  # as an exception's traceback could hold it
    assert numbers(memoryview(b"[1]"), "FP32", (1,)) is None
    del held
    assert numbers(memoryview(b"[1]"), "FP32", (1,)) is not None


def body_of(values: list[float], **more: Any) -> bytes:
    x = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": values}
    return json.dumps({**more, "inputs": [x]}).encode()


def known(plans: Plans, body: bytes) -> Query | None:
    """Read a body as the server does: by its plan, or as a whole, noting one."""
    found = plans.find(body, None)
    if found is None:
        for _ in range(2):  # what came once may be of a client whose requests all differ
            plans.note(read(body), body, None, 1, ())
    return found


@pytest.mark.parametrize(
    "more", [{}, {"id": "a"}, {"parameters": {"priority": 3, "timeout": 9}}, {"outputs": []}]
)
def test_what_differs_in_its_numbers_alone_is_read_by_its_plan(more: dict[str, Any]) -> None:
    plans = Plans()
    assert known(plans, body_of([1, 2, 3], **more)) is None
    more = {**more, "id": "b"} if "id" in more else more
    body = body_of([4.5, -5, 6e3], **more)
    found, want = known(plans, body), read(body)
    assert found is not None
    np.testing.assert_array_equal(found.inputs.pop("x"), want.inputs.pop("x"))
    assert found.plan is not None
    found.plan = None
    assert found == want


@pytest.mark.parametrize(
    "body",
    [
        body_of([1, 2, 3], parameters={"\\": 1}),
        body_of([1, 2, 3]).replace(b'"data"', b'"d\\u0061ta"'),
        body_of([1, 2, 3], parameters={"data": 1}).replace(b'"data": [', b'"d\\u0061ta": ['),
    ],
)
def test_what_could_hide_its_numbers_has_no_plan(body: bytes) -> None:
    plans = Plans()
    assert known(plans, body) is None
    assert known(plans, body) is None


def test_an_input_named_data_is_read_right() -> None:
    plans = Plans()
    for values in ([1.0, 2, 3], [4.0, 5, 6], [7.0, 8, 9]):
        body = body_of(values).replace(b'"x"', b'"data"')
        query = known(plans, body) or read(body)
        assert query.inputs["data"].tolist() == [values]


@pytest.mark.parametrize("data", ["[1, 2]", "[1, 2, 3, 4]", '[1, 2, "3"]', "[[1, 2, 3]], 4]", "1"])
def test_a_plan_takes_no_other_data(data: str) -> None:
    plans = Plans()
    body = body_of([1, 2, 3])
    assert known(plans, body) is None
    assert known(plans, body) is not None
    assert plans.find(body.replace(b"[1, 2, 3]", data.encode()), None) is None


def test_long_requests_have_plans_too() -> None:
    plans = Plans()
    values = np.arange(60_000, dtype=np.float32)
    for number in range(2):
        x = {"name": "x", "datatype": "FP32", "shape": [1, 60_000], "data": values.tolist()}
        body = memoryview(json.dumps({"inputs": [x]}).encode())
        found = plans.find(body, None)
        if number:
            assert found is not None
            np.testing.assert_array_equal(found.inputs["x"][0], values)
        else:
            for _ in range(2):
                plans.note(read(body), body, None, 1, ())  # type: ignore[arg-type]
        values = values[::-1].copy()
