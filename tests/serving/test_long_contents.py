"""Numbers that gRPC messages list one by one, many of them, beside how protobuf reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.tensors import Array
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.messages import message
from hasten.serving.wire.grpc_messages import query_of, read_request
from hasten.serving.wire.shared_memory import SharedMemory

CONTENTS = {
    "BOOL": ("bool_contents", "bool"),
    "INT8": ("int_contents", "int8"),
    "INT32": ("int_contents", "int32"),
    "INT64": ("int64_contents", "int64"),
    "UINT16": ("uint_contents", "uint16"),
    "UINT32": ("uint_contents", "uint32"),
    "UINT64": ("uint64_contents", "uint64"),
    "FP64": ("fp64_contents", "float64"),
}


def packed(number: int, content: bytes) -> bytes:
    """A field of bytes, as protobuf writes it."""
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def read(datatype: str, count: int, contents: bytes) -> Array:
    """The tensor x of a large request, from the bytes of its contents."""
    request = message("ModelInferRequest")(model_name="m", id="x" * 33_000)
    head = message("ModelInferRequest.InferInputTensor")(name="x", datatype=datatype, shape=[count])
    tensor = packed(5, head.SerializeToString() + packed(5, contents))
    read_ = read_request(request.SerializeToString() + tensor)
    return query_of(read_, SharedMemory(), 1 << 30).inputs["x"]


@given(
    datatype=st.sampled_from(
        ["BOOL", "INT8", "INT32", "INT64", "UINT16", "UINT32", "UINT64", "FP64"]
    ),
    wide=st.booleans(),
    count=st.integers(5_000, 70_000),
    seed=st.integers(0, 9),
)
@settings(max_examples=30)
def test_long_contents_are_read_as_protobuf_reads_them(
    datatype: str, wide: bool, count: int, seed: int
) -> None:
    field, dtype = CONTENTS[datatype]
    draws = np.random.default_rng(seed)
    whole = draws.integers(0, 2**63, count, np.uint64) >> draws.integers(0, 64, count, np.uint64)
    values = (whole if wide else whole % 2).astype(dtype)

    array = read(
        datatype, count, message("InferTensorContents")(**{field: values}).SerializeToString()
    )

    assert array.dtype == values.dtype
    assert np.array_equal(array, values)


@pytest.mark.parametrize(
    ("datatype", "contents", "error"),
    [
        ("INT8", packed(2, b"\x80\1" * 5000), "its int_contents has a value that is not INT8"),
        ("INT8", packed(2, b"\1" * 4999), "INT8[5000] has 5,000 elements; int_contents has 4,999"),
        ("INT64", packed(3, b"\1" * 4999 + b"\xff" * 11 + b"\1"), "its contents can't be parsed"),
        ("INT64", packed(3, b"\1" * 5000 + b"\xff"), "its contents can't be parsed"),
        ("FP32", packed(6, bytes(19_999)), "FP32[5000] has 20,000 bytes; got 19,999"),
        ("FP32", packed(7, bytes(40_000)), "FP32[5000] has 5,000 elements; fp32_contents has 0"),
    ],
)
def test_long_contents_that_dont_fit_are_refused(
    datatype: str, contents: bytes, error: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        read(datatype, 5000, contents)

    assert error in str(caught.value)


def test_a_number_without_an_end_is_refused() -> None:
    with pytest.raises(ProtocolError, match="its contents can't be parsed"):
        read("INT64", 20_000, packed(3, b"\1" * 19_999 + b"\xff" * 150_000 + b"\1"))


def test_numbers_that_come_one_by_one_are_taken_up_to_a_mebibyte() -> None:
    one = b"\x35\0\0\x80\x3f"
    assert np.array_equal(read("FP32", 100_000, one * 100_000), np.ones(100_000, np.float32))
    with pytest.raises(ProtocolError) as caught:
        read("FP32", 300_000, one * 300_000)
    assert str(caught.value) == (
        "input 'x': fp32_contents of more than 1,048,576 bytes must be one packed list: send "
        "raw_input_contents instead"
    )
