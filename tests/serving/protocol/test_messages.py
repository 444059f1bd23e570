import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("google.protobuf", reason="needs the extra serve: pip install 'hasten[serve]'")

from hasten.serving.protocol import messages
from hasten.serving.protocol.messages import METHODS, SERVICE, Method, message

ROOT = Path(__file__).parents[3]
NEEDS_CLIENT = "needs Triton's client: pip install 'tritonclient[grpc]'"
LEFT_OUT = {  # of Triton's messages: what a server of bundles never fills in
    "ModelConfig": {
        "batch_input",
        "batch_output",
        "cc_model_filenames",
        "model_metrics",
        "model_operations",
        "model_repository_agents",
        "optimization",
    },
    "ModelEnsembling": {"max_inflight_requests"},
    "ModelEnsembling.Step": {"model_namespace"},
    "ModelSequenceBatching": {"control_input", "direct", "iterative_sequence", "oldest"},
    "ModelSequenceBatching.State": {
        "data_type",
        "dims",
        "initial_state",
        "use_growable_memory",
        "use_same_buffer_for_input_output",
    },
    "ModelInstanceGroup": {
        "host_policy",
        "passive",
        "profile",
        "rate_limiter",
        "secondary_devices",
    },
}
PACKAGE = SERVICE.rpartition(".")[0]
NAMES = sorted({name for method in METHODS.values() for name in method[:2]})


@pytest.fixture(scope="module")
def client() -> Any:
    """The messages that Triton's own client was compiled with."""
    pytest.importorskip("tritonclient.grpc", reason=NEEDS_CLIENT)
    from tritonclient.grpc import service_pb2

    return service_pb2


def kept(descriptor: Any) -> list[Any]:
    """Return the fields of a message without those left out."""
    left_out = LEFT_OUT.get(descriptor.full_name.removeprefix(f"{PACKAGE}."), set())
    return [field for field in descriptor.fields if field.name not in left_out]


def reached(classes: Iterable[Any]) -> dict[str, Any]:
    """Return the descriptors of messages and of all that they have in them, by full name."""
    seen: dict[str, Any] = {}
    waiting = [one.DESCRIPTOR for one in classes]
    while waiting:
        descriptor = waiting.pop()
        if descriptor.full_name not in seen:
            seen[descriptor.full_name] = descriptor
            waiting += [field.message_type for field in kept(descriptor) if field.message_type]
    return seen


def proto(descriptor: Any) -> Any:
    """Return what the compiler wrote of a message."""
    from google.protobuf import descriptor_pb2

    written = descriptor_pb2.DescriptorProto()
    descriptor.CopyToProto(written)
    return written


def layout(descriptor: Any) -> dict[str, tuple[Any, ...]]:
    """Return what decides the bytes of each field: number, type, label, message, oneof, options."""
    written = proto(descriptor)
    return {
        field.name: (
            field.number,
            field.type,
            field.label,
            field.type_name,
            written.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else None,
            field.options.SerializeToString(deterministic=True),
        )
        for field in written.field
    }


def enums(classes: Iterable[Any]) -> dict[str, dict[str, int]]:
    return {
        field.enum_type.full_name: {value.name: value.number for value in field.enum_type.values}
        for descriptor in reached(classes).values()
        for field in kept(descriptor)
        if field.enum_type
    }


def test_every_message_and_field_has_the_number_and_type_that_the_client_knows(
    client: Any,
) -> None:
    ours = reached(message(name) for name in NAMES)
    theirs = reached(getattr(client, name) for name in NAMES)
    assert ours.keys() == theirs.keys()
    for name, descriptor in theirs.items():
        left_out = LEFT_OUT.get(descriptor.full_name.removeprefix(f"{PACKAGE}."), set())
        expected = layout(descriptor)
        assert left_out <= expected.keys()
        assert layout(ours[name]) == {
            field: where for field, where in expected.items() if field not in left_out
        }
        assert ours[name].GetOptions().map_entry == descriptor.GetOptions().map_entry


def test_every_enum_has_the_values_that_the_client_knows(client: Any) -> None:
    ours = enums(message(name) for name in NAMES)
    assert ours == enums(getattr(client, name) for name in NAMES)
    assert ours["inference.DataType"]["TYPE_FP32"] == 11


def test_a_number_left_out_is_never_given_to_another_field(client: Any) -> None:
    theirs = reached([client.ModelConfigResponse])
    for name, left_out in LEFT_OUT.items():
        ranges = proto(message(name).DESCRIPTOR).reserved_range
        fields = theirs[f"inference.{name}"].fields_by_name
        assert {number for part in ranges for number in range(part.start, part.end)} == {
            fields[field].number for field in left_out
        }


def test_the_methods_are_those_that_the_client_calls_in_its_order(client: Any) -> None:
    service = client.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    assert list(METHODS.items()) == [
        (method.name, (method.input_type.name, method.output_type.name, method.server_streaming))
        for method in service.methods
    ]
    assert len(METHODS) == 20


def test_only_the_stream_of_inferences_is_streaming() -> None:
    assert METHODS["ModelStreamInfer"] == Method(
        request="ModelInferRequest", response="ModelStreamInferResponse", streaming=True
    )
    assert [name for name, method in METHODS.items() if method.streaming] == ["ModelStreamInfer"]


def scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.cpp_type == field.CPPTYPE_STRING:
        return st.binary(max_size=8) if field.type == field.TYPE_BYTES else st.text(max_size=8)
    return {
        field.CPPTYPE_BOOL: st.booleans(),
        field.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        field.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
        field.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        field.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
        field.CPPTYPE_FLOAT: st.floats(width=32),
        field.CPPTYPE_DOUBLE: st.floats(),
    }[field.cpp_type]


def fill(value: Any, data: st.DataObject) -> None:
    """Fill some of a message's fields, and theirs, with whatever fits."""
    for field in kept(value.DESCRIPTOR):
        if not data.draw(st.booleans()):
            continue
        within = getattr(value, field.name)
        if not field.message_type:
            some = scalar(field)
            if isinstance(within, bool | int | float | str | bytes):
                setattr(value, field.name, data.draw(some))
            else:
                within.extend(data.draw(st.lists(some, max_size=3)))
        elif field.message_type.GetOptions().map_entry:
            key, held = field.message_type.fields
            for name in data.draw(st.lists(scalar(key), max_size=2)):
                if held.message_type:
                    fill(within[name], data)
                else:
                    within[name] = data.draw(scalar(held))
        elif hasattr(within, "add"):
            for _ in range(data.draw(st.integers(0, 2))):
                fill(within.add(), data)
        else:
            within.SetInParent()
            fill(within, data)


@given(name=st.sampled_from(NAMES), data=st.data())
def test_what_the_client_wrote_is_read_whole_and_written_back_to_the_byte(
    client: Any, name: str, data: st.DataObject
) -> None:
    theirs = getattr(client, name)()
    fill(theirs, data)
    sent = theirs.SerializeToString(deterministic=True)
    ours = message(name).FromString(sent)
    assert str(ours) == str(theirs)
    assert ours.SerializeToString(deterministic=True) == sent


def test_a_request_of_the_client_has_the_same_values_here(client: Any) -> None:
    theirs = client.ModelInferRequest(
        model_name="digits",
        id="7",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        raw_input_contents=[b"\0" * 8],
    )
    theirs.parameters["timeout"].uint64_param = 5
    ours = message("ModelInferRequest").FromString(theirs.SerializeToString(deterministic=True))
    assert (ours.model_name, ours.model_version, ours.id) == ("digits", "", "7")
    assert [(x.name, x.datatype, list(x.shape)) for x in ours.inputs] == [("x", "FP32", [-1, 2])]
    assert list(ours.raw_input_contents) == [b"\0" * 8]
    assert ours.parameters["timeout"].WhichOneof("parameter_choice") == "uint64_param"
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )


def test_a_field_left_out_of_a_configuration_passes_through(client: Any) -> None:
    theirs = client.ModelConfigResponse()
    theirs.config.name = "digits"
    theirs.config.optimization.priority = 1
    sent = theirs.SerializeToString(deterministic=True)
    ours = message("ModelConfigResponse").FromString(sent)
    assert ours.config.WhichOneof("scheduling_choice") is None
    assert client.ModelConfigResponse.FromString(ours.SerializeToString()) == theirs


def test_a_class_is_the_same_one_at_each_call() -> None:
    assert message("ModelInferRequest") is message("ModelInferRequest")
    inside = message("ModelInferRequest.InferInputTensor")
    assert inside is type(message("ModelInferRequest")().inputs.add())


def test_an_unknown_message_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="NoSuchRequest"):
        message("NoSuchRequest")


def test_an_unknown_attribute_is_told_as_python_tells_it() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = messages.METHOD
    assert (
        str(caught.value) == "module 'hasten.serving.protocol.messages' has no attribute 'METHOD'"
    )


def python(code: str) -> str:
    """Run code in a process of its own, warnings being errors, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OURS = "from hasten.serving.protocol.messages import METHODS, message; message('ModelInferRequest')"
THEIRS = "from tritonclient.grpc import service_pb2 as theirs"


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["before", "after"])
def test_a_client_may_be_imported_into_the_same_process(
    client: Any, order: tuple[str, str]
) -> None:
    same = "message('ModelInferRequest') is theirs.ModelInferRequest"
    assert python("\n".join([*order, f"print(len(METHODS), {same})"])) == "20 False\n"


def test_a_missing_protobuf_is_told_with_the_extra_that_brings_it() -> None:
    printed = python(
        "import sys\n"
        "sys.modules['google.protobuf'] = None\n"
        "from hasten.errors import InputError\n"
        "from hasten.serving.protocol import messages\n"
        "for use in (lambda: messages.message('ModelInferRequest'), lambda: messages.METHODS):\n"
        "    try:\n"
        "        use()\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    line = "serving over gRPC needs protobuf and grpcio: pip install 'hasten[serve]'"
    assert printed.splitlines() == [line, line]


def test_importing_the_messages_imports_no_protobuf() -> None:
    code = "import sys, hasten.serving.protocol.messages; print('google.protobuf' in sys.modules)"
    assert python(code) == "False\n"


def test_the_compiled_messages_are_what_the_source_says(tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("scripts/proto needs the compiler: pip install grpcio-tools")
    compiled = tmp_path / "inference.binpb"
    subprocess.run(
        [ROOT / "scripts" / "proto", compiled],
        check=True,
        env={**os.environ, "HASTEN_BIN": str(Path(sys.executable).parent)},
    )
    assert (
        compiled.read_bytes() == Path(messages.__file__).with_name("inference.binpb").read_bytes()
    )
