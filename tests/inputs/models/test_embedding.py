import tracemalloc
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from tests.inputs.pipeline.test_text import CONTENT, WORDS

from hasten.core.lookups import Lookup, RowNumbers
from hasten.core.tensors import TensorSpec
from hasten.errors import InputError
from hasten.inputs.models.embedding import check_vocabulary, lookups_of
from hasten.inputs.models.onnx import load, read
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.text import Tokenize
from hasten.testing import models

PIPELINE = Pipeline((Tokenize(CONTENT, 8),))
IDS = (TensorSpec("input_ids", "int64", ("N", 8)),)


def model(rows: int) -> onnx.ModelProto:
    table = ", ".join(["0"] * rows * 2)
    return onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        m (int64[N, 8] input_ids) => (float[N, 8, 2] y)
        <float[{rows}, 2] table = {{{table}}}> {{
            same = Cast<to = 6>(input_ids)
            y = Gather(table, same)
        }}
    """)


def test_a_tokenizer_of_more_tokens_than_the_embedding_has_rows_is_refused() -> None:
    with pytest.raises(InputError) as error:
        check_vocabulary(PIPELINE, model(len(WORDS) - 1), IDS)
    assert str(error.value) == (
        "the tokenizer's numbers go up to 8, but the model's embedding has 8 rows: give the "
        "tokenizer that the model was trained with"
    )


def test_an_embedding_with_many_more_rows_than_tokens_is_noted() -> None:
    for rows in (
        len(WORDS),
        len(WORDS) + 7,
        64,
        128,
        129,
    ):  # models round up, and have some in reserve
        assert check_vocabulary(PIPELINE, model(rows), IDS) == ""
    assert check_vocabulary(PIPELINE, model(130), IDS) == (
        "the model's embedding has 130 rows, but the tokenizer's numbers go up to 8 only: check that "
        "the model was trained with this tokenizer, because another one gives wrong answers and no "
        "error"
    )


@pytest.mark.parametrize(
    ("axis", "rows"), [(0, 9), (1, 2), (-1, 2), (-2, 9), (2, None), (-3, None)]
)
def test_an_axis_that_a_matrix_does_not_have_is_no_lookup(axis: int, rows: int | None) -> None:
    damaged = model(9)
    damaged.graph.node[1].attribute.add(name="axis", i=axis)
    found = lookups_of(damaged, IDS)
    assert found == (() if rows is None else (Lookup("input_ids", (1, 1), (rows,)),))


def test_a_model_without_such_a_lookup_is_not_judged() -> None:
    assert lookups_of(model(3), (TensorSpec("another", "int64", ("N", 8)),)) == ()
    assert check_vocabulary(Pipeline(()), model(1), IDS) == ""


def tables(folder: Path, given: str, body: str) -> tuple[Lookup, ...]:
    """Return the tables of a graph with one input: `nine` has 9 rows of 3, `three` has 3."""
    text = f"""m ({given} x) => (float[A, B] y) <int64 one = {{1}}, int64[1] zero = {{0}}, int64[1] two = {{2}},
        int64[1] last = {{1}}, int64[1] flat = {{-1}}, int64[1] far = {{64}}, int64[1] end = {{9999}}, float scale = {{0.5}},
        uint8 few = {{3}}, int64 huge = {{-9223372036854775808}}, int64 beyond = {{12}}, int64[3] three_offsets = {{0, 2, 6}}> {{ {body} }}"""
    path = models.write(folder / "m.onnx", text, {"nine": (9, 3), "three": (3, 3)})
    return lookups_of(read(path), load(path).inputs)


@pytest.mark.parametrize(
    ("given", "body", "shape", "rows"),
    [
        # every number, however it gets to the table
        ("int64[N, S]", "y = Gather(nine, x)", (1, 1), (9,)),
        ("int32[N, S]", "y = Gather(nine, x)", (1, 1), (9,)),
        ("int64[N]", "y = Gather(nine, x)", (1,), (9,)),
        ("int64", "y = Gather(nine, x)", (), (9,)),
        ("int64[N, S]", "y = Gather <axis = 1> (nine, x)", (1, 1), (3,)),
        ("uint8[N, S]", "c = Cast <to = 6> (x) y = Gather(nine, c)", (1, 1), (9,)),
        ("float[N, S]", "c = Cast <to = 7> (x) y = Gather(nine, c)", (1, 1), (9,)),
        ("int64[N, S]", "t = Transpose(x) f = Reshape(t, flat) y = Gather(nine, f)", (1, 1), (9,)),
        ("int64[N, S]", "s = Shape(x) f = Reshape(x, s) y = Gather(nine, f)", (1, 1), (9,)),
        ("int64[N, 1]", "s = Squeeze(x) u = Unsqueeze(s, one) y = Gather(nine, u)", (1, 1), (9,)),
        # the smaller of two tables
        ("int64[N, S]", "a = Gather(nine, x) b = Gather(three, x) y = Add(a, b)", (1, 1), (3,)),
        # a table that is made of a constant, and one that isn't
        ("int64[N, S]", "t = Identity(nine) y = Gather(t, x)", (1, 1), (9,)),
        (
            "int64[N, S]",
            "q = QuantizeLinear(nine, scale) t = DequantizeLinear(q, scale) y = Gather(t, x)",
            (1, 1),
            (9,),
        ),
        ("int64[N, S]", "c = Cast <to = 1> (x) y = Gather(c, one)", (), ()),
        # each column its own
        (
            "int64[N, 2]",
            "a, b = Split <axis = 1> (x) p = Gather(nine, a) q = Gather(three, b) y = Add(p, q)",
            (1, 2),
            (9, 3),
        ),
        ("int64[N, 3]", "a = Gather <axis = 1> (x, one) y = Gather(nine, a)", (1, 3), (0, 9, 0)),
        ("int64[N, 3]", "a = Slice(x, zero, two, last) y = Gather(nine, a)", (1, 3), (9, 9, 0)),
        # some of an open axis, so that no place there is known to be looked up
        ("int64[N, S]", "a = Gather <axis = 1> (x, one) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "a = Slice(x, zero, two, last) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "a = Slice(x, zero, far, last) y = Gather(nine, a)", (), ()),
        ("int64[N]", "y = Slice(x, zero, far) z = Gather(nine, y)", (), ()),
        (
            "int64[N, S]",
            "a = Slice(x, zero, far, last) b = Slice(x, far, end, last) p = Gather(nine, a) q = Gather(three, b)"
            " u = ReduceSum(p, last) v = ReduceSum(q, last) y = Add(u, v)",
            (1, 1),
            (9,),
        ),
        # what the graph calculates with
        ("int64[N, S]", "a = Add(x, x) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "a = Sub(one, x) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "a = Mul(x, one) y = Gather(nine, a)", (), ()),
        ("uint8[N, S]", "a = Add(x, few) c = Cast <to = 6> (a) y = Gather(nine, c)", (), ()),
        ("float[N, S]", "a = Add(x, scale) c = Cast <to = 6> (a) y = Gather(nine, c)", (), ()),
        ("int64[N, S]", "a = Add(x, huge) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "a = Add(x, beyond) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "a = Add(x, three_offsets) y = Gather(nine, a)", (), ()),
        ("int64[N]", "a = Add(x, three_offsets) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "c = Cast <to = 1> (x) d = Cast <to = 7> (c) y = Gather(nine, d)", (), ()),
    ],
)
def test_the_tables_of_an_inputs_numbers_are_found(
    given: str, body: str, shape: tuple[int, ...], rows: tuple[int, ...], tmp_path: Path
) -> None:
    assert tables(tmp_path, given, body) == ((Lookup("x", shape, rows),) if rows else ())


@pytest.mark.parametrize(
    ("given", "body"),
    [
        ("int64[N, 3]", "a = Add(x, offsets) y = Gather(table, a)"),
        ("int64[N, 3]", "a = Add(offsets, x) y = Gather(table, a)"),
        ("int64[N, 3]", "a = Sub(x, offsets) y = Gather(table, a)"),
        ("int64[N, 3]", "a = Add(x, row) y = Gather(table, a)"),
        ("int64[N, 3]", "c = Constant <value_ints = [0, 4, 9]> () a = Add(x, c) y = Gather(table, a)"),
        ("int64[N, 3]", "c = Constant <value_int = 3> () a = Sub(x, c) y = Gather(table, a)"),
        ("int32[N, 3]", "a = Cast <to = 7> (x) b = Add(a, offsets) y = Gather(table, b)"),
        ("int32[N, 3]", "o = Constant <value = int32[3] {0, 4, 9}> () a = Add(x, o) y = Gather(table, a)"),
        ("uint8[N, 3]", "a = Cast <to = 7> (x) b = Add(a, offsets) y = Gather(table, b)"),
        ("float[N, 3]", "a = Cast <to = 7> (x) b = Add(a, offsets) y = Gather(table, b)"),
        ("int64[N, 3]", "a = Add(x, row) b = Sub(a, offsets) c = Add(b, one) y = Gather(table, c)"),
        ("int64[N, 3]", "t = Transpose(x) a = Add(t, column) u = Unsqueeze(a, zero) y = Gather(table, u)"),
        ("int64[N, 3]", "f = Reshape(x, flat) a = Add(f, one) y = Gather(table, a)"),
        ("int64[N, 3]", "a = Add(x, offsets) p = Gather(table, a) q = Gather(long, x) y = Add(p, q)"),
        ("int64[N, 3]", "p = Gather(table, x) a = Sub(x, one) q = Gather(table, a) y = Add(p, q)"),
        ("int64[N, 3]", "a = Add(x, offsets) b, c = Split <axis = 1> (a, parts) p = Gather(table, b) q = Gather(long, c)"
         " u = ReduceSum(p, last) v = ReduceSum(q, last) y = Add(u, v)"),
    ],
)  # fmt: skip
def test_numbers_to_which_a_constant_is_added_are_refused_as_by_onnx_runtime(
    given: str, body: str, tmp_path: Path
) -> None:
    text = f"""m ({given} x) => (float y) <int64[3] offsets = {{0, 4, 9}}, int64[1, 3] row = {{0, 4, 9}}, int64 one = {{1}},
        int64[3, 1] column = {{0, 4, 9}}, int64[1] zero = {{0}}, int64[1] flat = {{-1}}, int64[2] parts = {{2, 1}},
        int64[1] last = {{1}}> {{ {body} }}"""
    path = models.write(tmp_path / "m.onnx", text, {"table": (12, 2), "long": (40, 2)})
    check = RowNumbers.of(lookups_of(read(path), load(path).inputs), load(path).inputs)
    assert check is not None
    session = onnxruntime.InferenceSession(str(path))
    dtype = load(path).inputs[0].dtype
    for place in range(3):
        for number in range(0 if dtype == "uint8" else -60, 60):
            x = np.zeros((2, 3), dtype)
            x[1, place] = number
            assert accepts(check, {"x": x}) == accepts(partial(session.run, None), {"x": x}), x


@pytest.mark.parametrize(
    "steps",
    [
        [f"a{place + 1} = Add(a{place}, one)" for place in range(400)],
        [f"a{place + 1} = Gather(a{place}, first)" for place in range(400)],
        ["a1 = Gather(a0, repeated)"],
        ["c = Constant <value = big> () a1 = Gather(a0, c)"],
    ],
    ids=["sums", "parts", "repeated", "made"],
)
def test_numbers_that_are_handed_on_many_times_take_little_memory(steps: list[str]) -> None:
    """Before, each step of a few bytes took 2 MiB, and one that repeats numbers 2 GiB."""
    zeros = ", ".join(["0"] * 1000)
    body = " ".join(steps).replace("a0", "x").replace("big", f"int64[1000] {{{zeros}}}")
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        m (int64[1, 262144] x) => (float[A, B] y)
        <int64 one = {{1}}, int64[1] first = {{0}}, int64[1000] repeated = {{{zeros}}}, float[2, 1] table = {{0, 0}}>
        {{ {body} y = Gather(table, a{len(steps)}) }}
    """)
    tracemalloc.start()
    try:
        lookups_of(proto, (TensorSpec("x", "int64", (1, 262144)),))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 200 << 20


