"""Tensors <-> gRPC messages, without a server."""

from multiprocessing import shared_memory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hasten.core.tensors import Array
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.messages import message
from hasten.serving.protocol.requests import Answer, Query, Region
from hasten.serving.wire.grpc_messages import (
    query_of,
    read_request,
    streamed,
    streamed_failure,
    write_answer,
)
from hasten.serving.wire.shared_memory import SharedMemory

MOST = 1 << 30


def asking(**fields: Any) -> Any:
    return message("ModelInferRequest")(model_name="m", **fields)


def tensor(name: str, datatype: str, shape: list[int], **contents: Any) -> Any:
    return message("ModelInferRequest.InferInputTensor")(
        name=name,
        datatype=datatype,
        shape=shape,
        contents=message("InferTensorContents")(**contents) if contents else None,
    )


def read(request: Any, most_bytes: int = MOST, memory: SharedMemory | None = None) -> Query:
    found = read_request(request.SerializeToString())
    return query_of(found, memory or SharedMemory(), most_bytes)


def refusal(request: Any, most_bytes: int = MOST) -> tuple[Kind, str]:
    with pytest.raises(ProtocolError) as caught:
        read(request, most_bytes)
    return caught.value.kind, str(caught.value)


def test_tensors_of_a_large_request_stay_where_they_came() -> None:
    first, second = np.arange(10_000, dtype=np.uint8), np.arange(5000, dtype=np.int16)
    request = asking(
        id="7",
        inputs=[tensor("a", "UINT8", [10_000]), tensor("b", "INT16", [5000])],
        raw_input_contents=[first.tobytes(), second.tobytes()],
    )
    # As another client may write it: a field of a message may come anywhere.
    mixed = asking(inputs=[tensor("c", "UINT8", [40_000])], raw_input_contents=[bytes(40_000)])
    data = request.SerializeToString() + mixed.SerializeToString()

    found = read_request(data)
    query = query_of(found, SharedMemory(), MOST)

    assert len(found.message.raw_input_contents) == 0
    assert (query.id, list(query.inputs)) == ("7", ["a", "b", "c"])
    assert np.array_equal(query.inputs["a"], first)
    assert np.array_equal(query.inputs["b"], second)
    whole = np.frombuffer(data, np.uint8)
    assert np.shares_memory(query.inputs["a"], whole)
    assert np.shares_memory(query.inputs["c"], whole)


# A number of another kind of field, and behind it what looks like a tensor but is text.
@example(junk=b"\x78\x02\x1a\x03:\x01a", raw=[], first=True)
@given(st.binary(max_size=40), st.lists(st.binary(max_size=70), max_size=3), st.booleans())
def test_a_large_request_is_read_as_protobuf_reads_it(
    junk: bytes, raw: list[bytes], first: bool
) -> None:
    padding = asking(id="x" * 33_000, raw_input_contents=raw).SerializeToString()
    data = junk + padding if first else padding + junk
    try:
        expected = message("ModelInferRequest").FromString(data)
    except Exception:
        expected = None

    try:
        found = read_request(data)
    except ProtocolError:
        assert expected is None
        return

    assert expected is not None
    assert [bytes(each) for each in found.raw] == list(expected.raw_input_contents)
    expected.ClearField("raw_input_contents")
    found.message.ClearField("raw_input_contents")
    assert found.message == expected


def test_a_large_request_of_countless_fields_is_refused_before_memory_is_taken_for_them() -> None:
    data = b"\x2a\x00" * 40_000

    with pytest.raises(ProtocolError) as caught:
        read_request(data)

    assert str(caught.value) == "a request has at most 4,096 inputs, outputs and parameters"


