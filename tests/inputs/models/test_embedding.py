import onnx
import pytest
from tests.inputs.pipeline.test_text import CONTENT, WORDS

from hasten.errors import InputError
from hasten.inputs.models.embedding import check_vocabulary, embedding_rows
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.text import Tokenize

PIPELINE = Pipeline((Tokenize(CONTENT, 8),))


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
        check_vocabulary(PIPELINE, model(len(WORDS) - 1))
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
        assert check_vocabulary(PIPELINE, model(rows)) == ""
    assert check_vocabulary(PIPELINE, model(130)) == (
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
    assert embedding_rows(damaged.graph, "input_ids") == rows


def test_a_model_without_such_a_lookup_is_not_judged() -> None:
    assert embedding_rows(model(3).graph, "input_ids") == 3
    assert embedding_rows(model(3).graph, "another") is None
    assert check_vocabulary(Pipeline(()), model(1)) == ""
