"""Damaged plans: refused before any C is written, or as safe as any other plan."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fuzz.mutation import changed_leaves
from tests.engines.test_compiled_bytes import Made
from tests.engines.test_compiled_words import MadeOfWords, elementwise
from tests.support.plans import answers, planned

from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.compiled import source, writer
from hasten.engines.compiled.coverage import unproven
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.lowering import lower
from hasten.engines.compiled.operators.choices import Pick
from hasten.engines.compiled.operators.convolutions import Conv
from hasten.engines.compiled.operators.couplings import Couple
from hasten.engines.compiled.operators.dense import Dense
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.elementwise import (
    Add8,
    Dequantize,
    Gate8,
    Multiply8,
    Quantize,
    Table8,
)
from hasten.engines.compiled.operators.int8.numbers import Gate, Rounding, Sum8
from hasten.engines.compiled.operators.int8.pools import Pool8
from hasten.engines.compiled.operators.maps import Map
from hasten.engines.compiled.operators.programs import Step
from hasten.engines.compiled.plan import Operation, Plan
from hasten.engines.compiled.source import Source, write
from hasten.engines.compiled.tensors import Access, Tensor
from hasten.engines.compiled.writer import Tables
from hasten.errors import BeyondRange, CandidateError, HastenError, IntegrityError
from hasten.testing import models

_TEXT = """
    <ir_version: 10, opset_import: ["": 17]>
    damaged (float[1, 4, 9, 7] x, int64[1, 3] ids)
        => (float[1, 3, 12] y, int64[1, 3, 2] best, float[1, 12, 3] picked, float[1, 3, 1] mean)
        <int64[1] two = {2}, int64[3] flat = {0, 3, -1}, int64 last = {2}> {
        c = Conv <strides = [2, 1], pads = [1, 0, 2, 1], group = 2> (x, w, b)
        r = Relu(c)
        p = MaxPool <kernel_shape = [2, 2], pads = [1, 0, 0, 1]> (r)
        f = Reshape(p, flat)
        rows = Gather(table, ids)
        t = Transpose <perm = [0, 2, 1]> (rows)
        m = MatMul(f, t2)
        q = MatMul(rows, t)
        s = Softmax(q)
        a = MatMul(s, rows)
        d = MatMul(a, dense)
        y = CumSum(d, last)
        values, best = TopK(y, two)
        mean = ReduceMean <axes = [2]> (m)
        picked = Transpose <perm = [0, 2, 1]> (d)
    }"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, bytes]:
    """A plan with every kind of operation, and its weights."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(_TEXT)
    shapes = {"w": (6, 2, 3, 2), "b": (6,), "table": (10, 8), "t2": (70, 5), "dense": (8, 12)}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    onnx.save(model, path)
    request = (
        TensorSpec("x", "float32", (1, 4, 9, 7)),
        TensorSpec("ids", "int64", (1, 3)),
    )
    outputs = tuple(TensorSpec(name, "float32", ()) for name in ("y", "best", "picked", "mean"))
    return lower(path, request, outputs)


@pytest.fixture(scope="module")
def sound_bytes() -> tuple[Plan, bytes]:
    """A plan with every operation of bytes, whose tensors are outputs, and its weights."""
    made = Made(0)
    rounding = Rounding(7, 1, 250)
    made.given["x"] = np.linspace(-3, 3, 60).astype(np.float32)

    def conv(end: str, given: str, **shape: Any) -> str:
        found = made.conv(end, **shape)
        for name in filter(None, (found.input, found.residual)):
            del made.given[name]
        residual = given if found.residual else ""
        made.operations.append(replace(found, input=given, residual=residual))
        return found.output

    def add(operation: Any, whole: int, dtype: str = "uint8", **fields: Any) -> str:
        name = made.output(whole, dtype)
        made.operations.append(operation(output=name, **fields))
        return name

    small = made.constant(np.array([0.004], np.float32))
    first = add(Quantize, 60, input="x", channels=4, pixels=15, step=0.03, rounding=rounding)
    window: dict[str, Any] = {"size": (3, 5), "kernel": (3, 3), "pads": (1, 1, 1, 1)}
    wide = conv("plain", first, channels=(4, 8), **window)
    deep = conv("all", wide, channels=(8, 8), groups=8, **window)
    far: dict[str, Any] = {"kernel": (2, 3), "strides": (1, 2), "dilations": (1, 2)}
    conv("table", deep, channels=(8, 6), groups=2, size=(3, 5), pads=(0, 3, 1, 1), **far)
    table = add(Table8, 120, input=deep, table=made.table(), size=120)
    summed = Sum8.near((0.7, -1.3), (1, 250), rounding)
    both = add(Add8, 120, first=table, second=wide, size=120, sum=summed)
    bare: dict[str, Any] = {"input": both, "channels": 8, "size": (3, 5), "zero": 9}
    mean: dict[str, Any] = {"kernel": (3, 5), "strides": (1, 1), "pads": (0, 0, 0, 0)}
    pool = add(Pool8, 8, scale=small, rounding=rounding, **mean, **bare)
    most: dict[str, Any] = {"kernel": (2, 3), "strides": (1, 2), "pads": (0, 1, 0, 1)}
    add(Pool8, 48, scale="", rounding=None, **most, **bare)
    sizes: dict[str, Any] = {"pixels": 15, "channels": 8, "zeros": (7, 128)}
    gated = add(
        *(Multiply8, 120),
        first=both,
        second=pool,
        scale=small,
        gate=True,
        rounding=rounding,
        **sizes,
    )
    weighed = add(
        *(Gate8, 120),
        input=gated,
        gates=pool,
        pixels=15,
        channels=8,
        product=Gate((7, 128), 8_000_000, 14, rounding),
    )
    squared = add(
        *(Multiply8, 120),
        first=weighed,
        second=both,
        scale=small,
        gate=False,
        rounding=rounding,
        **sizes,
    )
    conv("float", pool, channels=(8, 5), size=(1, 1))
    conv("sloped", pool, channels=(8, 5), size=(1, 1))
    numbers = made.constant(np.linspace(-2, 2, 256, dtype=np.float32))
    add(Dequantize, 120, "float32", input=squared, table=numbers, channels=8, pixels=15)
    return planned(made.operations, made.constants, made.given, made.made, by_row=True)


@pytest.fixture(scope="module")
def sound_words() -> tuple[Plan, bytes]:
    """A plan with every operation of words, whose tensors are outputs, and its weights."""
    made = MadeOfWords(0)
    window: dict[str, Any] = {"size": (3, 5), "kernel": (3, 3), "pads": (1, 1, 1, 1)}
    far: dict[str, Any] = {"kernel": (2, 3), "strides": (1, 2), "dilations": (1, 2)}
    made.operations = [
        made.conv16("bytes", "words", channels=(4, 8), **window),
        made.conv16("words", "words sloped", channels=(8, 8), groups=8, **window),
        made.conv16("words", "all", channels=(8, 6), groups=2, size=(3, 5), pads=(0, 3, 1, 1), **far),
        made.conv16("words", "float", channels=(8, 5), size=(1, 1)),
    ]  # fmt: skip
    elementwise(made, [(15, 8)])
    return planned(made.operations, made.constants, made.given, made.made, by_row=True)


def survivors(sound: tuple[Plan, bytes], seeds: range) -> list[Source]:
    """Return C of those damaged plans that are taken, and that differ."""
    plan, weights = sound
    record = json.loads(json.dumps(to_record(plan)))
    words = [*record["tensors"], "float32", "int64", "uint8", "int16", "exp", "maximum", "sum"]
    target = Target.host()
    known = {write(plan, weights, target).text}
    found = []
    for seed in seeds:
        try:
            made: Plan = from_record(Plan, changed_leaves(record, random.Random(seed), words))
            made.check(len(weights))
            written = write(made, weights, target)
        except HastenError:
            continue
        if written.text not in known:
            known.add(written.text)
            found.append(written)
    return found


_MAIN = """
extern void *aligned_alloc(unsigned long, unsigned long);
extern void *malloc(unsigned long);
extern int open(const char *, int, ...);
extern long read(int, void *, unsigned long);
int main(void) {
  i64 beyond[2];
  struct call c = {.beyond = beyond};
  c.rows = BY_ROW ? 27 : 1;
  for (int i = 0; i < INPUTS + OUTPUTS; i++) {
    u8 *p = malloc(c.rows * ROW_BYTES[i]);
    for (long k = 0; k < c.rows * ROW_BYTES[i]; k++) p[k] = (u8)(k * 37 + 11);
    if (i < INPUTS) c.in[i] = p; else c.out[i - INPUTS] = p;
  }
  c.arena = aligned_alloc(64, ARENA);
  u8 *weights = aligned_alloc(64, TABLES);
  for (long n = 0, at = 0, file = open("tables", 0); (n = read(file, weights + at, TABLES - at)) > 0;) at += n;
  c.weights = weights;
  run(&c);
  return 0;
}
"""


def tensor(size: int, offset: int | None = None, dtype: str = "float32") -> Tensor:
    return Tensor(dtype, size, offset)


_DENSE = Dense("w", "w", "", "y", rows=1000, inner=2, outer=2)
_CONV = Conv("x", "w", "", "y", (1, 1), 1, (8, 8), (1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
_COPY = Step("copy", (0,), "float32")


@pytest.mark.parametrize(
    ("operation", "tensors"),
    [
        (_DENSE, {"w": tensor(4, 0), "y": tensor(2000)}),
        (
            replace(_DENSE, input="x", bias="w"),
            {"x": tensor(2000), "w": tensor(2, 0), "y": tensor(2000)},
        ),
        (
            Dense("b", "w", "b", "y", rows=1000, inner=2, outer=2),
            {"w": tensor(4, 0), "b": tensor(2, 0), "y": tensor(2000)},
        ),
        (replace(_CONV, input="w"), {"w": tensor(1, 0), "y": tensor(64)}),
        (
            replace(_CONV, pictures=2**20, pads=(4000, 4000, 0, 0), strides=(8000, 8000)),
            {"x": tensor(2**26), "w": tensor(1, 0), "y": tensor(2**20)},
        ),
        (
            replace(_CONV, size=(400, 400), kernel=(100, 100), strides=(300, 300)),
            {"x": tensor(160_000), "w": tensor(10_000, 0), "y": tensor(4)},
        ),
        (
            Map((_COPY,), (Access("x", (0,) * 99),), Access("y", (0,) * 99), (1,) * 99),
            {"x": tensor(1), "y": tensor(1)},
        ),
        (Couple("x", "y", 1), {"x": tensor(1), "y": tensor(1)}),
        (Couple("x", "y", 3), {"x": tensor(2), "y": tensor(3)}),
        (Couple("x", "y", 2), {"x": tensor(1), "y": tensor(1)}),
        (Couple("x", "y", 1001), {"x": tensor(500_500), "y": tensor(1001)}),
        (Couple("x", "y", 10**30), {"x": tensor(1), "y": tensor(1)}),
    ],
)
def test_one_tensor_in_two_roles_and_endless_work_are_refused(
    operation: Operation, tensors: dict[str, Tensor]
) -> None:
    plan = Plan({"x": tensor(1), **tensors}, (operation,), ("x",), ("y",), ((1,),), False)
    with pytest.raises(IntegrityError, match=type(operation).__name__.lower()):
        plan.check(1 << 20)


@pytest.mark.parametrize("huge", [1 << 63, -(1 << 63), 10**4290])
@pytest.mark.parametrize("which", ["strides", "offset", "shape"])
def test_numbers_beyond_all_measure_are_refused_in_one_line(huge: int, which: str) -> None:
    shape = (abs(huge) if which == "shape" else 9,)
    read = Access("x", (huge if which == "strides" else 1,), huge if which == "offset" else 0)
    copy = Map((_COPY,), (read,), Access("y", (1,)), shape)
    tensors = {"x": tensor(9), "y": tensor(9)}
    with pytest.raises(IntegrityError, match=r"of 'x' is beyond 2\^62"):
        Plan(tensors, (copy,), ("x",), ("y",), ((9,),), False).check(0)


@pytest.mark.parametrize(("inputs", "outputs"), [("xx", "y"), ("x", "yy"), ("x" * 2000, "y")])
def test_an_input_or_output_that_comes_twice_is_refused(inputs: str, outputs: str) -> None:
    copy = Map((_COPY,), (Access("x", (1,)),), Access("y", (1,)), (1,))
    tensors = {"x": tensor(1), "y": tensor(1)}
    shapes = ((1,),) * len(outputs)
    Plan(tensors, (copy,), ("x",), ("y",), ((1,),), True).check(0)
    with pytest.raises(IntegrityError, match="different tensors"):
        Plan(tensors, (copy,), tuple(inputs), tuple(outputs), shapes, True).check(0)


@pytest.mark.parametrize(
    "change", [{"dims": [7]}, {"dims": [1] * 200}, {"data_type": 0}, {"data_type": 128}]
)
def test_a_constant_that_isnt_as_large_as_it_says_fails_this_candidate_only(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = models.linear_classifier(tmp_path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    for name in change:
        tensor.ClearField(name)
    tensor.MergeFrom(onnx.TensorProto(**change))
    onnx.save(model, path)
    request = (TensorSpec("x", "float32", (1, 16)),)
    with pytest.raises(CandidateError, match=f"the constant '{tensor.name}' can't be read: "):
        lower(path, request, (TensorSpec("logits", "float32", (1, 4)),))


@pytest.mark.parametrize(
    ("operator", "change", "said"),
    [
        (
            "a\nb",
            {},
            r"the compiled engine doesn't take a\nb (node that gives 'y'): it isn't covered",
        ),
        ("Gone", {"output": []}, "Gone (node that gives ''): it isn't covered"),
        (
            "a" * 9000,
            {"output": ["y" * 9000]},
            f"{'a' * 80} (node that gives '{'y' * 79}): it isn't covered",
        ),
        (
            "If",
            {"input": ["w"]},
            "If (node that gives 'y'): its shapes or attributes (KeyError: 'then_branch')",
        ),
        (
            "Relu",
            {"attribute": [onnx.AttributeProto(name="a", ref_attr_name="q")]},
            "the attribute 'a' of Relu can't be read: Cannot get value of reference attribute",
        ),
    ],
)
def test_a_node_that_isnt_sound_is_told_in_one_short_line(
    tmp_path: Path, operator: str, change: dict[str, Any], said: str
) -> None:
    path = models.write(
        tmp_path / "m.onnx", "m (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }", {}
    )
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "w"))
    node = model.graph.node[0]
    for name in change:
        node.ClearField(name)
    node.MergeFrom(onnx.NodeProto(op_type=operator, **change))
    onnx.save(model, path)
    spec = TensorSpec("x", "float32", (1, 4))
    with pytest.raises(CandidateError) as caught:
        lower(path, (spec,), (replace(spec, name="y"),))
    assert said in str(caught.value)


def test_a_truth_that_is_neither_true_nor_false_is_refused() -> None:
    tensors = {"b": tensor(1, 0, "bool"), "x": tensor(1), "y": tensor(1, dtype="bool")}
    copy = Map((Step("copy", (0,), "bool"),), (Access("b", (1,)),), Access("y", (1,)), (1,))
    plan = Plan(tensors, (copy,), ("x",), ("y",), ((1,),), True)
    plan.check(1)
    assert write(plan, b"\1", Target.host()).text
    with pytest.raises(IntegrityError, match="isn't true or false"):
        write(plan, b"\2", Target.host())
    value = replace(copy, inputs=(), steps=(Step("value", (), "bool", "2"),))
    with pytest.raises(IntegrityError, match="'value'"):
        replace(plan, operations=(value,)).check(1)


@pytest.mark.parametrize("place", ["strides", "shape", "size", "offset"])
@pytest.mark.parametrize("number", [2**63, -(10**4000)], ids=["2**63", "-10**4000"])
def test_numbers_beyond_64_bits_are_one_line(tmp_path: Path, place: str, number: int) -> None:
    """Python prints none of more than 4300 digits, so the message itself was a traceback."""
    copy = Map((_COPY,), (Access("x", (1,)),), Access("y", (1,)), (1,))
    tensors = {"x": tensor(1), "y": tensor(1)}
    record: Any = to_record(Plan(tensors, (copy,), ("x",), ("y",), ((1,),), True))
    (operation,) = record["operations"]
    changed = {
        "strides": (operation["inputs"][0], [number]),
        "offset": (operation["inputs"][0], number),
        "shape": (operation, [number]),
        "size": (record["tensors"]["x"], number),
    }
    changed[place][0][place] = changed[place][1]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"format": 1, "plan": record}))
    engine, artifact = CompiledC(threads=1), Artifact(path, (), (), ())
    with pytest.raises(CandidateError) as error, engine.open(artifact, Target.host()):
        pass
    assert str(error.value) == (
        f"the compiled engine can't open the model: {path} isn't a plan of a compiled model: it has a "
        "number that is larger than 64 bits"
    )


def test_an_output_of_endless_axes_is_refused_before_its_size_is_calculated() -> None:
    copy = Map((_COPY,), (Access("x", (1,)),), Access("y", (1,)), (1,))
    tensors = {"x": tensor(1), "y": tensor(1)}
    for sizes in ((2**62,) * 1_000_000, (1,) * 65):
        with pytest.raises(IntegrityError) as error:
            Plan(tensors, (copy,), ("x",), ("y",), (sizes,), False).check(0)
        assert str(error.value) == f"the plan is damaged: a shape has {len(sizes):,} axes"


def test_what_a_damaged_plan_says_is_short() -> None:
    name = "y" * 10_000
    copy = Map((_COPY,), (Access("x", (1,)),), Access(name, ()), (1,))
    plan = Plan({"x": tensor(1), name: tensor(1)}, (copy,), ("x",), (name,), ((1,),), False)
    with pytest.raises(IntegrityError, match="map: 'yyy") as error:
        plan.check(0)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("rows", [1, 30])
def test_what_no_step_writes_is_0_and_never_what_was_in_memory_before(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "LEAST_SHARED", 0)
    monkeypatch.setattr(source, "LEAST_TOGETHER", 0)
    size = 4000

    def copied(given: str, to: str, count: int, start: int = 0, stride: int = 1) -> Map:
        accesses = Access(given, (1,)), Access(to, (stride,), start)
        return Map((_COPY,), (accesses[0],), accesses[1], (count,))

    operations = [
        copied("x", "secret", size),
        copied("secret", "whole", size),
        copied("x", "some", 3, 5, 2),  # where the secret was
        copied("some", "late", size),
        copied("x", "some", size),
        copied("x", "few", 1),
        copied("x", "gap", size // 2),
        copied("x", "gap", size // 2 - 1, size // 2 + 1),
        copied("x", "again", size, 0, 0),
    ]
    arena = {"secret", "some"}
    names = ("secret", "whole", "some", "late", "few", "gap", "again")
    made = dict.fromkeys(names, ("float32", size))
    given = {"x": np.arange(1, rows * size + 1, dtype=np.float32)}
    asked = [name for name in names if name not in arena]
    outer = planned(operations, {}, {"x": given["x"][:size]}, made, outputs=asked, by_row=rows > 1)
    for threads in (1, 3):
        found = answers(*outer, given, rows=rows, threads=threads)
        for row in range(rows):
            own = given["x"][row * size : (row + 1) * size]
            each = {name: found[name][row * size : (row + 1) * size] for name in asked}
            np.testing.assert_array_equal(each["whole"], own)
            wanted = np.zeros(size, np.float32)
            wanted[5:11:2] = own[:3]
            np.testing.assert_array_equal(each["late"], wanted)
            assert each["few"][0] == own[0]
            assert not each["few"][1:].any()
            assert each["gap"][size // 2] == 0
            assert np.count_nonzero(each["gap"]) == size - 1
            assert not each["again"][1:].any()


@pytest.mark.parametrize("most", [0, 3, 1000])
def test_tensors_that_live_at_once_lie_apart_however_many_they_are(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MOST_LIVING", most)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 60, 40).tolist()
    steps: list[tuple[float, Map]] = []
    for number, size in enumerate(sizes):
        add = Step("value", (), "float32", float(number).hex()), Step("add", (0, 1), "float32")
        writes, reads = Access(f"t{number}", (1,)), Access(f"y{number}", (1,))
        last = number + rng.uniform(0.5, 20)
        steps.append((number, Map(add, (Access("x", (1,)),), writes, (size,))))
        steps.append((last, Map((_COPY,), (writes,), reads, (size,))))
    operations = [step for _, step in sorted(steps, key=lambda one: one[0])]
    made = {f"{kind}{n}": ("float32", size) for kind in "ty" for n, size in enumerate(sizes)}
    given = {"x": np.arange(60, dtype=np.float32)}
    asked = [name for name in made if name[0] == "y"]
    found = answers(*planned(operations, {}, given, made, outputs=asked), given)
    for number, size in enumerate(sizes):
        np.testing.assert_array_equal(found[f"y{number}"], given["x"][:size] + number)


def test_tensors_that_several_steps_write_whole_arent_cleared() -> None:
    copied = Map((_COPY,), (Access("x", (0, 0, 0)),), Access("y", (12, -3, 1), 9), (5, 4, 3))
    parts = [
        replace(copied, output=Access("y", (24, 1, 0), start), shape=(5, count, 1))
        for start, count in ((0, 8), (8, 4), (12, 12))
    ]
    places = [
        replace(copied, output=Access("y", (24, 12, 2), start), shape=(5, 2, 6)) for start in (0, 1)
    ]
    for writers, size in (([copied], 60), (parts, 120), (places, 120)):
        plan = Plan(
            {"x": tensor(1), "y": tensor(size)}, tuple(writers), ("x",), ("y",), ((size,),), False
        )
        plan.check(0)
        assert not unproven(plan)
        if len(writers) > 1:
            assert unproven(replace(plan, operations=plan.operations[1:])) == {0: ["y"]}


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("op", ["absolute", "negative"])
def test_places_that_overflowed_are_refused_as_others_beyond_a_table(dtype: str, op: str) -> None:
    bits = np.dtype(dtype).itemsize * 8
    steps = (
        Step(op, (0,), dtype),
        Step("value", (), dtype, str(2 ** (bits - 5))),
        Step("divide", (1, 2), dtype),
    )
    made = {"places": (dtype, 1), "found": ("float32", 1)}
    operations = [
        Map(steps, (Access("x", (0,)),), Access("places", (0,)), (1,)),
        Pick(Access("table", ()), Access("places", ()), "found", (), 8, 1),
    ]
    given = {
        "x": np.array([-(2 ** (bits - 1))], dtype),
        "table": np.arange(50, 58, dtype=np.float32),
    }
    with pytest.raises(BeyondRange, match=r"^the model looks up place -16 of 8 for this request"):
        answers(*planned(operations, {}, given, made), given)


DIVIDES = "^the model divides a whole number by 0 for this request: give other numbers$"


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_whole_numbers_that_are_divided_by_anything_end_no_process(dtype: str) -> None:
    least = int(np.iinfo(dtype).min)
    given = {
        "x": np.array([-7, 7, least, least, 5], dtype),
        "by": np.array([2, -2, -1, 1, -1], dtype),
    }
    wanted = {
        "divide": [-3, -3, least, least, -5],
        "remainder": [-1, 1, 0, 0, 0],
        "modulo": [1, -1, 0, 0, 0],
    }
    accesses = (Access("x", (1,)), Access("by", (1,)))
    operations = [
        Map((Step(op, (0, 1), dtype),), accesses, Access(op, (1,)), (5,)) for op in wanted
    ]
    made = dict.fromkeys(wanted, (dtype, 5))
    found = answers(*planned(operations, {}, given, made), given)
    assert {op: found[op].tolist() for op in wanted} == wanted
    given["by"][3] = 0
    for operation in operations:
        alone = {operation.output.tensor: (dtype, 5)}
        with pytest.raises(BeyondRange, match=DIVIDES):
            answers(*planned([operation], {}, given, alone), given)
        with pytest.raises(BeyondRange, match=DIVIDES):
            operation.calculate({**given, operation.output.tensor: np.empty(5, dtype)})


def test_tables_and_text_beyond_all_measure_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MOST_TEXT", 100_000)
    half = 1 << 20
    tensors = {"w": tensor(half // 4, 0), "x": tensor(1), "y": tensor(1)}
    step = Step("exp", (0,), "float32")
    copies = [Map((step,) * 399, (Access("x", (1,)),), Access("y", (1,)), (1,)) for _ in range(20)]
    plan = Plan(tensors, tuple(copies), ("x",), ("y",), ((1,),), True)
    plan.check(half)
    with pytest.raises(IntegrityError, match="MB of C"):
        write(plan, bytes(half), Target.host())
    monkeypatch.undo()
    reads = [Map((_COPY,), (Access("w", (0,)),), Access("y", (1,)), (1,)) for _ in range(300)]
    plan = Plan(tensors, tuple(reads), ("x",), ("y",), ((1,),), True)
    plan.check(half)
    assert len(write(plan, bytes(half), Target.host()).tables) < 2 * half


@pytest.mark.parametrize("spare", [0, 1, 63, 64, 65])
def test_tables_grow_wherever_their_memory_ends(spare: int) -> None:
    tables = Tables(1)
    sizes = [2 + (64 << 10) - spare, 100, 300_000]
    stored = [np.full(size, number + 1, np.uint8) for number, size in enumerate(sizes)]
    places = [tables.add(one).offset or 0 for one in stored]
    for place, one in zip(places, stored, strict=True):
        assert place % 64 == 0
        assert np.array_equal(tables.content[place : place + len(one)], one)


def test_tables_for_which_there_is_no_memory_are_refused_in_a_line() -> None:
    script = f"""
