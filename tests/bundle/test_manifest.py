"""A manifest is untrusted: whatever it states is refused in one line, or is possible."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.bundles import forge, stated

from hasten.bundle import Part, load, read, write
from hasten.errors import InputError, IntegrityError
from hasten.inputs.pipeline.base import Step

Change = Callable[[dict[str, Any]], object]


def artifact(**fields: Any) -> Change:
    return lambda record: record["winner"]["artifact"].update(fields)


def spec(shape: list[Any], dtype: str = "float32", name: str = "x") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": shape}


STRANGE = ("\x1b[2J", "certified\nexact", "\u202ecod.exe", "\ud800", "\x7f", "\x9b31m", "\u2028")


@pytest.mark.parametrize("text", STRANGE)
@pytest.mark.parametrize("place", ["why", "label", "input", "environment", "file", "passes"])
def test_no_text_steers_the_screen_that_it_is_shown_on(bundle: Path, place: str, text: str) -> None:
    def change(record: dict[str, Any]) -> None:
        match place:
            case "why":
                record["why"] = text
            case "label":
                record["winner"]["label"] = text
            case "input":
                record["winner"]["artifact"]["inputs"][0]["name"] = text
            case "environment":
                record["environment"]["onnxruntime"] = text
            case "file":
                record["files"][text] = ["0", 0]
            case "passes":
                record["winner"]["passes"] = [{"type": {"deep": [text]}}]

    forge(bundle, change)
    with pytest.raises(IntegrityError) as error:
        read(bundle)
    assert str(error.value) == (
        f"{bundle}: the manifest is damaged: the text {text!r} has control characters"
    )
    assert str(error.value).isprintable()


def test_sentences_are_written_on_one_line_each(tmp_path: Path, winner: Part) -> None:
    other = stated(
        winner,
        None,
        why="it said:\n\x1b[31mno",
        certificate={"population": "dogs\nand cats", "threads": 1},
    )
    written = write(tmp_path / "b", other, {})
    assert written.why == "it said:  [31mno"
    assert written.certificate == {"population": "dogs and cats", "threads": 1}
    assert read(tmp_path / "b") == written


def test_a_model_whose_names_could_not_be_read_again_is_not_written(
    tmp_path: Path, winner: Part
) -> None:
    with pytest.raises(InputError) as error:
        write(tmp_path / "b", stated(replace(winner, label="a\tb"), None), {})
    assert str(error.value) == (
        f"can't write {tmp_path / 'b'}: the text 'a\\tb' has control characters; rename it"
    )
    assert not (tmp_path / "b").exists()


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp", "Cf"))))
def test_text_in_any_script_is_none_the_worse(text: str) -> None:
    from hasten.bundle.manifest import check_values, one_line

    assert one_line(text) == text
    check_values({text: [text]})


@pytest.mark.parametrize(
    "number",
    [float("nan"), float("inf"), 2**63, -(2**63), pytest.param(10**4000, id="10**4000"), 1e300],
)
def test_a_number_that_counts_nothing_is_refused(bundle: Path, number: float) -> None:
    forge(bundle, lambda record: record["sealed"].update(samples=number))
    with pytest.raises(IntegrityError) as error:
        read(bundle)
    assert str(error.value) == (
        f"{bundle}: the manifest is damaged: it has a number that is infinite, NaN, or larger "
        "than 64 bits"
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda record: record.update(schema=True),
            "the manifest is damaged: it states no schema",
        ),
        (
            lambda record: record["winner"]["engine"].pop("type"),
            "the manifest is damaged: the model 'a label' names no engine",
        ),
        (
            lambda record: record["exact"]["engine"].update(type=["onnxruntime"]),
            "the manifest is damaged: the model 'a label' names no engine",
        ),
        (
            lambda record: record.update(certificate=[1]),
            "the manifest is damaged: a Manifest record can't be read: Expected `object | null`, "
            "got `array` - at `$.certificate`",
        ),
        (
            lambda record: record["target"].update(threads="2"),
            "the manifest is damaged: a Manifest record can't be read: Expected `int`, got `str` - "
            "at `$.target.threads`",
        ),
        (
            lambda record: record["winner"]["artifact"].update(path=5),
            "the manifest is damaged: a Manifest record can't be read: expected a path as `str`, "
            "got `int` - at `$.winner.artifact.path`",
        ),
        (
            lambda record: record.update(pipeline={"steps": [{"type": "os:system"}]}),
            "the step 'os:system' isn't installed: it's no step of hasten's own; there are: "
            f"{', '.join(Step.registry)}",
        ),
        (
            lambda record: record.update(pipeline={"steps": [], "after": [{"type": "nms"}]}),
            "the manifest is damaged: the step nms takes boxes, but gets the model's outputs: put "
            "yolo_boxes or darknet_boxes or ssd_boxes between",
        ),
        (
            lambda record: record.update(
                pipeline={"steps": [], "after": [{"type": "top_k", "output": "other"}]}
            ),
            "the manifest is damaged: top_k reads the output 'other'; the model has logits",
        ),
        (
            lambda record: record.update(
                pipeline={"steps": [], "after": [{"type": "top_k", "count": 0}]}
            ),
            "the manifest is damaged: top_k.count=0: give at least 1",
        ),
        (
            lambda record: record["files"].update(
                {"model//linear_classifier.onnx": record["files"]["model/linear_classifier.onnx"]}
            ),
            "'model//linear_classifier.onnx' leads out of the bundle",
        ),
    ],
)
def test_what_can_not_be_meant_is_refused(bundle: Path, change: Change, said: str) -> None:
    forge(bundle, change)
    with pytest.raises(IntegrityError) as error:
        read(bundle)
    assert str(error.value) == f"{bundle}: {said}"


def test_a_manifest_nested_deeper_than_can_be_hashed_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text(f'{{"schema": 1, "deep": {"[" * 700}{"]" * 700}}}')
    with pytest.raises(IntegrityError) as error:
        read(bundle)
    # From Python 3.12 on it can be, and its digest is wrong.
    assert str(error.value) in (
        f"{bundle}: the manifest is damaged: it is nested too deeply",
        f"{bundle}: the manifest was changed after it was written",
    )


def test_a_schema_of_many_digits_is_not_printed_in_full(bundle: Path) -> None:
    forge(bundle, lambda record: record.update(schema=10**4000))
    with pytest.raises(IntegrityError) as error:
        read(bundle)
    assert str(error.value) == (
        f"{bundle} was written by a newer version of hasten (schema 10000000000000000000, this one "
        "reads 1); upgrade hasten"
    )


FITS = "its request x: float32[1, 16] doesn't fit the input "


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (artifact(request=[spec([1, -16])]), "x: float32[1, -16] is not a possible tensor shape"),
        (
            artifact(inputs=[spec([2**31, 16])]),
            "x: float32[2147483648, 16] is not a possible tensor shape",
        ),
        (
            artifact(outputs=[spec([1] * 33, name="y")]),
            f"y: float32[{'1, ' * 29}1, is not a possible tensor shape",
        ),
        (
            artifact(request=[spec([1, 16], "float33")]),
            "x: float33[1, 16] has a type that numpy doesn't support here",
        ),
        *(
            (
                artifact(inputs=[spec(["batch", 16], dtype)]),
                f"x: {dtype}[batch, 16] has a type that numpy doesn't support here",
            )
            for dtype in ("object", "str", "U99999999", "f4,f4", "(9999,9999)f4", "void", "f4", "")
        ),
        (
            artifact(request=[spec([1, 16], name="y")]),
            "its request is y: float32[1, 16]; its inputs are x: float32[batch, 16]",
        ),
        (artifact(request=[]), "its request is empty; its inputs are x: float32[batch, 16]"),
        (
            artifact(inputs=[spec(["batch", 16])] * 2),
            "its request is x: float32[1, 16]; its inputs are x: float32[batch, 16], x: "
            "float32[batch, 16]",
        ),
        (artifact(inputs=[spec(["batch", 17])]), f"{FITS}x: float32[batch, 17]"),
        (artifact(inputs=[spec(["batch"])]), f"{FITS}x: float32[batch]"),
        (artifact(inputs=[spec(["batch", 16], "int32")]), f"{FITS}x: int32[batch, 16]"),
        (
            artifact(request=[spec(["one", 16])]),
            "its request x: float32[one, 16] doesn't fit the input x: float32[batch, 16]",
        ),
    ],
)
def test_a_request_that_no_model_takes_is_refused(bundle: Path, change: Change, said: str) -> None:
    forge(bundle, change)
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value) == f"{bundle}: the model 'a label' is damaged: {said}"


def test_types_that_a_package_adds_to_numpy_are_numbers_too(bundle: Path) -> None:
    pytest.importorskip("ml_dtypes")
    from hasten.bundle.manifest import check_artifact

    found = read(bundle).winner.artifact
    inputs = tuple(replace(one, dtype="bfloat16") for one in found.inputs)
    request = tuple(replace(one, dtype="bfloat16") for one in found.request)
    assert np.dtype("bfloat16").kind == "V"
    check_artifact(replace(found, inputs=inputs, request=request))