def test_what_is_no_request_is_called_so() -> None:
    with pytest.raises(ProtocolError) as caught:
        read_request(b"\xff\xff\xff")

    assert caught.value.kind is Kind.INVALID
    assert str(caught.value).startswith("the request is not a ModelInferRequest: ")


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "dtype"),
    [
        ("BOOL", "bool_contents", [True, False], "bool"),
        ("UINT8", "uint_contents", [0, 255], "uint8"),
        ("UINT16", "uint_contents", [0, 65535], "uint16"),
        ("UINT32", "uint_contents", [0, 2**32 - 1], "uint32"),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], "uint64"),
        ("INT8", "int_contents", [-128, 127], "int8"),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1], "int16"),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1], "int32"),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1], "int64"),
        ("FP32", "fp32_contents", [1.5, -0.0], "float32"),
        ("FP64", "fp64_contents", [1e300, 0.1], "float64"),
        ("BYTES", "bytes_contents", [b"", b"\xff\x00"], "object"),
    ],
)
def test_each_type_can_come_element_by_element(
    datatype: str, field: str, elements: list[Any], dtype: str
) -> None:
    query = read(asking(inputs=[tensor("x", datatype, [1, 2], **{field: elements})]))

    array = query.inputs["x"]
    assert (array.dtype, array.shape) == (np.dtype(dtype), (1, 2))
    assert array.reshape(-1).tolist() == elements


def test_a_tensor_without_elements_needs_no_contents() -> None:
    query = read(asking(inputs=[tensor("x", "FP32", [0, 3])]))

    assert query.inputs["x"].shape == (0, 3)


def test_bfloat16_comes_and_goes_as_bytes() -> None:
    given_ = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    request = asking(inputs=[tensor("x", "BF16", [1, 2])], raw_input_contents=[given_.tobytes()])

    query = read(request)
    answer = message("ModelInferResponse").FromString(
        write_answer(
            Answer("m", "1", "", {"y": query.inputs["x"]}), query, SharedMemory(), batched=True
        )
    )

    assert query.inputs["x"].tolist() == [[1.5, -2.0]]
    assert answer.outputs[0].datatype == "BF16"
    assert list(answer.raw_output_contents) == [given_.tobytes()]


RAW = [tensor("x", "INT8", [2])]


@pytest.mark.parametrize(
    ("request_", "kind", "words"),
    [
        (
            asking(inputs=[tensor("x", "INT8", [1], int_contents=[128])]),
            Kind.INVALID,
            "input 'x': its int_contents has a value that is not INT8",
        ),
        (
            asking(inputs=[tensor("x", "UINT16", [2], uint_contents=[0, 65536])]),
            Kind.INVALID,
            "input 'x': its uint_contents has a value that is not UINT16",
        ),
        (
            asking(inputs=[tensor("x", "FP32", [1, 2], fp32_contents=[1.0])]),
            Kind.INVALID,
            "input 'x': FP32[1, 2] has 2 elements; fp32_contents has 1",
        ),
        (
            asking(inputs=[tensor("x", "FP32", [1], int_contents=[1])]),
            Kind.INVALID,
            "input 'x': FP32[1] has 1 elements; fp32_contents has 0",
        ),
        (
            asking(inputs=[tensor("x", "FP16", [1], fp32_contents=[1.0])]),
            Kind.INVALID,
            "input 'x': FP16 can only be sent in raw_input_contents",
        ),
        (
            asking(inputs=[tensor("x", "FP31", [1])]),
            Kind.INVALID,
            "there is no datatype 'FP31'; there are BOOL, UINT8, UINT16, UINT32, UINT64, INT8, "
            "INT16, INT32, INT64, FP16, FP32, FP64, BF16, BYTES",
        ),
        (
            asking(inputs=[tensor("x", "FP32", [1]), tensor("x", "FP32", [1])]),
            Kind.INVALID,
            "input 'x': FP32[1] has 1 elements; fp32_contents has 0",
        ),
        (
            asking(inputs=[*RAW, *RAW], raw_input_contents=[b"ab", b"ab"]),
            Kind.INVALID,
            "input 'x' is given twice",
        ),
        (
            asking(inputs=[*RAW, tensor("y", "INT8", [2])], raw_input_contents=[b"ab"]),
            Kind.INVALID,
            "input 'y': raw_input_contents has no entry for it, only for 1 before it",
        ),
        (
            asking(inputs=RAW, raw_input_contents=[b"ab", b"c"]),
            Kind.INVALID,
            "raw_input_contents has more entries (2) than there are inputs outside shared memory (1)",
        ),
        (
            asking(
                inputs=[tensor("x", "INT8", [2], int_contents=[1, 2])], raw_input_contents=[b"ab"]
            ),
            Kind.INVALID,
            "input 'x': it has contents although the request has raw_input_contents",
        ),
        (
            asking(inputs=RAW, raw_input_contents=[b"abc"]),
            Kind.INVALID,
            "input 'x': INT8[2] has 2 bytes; got 3",
        ),
        (
            asking(inputs=[tensor("x", "FP32", [-1, 2])]),
            Kind.INVALID,
            "input 'x': (-1, 2) is not a possible tensor shape",
        ),
        (
            asking(inputs=[tensor("x", "FP32", [2**31 - 1, 2**31 - 1])]),
            Kind.TOO_LARGE,
            "input 'x' would take 18,446,744,056,529,682,436 bytes; a request's tensors take at "
            "most 1,073,741,824",
        ),
        (
            asking(inputs=[tensor("x", "FP32", [1] * 33)]),
            Kind.INVALID,
            "input 'x': a tensor has at most 32 axes; got 33",
        ),
    ],
)
def test_what_cant_be_a_tensor_is_refused_in_these_words(
    request_: Any, kind: Kind, words: str
) -> None:
    assert refusal(request_) == (kind, words)


