"""The same messages over gRPC to hasten and to Triton. `make test-triton` runs it."""

from __future__ import annotations

import json
import queue
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as client
import tritonclient.utils.shared_memory as shm
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import service_pb2 as triton
from tritonclient.utils import InferenceServerException

SERVICE = "inference.GRPCInferenceService"
ROW = (1.5, -2.0, 0.1)
HALVES = np.array(ROW, np.float16).tobytes()
F3 = struct.pack("<3f", *ROW)
I3 = struct.pack("<3q", 7, 8, 9)


class Case(NamedTuple):
    """One call.

    Attributes:
        method: Method of the service.
        sent: The message, or what no message is; of a stream all of them.
        look: Function that takes from an answer the part to compare.
    """

    method: str
    sent: Any
    look: Callable[[Any], Any] = lambda value: value


def parameter(value: Any) -> Any:
    """A parameter of the kind of its value; None for one without."""
    kind = {bool: "bool", int: "int64", str: "string", float: "double"}.get(type(value))
    return triton.InferParameter(**{f"{kind}_param": value} if kind else {})


def parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Each by its name."""
    return {name: parameter(value) for name, value in given.items()}


def tensor(
    name: str = "x", shape: Sequence[int] = (1, 3), datatype: str = "FP32",
    contents: Mapping[str, Any] | None = None, **given: Any,
) -> Any:  # fmt: skip
    """An input, with its contents or without."""
    message = triton.ModelInferRequest.InferInputTensor(
        name=name, shape=shape, datatype=datatype, parameters=parameters(given)
    )
    if contents is not None:
        message.contents.CopyFrom(triton.InferTensorContents(**contents))
    return message


def wanted(name: str = "y", **given: Any) -> Any:
    """An output that is asked for."""
    return triton.ModelInferRequest.InferRequestedOutputTensor(
        name=name, parameters=parameters(given)
    )


def request(
    *inputs: Any, model: str = "float32", version: str = "", raw: Sequence[bytes] = (),
    outputs: Sequence[Any] = (), request_id: str = "", **given: Any,
) -> Any:  # fmt: skip
    """A request; what is named beside are its parameters."""
    return triton.ModelInferRequest(
        model_name=model, model_version=version, id=request_id, inputs=inputs, outputs=outputs,
        raw_input_contents=raw, parameters=parameters(given),
    )  # fmt: skip


def asked(*inputs: Any, **more: Any) -> Case:
    """An inference in a call of its own."""
    return Case("ModelInfer", request(*inputs, **more))


def streamed(*requests: Any) -> Case:
    """Inferences in one stream."""
    return Case("ModelStreamInfer", requests)


def form(value: Any) -> Any:
    """Types instead of values; of a list those of its elements, once each."""
    if isinstance(value, dict):
        return {name: form(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(form(inner), sort_keys=True) for inner in value})
    return type(value).__name__


def metadata(value: Any) -> Any:
    """All but the platform: each server names what runs the model."""
    return {name: inner for name, inner in value.items() if name != "platform"}


def index(value: Any) -> Any:
    """In no order."""
    return sorted(value["models"], key=lambda each: each["name"])


def configuration(value: Any) -> Any:
    """What clients read."""
    read = ("name", "max_batch_size", "input", "output")
    return {name: value["config"].get(name) for name in read}


FP32 = {"fp32_contents": ROW}
GOOD = request(tensor(), raw=[F3])
EMPTY: dict[str, Any] = {"triton_enable_empty_final_response": True}
X = tensor
UNSIGNED = request(X(), raw=[F3])
UNSIGNED.parameters["priority"].uint64_param = 1

CASES: dict[str, Case] = {
    # what is served, and by what settings
    "live": Case("ServerLive", triton.ServerLiveRequest()),
    "ready": Case("ServerReady", triton.ServerReadyRequest()),
    "model ready": Case("ModelReady", triton.ModelReadyRequest(name="float32")),
    "version ready": Case("ModelReady", triton.ModelReadyRequest(name="float32", version="1")),
    "unknown version ready": Case("ModelReady", triton.ModelReadyRequest(name="float32", version="2")),
    "version of no number ready": Case("ModelReady", triton.ModelReadyRequest(name="float32", version="x")),
    "unknown model ready": Case("ModelReady", triton.ModelReadyRequest(name="none")),
    "no model ready": Case("ModelReady", triton.ModelReadyRequest()),
    "server": Case("ServerMetadata", triton.ServerMetadataRequest(), form),
    "metadata": Case("ModelMetadata", triton.ModelMetadataRequest(name="pair"), metadata),
    "metadata of a version": Case("ModelMetadata", triton.ModelMetadataRequest(name="pair", version="1"), metadata),
    "metadata of an unknown model": Case("ModelMetadata", triton.ModelMetadataRequest(name="none")),
    "metadata of an unknown version": Case("ModelMetadata", triton.ModelMetadataRequest(name="pair", version="2")),
    "metadata of no number": Case("ModelMetadata", triton.ModelMetadataRequest(name="pair", version="x")),
    "config": Case("ModelConfig", triton.ModelConfigRequest(name="pair"), configuration),
    "config of an unknown model": Case("ModelConfig", triton.ModelConfigRequest(name="none")),
    "config of an unknown version": Case("ModelConfig", triton.ModelConfigRequest(name="pair", version="5")),
    "statistics": Case("ModelStatistics", triton.ModelStatisticsRequest(name="float32"), form),
    "statistics of a version": Case("ModelStatistics", triton.ModelStatisticsRequest(name="float32", version="1"), form),
    "statistics of an unknown model": Case("ModelStatistics", triton.ModelStatisticsRequest(name="none")),
    "statistics of an unknown version": Case("ModelStatistics", triton.ModelStatisticsRequest(name="pair", version="5")),
    "index": Case("RepositoryIndex", triton.RepositoryIndexRequest(), index),
    "index of what is ready": Case("RepositoryIndex", triton.RepositoryIndexRequest(ready=True), index),
    "index of a repository": Case("RepositoryIndex", triton.RepositoryIndexRequest(repository_name="r")),
    "load": Case("RepositoryModelLoad", triton.RepositoryModelLoadRequest(model_name="int64")),
    "load of nothing": Case("RepositoryModelLoad", triton.RepositoryModelLoadRequest(model_name="none")),
    "unload of nothing": Case("RepositoryModelUnload", triton.RepositoryModelUnloadRequest(model_name="none")),
    "regions": Case("SystemSharedMemoryStatus", triton.SystemSharedMemoryStatusRequest()),
    "region that isn't there": Case("SystemSharedMemoryStatus", triton.SystemSharedMemoryStatusRequest(name="r")),
    "unregister what isn't there": Case("SystemSharedMemoryUnregister", triton.SystemSharedMemoryUnregisterRequest(name="r")),
    "unregister all": Case("SystemSharedMemoryUnregister", triton.SystemSharedMemoryUnregisterRequest()),
    "register an object that isn't there": Case("SystemSharedMemoryRegister", triton.SystemSharedMemoryRegisterRequest(name="r", key="/hasten-test-none", byte_size=16)),
    "CUDA regions": Case("CudaSharedMemoryStatus", triton.CudaSharedMemoryStatusRequest()),
    "CUDA region that isn't there": Case("CudaSharedMemoryStatus", triton.CudaSharedMemoryStatusRequest(name="r")),
    "unregister CUDA": Case("CudaSharedMemoryUnregister", triton.CudaSharedMemoryUnregisterRequest()),
    "register CUDA": Case("CudaSharedMemoryRegister", triton.CudaSharedMemoryRegisterRequest(name="r", raw_handle=b"1234", byte_size=4)),
    "trace": Case("TraceSetting", triton.TraceSettingRequest(), form),
    "trace of a model": Case("TraceSetting", triton.TraceSettingRequest(model_name="pair"), form),
    "trace of an unknown model": Case("TraceSetting", triton.TraceSettingRequest(model_name="none")),
    "trace, unknown": Case("TraceSetting", triton.TraceSettingRequest(settings={"none": triton.TraceSettingRequest.SettingValue(value=["1"])})),
    "trace, cleared": Case("TraceSetting", triton.TraceSettingRequest(settings={"trace_level": triton.TraceSettingRequest.SettingValue()}), form),
    "trace, the same": Case("TraceSetting", triton.TraceSettingRequest(settings={"trace_level": triton.TraceSettingRequest.SettingValue(value=["OFF"])}), form),
    "logging": Case("LogSettings", triton.LogSettingsRequest(), form),
    "logging, more": Case("LogSettings", triton.LogSettingsRequest(settings={"log_verbose_level": triton.LogSettingsRequest.SettingValue(uint32_param=1)}), form),
    "logging, less": Case("LogSettings", triton.LogSettingsRequest(settings={"log_verbose_level": triton.LogSettingsRequest.SettingValue(uint32_param=0)}), form),
    "logging, unknown": Case("LogSettings", triton.LogSettingsRequest(settings={"none": triton.LogSettingsRequest.SettingValue(bool_param=True)})),
    "logging, of a wrong type": Case("LogSettings", triton.LogSettingsRequest(settings={"log_info": triton.LogSettingsRequest.SettingValue(string_param="x")})),
    "a method that isn't there": Case("Nothing", triton.ServerLiveRequest()),
    # inference
    "raw": asked(X(), raw=[F3]),
    "raw, id": asked(X(), raw=[F3], request_id="here"),
    "raw, output": asked(X(), raw=[F3], outputs=[wanted()]),
    "raw, version": asked(X(), raw=[F3], version="1"),
    "raw, 32 rows": asked(X(shape=(32, 3)), raw=[F3 * 32]),
    "contents": asked(X(contents=FP32)),
    "contents of INT64": asked(X(datatype="INT64", contents={"int64_contents": [1, -(2**63), 3]}), model="int64"),
    "contents of BOOL": asked(X(datatype="BOOL", contents={"bool_contents": [True, False, True]}), model="bool"),
    "raw BOOL": asked(X(datatype="BOOL"), model="bool", raw=[b"\1\0\1"]),
    "raw FP16": asked(X(datatype="FP16"), model="float16", raw=[HALVES]),
    "contents of FP16": asked(X(datatype="FP16", contents=FP32), model="float16"),
    "pair": asked(X("left"), X("right", datatype="INT64"), model="pair", raw=[F3, I3]),
    "pair, the other way round": asked(X("right", datatype="INT64"), X("left"), model="pair", raw=[I3, F3]),
    "pair, contents": asked(X("left", contents=FP32), X("right", datatype="INT64", contents={"int64_contents": [1, 2, 3]}), model="pair"),
    "pair, one in contents": asked(X("left", contents=FP32), X("right", datatype="INT64"), model="pair", raw=[I3]),
    "pair, one output": asked(X("left"), X("right", datatype="INT64"), model="pair", raw=[F3, I3], outputs=[wanted("same_right")]),
    "pair, outputs the other way round": asked(X("left"), X("right", datatype="INT64"), model="pair", raw=[F3, I3], outputs=[wanted("same_right"), wanted("same_left")]),
    "binary_data of an output": asked(X(), raw=[F3], outputs=[wanted(binary_data=False)]),
    "NaN": asked(X(), raw=[struct.pack("<3f", float("nan"), float("inf"), 0)]),
    "parameters": asked(X(), raw=[F3], mine="text", more=1, less=True, half=0.5),
    "parameter without a value": asked(X(), raw=[F3], mine=None),
    "parameter of an input": asked(X(mine=1), raw=[F3]),
    "parameter in the protocol's own space": asked(X(), raw=[F3], triton_mine=1),
    "final response outside of a stream": asked(X(), raw=[F3], **EMPTY),
    "priority": asked(X(), raw=[F3], priority=1),
    "priority of 64 bits without sign": Case("ModelInfer", UNSIGNED),
    "priority as text": asked(X(), raw=[F3], priority="1"),
    "priority below 0": asked(X(), raw=[F3], priority=-1),
    "timeout": asked(X(), raw=[F3], timeout=10_000_000),
    "timeout as text": asked(X(), raw=[F3], timeout="10000000"),
    "sequence": asked(X(), raw=[F3], sequence_id=5, sequence_start=True, sequence_end=True),
    "sequence as text": asked(X(), raw=[F3], sequence_id="five", sequence_start=True),
    "unknown model": asked(X(), raw=[F3], model="none"),
    "no model": asked(X(), raw=[F3], model=""),
    "unknown version": asked(X(), raw=[F3], version="2"),
    "version of no number": asked(X(), raw=[F3], version="x"),
    "unknown input": asked(X("z"), raw=[F3]),
    "unknown output": asked(X(), raw=[F3], outputs=[wanted("z")]),
    "one output twice": asked(X(), raw=[F3], outputs=[wanted(), wanted()]),
    "one input twice": asked(X(), X(), raw=[F3, F3]),
    "an input missing": asked(X("left"), model="pair", raw=[F3]),
    "an input too many": asked(X(), X("z"), raw=[F3, F3]),
    "no inputs": asked(),
    "another type": asked(X(datatype="INT32"), raw=[F3]),
    "no type at all": asked(X(datatype="FP31"), raw=[F3]),
    "type empty": asked(X(datatype=""), raw=[F3]),
    "another rank": asked(X(shape=[3]), raw=[F3]),
    "another size": asked(X(shape=[1, 2]), raw=[F3[:8]]),
    "another batch per input": asked(X("left"), X("right", [2, 3], "INT64"), model="pair", raw=[F3, I3 * 2]),
    "no row": asked(X(shape=[0, 3]), raw=[b""]),
    "33 rows": asked(X(shape=[33, 3]), raw=[F3 * 33]),
    "shape below 0": asked(X(shape=[-1, 3]), raw=[F3]),
    "shape huge": asked(X(shape=[2**62, 3]), raw=[F3]),
    "shape empty": asked(X(shape=[]), raw=[F3]),
    "no data": asked(X()),
    "raw too short": asked(X(), raw=[F3[:8]]),
    "raw too long": asked(X(), raw=[F3 * 2]),
    "raw of one too many": asked(X(), raw=[F3, F3]),
    "raw of one too few": asked(X("left"), X("right", datatype="INT64"), model="pair", raw=[F3]),
    "raw and contents": asked(X(contents=FP32), raw=[F3]),
    "contents too short": asked(X(contents={"fp32_contents": [1, 2]})),
    "contents too long": asked(X(contents={"fp32_contents": [1, 2, 3, 4]})),
    "contents of another type": asked(X(contents={"int64_contents": [1, 2, 3]})),
    "contents of two types": asked(X(contents={"fp32_contents": [1, 2, 3], "int64_contents": [1]})),
    "contents empty": asked(X(contents={})),
    "no message": Case("ModelInfer", b"\xff\xff\xff"),
    "half a message": Case("ModelInfer", GOOD.SerializeToString()[:-5]),
    "no message, metadata": Case("ModelMetadata", b"\xff\xff\xff"),
    "an empty message": Case("ModelInfer", b""),
    "an unknown field": Case("ModelInfer", GOOD.SerializeToString() + b"\xfa\x3f\x01a"),
    "classes": asked(X(), raw=[F3], outputs=[wanted(classification=2)]),
    "classes of INT64": asked(X(datatype="INT64"), raw=[I3], model="int64", outputs=[wanted(classification=9)]),
    "classes of BOOL": asked(X(datatype="BOOL"), raw=[b"\1\0\1"], model="bool", outputs=[wanted(classification=3)]),
    "classes of FP16": asked(X(datatype="FP16"), raw=[HALVES], model="float16", outputs=[wanted(classification=3)]),
    "classes, none": asked(X(), raw=[F3], outputs=[wanted(classification=0)]),
    "classes below 0": asked(X(), raw=[F3], outputs=[wanted(classification=-1)]),
    "classes as text": asked(X(), raw=[F3], outputs=[wanted(classification="2")]),
    "input in no region": asked(X(shared_memory_region="r", shared_memory_byte_size=12)),
    "output into no region": asked(X(), raw=[F3], outputs=[wanted(shared_memory_region="r", shared_memory_byte_size=12)]),
    # streams
    "stream of nothing": streamed(),
    "stream of one": streamed(GOOD),
    "stream of three": streamed(*(request(X(), raw=[F3], request_id=str(n)) for n in range(3))),
    "stream with the final response": streamed(request(X(), raw=[F3], request_id="1", **EMPTY)),
    "stream with the final response refused": streamed(request(X(), raw=[F3], request_id="1", triton_enable_empty_final_response=False)),
    "stream with the final response as text": streamed(request(X(), raw=[F3], request_id="1", triton_enable_empty_final_response="true")),
    "stream of an unknown model": streamed(request(X(), raw=[F3], request_id="1", model="none")),
    "stream of an unknown model, final": streamed(request(X(), raw=[F3], request_id="1", model="none", **EMPTY)),
    "stream of an error": streamed(request(X(), raw=[F3[:8]], request_id="1")),
    "stream of an error, final": streamed(request(X(), raw=[F3[:8]], request_id="1", **EMPTY)),
    "stream of an error between": streamed(request(X(), raw=[F3], request_id="1"), request(X("z"), raw=[F3], request_id="2"), request(X(), raw=[F3], request_id="3")),
    "stream of an error without an id": streamed(request(X("z"), raw=[F3])),
    "stream of an unknown output": streamed(request(X(), raw=[F3], request_id="1", outputs=[wanted("z")])),
    "stream of classes": streamed(request(X(), raw=[F3], request_id="1", outputs=[wanted(classification=1)])),
    "stream of no message": streamed(b"\xff\xff\xff"),
    "stream of two models": streamed(request(X(), raw=[F3], request_id="1"), request(X(datatype="INT64"), raw=[I3], request_id="2", model="int64")),
}  # fmt: skip


class Known(NamedTuple):
    """What hasten does otherwise on purpose.

    Attributes:
        why: The reason.
        what: The facets that differ, or both codes.
        cases: Names of the cases that differ so.
    """

    why: str
    what: tuple[str, ...]
    cases: tuple[str, ...]


KNOWN = (
    Known("No number is just another version that there isn't.", ("OK for INVALID_ARGUMENT",),
          ("version of no number ready",)),
    Known("The same; and what isn't there is NOT_FOUND wherever it is asked for.",
          ("NOT_FOUND for INVALID_ARGUMENT",),
          ("metadata of no number", "version of no number", "statistics of an unknown model",
           "statistics of an unknown version", "trace of an unknown model")),
    Known("The same.", ("NOT_FOUND for INTERNAL",), ("load of nothing",)),
    Known("Nothing of that name is registered: a typing error would look like success.",
          ("NOT_FOUND for OK",), ("unload of nothing",)),
    Known("There is one repository, so another one's name is a mistake.",
          ("INVALID_ARGUMENT for UNIMPLEMENTED",), ("index of a repository",)),
    Known("A region that isn't registered is a mistake in the request that names it.",
          ("INVALID_ARGUMENT for NOT_FOUND",),
          ("region that isn't there", "CUDA region that isn't there", "input in no region",
           "output into no region")),
    Known("It is the client's fault.", ("INVALID_ARGUMENT for INTERNAL",),
          ("register an object that isn't there", "no message", "half a message",
           "no message, metadata")),
    Known("A parameter that isn't known is passed over, whatever it is called and has for a value.",
          ("OK for INVALID_ARGUMENT",),
          ("parameter without a value", "parameter in the protocol's own space")),
    Known("Read as it can only be meant, and as over HTTP: no classes are the tensor itself.",
          ("OK for INVALID_ARGUMENT",),
          ("priority as text", "timeout as text", "classes as text", "classes, none")),
    Known("An extension: FP16 has classes.", ("OK for INVALID_ARGUMENT",), ("classes of FP16",)),
    Known("A setting that there isn't is said to be none instead of passed over.",
          ("INVALID_ARGUMENT for OK",), ("trace, unknown", "logging, unknown")),
    Known("Triton counts its elements in too few bits, and answers another shape.",
          ("INVALID_ARGUMENT for OK",), ("shape huge",)),
    Known("Data that no input takes is taken for a mistake.", ("INVALID_ARGUMENT for OK",),
          ("raw of one too many",)),
    Known("Outputs come in the order asked for, and each that is.",
          ("outputs", "raw_output_contents"),
          ("pair, outputs the other way round", "one output twice")),
    Known("What isn't true isn't asked for.",
          ("error_message", "model_name", "model_version", "parameters", "outputs",
           "raw_output_contents"),
          ("stream with the final response as text",)),
    Known("Who asks for the last answer to be marked gets the mark on an error, too.",
          ("parameters",), ("stream of an unknown model, final", "stream of an error, final")),
    Known("Why a stream ends is said.", ("1 answers for 0",), ("stream of no message",)),
)  # fmt: skip


class Reply(NamedTuple):
    """What came back: the status and its details, and the messages before it."""

    code: str
    details: str
    messages: list[Any]


def ask(port: int, case: Case) -> Reply:
    """Make a call in a channel of its own."""
    sent = case.sent if isinstance(case.sent, tuple) else (case.sent,)
    data = [each if isinstance(each, bytes) else each.SerializeToString() for each in sent]
    came: list[bytes] = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        path = f"/{SERVICE}/{case.method}"
        try:
            if case.method == "ModelStreamInfer":
                came.extend(channel.stream_stream(path)(iter(data), timeout=30))
            else:
                came.append(channel.unary_unary(path)(data[0], timeout=30))
        except grpc.RpcError as error:
            return Reply(error.code().name, error.details(), came)
    read = getattr(triton, f"{case.method}Response").FromString
    return Reply("OK", "", [read(each) for each in came])


def facets(reply: Reply, case: Case) -> dict[str, str]:
    """Take a reply apart into what a client may depend on; a stream's answers by their requests."""
    answers = []
    for message in reply.messages:
        value = MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        if value.get("error_message"):
            value["error_message"] = "said"
        answers.append(value)
    if case.method == "ModelStreamInfer":
        answers.sort(key=lambda each: str(each.get("infer_response", {}).get("id")))
    found = {"code": reply.code, "answers": str(len(answers))}
    for number, answer in enumerate(answers):
        for name, part in flat(case.look(answer)).items():
            found[f"{number} {name}".removeprefix("0 ")] = json.dumps(part, sort_keys=True)
    return found


