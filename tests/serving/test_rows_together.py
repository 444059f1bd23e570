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


def bundle(folder: Path, text: str, varying: tuple[str, ...] = ()) -> Path:
    """Write a bundle of x: [N, 4], with weights w: [4, 8192], named as its graph."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    name = proto.graph.name
    if "(x, w)" in text:
        weights = np.ones((4, _WIDTH), np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    save(proto, folder / f"{name}.onnx")
    model = onnx.load(folder / f"{name}.onnx").settled_by({"x": np.zeros(4, np.float32)})
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


def test_rows_that_need_not_run_together_are_answered_however_many_the_bundle_counts(
    tmp_path: Path,
) -> None:
    text = "apart (float[N, 4] x) => (float[N, 8192] y) { y = MatMul (x, w) }"
    path = bundle(tmp_path, text)
    assert [one.times for one in read(path).growth] == [2.0**n for n in range(11)]
    with ServerThread(place_of(path, most_length=1)) as server:
        assert ask(server.http_url, "apart", 32) == ""