def accepts(call: Callable[[dict[str, np.ndarray]], object], inputs: dict[str, np.ndarray]) -> bool:
    try:
        call(inputs)
    except (InputError, InvalidArgument):
        return False
    return True


class Product(torch.nn.Module):
    """A table for each of two columns, one of which is looked up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self.shop, self.coarse = (torch.nn.Embedding(n, 4) for n in (10, 300, 200))
        self.scores = torch.nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind, shop = x[:, 0], x[:, 2]
        found: torch.Tensor = self.scores(
            torch.cat([self.kind(kind), self.shop(shop), self.coarse(shop)], 1)
        )
        return found


class Shared(torch.nn.Module):
    """One table for three columns, each of which begins at a row of its own."""

    offsets: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(510, 4)
        self.scores = torch.nn.Linear(12, 3)
        self.register_buffer("offsets", torch.tensor([0, 10, 310]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.table((x + self.offsets.unsqueeze(0)).long())
        found: torch.Tensor = self.scores(rows.flatten(1))
        return found


@pytest.mark.parametrize(
    ("network", "rows", "first"),
    [(Product, (10, 0, 200), ()), (Shared, (510, 500, 200), (-510, -520, -820))],
)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dynamo", [False, True])
def test_each_column_of_torchs_exports_has_its_own_table(
    dynamo: bool,
    dtype: torch.dtype,
    network: type[torch.nn.Module],
    rows: tuple[int, ...],
    first: tuple[int, ...],
    tmp_path: Path,
) -> None:
    path, sample = tmp_path / "m.onnx", torch.zeros(2, 3, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                network().eval(), (sample,), path, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
        else:
            torch.onnx.export(
                network().eval(),
                (sample,),
                path,
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": {0: "batch"}},
            )
    assert lookups_of(read(path), load(path).inputs) == (Lookup("x", (1, 3), rows, first),)
