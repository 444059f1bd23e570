import warnings
from pathlib import Path

import onnx
import pytest
import torch
from tests.inputs.pipeline.test_text import CONTENT, WORDS

from hasten.core.lookups import Lookup
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
        int64[1] last = {{1}}, int64[1] flat = {{-1}}, int64[1] far = {{64}}, int64[1] end = {{9999}}, float scale = {{0.5}}> {{ {body} }}"""
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
        ("int64[N, S]", "a = Add(x, one) y = Gather(nine, a)", (), ()),
        ("int64[N, S]", "c = Cast <to = 1> (x) d = Cast <to = 7> (c) y = Gather(nine, d)", (), ()),
    ],
)
def test_the_tables_of_an_inputs_numbers_are_found(
    given: str, body: str, shape: tuple[int, ...], rows: tuple[int, ...], tmp_path: Path
) -> None:
    assert tables(tmp_path, given, body) == ((Lookup("x", shape, rows),) if rows else ())


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


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dynamo", [False, True])
def test_each_column_of_torchs_exports_has_its_own_table(
    dynamo: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    path, sample = tmp_path / "m.onnx", torch.zeros(2, 3, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},)
            torch.onnx.export(
                Product().eval(), (sample,), path, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
        else:
            torch.onnx.export(
                Product().eval(),
                (sample,),
                path,
                dynamo=False,
                input_names=["x"],
                dynamic_axes={"x": {0: "batch"}},
            )
    assert lookups_of(read(path), load(path).inputs) == (Lookup("x", (1, 3), (10, 0, 200)),)