def test_a_timeout_is_in_microseconds_and_a_priority_any_whole_number() -> None:
    request = asking()
    request.parameters["timeout"].int64_param = 1500
    request.parameters["priority"].uint64_param = 2
    request.parameters["of_the_client"].double_param = 0.5

    query = read(request)

    assert (query.timeout_ns, query.priority) == (1_500_000, 2)


def test_a_parameter_of_another_kind_is_refused() -> None:
    request = asking()
    request.parameters["timeout"].double_param = 0.5

    assert refusal(request) == (
        Kind.INVALID,
        "the parameter 'timeout' must be a whole number of at least 0; got 0.5",
    )


def test_an_output_can_be_asked_for_as_classes_or_in_shared_memory() -> None:
    request = asking()
    classes, region = request.outputs.add(name="a"), request.outputs.add(name="b")
    classes.parameters["classification"].int64_param = 3
    region.parameters["shared_memory_region"].string_param = "r"
    region.parameters["shared_memory_byte_size"].int64_param = 64
    region.parameters["shared_memory_offset"].int64_param = 8

    known, owned = SharedMemory(".*"), shared_memory.SharedMemory(create=True, size=128)
    try:
        known.register("r", owned.name, 0, 128)
        first, second = read(request, memory=known).outputs
    finally:
        known.unregister()
        owned.close()
        owned.unlink()

    assert (first.name, first.classes, first.region) == ("a", 3, None)
    assert (second.name, second.classes, second.region) == ("b", 0, Region("r", 8, 64, 1))


def test_a_region_without_a_size_is_refused() -> None:
    request = asking()
    request.outputs.add(name="b").parameters["shared_memory_region"].string_param = "r"

    assert refusal(request) == (
        Kind.INVALID,
        "'b': shared memory is given by shared_memory_region (text), shared_memory_byte_size and "
        "shared_memory_offset (whole numbers)",
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16_384, 300_000])
def test_an_answer_is_what_protobuf_would_have_written(size: int) -> None:
    y: Array = np.arange(size, dtype=np.uint8)
    answer = Answer(
        "m", "2", "7", {"y": y}, {"cached": True, "hits": 3, "share": 0.5, "why": "as asked"}
    )

    data = write_answer(answer, Query("m", "", "7", {}), SharedMemory(), batched=False)

    found = message("ModelStreamInferResponse").FromString(streamed(data)).infer_response
    expected = message("ModelInferResponse")(
        model_name="m", model_version="2", id="7", raw_output_contents=[y.tobytes()]
    )
    expected.outputs.add(name="y", datatype="UINT8", shape=[size])
    expected.parameters["cached"].bool_param = True
    expected.parameters["hits"].int64_param = 3
    expected.parameters["share"].double_param = 0.5
    expected.parameters["why"].string_param = "as asked"
    assert found == expected


def test_a_streams_error_says_whose_it_is() -> None:
    found = message("ModelStreamInferResponse").FromString(
        streamed_failure("größer", "7", final=True)
    )

    assert (found.error_message, found.infer_response.id) == ("größer", "7")
    assert found.infer_response.parameters["triton_final_response"].bool_param
