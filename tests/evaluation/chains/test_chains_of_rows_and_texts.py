"""Chains whose models see rows, texts or sounds: a condition decides who is asked, and the whole is certified."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from onnx import numpy_helper, parser
from tests.inputs.pipeline.test_audio import RATE, encoded, tone
from tests.inputs.pipeline.test_text import CONTENT
from tests.support import chains
from tests.support.bundles import built, stated

import hasten
from hasten.bundle import write
from hasten.cli import main
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError
from hasten.evaluation.chains import certify_chain
from hasten.inputs.data.samples import tensors_hash
from hasten.inputs.pipeline.audio import DecodeAudio, FitLength, LogMel
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.text import Tokenize
from hasten.testing.models import HEADER

SCORES = """
    {name} (float[batch, 2] x) => (float[batch, 2] y) {{
        y = MatMul(x, weight)
    }}"""
OTHERS = SCORES.replace("] x)", "] z)").replace(
    "(x,", "(z,"
)  # under another name, so with other hashes
WORDS = """
    {name} (int64[batch, 8] input_ids, int64[batch, 8] attention_mask) => (float[batch, 9] y)
    <int64 depth = {{9}}, float[2] values = {{0, 1}}, int64[1] axis = {{1}}, int64[1] last = {{2}}> {{
        each = OneHot(input_ids, depth, values)
        mask = Cast<to = 1>(attention_mask)
        column = Unsqueeze(mask, last)
        kept = Mul(each, column)
        counts = ReduceSum<keepdims = 0>(kept, axis)
        y = Mul(counts, weight)
    }}"""
SOUND = """
    {name} (float[batch, 80, 100] x) => (float[batch, 80] y) <int64[1] axis = {{2}}> {{
        sums = ReduceSum<keepdims = 0>(x, axis)
        y = Mul(sums, weight)
    }}"""
ROW = Row(("kind", "size"), words=(("kind", ("no", "yes")),))
ANSWERS = TopK(2, labels=("refuse", "grant"))


def member(
    folder: Path,
    name: str,
    text: str,
    pipeline: Pipeline,
    weight: Any,
    winner: Any = None,
    seen: Sequence[bytes] = (),
) -> None:
    """Write a bundle whose winner may have other weights than its exact model."""
    parts = []
    for place, weights in (("exact", weight), ("winner", weight if winner is None else winner)):
        model = parser.parse_model(HEADER + text.format(name=name))
        model.graph.initializer.append(
            numpy_helper.from_array(np.asarray(weights, np.float32), "weight")
        )
        inside = folder / f"{name}-{place}"
        inside.mkdir()
        onnx.save(model, inside / f"{name}.onnx")
        parts.append(built(inside, inside / f"{name}.onnx", OnnxRuntime(threads=1)))
    record = {"hashes": [one.hex() for one in seen], "seen": [], "groups": []}
    manifest = stated(parts[1], parts[0], pipeline=pipeline, status="exact")
    write(folder / f"{name}.hasten", manifest, {"sealed.json": record})


def as_file(folder: Path, **nodes: dict[str, Any]) -> Path:
    (folder / "chain.yaml").write_text(yaml.safe_dump(nodes))
    return folder / "chain.yaml"


# The score of "yes" is a number, that of "no" 0: both are the weights of a row [1 for yes, size].
LINEAR = np.array([[0, 0], [0, 1]])
SIZES = np.round(np.linspace(-3, 3, 120), 3)
UNSURE = int((1 / (1 + np.exp(-np.abs(SIZES))) < 0.8).sum())


def desk(folder: Path, careful: Any = None, seen: Sequence[bytes] = ()) -> Path:
    """Write a chain that asks a second model about rows on which the first is unsure."""
    pipeline = Pipeline((ROW,), (ANSWERS,))
    member(folder, "screen", SCORES, pipeline, LINEAR)
    member(folder, "careful", OTHERS, pipeline, LINEAR, careful, seen)
    return as_file(
        folder,
        screen={"model": "screen.hasten"},
        unsure={"when": "screen", "below": 0.8},
        careful={"model": "careful.hasten", "source": "unsure"},
    )


def row(size: float) -> dict[str, Any]:
    return {"kind": "no", "size": float(size)}


def table(folder: Path) -> Path:
    with (folder / "rows.csv").open("w", newline="") as file:
        lines = csv.DictWriter(file, ["size", "kind", "label"])
        lines.writeheader()
        lines.writerows({**row(size), "label": "grant"} for size in SIZES)
    return folder / "rows.csv"


def test_a_second_model_is_asked_about_rows_on_which_the_first_is_unsure(tmp_path: Path) -> None:
    with hasten.chain(desk(tmp_path)) as chain:
        sure, unsure = chain.decide(row(2)), chain.decide(json.dumps(row(0.5)).encode())
    assert sure["screen"][0]["label"] == "grant"
    assert sure["careful"] is None
    assert [one["label"] for one in unsure["careful"]] == ["grant", "refuse"]
    assert unsure["careful"][0]["score"] == pytest.approx(1 / (1 + np.exp(-0.5)))


def test_a_chain_of_rows_is_certified_on_a_table_or_on_rows_in_json(tmp_path: Path) -> None:
    chain = desk(tmp_path)
    said = f"at most 5% of answers change (n={len(SIZES)}: 0 changed)"
    assert said in certify_chain(chain, table(tmp_path), max_drop=0.05).in_words()
    (tmp_path / "rows").mkdir()
    for number, size in enumerate(SIZES):
        (tmp_path / "rows" / f"{number:03}.json").write_text(json.dumps(row(size)))
    assert said in certify_chain(chain, tmp_path / "rows", max_drop=0.05).in_words()
    lines = [f"{number:03}.json,customer{number // 4}" for number in range(len(SIZES))]
    (tmp_path / "rows" / "groups.csv").write_text("\n".join(lines))
    assert certify_chain(chain, tmp_path / "rows", max_drop=0.2).judgement.groups == 30
    given = ["certify", str(chain), "--data", f"{tmp_path / 'rows.csv'}:label", "--max-drop", "5%"]
    run = CliRunner().invoke(main, [*given, "--keep"])
    assert (run.exit_code, said in run.output) == (0, True), run.output
    with hasten.chain(chain) as opened:
        assert said in opened.certified


def test_what_only_the_second_model_answers_otherwise_counts(tmp_path: Path) -> None:
    checked = certify_chain(desk(tmp_path, careful=LINEAR[:, ::-1]), table(tmp_path), max_drop=0.05)
    assert not checked.passed
    assert checked.judgement.lost == UNSURE
    assert 0 < UNSURE < len(SIZES)


def test_rows_that_a_model_of_the_chain_was_made_with_are_left_out(tmp_path: Path) -> None:
    seen = [tensors_hash({"z": np.array([0, size], np.float32)}) for size in SIZES[:20]]
    checked = certify_chain(desk(tmp_path, seen=seen), table(tmp_path), max_drop=0.1)
    assert (checked.used, checked.left_out) == (100, 20)


def test_a_chain_says_what_it_is_certified_on(tmp_path: Path) -> None:
    chain = desk(tmp_path)
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 2), np.float32))
    with pytest.raises(InputError) as error:
        certify_chain(chain, str(tmp_path / "rows.npz"), max_drop=0.05)
    assert str(error.value) == (
        "a chain is certified on a table, such as a CSV file, or a folder of rows in JSON: got "
        f"'{tmp_path}/rows.npz'"
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as error:
        certify_chain(chain, tmp_path / "empty", max_drop=0.05)
    assert str(error.value) == f"{tmp_path}/empty has no samples"
    (tmp_path / "empty" / "one.json").write_text('{"kind": "no"}')
    with pytest.raises(InputError) as error:
        certify_chain(chain, tmp_path / "empty", max_drop=0.05)
    assert str(error.value) == f"{tmp_path}/empty/one.json: the row has no column 'size'"
    det = chains.detector(
        tmp_path, evidence={"sealed.json": {"hashes": [], "seen": [], "groups": []}}
    )
    alone = as_file(tmp_path, det={"model": det.name})
    with pytest.raises(InputError) as error:
        certify_chain(alone, table(tmp_path), max_drop=0.05)
    assert str(error.value).startswith("a chain is certified on a folder of pictures: got ")


CAT, SAT = 5, 6


def test_a_chain_of_texts_is_certified_on_files(tmp_path: Path) -> None:
    """The second model sees only texts about cats; its winner takes "sat" for "cat"."""
    pipeline = Pipeline((Tokenize(CONTENT, 8),), (TopK(1, softmax=False),))
    heavy, light = np.ones(9), np.ones(9)
    heavy[SAT], light[SAT] = 4, 0.5
    heavy[:4] = light[:4] = 0  # of no word
    member(tmp_path, "topic", WORDS, pipeline, np.eye(9)[CAT] + 0.1)
    member(tmp_path, "verb", WORDS, pipeline, heavy, light)
    chain = as_file(
        tmp_path,
        topic={"model": "topic.hasten"},
        cats={"when": "topic", "labels": [str(CAT)]},
        verb={"model": "verb.hasten", "source": "cats"},
    )
    with hasten.chain(chain) as opened:
        assert opened.decide("sat sat the")["verb"] is None
        assert opened.decide("cat sat")["verb"][0]["class"] == CAT
    texts = tmp_path / "texts" / "mail"
    texts.mkdir(parents=True)
    for number in range(40):
        rest = [("the", "mat", "sat")[int(digit)] for digit in np.base_repr(number, 3).zfill(4)]
        words = ["cat", "cat", "sat", *rest[-3:]] if number < 8 else ["the", "sat", *rest]
        (texts / f"{number:02}.txt").write_text(" ".join(words))
    (tmp_path / "texts" / ".hidden").write_text("cat")
    checked = certify_chain(chain, tmp_path / "texts", max_drop=0.05)
    assert (checked.used, checked.judgement.lost) == (40, 8)


def test_a_chain_of_sounds_is_certified_on_files(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    steps = (DecodeAudio(), FitLength(RATE), LogMel())
    member(tmp_path, "pitch", SOUND, Pipeline(steps, (TopK(1),)), np.ones(80), 2 * np.ones(80))
    chain = as_file(tmp_path, pitch={"model": "pitch.hasten"})
    (tmp_path / "sounds").mkdir()
    for number in range(10):
        (tmp_path / "sounds" / f"{number}.wav").write_bytes(encoded(tone(300 + 200 * number)))
    checked = certify_chain(chain, tmp_path / "sounds", max_drop=0.5)
    assert checked.passed
    assert (checked.used, checked.judgement.lost) == (10, 0)
