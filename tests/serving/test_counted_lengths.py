"""Lengths of requests that a server answers by the memory that a bundle states for them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser, save
from tests.support.bundles import forge, stated
from tests.support.lengths import ask
from tests.support.pausing import RAN, Pausing, pausing_installed
from tests.support.servers import ONE_THREAD, ServerProcess, ServerThread, place_of, with_curve

from hasten.bundle import part, read, write
from hasten.core.growth import Growth, RowsTogether
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Engine
from hasten.errors import IntegrityError
from hasten.inputs.models import onnx
from hasten.measure.live_bytes import growth_of
from hasten.passes.onnx_files import read_onnx
from hasten.serving.models import opening
from hasten.serving.models.input_specs import InputSpec, Lengths, Parts
from hasten.serving.models.opening import SIZES
from hasten.serving.protocol.errors import ProtocolError

KNOWN = 12
LINE = re.compile(
    r"input 'x': dimension 1 has at most (\d+) here, since the bundle was made with up to 12 and more may take over "
    r"64 MiB beyond a batch of such samples; got [\d,]+: the server's option --max-length allows more"
)


def weighing(
    folder: Path, *lengths: int, engine: Engine = ONE_THREAD, evidence: Mapping[str, Any] = {}
) -> Path:
    """Write a bundle of x: [batch, length] -> y: [batch, length], by 24 tables of the differences of all numbers."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
        weighing (float[batch, length] x) => (float[batch, length] y)
        <int64[2] first = {1, 2}, int64[2] second = {1, 3}, int64[2] both = {1, 2}> {
            each = Unsqueeze (x, first)  other = Unsqueeze (x, second)
            apart = Sub (each, other)  all = Mul (apart, heads)  far = Abs (all)
            y = ReduceSum <keepdims = 0> (far, both) }"""
    proto = parser.parse_model(text)
    heads = np.ones((1, 24, 1, 1), np.float32)
    proto.graph.initializer.append(_tensor(heads, "heads"))
    save(proto, folder / "weighing.onnx")
    model = onnx.load(folder / "weighing.onnx").settled_by({"x": np.zeros(lengths[0], np.float32)})
    (folder / "built").mkdir()
    built = part("a label", (), engine, engine.build(model, Target.host(), folder / "built"))
    shapes = extents(model.inputs, [{"x": (length,)} for length in lengths])
    growth = growth_of(read_onnx(model, weights=False), model.inputs, model.request, shapes)
    path = folder / "weighing.hasten"
    write(path, stated(built, None, status="exact", shapes=shapes, growth=growth), evidence)
    return path


def _tensor(array: Array, name: str) -> object:
    from onnx import numpy_helper

    return numpy_helper.from_array(array, name)


@pytest.mark.seconds
def test_no_length_that_is_answered_takes_more_than_64_mib_beyond_a_batch_of_the_data(
    tmp_path: Path,
) -> None:
    """Tables of 1,024 numbers with each other take a quarter of a GiB, with 32 rows at once much more."""
    path = weighing(tmp_path, KNOWN)
    with ServerProcess(str(path)) as server:
        url = f"http://{server.host}"
        for rows in (32, 32, 1):
            assert ask(url, "weighing", KNOWN, rows) == ""
        before_mib = server.memory_mib("VmHWM")
        said = ask(url, "weighing", 1024)
        found = LINE.fullmatch(said)
        assert found, said
        most = int(found[1])
        assert 200 <= most < 1024
        assert ask(url, "weighing", most + 1).startswith("input 'x': dimension 1 has at most")
        for length, rows in (
            (60, 1),
            (60, 32),
            (200, 1),
            (200, 32),
            (most, 1),
            (most, 1),
            (most, 32),
        ):
            assert ask(url, "weighing", length, rows) == ""
        assert server.memory_mib("VmHWM") - before_mib <= 64


@pytest.mark.seconds
def test_a_bundle_of_an_earlier_version_answers_by_the_size_alone(tmp_path: Path) -> None:
    path = weighing(tmp_path, KNOWN)
    forge(path, lambda record: record.pop("growth"))
    with ServerProcess(str(path)) as server:
        url = f"http://{server.host}"
        assert ask(url, "weighing", KNOWN, 32) == ""
        before_mib = server.memory_mib("VmHWM")
        assert ask(url, "weighing", 1024) == ""
        assert (
            "dimension 1 has at most 1,024 here, since the bundle was made with up to 12; "
            in ask(url, "weighing", 1025)
        )
        assert server.memory_mib("VmHWM") - before_mib > 100


@pytest.mark.parametrize("given", [5, 900])
def test_the_operator_decides_whatever_the_bundle_states(tmp_path: Path, given: int) -> None:
    with ServerThread(place_of(weighing(tmp_path, KNOWN), most_length=given)) as server:
        assert ask(server.http_url, "weighing", given) == ""
        assert ask(server.http_url, "weighing", given + 1) == (
            f"input 'x': dimension 1 has at most {given} here; got {given + 1}: the server's option --max-length allows more"
        )


def test_the_longest_of_the_data_is_answered_however_much_it_takes(tmp_path: Path) -> None:
    """One sample of 600 takes more than 64 MiB by itself, so none that is longer is answered without batches."""
    path = weighing(tmp_path, 20, 600)
    with ServerThread(place_of(path, most_rows=1)) as server:
        assert ask(server.http_url, "weighing", 600) == ""
        assert "dimension 1 has at most 600 here, since" in ask(server.http_url, "weighing", 601)


def test_rows_that_are_longer_than_the_data_run_in_parts_by_their_memory(tmp_path: Path) -> None:
    with pausing_installed(tmp_path / "plug-in"):
        path = weighing(tmp_path, KNOWN, engine=Pausing())
        growth = read(path).growth
        with ServerThread(place_of(path)) as server:
            sizes = [size for size in SIZES if size <= 32]
            together = RowsTogether(growth, 32)
            for length in (12, 40, 70, 150, 290):
                RAN.clear()
                assert ask(server.http_url, "weighing", length, rows=32) == ""
                allowed = together.rows(max(1.0, length / KNOWN))
                rows = max(size for size in sizes if size <= allowed)
                assert len(RAN) == math.ceil(32 / rows), (length, allowed)


@pytest.mark.parametrize(
    ("p50_ms", "busy", "own"),
    [
        ({1: 1, 8: 5, 32: 20}, True, 32),
        ({1: 1, 8: 300, 32: 61_000}, True, 8),
        ({1: 1, 8: 5}, False, 32),
        ({1: 1, 64: 50}, True, 1),
        ({}, True, 1),
        ({}, False, 32),
    ],
)
def test_a_start_on_a_busy_machine_bounds_lengths_by_the_batch_curve_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, p50_ms: dict[int, float], busy: bool, own: int
) -> None:
    """A busy one has no time to warm up any batch; --max-batch is 32."""
    path = weighing(tmp_path, KNOWN, evidence=with_curve(p50_ms) if p50_ms else {})
    if busy:
        monkeypatch.setattr(opening, "_BUDGET_NS", -1)
    with ServerThread(place_of(path)) as server:
        opened = server.server.state.repository.find("weighing").opened
        assert max(opened.sizes) == (1 if busy else 32)
        most = math.floor(KNOWN * RowsTogether(read(path).growth, own).most_times(1024 / KNOWN))
        assert ask(server.http_url, "weighing", most) == ""
        found = LINE.fullmatch(ask(server.http_url, "weighing", most + 1))
        assert found
        assert int(found[1]) == most


def test_of_rows_that_depend_on_each_other_no_batch_bounds_lengths(tmp_path: Path) -> None:
    text = """mates (float[N, length] x) => (float[N, length] y) <int64[1] rows = {0}> {
        all = ReduceSum <keepdims = 1> (x, rows)  y = Add (x, all) }"""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {text}')
    save(proto, tmp_path / "mates.onnx")
    model = onnx.load(tmp_path / "mates.onnx").settled_by({"x": np.zeros(KNOWN, np.float32)})
    (tmp_path / "built").mkdir()
    built = ONE_THREAD.build(model, Target.host(), tmp_path / "built")
    path = tmp_path / "mates.hasten"
    winner = part("a label", (), ONE_THREAD, built)
    write(path, stated(winner, None, status="exact"), with_curve({1: 1, 2: 1, 32: 2}))
    with ServerThread(place_of(path)) as server:
        assert server.server.state.repository.find("mates").opened.own_batch == 1


def growth(bytes_: Sequence[int]) -> tuple[Growth, ...]:
    return tuple(Growth(2.0**n, one) for n, one in enumerate(bytes_))


def together_of(mib: int, batch: int = 1) -> RowsTogether:
    """Return rows of a model whose memory grows with the square, of some MiB for the data."""
    return RowsTogether(growth([4**n * mib << 20 for n in range(10)]), batch)


def refusal(known: dict[int, int], shape: tuple[int, ...], mib: int, *, rows: bool = False) -> str:
    lengths = Lengths(known, None, rows, together_of(mib))
    names = tuple(f"d{axis}" for axis in range(len(shape)))
    spec = InputSpec(TensorSpec("x", "float32", names), not rows, lengths)
    try:
        spec.check_lengths(shape)
    except ProtocolError as error:
        return str(error)
    return ""


def test_the_product_of_several_dimensions_is_bounded_by_memory() -> None:
    """10 MiB let a sample be 1.58 times as large as those of 4 MiB."""
    known = {1: 100, 2: 200}
    for shape in ((1, 100, 316), (1, 1, 316), (1, 158, 1), (1, 125, 250)):
        assert refusal(known, shape, 4) == ""
    assert refusal(known, (1, 130, 250), 4) == (
        "input 'x': its open dimensions may exceed those of the data by a factor of 1.5 here when multiplied, since the "
        "bundle was made with up to 100 x 200 and more may take over 64 MiB beyond a batch of such samples; got 130 x "
        "250: the server's option --max-length 325 allows it"
    )
    assert Lengths(known, 325).refusal("x", (1, 130, 250)) is None
    assert Lengths(known, 324).refusal("x", (1, 130, 250)) is not None
    assert refusal(known, (1, 1, 317), 4).startswith("input 'x': dimension 2 has at most 316 here")


def test_rows_that_run_together_are_bounded_by_memory() -> None:
    """So many rows may run together as take 8.5 MiB, if they are larger than in the data or not."""
    known = {1: 100}
    for shape in ((8, 100), (8, 1), (2, 200), (1, 291)):
        assert refusal(known, shape, 1, rows=True) == ""
    assert refusal(known, (9, 100), 1, rows=True) == (
        "input 'x': at most 8 rows of 100 can be run together here, since the bundle was made with up to 100 and more may "
        "take over 64 MiB beyond a batch of such samples; got 9: the server's option --max-length 300 allows it"
    )
    assert Lengths(known, 300, rows=True).refusal("x", (9, 100)) is None
    assert "at most 2 rows of 200" in refusal(known, (3, 200), 1, rows=True)


def test_parts_are_as_large_as_the_memory_of_their_rows_allows() -> None:
    together = together_of(1, 32)
    lengths = Lengths({1: 100}, together=together)
    spec = InputSpec(TensorSpec("x", "float32", ("n", "length")), True, lengths)
    parts = Parts([spec], (1, 2, 4, 8, 16, 32), together)
    for length, rows in ((100, 32), (101, 16), (200, 8), (400, 2), (500, 1)):
        x = np.zeros((32, length), np.float32)
        assert {len(one["x"]) for one in parts.of({"x": x})} == ({rows} if rows < 32 else set())


def test_a_manifest_that_states_impossible_memory_is_refused(tmp_path: Path) -> None:
    path = weighing(tmp_path, KNOWN)
    stated_ = read(path).growth
    assert [one.times for one in stated_] == [2.0**n for n in range(-4, 8)]
    for wrong in (
        [{"times": 2.0, "memory_bytes": 5}],
        [{"times": 0.5, "memory_bytes": 5}],
        [{"times": 1.0, "memory_bytes": -5}],
        [{"times": 1.0, "memory_bytes": 5}] * 2,
        [{"times": 1.0, "memory_bytes": 5.5}],
        [{"times": "1", "memory_bytes": 5}],
        {"times": 1.0},
        [{"times": 1.0 + n, "memory_bytes": 5} for n in range(65)],
    ):
        forge(path, partial(dict.update, growth=wrong))
        with pytest.raises(IntegrityError, match="the manifest is damaged"):
            read(path)
    huge = [replace(one, memory_bytes=1 << 62) if one.times > 1 else one for one in stated_]
    forge(path, partial(dict.update, growth=[one.__dict__ for one in huge]))
    with ServerThread(place_of(path)) as server:
        assert ask(server.http_url, "weighing", KNOWN, rows=32) == ""
        assert ask(server.http_url, "weighing", 2 * KNOWN).startswith(
            "input 'x': dimension 1 has at most"
        )