import resource
from hasten.core.target import Target
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.tensors import Tensor
from hasten.engines.compiled.source import write
from hasten.errors import IntegrityError
tensors = {{"w": Tensor("uint8", {900 << 20}, 0), "x": Tensor("float32", 1), "y": Tensor("float32", 1)}}
target = Target.host()
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, resource.RLIM_INFINITY))
try:
    write(Plan(tensors, (), ("x",), ("y",), ((1,),), True), b"", target)
except IntegrityError as error:
    print(error)
"""
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.stdout == (
        "the plan asks for 1,888 MB of address space, which the system doesn't give: "
        "Cannot allocate memory\n"
    ), ended.stderr


def test_weights_are_read_from_a_file_as_from_memory_unless_it_was_cut_off(
    sound_bytes: tuple[Plan, bytes], tmp_path: Path
) -> None:
    (plan, weights), path = sound_bytes, tmp_path / "weights"
    path.write_bytes(weights)
    target, wanted = Target.host(), write(plan, weights, Target.host())
    with path.open("rb") as file:
        found = write(plan, file, target)
    assert (found.text, found.tables.tobytes()) == (wanted.text, wanted.tables.tobytes())
    path.write_bytes(weights[: len(weights) // 2])
    with path.open("rb") as file, pytest.raises(IntegrityError, match="were cut off while"):
        write(plan, file, target)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, -1.0, 3e38])
def test_scales_that_are_no_small_positive_numbers_are_refused(
    sound_bytes: tuple[Plan, bytes], value: float
) -> None:
    plan, weights = sound_bytes
    scales = {str(getattr(one, "scale", "")) for one in plan.operations} - {""}
    assert len(scales) > 4
    for name in scales:
        tensor = plan.tensor(name)
        changed = bytearray(weights)
        np.frombuffer(changed, np.float32, tensor.size, tensor.offset or 0)[-1] = value
        with pytest.raises(IntegrityError, match=r"a scale isn.t a positive|products may overflow"):
            write(plan, bytes(changed), Target.host())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0001, -3e38])
def test_slopes_that_are_no_numbers_up_to_1_are_refused(
    sound_bytes: tuple[Plan, bytes], value: float
) -> None:
    plan, weights = sound_bytes
    slopes = {str(getattr(one, "slope", "")) for one in plan.operations} - {""}
    assert slopes
    for name in slopes:
        tensor = plan.tensor(name)
        changed = bytearray(weights)
        np.frombuffer(changed, np.float32, tensor.size, tensor.offset or 0)[-1] = value
        with pytest.raises(IntegrityError, match=r"a slope isn.t a number|products may overflow"):
            write(plan, bytes(changed), Target.host())


def test_slopes_are_as_many_as_channels_and_a_result_of_floats_has_none(
    sound_bytes: tuple[Plan, bytes],
) -> None:
    plan, _ = sound_bytes
    convs = [one for one in plan.operations if isinstance(one, Conv8)]
    sloped, floats = (
        next(one for one in convs if wanted(one))
        for wanted in (lambda one: one.slope and one.table, lambda one: one.rounding is None)
    )
    bad = [replace(sloped, slope=name) for name in (sloped.table, sloped.bias, plan.inputs[0])]
    bad += [replace(floats, slope=floats.scale)]
    for operation in bad:
        with pytest.raises(IntegrityError, match=r"must be|has no slope"):
            operation.check(plan)


def test_a_plan_of_before_there_were_slopes_is_read(sound_bytes: tuple[Plan, bytes]) -> None:
    record = json.loads(json.dumps(to_record(sound_bytes[0])))
    older, count = re.subn(r'"slope": "[^"]*", ', "", json.dumps(record))
    assert count > 2
    plan = from_record(Plan, json.loads(older))
    assert all(not getattr(one, "slope", "") for one in plan.operations)
    plan.check(len(sound_bytes[1]))


def test_sums_are_exact_up_to_31_bits_and_refused_beyond() -> None:
    made = Made(0)
    shapes: list[dict[str, Any]] = [
        {"channels": (40, 24), "size": (3, 2)},
        {"channels": (12, 8), "size": (4, 5), "kernel": (3, 3), "pads": (1, 1, 1, 1)},
        {
            "channels": (32, 32),
            "groups": 32,
            "size": (5, 4),
            "kernel": (3, 3),
            "pads": (0, 1, 2, 1),
        },
        {"channels": (8, 12), "groups": 4, "size": (4, 4), "kernel": (2, 2)},
        {"channels": (3, 16), "size": (7, 7), "kernel": (5, 5), "strides": (2, 2)},
        {"channels": (1000, 3), "size": (1, 1)},
    ]
    for shape, zero, end in itertools.product(shapes, (0, 255), ("float", "plain")):
        conv = replace(made.conv(end, **shape), zero=zero)
        outs, most = conv.channels[1], conv.taps * 255 * 128
        signs = np.where(np.arange(outs) % 2, 1, -1)
        weight = np.where(signs > 0, 127, -128).astype(np.int8)
        made.constants[conv.weight] = np.repeat(weight[:, None], conv.taps, 1)
        toward = signs if zero == 0 else -signs
        made.constants[conv.bias] = (toward * (2**31 - 1 - most)).astype(np.int32)
        made.constants[conv.scale] = np.full(outs, 1e-7, np.float32)
        made.given[conv.input][:] = 255 - zero
        made.operations.append(conv)
    made.check()
    made.constants[made.operations[-1].reads[2]][0] += np.sign(toward[0])
    with pytest.raises(IntegrityError, match="a sum of products may overflow"):
        made.check()


def test_a_kernel_of_floats_as_large_as_a_picture_is_a_table_of_places() -> None:
    side = 2048
    given = {"x": np.linspace(-1, 1, side * (side + 1), dtype=np.float32)}
    weight = np.zeros(side * side, np.float32)
    weight[[0, 77, -1]] = (1, 2, 3)
    conv = replace(_CONV, size=(side, side + 1), kernel=(side, side))
    found = answers(*planned([conv], {"w": weight}, given, {"y": ("float32", 2)}), given)
    x = given["x"].reshape(side, side + 1)
    wanted = x[0, :2] + 2 * x[0, 77:79] + 3 * x[-1, -2:]
    np.testing.assert_allclose(found["y"], wanted, rtol=1e-4)


def test_constants_that_are_read_over_and_over_are_refused() -> None:
    tensors = {
        "w": tensor(1 << 26, 0, "uint8"),
        "x": tensor(1),
        "y": tensor(1 << 26, dtype="uint8"),
    }
    tensors["t"] = tensor(256, 1 << 26, "uint8")
    tables = [Table8("w", "t", "y", 1 << 26) for _ in range(70)]
    plan = Plan(tensors, tuple(tables[:60]), ("x",), ("y",), ((1 << 26,),), False)
    plan.check((1 << 26) + 256)
    with pytest.raises(IntegrityError, match="reads its constants too often"):
        replace(plan, operations=tuple(tables)).check((1 << 26) + 256)


def run_checked(written: Source, folder: Path) -> subprocess.CompletedProcess[str] | None:
    """Run a model with every access checked; None where the compiler can't do that."""
    sizes = (-(-max(1, one) // 64) * 64 for one in (written.arena_bytes, len(written.tables)))
    defined = "enum {{ ARENA = {}, TABLES = {} }};".format(*sizes)
    text = written.text[: written.text.index("/* Calls from Python")]
    (folder / "m.c").write_text(text + defined + _MAIN)
    (folder / "tables").write_bytes(written.tables.data)
    checked = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    flags = ["-std=gnu11", "-O0", "-march=native", "-w", *checked, "-fno-math-errno"]
    command = ["cc", *flags, "-o", "m", "m.c", "-lm"]
    if subprocess.run(command, cwd=folder, capture_output=True).returncode:
        return None
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run(
        [folder / "m"], cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.seconds
@pytest.mark.parametrize("which", ["sound", "sound_bytes", "sound_words"])
def test_a_damaged_plan_is_refused_or_stays_within_its_memory(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    plan, weights = request.getfixturevalue(which)
    first = run_checked(write(plan, weights, Target.host()), tmp_path)
    if first is None:
        pytest.skip("no compiler here that checks accesses")
    assert first.returncode == 0, first.stderr[:2000]
    taken = survivors((plan, weights), range(400))
    assert 3 < len(taken) < 300
    for one in random.Random(0).sample(taken, 2):
        ran = run_checked(one, tmp_path)
        assert ran is not None
        assert ran.returncode == 0, ran.stderr[:2000]
