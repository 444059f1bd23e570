"""Requests of many rows to a model whose rows must run together, since no answer says which row it belongs to."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser, save
from tests.support import lengths
from tests.support.bundles import forge, stated
from tests.support.servers import ONE_THREAD, ServerProcess, ServerThread, place_of

from hasten.bundle import part, read, write
from hasten.core.target import Target
from hasten.inputs.models import onnx
from hasten.measure.live_bytes import growth_of
from hasten.passes.onnx_files import read_onnx

_WIDTH = 8192
_LINE = re.compile(
    r"input 'x': at most ([\d,]+) rows can be run together here, since the bundle was made with up to 1( and more may take "
    r"over 64 MiB beyond a batch of such samples)?; got ([\d,]+): the server's option --max-length allows more"
)
_WIDE = """wide (float[N, 4] x) => (float[8192, N] y) { all = MatMul (x, w)  y = Transpose <perm = [1, 0]> (all) }"""
_PAIRS = """pairs (float[N, 4] x) => (float[4, N] y) {
    other = Transpose <perm = [1, 0]> (x)  near = MatMul (x, other)  sure = Abs (near)
    y = MatMul (other, sure) }"""
_FOUND = """found (float[N, 4] x) => (float[N, 1] y, int64[found, 2] places)
    <float zero = {0}, int64[1] one = {1}> {
    all = MatMul (x, w)  y = ReduceSum <keepdims = 1> (all, one)
    above = Greater (x, zero)  found = NonZero (above)  places = Transpose (found) }"""


_TABLES = """tables (float[N, length] x) => (float[N, length] y)
    <int64[2] first = {1, 2}, int64[2] second = {1, 3}, int64[2] both = {1, 2}, int64[4] heads = {1, 24, 1, 1}> {
    each = Unsqueeze (x, first)  other = Unsqueeze (x, second)  apart = Sub (each, other)
    all = Expand (apart, heads)  far = Abs (all)  y = ReduceSum <keepdims = 0> (far, both) }"""


def bundle(folder: Path, text: str, varying: tuple[str, ...] = (), length: int = 4) -> Path:
    """Write a bundle of x: [N, 4], with weights w: [4, 8192], named as its graph.

    Args:
        folder: Folder for the bundle.
        text: Graph.
        varying: Outputs of which it says that values size them, so that no batch is formed.
        length: Size of the data's samples, where it isn't 4.
    """
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    name = proto.graph.name
    if "(x, w)" in text:
        weights = np.ones((4, _WIDTH), np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    save(proto, folder / f"{name}.onnx")
    model = onnx.load(folder / f"{name}.onnx").settled_by({"x": np.zeros(length, np.float32)})
    (folder / "built").mkdir()
    engine = ONE_THREAD
    built = part("a label", (), engine, engine.build(model, Target.host(), folder / "built"))
    growth = growth_of(read_onnx(model, weights=False), model.inputs, model.request, ())
    path = folder / f"{name}.hasten"
    write(path, stated(built, None, status="exact", varying=varying, growth=growth), {})
    return path


def ask(url: str, model: str, rows: int) -> str:
    """Ask for an answer to rows of zeros; return the error, or "" for an answer."""
    head = {"name": "x", "datatype": "FP32", "shape": [rows, 4]}
    size = 16 * rows
    said = json.dumps({"inputs": [{**head, "parameters": {"binary_data_size": size}}]})
    request = urllib.request.Request(
        f"{url}/v2/models/{model}/infer",
        said.encode() + bytes(size),
        {"Inference-Header-Content-Length": str(len(said))},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"]) if error.code == 400 else str(error)


def most_of(said: str) -> int:
    found = _LINE.fullmatch(said)
    assert found, said
    return int(found[1].replace(",", ""))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("text", "varying"),
    [(_WIDE, ()), (_PAIRS, ()), (_FOUND, ("places",))],
    ids=["wide", "pairs", "found"],
)
def test_rows_that_run_together_take_at_most_64_mib_beyond_one(
    tmp_path: Path, text: str, varying: tuple[str, ...]
) -> None:
    """64 kB are 4,096 rows, of which a layer of 8,192 numbers takes 128 MiB, and one with each other 64 MiB twice."""
    path = bundle(tmp_path, text, varying)
    with ServerProcess(str(path)) as server:
        url = f"http://{server.host}"
        for _ in range(3):
            assert ask(url, path.stem, 1) == ""
        before_mib = server.memory_mib("VmHWM")
        most = most_of(ask(url, path.stem, 4096))
        assert 32 <= most <= 1024
        for _ in range(3):
            assert ask(url, path.stem, most) == ""
        assert most_of(ask(url, path.stem, most + 1)) == most
        assert server.memory_mib("VmHWM") - before_mib <= 64


def test_a_bundle_that_states_no_memory_answers_1024_rows_together_unless_the_operator_allows_more(
    tmp_path: Path,
) -> None:
    path = bundle(tmp_path, _WIDE)
    forge(path, lambda record: record.pop("growth"))
    for given, most in ((None, 1024), (5, 5), (1500, 1500)):
        with ServerThread(place_of(path, most_length=given)) as server:
            assert ask(server.http_url, "wide", most) == ""
            why = "" if given else ", since the bundle was made with up to 1"
            assert ask(server.http_url, "wide", most + 1) == (
                f"input 'x': at most {most:,} rows can be run together here{why}; got {most + 1:,}: the server's option "
                "--max-length allows more"
            )


@pytest.mark.seconds
def test_short_rows_count_by_their_own_memory_and_not_as_the_longest_of_the_data(
    tmp_path: Path,
) -> None:
    """The longest sample of the data takes 69 MiB, so two of them can't run together, but thirty that are an eighth as long."""
    path = bundle(tmp_path, _TABLES, ("y",), length=600)
    line = re.compile(
        r"input 'x': at most ([\d,]+) rows? of \d+ can be run together here, since .*"
    )
    with ServerProcess(str(path)) as server:
        url = f"http://{server.host}"
        for _ in range(3):
            assert lengths.ask(url, "tables", 600) == ""
        before_mib = server.memory_mib("VmHWM")
        assert "at most 1 row of 600 can be run together" in lengths.ask(url, "tables", 600, rows=2)
        for length, least in ((75, 30), (30, 100), (1, 1024)):
            found = line.fullmatch(lengths.ask(url, "tables", length, rows=5000))
            assert found
            most = int(found[1].replace(",", ""))
            assert most >= least
            for _ in range(2):
                assert lengths.ask(url, "tables", length, most) == ""
            assert lengths.ask(url, "tables", length, most + 1) != ""
        assert server.memory_mib("VmHWM") - before_mib <= 64


def test_rows_that_need_not_run_together_are_answered_however_many_the_bundle_counts(
    tmp_path: Path,
) -> None:
    text = "apart (float[N, 4] x) => (float[N, 8192] y) { y = MatMul (x, w) }"
    path = bundle(tmp_path, text)
    assert [one.times for one in read(path).growth] == [2.0**n for n in range(11)]
    with ServerThread(place_of(path, most_length=1)) as server:
        assert ask(server.http_url, "apart", 32) == ""
