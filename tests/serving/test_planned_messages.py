"""gRPC messages that are read by what an earlier one said: they decode as protobuf decodes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.support import models
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.core.tensors import Array
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.messages import SERVICE, message
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.wire.grpc_messages import query_of, read_request, streamed, write_answer
from hasten.serving.wire.message_plans import MessagePlans, heading_of
from hasten.serving.wire.shared_memory import SharedMemory

MOST = 1 << 20


def field(**fields: Any) -> bytes:
    data: bytes = message("ModelInferRequest")(**fields).SerializeToString()
    return data


def tensor(name: str, datatype: str, shape: list[int]) -> Any:
    return message("ModelInferRequest.InferInputTensor")(name=name, datatype=datatype, shape=shape)


def asking(id_: str = "", row: Array | None = None, **fields: Any) -> bytes:
    row = np.array([[1, 2, 3, 4]], np.float32) if row is None else row
    return field(
        model_name="solid",
        id=id_,
        inputs=[tensor("x", "FP32", list(row.shape))],
        raw_input_contents=[row.tobytes()],
        **fields,
    )


def decoded(data: bytes) -> tuple[Query, Any]:
    request = read_request(data)
    return query_of(request, SharedMemory(), MOST), request


def note(plans: MessagePlans, data: bytes, times: int = 2) -> None:
    for _ in range(times):
        query, request = decoded(data)
        heading = heading_of(data)
        assert heading is not None
        known = *heading[2:], request.raw, 1, "key", request.wants_final, query.timeout_ns
        plans.note(query, data, *known)


def found(plans: MessagePlans, data: bytes) -> Query | None:
    heading = heading_of(data)
    return None if heading is None else plans.find(data, *heading[2:])


def check_same(query: Query, data: bytes) -> None:
    """Check that a request is what protobuf reads."""
    expected, request = decoded(data)
    for name in ("model", "version", "id", "outputs", "priority", "timeout_ns", "sequence"):
        assert getattr(query, name) == getattr(expected, name)
    assert query.plan.final == request.wants_final
    assert list(query.inputs) == list(expected.inputs)
    for name, array in query.inputs.items():
        assert array.dtype == expected.inputs[name].dtype
        assert array.shape == expected.inputs[name].shape
        assert array.tobytes() == expected.inputs[name].tobytes()


# -- what is decoded by a plan


@pytest.mark.parametrize("id_", ["", "7", "another", "x" * 127])
def test_the_third_message_of_a_kind_is_read_by_the_plan_with_its_own_id_and_numbers(
    id_: str,
) -> None:
    plans = MessagePlans()
    note(plans, asking("first", model_version="3"))
    data = asking(id_, np.array([[5, 6, 7, 8]], np.float32), model_version="3")
    query = found(plans, data)
    assert query is not None
    check_same(query, data)


def test_a_message_that_came_once_has_no_plan_yet() -> None:
    plans = MessagePlans()
    note(plans, asking(), times=1)
    assert found(plans, asking()) is None


def test_large_and_small_tensors_are_read_by_the_plan() -> None:
    def data(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        large, small = rng.standard_normal((1, 5000), np.float32), rng.integers(0, 9, (1, 3))
        inputs = [tensor("large", "FP32", [1, 5000]), tensor("small", "INT64", [1, 3])]
        raw = [large.tobytes(), small.tobytes()]
        return field(model_name="m", inputs=inputs, raw_input_contents=raw)

    plans = MessagePlans()
    note(plans, data(0))
    query = found(plans, data(1))
    assert query is not None
    check_same(query, data(1))
    assert all(array.flags.aligned for array in query.inputs.values())


def test_the_latest_kinds_of_equal_length_have_plans_of_their_own() -> None:
    def data(name: str) -> bytes:
        inputs = [tensor(name, "FP32", [1, 4])]
        return field(model_name="m", inputs=inputs, raw_input_contents=[bytes(16)])

    plans = MessagePlans()
    for name in "abcdef":
        note(plans, data(name))

    def read() -> list[str]:
        return [name for name in "abcdef" if found(plans, data(name)) is not None]

    assert read() == list("cdef")
    note(plans, data("a"), times=1)
    assert read() == list("cdef")
    note(plans, data("a"), times=1)
    assert read() == list("adef")
    for name in read():
        query = found(plans, data(name))
        assert query is not None
        check_same(query, data(name))


@pytest.mark.parametrize(
    "data",
    [
        asking("größer"),
        asking("x" * 128),
        field(
            model_name="m" * 128, inputs=[tensor("x", "FP32", [1])], raw_input_contents=[b"1234"]
        ),
        field(inputs=[tensor("x", "FP32", [1])], raw_input_contents=[b"1234"]),
        field(model_name="m"),
        field(model_name="m", id="7"),
        field(model_name="m", inputs=[tensor("x", "BYTES", [1])], raw_input_contents=[bytes(4)]),
        field(model_name="m", inputs=[tensor("x", "FP32", [0])], raw_input_contents=[b""]),
        asking() + field(id="later"),
        *(
            field(model_name="m", id="7", inputs=[tensor("x", "UINT8", [4])])
            + b"\x1a%c%b" % (len(later), later)
            + field(raw_input_contents=[b"1234"])
            for later in (b"later", b"-", b"+", b"")
        ),
        field(model_name="m") + asking("7"),
        asking() + b"\xaa\x06\x02ab",
        b"",
        b"\x0a",
        b"\x0a\x01",
        b"\x0a\x02\xff\xff" + asking()[7:],
    ],
)
def test_what_is_written_in_another_way_is_left_to_protobuf(data: bytes) -> None:
    plans = MessagePlans()
    heading = heading_of(data)
    if heading is not None:
        try:
            query, request = decoded(data)
        except ProtocolError:
            return
        for _ in range(3):
            known = *heading[2:], request.raw, 1, "key", request.wants_final, query.timeout_ns
            plans.note(query, data, *known)
    assert found(plans, data) is None


RAW, ID = 7, 3
"""Numbers of the fields whose contents change from message to message."""


def chunk(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


CHUNKS = st.one_of(
    st.tuples(st.just(1), st.sampled_from([b"m", b"n"])),
    st.tuples(st.just(2), st.sampled_from([b"1", b"2"])),
    st.tuples(st.just(ID), st.sampled_from([b"", b"7", b"mine", chunk(RAW, bytes(4))])),
    st.tuples(st.just(5), st.sampled_from([field(inputs=[tensor("x", "UINT8", [4])])[2:]])),
    st.tuples(st.just(5), st.sampled_from([field(inputs=[tensor("y", "FP32", [1])])[2:]])),
    st.tuples(st.just(RAW), st.sampled_from([b"1234", chunk(RAW, b"ab"), chunk(ID, b"ab")])),
    st.tuples(st.just(9), st.sampled_from([chunk(RAW, b"1234"), chunk(ID, b"ab"), b"1234"])),
)
USUAL = [(1, b"m"), (ID, b"7"), (5, field(inputs=[tensor("x", "UINT8", [4])])[2:]), (RAW, b"1234")]


@given(
    st.lists(CHUNKS, max_size=4), st.lists(CHUNKS, max_size=3), st.permutations(range(4)), st.data()
)
@example([], [], [0, 1, 2, 3], None)
def test_whatever_fields_come_in_which_order_a_plan_reads_as_protobuf_does(
    first: list[tuple[int, bytes]],
    last: list[tuple[int, bytes]],
    order: list[int],
    data: st.DataObject | None,
) -> None:
    chunks = [*first[:1], *(USUAL[place] for place in order), *first[1:], *last]
    whole = b"".join(chunk(*each) for each in chunks)
    plans = MessagePlans()
    heading = heading_of(whole)
    if heading is None:
        return
    try:
        query, request = decoded(whole)
    except ProtocolError:
        return
    for _ in range(2):
        known = *heading[2:], request.raw, 1, "key", request.wants_final, query.timeout_ns
        plans.note(query, whole, *known)
    same = found(plans, whole)
    if same is not None:
        check_same(same, whole)
    if data is None:
        assert same is not None
        return
    texts = st.sampled_from([b"", b"8", b"your", b"\xc3\xa4", b"\xff", chunk(RAW, b"ab")])
    contents = st.sampled_from([b"5678", chunk(RAW, b"cd"), chunk(ID, b"cd"), b"56"])
    other = b"".join(
        chunk(number, data.draw({ID: texts, RAW: contents}.get(number, st.just(content))))
        for number, content in chunks
    )
    changed = found(plans, other)
    if changed is not None:
        check_same(changed, other)


# -- what is answered by a plan


@pytest.mark.parametrize("id_", ["", "7", "mine"])
@pytest.mark.parametrize("final", [False, True])
def test_an_answer_by_the_plan_is_the_one_that_protobuf_writes(id_: str, final: bool) -> None:
    plans = MessagePlans()
    note(plans, asking())
    query = found(plans, asking(id_))
    assert query is not None
    outputs: dict[str, Array] = {
        "y": np.arange(300, dtype=np.float32).reshape(1, 300),
        "z": np.array([True]),
    }
    assert query.plan.answer(outputs, id_, final) is None
    query.plan.note(Answer("solid", "1", "first", outputs))
    answer = Answer("solid", "1", id_, {name: array[::-1] for name, array in outputs.items()})
    data = query.plan.answer(answer.outputs, id_, final)
    expected = write_answer(answer, query, SharedMemory(), batched=True, in_stream=final)
    assert data is not None
    if final:
        read = message("ModelStreamInferResponse").FromString
        assert read(streamed(data)) == read(expected)
    else:
        read = message("ModelInferResponse").FromString
        assert read(data) == read(expected)


def test_answers_of_other_shapes_types_and_orders_in_memory_arent_the_plans() -> None:
    plans = MessagePlans()
    note(plans, asking())
    plan: Any = getattr(found(plans, asking()), "plan", None)
    plan.note(Answer("solid", "1", "", {"y": np.zeros((2, 3), np.float32)}))
    assert plan.answer({"y": np.ones((2, 3), np.float32)}, "", False) is not None
    for other in (
        {"y": np.ones((3, 2), np.float32)},
        {"y": np.ones((2, 3), np.int32)},
        {"y": np.ones((3, 2), np.float32).T},
        {"y": np.ones((2, 3), np.float32), "z": np.ones(1)},
        {},
    ):
        assert plan.answer(other, "", False) is None


def test_text_is_never_answered_by_the_plan() -> None:
    plans = MessagePlans()
    note(plans, asking())
    plan: Any = getattr(found(plans, asking()), "plan", None)
    outputs: dict[str, Array] = {"y": np.array(["a", "b"], object)}
    plan.note(Answer("solid", "1", "", outputs))
    assert plan.answer(outputs, "", False) is None


# -- a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    folder = tmp_path_factory.mktemp("planned")
    with ServerThread(place_of(bundle_of(folder, models.solid(folder))), grpc=True) as running:
        yield running


def test_a_server_answers_each_message_by_its_own_id_and_numbers(server: ServerThread) -> None:
    with grpc.insecure_channel(server.grpc_url) as channel:
        ask = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            response_deserializer=message("ModelInferResponse").FromString,
        )
        for turn in range(6):
            for rows in (1, 2):
                row = np.full((rows, 4), turn + rows / 2, np.float32)
                answer = ask(asking(str(turn) if turn % 2 else "", row), timeout=60)
                assert answer.id == (str(turn) if turn % 2 else "")
                assert (answer.model_name, answer.model_version) == ("solid", "1")
                assert list(answer.outputs[0].shape) == [rows, 4]
                assert answer.raw_output_contents[0] == row.tobytes()
    model = server.call(lambda: server.server.state.repository.find("solid"))
    assert found(model.messages, asking("8")) is not None


@pytest.mark.parametrize("timeout_us", [0, 90_000_000])
def test_the_deadline_of_one_clients_call_isnt_that_of_later_calls(
    server: ServerThread, timeout_us: int
) -> None:
    fields: dict[str, Any] = {}
    if timeout_us:
        parameter = message("InferParameter")(int64_param=timeout_us)
        fields["parameters"] = {"timeout": parameter}
    data = asking("1", np.zeros((3, 4), np.float32), **fields)
    with grpc.insecure_channel(server.grpc_url) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(2):
            ask(data, timeout=60)
    model = server.call(lambda: server.server.state.repository.find("solid"))
    query = found(model.messages, data)
    assert query is not None
    check_same(query, data)
    assert query.timeout_ns == timeout_us * 1000