def flat(value: Any) -> dict[str, Any]:
    """The parts of an answer; of a stream's those of the answer inside."""
    if not isinstance(value, dict):
        return {"list": value}
    inside = value.get("infer_response", {})
    return {name: part for name, part in {**value, **inside}.items() if name != "infer_response"}


def differences(one: dict[str, str], other: dict[str, str]) -> tuple[str, ...]:
    """The names of the facets that differ; of different codes these alone."""
    if one["code"] != other["code"]:
        return (f"{one['code']} for {other['code']}",)
    if one["answers"] != other["answers"]:
        return (f"{one['answers']} answers for {other['answers']}",)
    return tuple(name for name in {**one, **other} if one.get(name) != other.get(name))


KEY = "/hasten-test-oracle-grpc"
FLOATS = np.arange(3, dtype=np.float32)


def lying(offset: int, size: int) -> dict[str, Any]:
    """Parameters of a tensor in the region."""
    return {
        "shared_memory_region": "r",
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


def register(name: str, size: int) -> Case:
    """Register the region's begin under a name."""
    message = triton.SystemSharedMemoryRegisterRequest(name=name, key=KEY, byte_size=size)
    return Case("SystemSharedMemoryRegister", message)


STATUS = Case("SystemSharedMemoryStatus", triton.SystemSharedMemoryStatusRequest())
STEPS = {
    "register": register("r", 64),
    "status": STATUS,
    "register again": register("r", 64),
    "register too much": register("s", 65),
    "input": asked(tensor(**lying(0, 12))),
    "input and output": asked(tensor(**lying(0, 12)), outputs=[wanted(**lying(16, 12))]),
    "output": asked(tensor(), raw=[F3], outputs=[wanted(**lying(32, 20))]),
    "output with less room": asked(tensor(), raw=[F3], outputs=[wanted(**lying(16, 8))]),
    "output beyond the end": asked(tensor(), raw=[F3], outputs=[wanted(**lying(56, 12))]),
    "input beyond the end": asked(tensor(**lying(56, 12))),
    "input of another size": asked(tensor(**lying(0, 8))),
    "input with raw": asked(tensor(**lying(0, 12)), raw=[F3]),
    "input with contents": asked(tensor(contents=FP32, **lying(0, 12))),
    "one input of two": asked(
        tensor("left", **lying(0, 12)), tensor("right", datatype="INT64"), model="pair", raw=[I3]
    ),
    "unregister": Case(
        "SystemSharedMemoryUnregister", triton.SystemSharedMemoryUnregisterRequest(name="r")
    ),
    "status after it": STATUS,
}
"""Each after the others."""


def steps(port: int) -> tuple[dict[str, Any], bytes]:
    """Go through the steps; what came of each, and what is in the region in the end."""
    region = shm.create_shared_memory_region("r", KEY, 64)
    try:
        shm.set_shared_memory_region(region, [FLOATS])
        found = {name: ask(port, case) for name, case in STEPS.items()}
        return found, shm.get_contents_as_numpy(region, np.uint8, [64]).tobytes()
    finally:
        ask(port, STEPS["unregister"])
        shm.destroy_shared_memory_region(region)


KNOWN_STEPS = {
    # It is the client's fault.
    "register again": ("INVALID_ARGUMENT for ALREADY_EXISTS",),
    "register too much": ("INVALID_ARGUMENT for INTERNAL",),
    "output with less room": ("INVALID_ARGUMENT for INTERNAL",),
    # Data that no input takes is taken for a mistake.
    "input with raw": ("INVALID_ARGUMENT for OK",),
}


def test_shared_memory_is_read_and_written_as_by_triton(both: Any) -> None:
    (here, left), (there, other) = steps(both.hasten.grpc), steps(both.triton.grpc)
    found = {
        name: differences(facets(here[name], case), facets(there[name], case))
        for name, case in STEPS.items()
    }
    assert {name: what for name, what in found.items() if what} == KNOWN_STEPS
    assert left == other


def outcome(port: int, name: str, rows: int) -> Any:
    """What Triton's client makes of an answer, in a call and in a stream."""
    array = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with client.InferenceServerClient(f"127.0.0.1:{port}") as one:
        x = client.InferInput(name, array.shape, "FP32")
        x.set_data_from_numpy(array)
        try:
            said: Any = one.infer("float32", [x], request_id="5").as_numpy("y").tolist()
        except InferenceServerException as error:
            said = error.status()
        one.start_stream(callback=lambda result, error: came.put((result, error)))
        one.async_stream_infer("float32", [x], request_id="6")
        result, failure = came.get(timeout=30)
        one.stop_stream()
    if failure is not None:
        return said, type(failure), failure.status()
    return said, result.as_numpy("y").tolist(), result.get_response().id


@pytest.mark.parametrize(("name", "rows"), [("x", 2), ("x", 33), ("z", 1)])
def test_tritons_client_takes_one_for_the_other(both: Any, name: str, rows: int) -> None:
    assert outcome(both.hasten.grpc, name, rows) == outcome(both.triton.grpc, name, rows)


@pytest.fixture(scope="module", autouse=True)
def _a_request_each(both: Any) -> None:
    """Statistics are of the same form only after the first."""
    for port in (both.hasten.grpc, both.triton.grpc):
        assert ask(port, Case("ModelInfer", GOOD)).code == "OK"


@pytest.mark.parametrize("name", CASES)
def test_hasten_answers_as_triton_does(both: Any, name: str) -> None:
    case = CASES[name]
    here, there = ask(both.hasten.grpc, case), ask(both.triton.grpc, case)
    found = differences(facets(here, case), facets(there, case))
    known = [each.what for each in KNOWN if name in each.cases]
    assert [found] == (known or [()]), (here, there)


def test_every_known_difference_is_of_a_case() -> None:
    listed = [name for each in KNOWN for name in each.cases]
    assert set(listed) <= set(CASES)
    assert len(listed) == len(set(listed))
