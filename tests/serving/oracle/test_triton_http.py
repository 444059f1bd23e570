"""The same bytes over HTTP to hasten and to Triton. `make test-triton` runs it."""

from __future__ import annotations

import gzip
import http.client
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.utils.shared_memory as shm

INFER = "/v2/models/{}/infer"
ROW = [1.5, -2.0, 0.1]
HALVES = np.array(ROW, np.float16).tobytes()


class Case(NamedTuple):
    """One request.

    Attributes:
        method: Method of HTTP.
        path: The target, as it stands in the request.
        body: None for no Content-Length.
        headers: Beside those that http.client writes.
        look: Function that takes from an answer's JSON the part to compare.
    """

    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = {}
    look: Callable[[Any], Any] = lambda value: value


def form(value: Any) -> Any:
    """Put types in place of values; a list keeps the types of its elements, once each."""
    if isinstance(value, dict):
        return {name: form(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(form(inner), sort_keys=True) for inner in value})
    return type(value).__name__


def statistics(value: Any) -> Any:
    """Return the form of one model's statistics."""
    (one,) = (each for each in value["model_stats"] if each["name"] == "float32")
    return form(one)


def metadata(value: Any) -> Any:
    """Return all but the platform, since each server names what runs the model."""
    return {name: inner for name, inner in value.items() if name != "platform"}


def index(value: Any) -> Any:
    """In no order; Triton leaves out the reason where there is none."""
    return sorted(({"reason": "", **each} for each in value), key=lambda each: each["name"])


def configuration(value: Any) -> Any:
    """What clients read: the load generators among them tell by it what they may send."""
    tensors = ("name", "data_type", "dims", "is_shape_tensor", "label_filename")
    inputs = (*tensors[:4], "format", "optional", "allow_ragged_batch")
    return {
        "name": value["name"],
        "max_batch_size": value["max_batch_size"],
        "dynamic_batching": "dynamic_batching" in value,
        "ensemble or sequence": "ensemble_scheduling" in value or "sequence_batching" in value,
        "decoupled": value.get("model_transaction_policy", {}).get("decoupled", False),
        "cached": value.get("response_cache", {}).get("enable", False),
        "instances": {(each["kind"], type(each["count"])) for each in value["instance_group"]},
        "input": [{name: each[name] for name in inputs} for each in value["input"]],
        "output": [{name: each[name] for name in tensors} for each in value["output"]],
    }


def tensor(
    data: Any = ROW,
    shape: Sequence[Any] = (1, 3),
    datatype: str = "FP32",
    name: str = "x",
    **more: Any,
) -> dict[str, Any]:
    """An input in JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def asked(*inputs: Any, model: str = "float32", **more: Any) -> Case:
    """An inference all in JSON."""
    return Case("POST", INFER.format(model), json.dumps({"inputs": inputs, **more}).encode())


def binary(
    data: bytes, *inputs: Any, model: str = "float32", headers: Mapping[str, str] = {}, **more: Any
) -> Case:
    """An inference whose tensors follow its JSON."""
    head = json.dumps({"inputs": inputs, **more}).encode()
    length = {"Inference-Header-Content-Length": str(len(head))}
    return Case("POST", INFER.format(model), head + data, {**length, **headers})


def sized(
    size: Any, shape: Sequence[int] = (1, 3), datatype: str = "FP32", name: str = "x"
) -> dict[str, Any]:
    """An input behind the JSON."""
    parameters = {"binary_data_size": size}
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def packed(case: Case, how: str, data: bytes) -> Case:
    """Another body, said to be compressed."""
    return case._replace(body=data, headers={**case.headers, "Content-Encoding": how})


def accepting(case: Case, how: str) -> Case:
    """The same, with an Accept-Encoding."""
    return case._replace(headers={**case.headers, "Accept-Encoding": how})


F3 = struct.pack("<3f", *ROW)
GOOD = asked(tensor())
TEXT = GOOD.body or b""
BINARY = binary(F3, sized(12))
BINARY_OUT = {"binary_data_output": True}
LEFT, RIGHT = tensor(name="left"), tensor([1, 2, 3], name="right", datatype="INT64")
RAW = {"Inference-Header-Content-Length": "0"}
WANT = {"name": "y"}


def wanting(*outputs: Any, **more: Any) -> Case:
    """An inference that lists outputs."""
    return asked(tensor(), outputs=outputs, **more)


def y(**parameters: Any) -> dict[str, Any]:
    """The output, with parameters."""
    return {"name": "y", "parameters": parameters}


def get(path: str, **more: Any) -> Case:
    """What has no body."""
    return Case("GET", path, **more)


def post(path: str, value: Any = None, **more: Any) -> Case:
    """A body of JSON, or an empty one."""
    return Case("POST", path, b"" if value is None else json.dumps(value).encode(), **more)


MODEL = "/v2/models/float32"
LOAD = "/v2/repository/models"
BIG = list(range(33 * 3))

CASES: dict[str, Case] = {
    # what is served
    "server live": get("/v2/health/live"),
    "server ready": get("/v2/health/ready"),
    "server metadata": get("/v2", look=form),
    "server metadata, slash": get("/v2/", look=form),
    "metadata": get(MODEL, look=metadata),
    "metadata of a version": get(f"{MODEL}/versions/1", look=metadata),
    "metadata of two inputs": get("/v2/models/pair", look=metadata),
    "metadata of BOOL": get("/v2/models/bool", look=metadata),
    "metadata of FP16": get("/v2/models/float16", look=metadata),
    "metadata of an unknown model": get("/v2/models/none", look=metadata),
    "metadata of an unknown version": get(f"{MODEL}/versions/2", look=metadata),
    "metadata of no number": get(f"{MODEL}/versions/one", look=metadata),
    "metadata, slash": get(f"{MODEL}/", look=metadata),
    "metadata, percent-encoded": get("/v2/models/flo%61t32", look=metadata),
    "metadata with a query": get(f"{MODEL}?a=1", look=metadata),
    "model ready": get(f"{MODEL}/ready"),
    "version ready": get(f"{MODEL}/versions/1/ready"),
    "unknown model ready": get("/v2/models/none/ready"),
    "unknown version ready": get(f"{MODEL}/versions/7/ready"),
    "version of no number ready": get(f"{MODEL}/versions/x/ready"),
    "config": get(f"{MODEL}/config", look=configuration),
    "config of two inputs": get("/v2/models/pair/config", look=configuration),
    "config of a version": get(f"{MODEL}/versions/1/config", look=configuration),
    "config of an unknown model": get("/v2/models/none/config"),
    "config of an unknown version": get(f"{MODEL}/versions/3/config"),
    "statistics": get(f"{MODEL}/stats", look=statistics),
    "statistics of a version": get(f"{MODEL}/versions/1/stats", look=statistics),
    "statistics of all": get("/v2/models/stats", look=statistics),
    "statistics of an unknown model": get("/v2/models/none/stats"),
    "statistics of an unknown version": get(f"{MODEL}/versions/2/stats"),
    "index": post("/v2/repository/index", look=index),
    "index of what is ready": post("/v2/repository/index", {"ready": True}, look=index),
    "index, empty object": post("/v2/repository/index", {}, look=index),
    "index with a wrong type": post("/v2/repository/index", {"ready": 1}),
    "index by GET": get("/v2/repository/index"),
    "index, no JSON": Case("POST", "/v2/repository/index", b"{"),
    # paths and methods
    "nothing there": get("/nothing"),
    "nothing there in v2": get("/v2/nothing"),
    "list of models": get("/v2/models"),
    "health of nothing": get("/v2/health/nothing"),
    "HEAD of live": Case("HEAD", "/v2/health/live"),
    "HEAD of metadata": Case("HEAD", MODEL),
    "POST of live": post("/v2/health/live"),
    "POST of server metadata": post("/v2"),
    "POST of metadata": post(MODEL),
    "POST of config": post(f"{MODEL}/config"),
    "POST of statistics": post(f"{MODEL}/stats"),
    "PUT of metadata": Case("PUT", MODEL, b""),
    "DELETE of metadata": Case("DELETE", MODEL),
    "GET of infer": get(f"{MODEL}/infer"),
    "PUT of infer": GOOD._replace(method="PUT"),
    "generate": post(f"{MODEL}/generate", {"x": 1}),
    "no name of a model": get("/v2/models//ready"),
    # inference: all well
    "JSON": GOOD,
    "JSON of integers for FP32": asked(tensor([1, 2, 3])),
    "JSON of exponents": asked(tensor([1e3, 1e-3, 1.5e30])),
    "JSON nested": asked(tensor([ROW])),
    "JSON nested, two rows": asked(tensor([ROW, ROW], [2, 3])),
    "JSON flat, two rows": asked(tensor(ROW + ROW, [2, 3])),
    "JSON, 32 rows": asked(tensor(BIG[:96], [32, 3])),
    "JSON with an id": asked(tensor(), id="an id"),
    "JSON with an empty id": asked(tensor(), id=""),
    "JSON with an id of letters abroad": asked(tensor(), id="grün"),
    "INT64": asked(tensor([1, -(2**63), 2**63 - 1], datatype="INT64"), model="int64"),
    "BOOL": asked(tensor([True, False, True], datatype="BOOL"), model="bool"),
    "BOOL of numbers": asked(tensor([1, 0, 1], datatype="BOOL"), model="bool"),
    "FP16 in JSON": asked(tensor(datatype="FP16"), model="float16"),
    "FP16 in binary, JSON back": binary(HALVES, sized(6, datatype="FP16"), model="float16"),
    "FP16 in binary and back": binary(
        HALVES, sized(6, datatype="FP16"), model="float16", parameters=BINARY_OUT
    ),
    "two inputs": asked(LEFT, RIGHT, model="pair"),
    "two inputs, the other way round": asked(RIGHT, LEFT, model="pair"),
    "two inputs, one output": asked(LEFT, RIGHT, model="pair", outputs=[{"name": "same_right"}]),
    "two inputs, outputs the other way round": asked(
        LEFT, RIGHT, model="pair", outputs=[{"name": "same_right"}, {"name": "same_left"}]
    ),
    "two inputs, one output in binary": asked(
        LEFT, RIGHT, model="pair",
        outputs=[{"name": "same_right", "parameters": {"binary_data": True}}, {"name": "same_left"}],
    ),
    "two inputs, both in binary": binary(
        F3 + struct.pack("<3q", 7, 8, 9), sized(12, name="left"),
        sized(24, name="right", datatype="INT64"), model="pair", parameters=BINARY_OUT,
    ),
    "two inputs, one in binary": binary(F3, RIGHT, sized(12, name="left"), model="pair"),
    "binary": BINARY,
    "binary with an id": binary(F3, sized(12), id="7"),
    "binary both ways": binary(F3, sized(12), parameters=BINARY_OUT),
    "binary back": asked(tensor(), parameters=BINARY_OUT),
    "binary back, of one output": wanting(y(binary_data=True)),
    "binary back, but not of one output": wanting(y(binary_data=False), parameters=BINARY_OUT),
    "binary back, the output's own word missing": wanting(WANT, parameters=BINARY_OUT),
    "binary_data_output false": asked(tensor(), parameters={"binary_data_output": False}),
    "binary_data_output a number": asked(tensor(), parameters={"binary_data_output": 1}),
    "binary_data_output text": asked(tensor(), parameters={"binary_data_output": "true"}),
    "binary_data a number": wanting(y(binary_data=1)),
    "binary_data text": wanting(y(binary_data="true")),
    "BOOL in binary": binary(b"\1\0\1", sized(3, datatype="BOOL"), model="bool"),
    "BOOL in binary, neither 0 nor 1": binary(
        b"\2\0\xff", sized(3, datatype="BOOL"), model="bool", parameters=BINARY_OUT
    ),
    "NaN in binary and back": binary(
        struct.pack("<3f", float("nan"), float("inf"), 0), sized(12), parameters=BINARY_OUT
    ),
    "NaN back in JSON": binary(struct.pack("<3f", float("nan"), 1, 0), sized(12)),
    "infinity back in JSON": binary(struct.pack("<3f", float("inf"), 1, 0), sized(12)),
    "JSON header of the whole length": GOOD._replace(
        headers={"Inference-Header-Content-Length": str(len(TEXT))}
    ),
    "an output by name": wanting(WANT),
    "no outputs listed": asked(tensor(), outputs=[]),
    "of a version": GOOD._replace(path=f"{MODEL}/versions/1/infer"),
    "percent-encoded name": GOOD._replace(path="/v2/models/flo%61t32/infer"),
    "with a query": GOOD._replace(path=f"{MODEL}/infer?a=1"),
    "Content-Type of a form": GOOD._replace(headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "chunks": GOOD._replace(
        body=b"10\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (TEXT[:16], len(TEXT) - 16, TEXT[16:]),
        headers={"Transfer-Encoding": "chunked"},
    ),
    # what no request has to have
    "an unknown field": asked(tensor(), more=1),
    "an unknown field of an input": asked(tensor(more={"a": [1]})),
    "an unknown field of an output": wanting({"name": "y", "more": None}),
    "an unknown parameter": asked(tensor(), parameters={"mine": "text"}),
    "an unknown parameter, number": asked(tensor(), parameters={"mine": 7}),
    "an unknown parameter, fraction": asked(tensor(), parameters={"mine": 7.5}),
    "an unknown parameter, bool": asked(tensor(), parameters={"mine": True}),
    "an unknown parameter, list": asked(tensor(), parameters={"mine": [1]}),
    "an unknown parameter, null": asked(tensor(), parameters={"mine": None}),
    "an unknown parameter, object": asked(tensor(), parameters={"mine": {}}),
    "an unknown parameter of an input": asked(tensor(parameters={"mine": "text"})),
    "an unknown parameter of an output": wanting(y(mine=1)),
    "empty parameters": asked(tensor(parameters={}), parameters={}),
    "null parameters": asked(tensor(), parameters=None),
    "null parameters of an input": asked(tensor(parameters=None)),
    "null outputs": asked(tensor(), outputs=None),
    "null id": asked(tensor(), id=None),
    "id a number": asked(tensor(), id=7),
    "priority": asked(tensor(), parameters={"priority": 1}),
    "priority 0": asked(tensor(), parameters={"priority": 0}),
    "priority as text": asked(tensor(), parameters={"priority": "1"}),
    "priority below 0": asked(tensor(), parameters={"priority": -1}),
    "priority a fraction": asked(tensor(), parameters={"priority": 1.5}),
    "timeout": asked(tensor(), parameters={"timeout": 10_000_000}),
    "timeout as text": asked(tensor(), parameters={"timeout": "10000000"}),
    "timeout no number": asked(tensor(), parameters={"timeout": "soon"}),
    "timeout below 0": asked(tensor(), parameters={"timeout": -5}),
    "sequence_id 0": asked(tensor(), parameters={"sequence_id": 0, "sequence_start": False, "sequence_end": False}),
    "sequence_id": asked(tensor(), parameters={"sequence_id": 5, "sequence_start": True, "sequence_end": True}),
    "sequence_id text": asked(tensor(), parameters={"sequence_id": "five", "sequence_start": True}),
    "a parameter in the protocol's own space": asked(tensor(), parameters={"triton_mine": 1}),
    # no request of the model's
    "unknown model": asked(tensor(), model="none"),
    "unknown version": GOOD._replace(path=f"{MODEL}/versions/2/infer"),
    "version of no number": GOOD._replace(path=f"{MODEL}/versions/one/infer"),
    "version -1": GOOD._replace(path=f"{MODEL}/versions/-1/infer"),
    "unknown input": asked(tensor(name="z")),
    "unknown output": wanting({"name": "z"}),
    "one output twice": wanting(WANT, WANT),
    "one input twice": asked(tensor(), tensor()),
    "one input too many": asked(tensor(), tensor(name="z")),
    "an input missing": asked(LEFT, model="pair"),
    "no inputs": asked(),
    "no name of inputs": Case("POST", f"{MODEL}/infer", b"{}"),
    "inputs null": Case("POST", f"{MODEL}/infer", b'{"inputs": null}'),
    "inputs an object": Case("POST", f"{MODEL}/infer", b'{"inputs": {}}'),
    "an input a number": Case("POST", f"{MODEL}/infer", b'{"inputs": [1]}'),
    "another type": asked(tensor([1, 2, 3], datatype="INT32")),
    "another type in binary": binary(F3, sized(12, datatype="INT32")),
    "no type at all": asked(tensor(datatype="FP31")),
    "type in lower case": asked(tensor(datatype="fp32")),
    "type an empty text": asked(tensor(datatype="")),
    "another rank": asked(tensor(shape=[3])),
    "a third axis": asked(tensor(shape=[1, 1, 3])),
    "another size": asked(tensor([1, 2], [1, 2])),
    "another batch per input": asked(LEFT, tensor([1] * 6, [2, 3], "INT64", "right"), model="pair"),
    "no row": asked(tensor([], [0, 3])),
    "no row in binary": binary(b"", sized(0, [0, 3])),
    "33 rows": asked(tensor(BIG, [33, 3])),
    "shape below 0": asked(tensor(shape=[-1, 3])),
    "shape below 0 twice": asked(tensor(shape=[-1, -3])),
    "shape a fraction": asked(tensor(shape=[1.0, 3])),
    "shape of text": asked(tensor(shape=["1", "3"])),
    "shape null": asked({**tensor(), "shape": None}),
    "shape missing": asked({"name": "x", "datatype": "FP32", "data": ROW}),
    "shape huge": asked(tensor(shape=[2**62, 3])),
    "shape past 64 bits": asked(tensor(shape=[2**64, 3])),
    "name missing": asked({"datatype": "FP32", "shape": [1, 3], "data": ROW}),
    "type missing": asked({"name": "x", "shape": [1, 3], "data": ROW}),
    "data missing": asked({"name": "x", "datatype": "FP32", "shape": [1, 3]}),
    "data null": asked(tensor(None)),
    "data an object": asked(tensor({})),
    "data a number": asked(tensor(1)),
    "data too short": asked(tensor([1, 2])),
    "data too long": asked(tensor([1, 2, 3, 4])),
    "data empty": asked(tensor([])),
    "data nested unevenly": asked(tensor([[1, 2], [3]])),
    "data nested with another shape": asked(tensor([[1], [2], [3]])),
    "data nested too deep": asked(tensor([[[1, 2, 3]]])),
    "data nested by half": asked(tensor([[1, 2], 3])),
    "text for FP32": asked(tensor(["1", "2", "3"])),
    "one text for FP32": asked(tensor([1, "2", 3])),
    "null for FP32": asked(tensor([1, None, 3])),
    "bool for FP32": asked(tensor([True, False, True])),
    "one bool for FP32": asked(tensor([1, True, 3])),
    "past FP32": asked(tensor([1e39, 0, 0])),
    "past FP64": Case("POST", f"{MODEL}/infer", TEXT.replace(b"1.5", b"1e999")),
    "NaN in JSON": Case("POST", f"{MODEL}/infer", TEXT.replace(b"1.5", b"NaN")),
    "Infinity in JSON": Case("POST", f"{MODEL}/infer", TEXT.replace(b"1.5", b"Infinity")),
    "fraction for INT64": asked(tensor([1.5, 2, 3], datatype="INT64"), model="int64"),
    "whole fraction for INT64": asked(tensor([1.0, 2, 3], datatype="INT64"), model="int64"),
    "past INT64": asked(tensor([2**63, 0, 0], datatype="INT64"), model="int64"),
    "past 64 bits": asked(tensor([2**64, 0, 0], datatype="INT64"), model="int64"),
    "text for INT64": asked(tensor(["1", "2", "3"], datatype="INT64"), model="int64"),
    "bool for INT64": asked(tensor([True, False, True], datatype="INT64"), model="int64"),
    "null for INT64": asked(tensor([None, 1, 2], datatype="INT64"), model="int64"),
    "2 for BOOL": asked(tensor([2, 0, 1], datatype="BOOL"), model="bool"),
    "-1 for BOOL": asked(tensor([-1, 0, 1], datatype="BOOL"), model="bool"),
    "fraction for BOOL": asked(tensor([0.5, 0, 1], datatype="BOOL"), model="bool"),
    "text for BOOL": asked(tensor(["true", "false", "true"], datatype="BOOL"), model="bool"),
    # binary that doesn't fit
    "binary too short": binary(F3[:8], sized(8)),
    "binary too long": binary(F3 + F3, sized(24)),
    "binary shorter than announced": binary(F3, sized(16)),
    "binary longer than announced": binary(F3 + b"more", sized(12)),
    "binary_data_size text": binary(F3, sized("12")),
    "binary_data_size below 0": binary(F3, sized(-12)),
    "binary_data_size a fraction": binary(F3, sized(12.0)),
    "binary_data_size null": binary(F3, sized(None)),
    "binary_data_size without a header's length": BINARY._replace(headers={}),
    "binary and data": binary(F3, tensor([4, 5, 6], parameters={"binary_data_size": 12})),
    "header's length too long": BINARY._replace(headers={"Inference-Header-Content-Length": "9999"}),
    "header's length too short": BINARY._replace(headers={"Inference-Header-Content-Length": "20"}),
    "header's length no number": BINARY._replace(headers={"Inference-Header-Content-Length": "many"}),
    "header's length below 0": BINARY._replace(headers={"Inference-Header-Content-Length": "-1"}),
    "header's length empty": GOOD._replace(headers={"Inference-Header-Content-Length": ""}),
    "a raw body": Case("POST", f"{MODEL}/infer", F3, RAW),
    "a raw body of two rows": Case("POST", f"{MODEL}/infer", F3 + F3, RAW),
    "a raw body of BOOL": Case("POST", INFER.format("bool"), b"\1\0\1", RAW),
    "a raw body of FP16": Case("POST", INFER.format("float16"), HALVES, RAW),
    "a raw body of a wrong size": Case("POST", f"{MODEL}/infer", F3 + b"odd", RAW),
    "a raw body of nothing": Case("POST", f"{MODEL}/infer", b"", RAW),
    "a raw body for two inputs": Case("POST", INFER.format("pair"), F3, RAW),
    "a raw body of JSON": GOOD._replace(headers=RAW),
    # no JSON
    "no body": Case("POST", f"{MODEL}/infer"),
    "an empty body": Case("POST", f"{MODEL}/infer", b""),
    "a body of space": Case("POST", f"{MODEL}/infer", b"  "),
    "a body cut short": GOOD._replace(body=TEXT[:-1]),
    "a body of more": GOOD._replace(body=TEXT + b"}"),
    "a body of space behind": GOOD._replace(body=TEXT + b" \n"),
    "a list": Case("POST", f"{MODEL}/infer", b"[]"),
    "a number": Case("POST", f"{MODEL}/infer", b"7"),
    "no UTF-8": Case("POST", f"{MODEL}/infer", b'{"id": "\xff", "inputs": []}'),
    "no UTF-8 in a good request": GOOD._replace(body=TEXT.replace(b'"inputs"', b'"id": "\xff", "inputs"')),
    "one key twice": Case("POST", f"{MODEL}/infer", TEXT[:-1] + b', "id": "a", "id": "b"}'),
    # classes
    "classes": wanting(y(classification=2)),
    "classes, one": wanting(y(classification=1)),
    "classes, more than there are": wanting(y(classification=9)),
    "classes, none": wanting(y(classification=0)),
    "classes below 0": wanting(y(classification=-1)),
    "classes as text": wanting(y(classification="2")),
    "classes in binary": wanting(y(classification=3, binary_data=True)),
    "classes in binary by default": wanting(y(classification=3), parameters=BINARY_OUT),
    "classes of two rows": asked(tensor([1, 2, 3, 9, 8, 7], [2, 3]), outputs=[y(classification=2)]),
    "classes of equal scores": asked(tensor([1, 1, 1]), outputs=[y(classification=3)]),
    "classes of large scores": asked(tensor([1e10, 123456.789, 1e-7]), outputs=[y(classification=3)]),
    "classes of INT64": asked(
        tensor([5, -7, 2**40], datatype="INT64"), model="int64", outputs=[y(classification=3)]
    ),
    "classes of INT64's ends": asked(
        tensor([2**63 - 1, -(2**63), 0], datatype="INT64"), model="int64", outputs=[y(classification=3)]
    ),
    "classes of BOOL": asked(
        tensor([True, False, True], datatype="BOOL"), model="bool", outputs=[y(classification=3)]
    ),
    "classes of FP16": binary(
        HALVES, sized(6, datatype="FP16"), model="float16", outputs=[y(classification=3)]
    ),
    "classes of NaN": binary(
        struct.pack("<3f", 1, float("nan"), 2), sized(12), outputs=[y(classification=3)]
    ),
    # compression
    "gzip in": packed(GOOD, "gzip", gzip.compress(TEXT)),
    "deflate in": packed(GOOD, "deflate", zlib.compress(TEXT)),
    "gzip in, binary": packed(BINARY, "gzip", gzip.compress(BINARY.body or b"")),
    "deflate in, binary": packed(BINARY, "deflate", zlib.compress(BINARY.body or b"")),
    "no gzip in": packed(GOOD, "gzip", TEXT),
    "half a gzip in": packed(GOOD, "gzip", gzip.compress(TEXT)[:-12]),
    "gzip for deflate": packed(GOOD, "deflate", gzip.compress(TEXT)),
    "deflate for gzip": packed(GOOD, "gzip", zlib.compress(TEXT)),
    "identity in": packed(GOOD, "identity", TEXT),
    "unknown encoding in": packed(GOOD, "br", TEXT),
    "gzip out": accepting(GOOD, "gzip"),
    "deflate out": accepting(GOOD, "deflate"),
    "gzip or deflate out": accepting(GOOD, "gzip, deflate"),
    "deflate or gzip out": accepting(GOOD, "deflate, gzip"),
    "deflate rather than gzip out": accepting(GOOD, "gzip;q=0.5, deflate;q=0.9"),
    "gzip out, in no case": accepting(GOOD, "gzip;q=0"),
    "anything out": accepting(GOOD, "*"),
    "identity out": accepting(GOOD, "identity"),
    "unknown encoding out": accepting(GOOD, "br"),
    "gzip out, binary": accepting(binary(F3, sized(12), parameters=BINARY_OUT), "gzip"),
    "gzip out of metadata": get(MODEL, headers={"Accept-Encoding": "gzip"}, look=metadata),
    # traces and logs
    "trace": get("/v2/trace/setting", look=form),
    "trace of a model": get(f"{MODEL}/trace/setting", look=form),
    "trace of an unknown model": get("/v2/models/none/trace/setting"),
    "trace, the same": post("/v2/trace/setting", {"trace_level": ["OFF"]}, look=form),
    "trace, cleared": post("/v2/trace/setting", {"trace_level": None}, look=form),
    "trace, no object": post("/v2/trace/setting", [1]),
    "trace, unknown": post("/v2/trace/setting", {"none": "1"}),
    "trace, of a wrong type": post("/v2/trace/setting", {"trace_rate": 1}),
    "logging": get("/v2/logging", look=form),
    "logging, the same": post("/v2/logging", {"log_info": True}, look=form),
    "logging, more": post("/v2/logging", {"log_verbose_level": 1}, look=form),
    "logging, less": post("/v2/logging", {"log_verbose_level": 0}, look=form),
    "logging, unknown": post("/v2/logging", {"none": True}),
    "logging, of a wrong type": post("/v2/logging", {"log_info": 1}),
    "logging, no JSON": Case("POST", "/v2/logging", b"{"),
    "logging, empty": Case("POST", "/v2/logging", b""),
    # the repository
    "load what is loaded": post(f"{LOAD}/int64/load"),
    "load, empty object": post(f"{LOAD}/int64/load", {}),
    "load with empty parameters": post(f"{LOAD}/int64/load", {"parameters": {}}),
    "load of nothing": post(f"{LOAD}/none/load"),
    "load by GET": get(f"{LOAD}/int64/load"),
    "load, no JSON": Case("POST", f"{LOAD}/int64/load", b"{"),
    "unload of nothing": post(f"{LOAD}/none/unload"),
    # shared memory
    "no regions": get("/v2/systemsharedmemory/status"),
    "region that isn't there": get("/v2/systemsharedmemory/region/r/status"),
    "register nothing": post("/v2/systemsharedmemory/region/r/register"),
    "register an object that isn't there": post(
        "/v2/systemsharedmemory/region/r/register",
        {"key": "/hasten-test-none", "offset": 0, "byte_size": 16},
    ),
    "register without a key": post("/v2/systemsharedmemory/region/r/register", {"byte_size": 16}),
    "unregister what isn't there": post("/v2/systemsharedmemory/region/r/unregister"),
    "unregister all": post("/v2/systemsharedmemory/unregister"),
    "no CUDA regions": get("/v2/cudasharedmemory/status"),
    "CUDA region that isn't there": get("/v2/cudasharedmemory/region/r/status"),
    "unregister CUDA what isn't there": post("/v2/cudasharedmemory/region/r/unregister"),
    "unregister all CUDA": post("/v2/cudasharedmemory/unregister"),
    "register CUDA": post(
        "/v2/cudasharedmemory/region/r/register",
        {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 4},
    ),
    "input in no region": asked(
        {"name": "x", "datatype": "FP32", "shape": [1, 3],
         "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 12}}
    ),
    "output into no region": wanting(y(shared_memory_region="r", shared_memory_byte_size=12)),
}  # fmt: skip


class Known(NamedTuple):
    """What hasten does otherwise on purpose.

    Attributes:
        why: The reason.
        what: The facets that differ, or both statuses.
        cases: Names of the cases that differ so.
    """

    why: str
    what: tuple[str, ...]
    cases: tuple[str, ...]


CLIENTS_FAULT = "400 for 500"
"""A request that can't be read is its client's fault, wherever Triton calls it the server's."""
KNOWN = (
    Known(
        "What isn't there is 404 wherever it is asked for.",
        ("404 for 400",),
        ("unknown model ready", "unknown version ready", "statistics of an unknown model",
         "statistics of an unknown version", "trace of an unknown model", "generate"),
    ),
    Known("The same.", ("404 for 500",), ("load of nothing",)),
    Known("Nothing of that name is registered: a typing error would look like success.",
          ("404 for 200",), ("unload of nothing",)),
    Known("A region that isn't registered is a mistake in the request that names it.",
          ("400 for 404",),
          ("region that isn't there", "CUDA region that isn't there", "input in no region",
           "output into no region")),
    Known("No key is one that may not be registered.", ("403 for 400",), ("register without a key",)),
    Known("Only what the protocol has is read; of an encoding that is a client's fault.",
          ("400 for 501",), ("unknown encoding in",)),
    Known("What is traced is set where the server is started.", ("403 for 500",),
          ("trace, of a wrong type",)),
    Known("RFC 3986: %61 is a, and an empty part at the end of a path is none.",
          ("200 for 404",),
          ("server metadata, slash", "metadata, slash", "metadata, percent-encoded",
           "percent-encoded name")),
    Known("RFC 9110: where GET is taken, so is HEAD.", ("200 for 405",),
          ("HEAD of live", "HEAD of metadata")),
    Known("Read as it can only be meant: other servers of the protocol take null for nothing, and "
          "clients write numbers as text, or 0 and 1 for false and true.",
          ("200 for 500",),
          ("BOOL of numbers", "null parameters", "null outputs", "null id", "priority as text",
           "timeout as text", "classes as text")),
    Known("An extension: FP16 has a JSON form and classes, and the rows of a raw body are counted.",
          ("200 for 400",),
          ("FP16 in JSON", "FP16 in binary, JSON back", "classes of FP16",
           "a raw body of two rows")),
    Known("A parameter that isn't known is passed over, whatever it is called and has for a value.",
          ("200 for 400",),
          ("an unknown parameter, list", "an unknown parameter, null",
           "an unknown parameter, object", "a parameter in the protocol's own space")),
    Known("Data that is nested otherwise than the shape says is taken for a mistake.",
          ("400 for 200",),
          ("data nested unevenly", "data nested with another shape", "data nested too deep",
           "data nested by half")),
    Known("JSON has neither NaN nor infinity; few parsers would read the answer.",
          ("500 for 200",), ("NaN back in JSON", "infinity back in JSON")),
    Known("A number that is no FP32 isn't taken for infinity.", ("400 for 200",), ("past FP32",)),
    Known("The same, of a request.", ("400 for 200",), ("NaN in JSON", "Infinity in JSON")),
    Known("JSON is UTF-8; few parsers would read the answer.", ("400 for 200",),
          ("no UTF-8 in a good request",)),
    Known("A header that says something else than the body is taken for a mistake.",
          ("400 for 200",), ("gzip for deflate", "deflate for gzip")),
    Known("A setting that there isn't is said to be none instead of passed over.",
          ("400 for 200",), ("trace, no object", "trace, unknown", "logging, unknown")),
    Known("Outputs come in the order asked for.", ("outputs",),
          ("two inputs, outputs the other way round", "two inputs, one output in binary")),
    Known("Each output that is asked for is answered.", ("outputs",), ("one output twice",)),
    Known("As Triton's own description of the extension has it, binary_data_output is the default "
          "of all outputs, those that are listed included.",
          ("tail", "in binary", "content type", "outputs"),
          ("binary back, the output's own word missing", "classes in binary by default")),
    Known("Most parsers keep the last of equal keys.", ("id",), ("one key twice",)),
)  # fmt: skip


def ask(port: int, case: Case) -> tuple[int, dict[str, str], bytes]:
    """Send a request in a connection of its own; status, headers in lower case, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest(case.method, case.path, skip_accept_encoding=True)
        for name, value in case.headers.items():
            connection.putheader(name, value)
        if case.body is not None and "Transfer-Encoding" not in case.headers:
            connection.putheader("Content-Length", str(len(case.body)))
        connection.endheaders(case.body)
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, headers, response.read()
    finally:
        connection.close()


def single(value: Any) -> Any:
    """Numbers as FP32 has them: the servers write the same one with more digits or fewer."""
    return [float(np.float32(each)) if type(each) is float else each for each in value]


def facets(reply: tuple[int, dict[str, str], bytes], case: Case) -> dict[str, Any]:
    """Take a reply apart into what a client may depend on."""
    status, headers, body = reply
    found: dict[str, Any] = {"status": status}
    if case.method == "HEAD":
        return found | {"body": body}
    if status != 200:
        return found | {"error": form(json.loads(body.decode(errors="replace")))}
    encoding = headers.get("content-encoding")
    body = zlib.decompress(body, 47) if encoding else body
    length = headers.get("inference-header-content-length")
    head, tail = (body, b"") if length is None else (body[: int(length)], body[int(length) :])
    found |= {"encoding": encoding, "tail": tail, "in binary": length is not None}
    if not head:
        return found
    value = json.loads(head.decode(errors="replace"))
    for output in value.get("outputs", ()) if isinstance(value, dict) else ():
        if output["datatype"] in ("FP32", "FP16") and "data" in output:
            output["data"] = single(output["data"])
    looked = case.look(value)
    parts = looked if isinstance(looked, dict) else {"list": looked}
    # As text, 1, 1.0 and true are different.
    texts = {name: json.dumps(part, sort_keys=True, default=str) for name, part in parts.items()}
    return found | {"content type": headers.get("content-type")} | texts


def differences(one: dict[str, Any], other: dict[str, Any]) -> tuple[str, ...]:
    """The names of the facets that differ; of different statuses these alone."""
    if one["status"] != other["status"]:
        return (f"{one['status']} for {other['status']}",)
    missing = object()
    return tuple(
        name for name in {**one, **other} if one.get(name, missing) != other.get(name, missing)
    )


FLOATS = np.arange(3, dtype=np.float32)
SHARED = "/v2/systemsharedmemory"
KEY = "/hasten-test-oracle"


def lying(offset: int, size: int) -> dict[str, Any]:
    """Parameters of a tensor in the region."""
    return {
        "shared_memory_region": "r",
        "shared_memory_offset": offset,
        "shared_memory_byte_size": size,
    }


def shared(offset: int, size: int, **more: Any) -> Case:
    """An inference whose input lies in the region."""
    return asked(
        {"name": "x", "datatype": "FP32", "shape": [1, 3], "parameters": lying(offset, size)},
        **more,
    )


REGISTER = {"key": KEY, "offset": 0, "byte_size": 64}
"""From another offset on, this Triton reads behind the region."""
STEPS = {
    "register": post(f"{SHARED}/region/r/register", REGISTER),
    "status": get(f"{SHARED}/status"),
    "status of one": get(f"{SHARED}/region/r/status"),
    "register again": post(f"{SHARED}/region/r/register", REGISTER),
    "register too much": post(f"{SHARED}/region/s/register", {**REGISTER, "byte_size": 65}),
    "register nothing": post(f"{SHARED}/region/s/register", {**REGISTER, "byte_size": 0}),
    "input": shared(0, 12),
    "input and output": shared(0, 12, outputs=[y(**lying(16, 12))]),
    "output with more room": wanting(y(**lying(32, 20))),
    "output without an offset": wanting(
        y(shared_memory_region="r", shared_memory_byte_size=12), id="7"
    ),
    "classes": wanting(y(**lying(44, 20), classification=1)),
    "output with less room": wanting(y(**lying(16, 8))),
    "output beyond the end": wanting(y(**lying(56, 12))),
    "input beyond the end": shared(56, 12),
    "input of another size": shared(0, 8),
    "input without a size": asked(
        {"name": "x", "datatype": "FP32", "shape": [1, 3],
         "parameters": {"shared_memory_region": "r"}}
    ),
    "input with data": asked(tensor(parameters=lying(0, 12))),
    "input in binary, too": binary(
        F3, {**sized(12), "parameters": {**sized(12)["parameters"], **lying(0, 12)}}
    ),
    "unregister": post(f"{SHARED}/region/r/unregister"),
    "input after it": shared(0, 12),
    "status after it": get(f"{SHARED}/status"),
}  # fmt: skip
"""Each after the others."""


def steps(port: int) -> tuple[dict[str, Any], bytes]:
    """Go through the steps; what came of each, and what is in the region in the end."""
    region = shm.create_shared_memory_region("r", KEY, 64)
    try:
        shm.set_shared_memory_region(region, [FLOATS])
        found = {name: ask(port, case) for name, case in STEPS.items()}
        return found, shm.get_contents_as_numpy(region, np.uint8, [64]).tobytes()
    finally:
        ask(port, post(f"{SHARED}/unregister"))
        shm.destroy_shared_memory_region(region)


KNOWN_STEPS = {
    # Triton refuses with 500 what is the client's fault.
    "register too much": (CLIENTS_FAULT,),
    "register nothing": (CLIENTS_FAULT,),
    "output with less room": (CLIENTS_FAULT,),
    # Classes are written there like any other output.
    "classes": ("200 for 400",),
    # A region that isn't registered is a mistake in the request that names it.
    "input after it": ("400 for 404",),
}


def test_shared_memory_is_read_and_written_as_by_triton(both: Any) -> None:
    (here, left), (there, other) = steps(both.hasten.http), steps(both.triton.http)
    found = {
        name: differences(facets(here[name], case), facets(there[name], case))
        for name, case in STEPS.items()
    }
    assert {name: what for name, what in found.items() if what} == KNOWN_STEPS
    assert left[:44] == other[:44]  # the classes lie behind


@pytest.fixture(scope="module", autouse=True)
def _a_request_each(both: Any) -> None:
    """Statistics are of the same form only after the first."""
    for port in (both.hasten.http, both.triton.http):
        assert ask(port, GOOD)[0] == 200


@pytest.mark.parametrize("name", CASES)
def test_hasten_answers_as_triton_does(both: Any, name: str) -> None:
    case = CASES[name]
    here, there = ask(both.hasten.http, case), ask(both.triton.http, case)
    found = differences(facets(here, case), facets(there, case))
    known = [each.what for each in KNOWN if name in each.cases]
    assert [found] == (known or [(CLIENTS_FAULT,) if CLIENTS_FAULT in found else ()]), (here, there)


def test_every_known_difference_is_of_a_case() -> None:
    listed = [name for each in KNOWN for name in each.cases]
    assert set(listed) <= set(CASES)
    assert len(listed) == len(set(listed))


def test_the_client_is_blamed_for_its_faults_alone(both: Any) -> None:
    case = CASES["data too short"]
    assert (ask(both.hasten.http, case)[0], ask(both.triton.http, case)[0]) == (400, 500)
