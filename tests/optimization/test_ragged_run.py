"""Whole runs on samples that differ in shape, and what is made of them: bundles, checks, servers."""

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.numpy_helper import from_array, to_array
from tests.support import ragged
from tests.support.quick import quick_runs
from tests.support.steady_rounds import int8_steps_are_faster, steady_rounds

import hasten
from hasten.bundle import read
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.reporting.result import Result
from hasten.testing import models

pytestmark = pytest.mark.seconds

SHAPES = "dimension 1 of ids and mask from 3 to 24 (median 8, nine in ten up to 15)"


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(passes=True, races=False):
        yield


def own_answers(model: Path, samples: dict[str, list[Array]], place: int) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    given = {name: rows[place][None] for name, rows in samples.items()}
    return dict(zip(names, session.run(names, given), strict=True))


def optimized(model: Path, samples: dict[str, list[Array]], out: Path, **options: object) -> Result:
    return hasten.optimize(
        model,
        samples,
        out=out,
        passes=(),
        engines=["onnxruntime"],
        **options,  # type: ignore[arg-type]
    )


def test_an_encoder_of_sentences_of_every_length(tmp_path: Path) -> None:
    model, samples = ragged.encoder(tmp_path), ragged.sentences(300)
    archive, out = tmp_path / "data.npz", tmp_path / "encoder.hasten"
    hasten.save_ragged(archive, samples)
    result = optimized(model, archive, out)  # type: ignore[arg-type]
    assert result.status == "exact"
    assert result.population == f"inputs like the ones in this data, {SHAPES}"
    assert result.objective == "mean"
    tried = {name: said for name, said in result.tried.items() if "padded to" in name}
    assert tried
    assert any("exact" in said for said in tried.values())
    assert not any(said.startswith("failed") for said in tried.values()), tried

    manifest = read(out)
    assert manifest.requests == 4
    (one, other) = manifest.shapes
    assert (one.input, other.input, one.sizes) == ("ids", "mask", (3, 8, 15, 24))
    assert [grown.times for grown in manifest.growth] == [2.0**n for n in range(-5, 7)]
    tables = 2 * (64 * 24) ** 2 * 4  # scores, and their shares
    assert tables < manifest.growth[-1].memory_bytes < 1.1 * tables
    with hasten.load(out) as loaded:
        lengths = [request["ids"].shape[1] for request in loaded.requests]
        assert (min(lengths), max(lengths)) == (3, 24)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for place in range(8):
                got = loaded(**{name: rows[place][None] for name, rows in samples.items()})
                for name, array in own_answers(model, samples, place).items():
                    np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)
        longer = ragged.sentences(1, 40, 40)
        got = loaded(**{name: rows[0][None] for name, rows in longer.items()})
        wanted = own_answers(model, longer, 0)
        np.testing.assert_allclose(got["states"], wanted["states"], rtol=1e-4, atol=1e-5)


def test_a_quick_run_tries_one_set_of_buckets_and_says_what_it_leaves_out_and_what_is_odd(
    tmp_path: Path,
) -> None:
    samples = ragged.sentences(300)
    for mask in samples["mask"]:
        mask[1] = 0
    result = hasten.optimize(
        ragged.encoder(tmp_path),
        samples,
        out=tmp_path / "b.hasten",
        passes=["dynamic_quantization"],
        engines=["onnxruntime"],
        effort="quick",
    )
    trials = json.loads((tmp_path / "b.hasten" / "evidence" / "trials.json").read_text())
    candidates = [str(trial["candidate"]) for trial in trials]
    (bucket,) = [place for place, one in enumerate(candidates) if "buckets" in one]
    inexact = [place for place, one in enumerate(candidates) if "dynamic_quantization" in one]
    assert inexact
    assert bucket < min(inexact)
    (said,) = [note for note in result.notes if note.startswith("left out at this effort: ")]
    assert "; further buckets; " in said
    (odd,) = [note for note in result.notes if "doesn't seem to fit" in note]
    assert odd.startswith("mask doesn't seem to fit ids: of the ")


def loud_encoder(folder: Path) -> Path:
    """Write an encoder that fails in int8 in two products, by one loud state that no answer reads.

    The products that read the values have one scale for all of them.
    """
    path = ragged.encoder(folder)
    proto = onnx.load(path)
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    values, last = (to_array(constants[name]).copy() for name in ("wv", "wo"))
    values[:, 0] *= 100
    last[0] = 0
    constants["wv"].CopyFrom(from_array(values, "wv"))
    constants["wo"].CopyFrom(from_array(last, "wo"))
    onnx.save(proto, path)
    return path


@pytest.mark.parametrize(
    ("engine", "quantization"),
    [("onnxruntime", "static_quantization"), ("openvino", "nncf_quantization")],
)
def test_the_layers_that_int8_harms_most_go_back_to_float(
    engine: str, quantization: str, tmp_path: Path
) -> None:
    with steady_rounds(), int8_steps_are_faster():
        result = hasten.optimize(
            loud_encoder(tmp_path),
            ragged.sentences(400),
            out=tmp_path / "b.hasten",
            passes=[quantization],
            engines=[engine],
            metric="agreement@logits",
            max_drop=0.1,
        )
    lost = {
        label: float(found[1])
        for label, said in result.tried.items()
        if (found := re.search(r"([-+][\d.]+) points lost", said))
    }
    in_int8 = [points for label, points in lost.items() if "int8" in label and "float" not in label]
    mixed = [points for label, points in lost.items() if " in float" in label]
    assert min(in_int8) > 10
    assert min(mixed) < 5
    trials = json.loads((tmp_path / "b.hasten" / "evidence" / "trials.json").read_text())
    kept = [
        set(step.get("keep_float") or step.get("nodes"))
        for trial in trials
        for step in trial["candidate"]["passes"]
        if step.get("keep_float") or step.get("nodes")
    ]
    assert kept
    assert all({"states", "logits"} & nodes and "q" not in nodes for nodes in kept), kept
    alone = [points for label, points in lost.items() if " 1 layer in float" in label]
    both = any({"states", "logits"} <= nodes for nodes in kept)
    assert both or min(alone) < 5, kept  # one is enough on some processors with bfloat16


def test_a_note_says_why_no_buckets_were_tried(tmp_path: Path) -> None:
    text = """halves (float[batch, 1, length] x) => (float[batch, 1, half] y) {
        y = MaxPool <kernel_shape = [2], strides = [2]> (x) }"""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((1, 20 + place % 10), np.float32) for place in range(120)]
    model = models.write(tmp_path / "m.onnx", text, {})
    result = optimized(model, {"x": rows}, tmp_path / "b.hasten", metric="regression:0.001")
    said = (
        r"no buckets were tried: samples have \d+ different shapes in 1 dimension, and some outputs have sizes that "
        r"don't follow from an input's size"
    )
    assert any(re.fullmatch(said, note) for note in result.notes), result.notes


def test_an_engine_of_one_shape_is_tried_in_buckets_alone(tmp_path: Path) -> None:
    model, samples = ragged.convolutional(tmp_path), ragged.pictures(120)
    result = hasten.optimize(
        model,
        samples,
        out=tmp_path / "pictures.hasten",
        metric="regression:0.001",
        passes=["simplify", "static_quantization"],
        engines=["onnxruntime", "compiled"],
    )
    tried = {name: said for name, said in result.tried.items() if "compiled C" in name}
    alone = {said for name, said in tried.items() if "compiled for" not in name}
    assert alone == {
        "skipped: the engine takes one shape, and samples differ in shape: it is tried in buckets, where those "
        "are tried"
    }
    in_buckets = [said for name, said in tried.items() if "compiled for 3" in name]
    assert in_buckets
    assert not any(said.startswith(("failed", "skipped")) for said in in_buckets), in_buckets


def test_pictures_of_three_sizes_are_answered_at_their_own(tmp_path: Path) -> None:
    model, samples = ragged.convolutional(tmp_path), ragged.pictures(120)
    out = tmp_path / "pictures.hasten"
    result = optimized(model, samples, out, metric="regression:0.001")
    compiled = {name: said for name, said in result.tried.items() if "compiled for 3" in name}
    assert compiled
    assert not any("padded" in name for name in result.tried)
    assert any("exact" in said for said in compiled.values()), compiled
    fresh = ragged.pictures(60, seed=1)
    checked = hasten.certify(out, fresh, max_drop=0.1)
    assert checked.judgement.samples == 60
    several = hasten.certify(out, fresh, max_drop=0.1, batch_sizes=[1, 2])  # of one shape each
    assert several.batches == (2,)
    with hasten.load(out) as loaded:
        for shape in ((1, 3, 8, 40), (1, 3, 16, 24)):
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            (own,) = own_answers(model, {"x": [x[0]]}, 0).values()
            np.testing.assert_allclose(loaded(x)["y"], own, rtol=1e-4, atol=1e-5)


def refused(model: Path, samples: dict[str, list[Array]], out: Path) -> str:
    with pytest.raises(InputError) as error:
        hasten.optimize(model, samples, out=out)
    assert not out.exists()
    return str(error.value)


def test_a_mask_of_another_length_than_its_sentence_is_refused(tmp_path: Path) -> None:
    samples = ragged.sentences(30)
    samples["mask"][7] = np.ones(40, np.int64)
    length = len(samples["ids"][7])
    assert refused(ragged.encoder(tmp_path), samples, tmp_path / "out") == (
        f"input 'mask': sample 7 has 40 where 'ids' has {length}, and the model takes one size, 'length', "
        "for both: give them the same length"
    )


def test_a_fixed_dimension_refuses_the_first_sample_that_differs(tmp_path: Path) -> None:
    samples = ragged.pictures(30)
    samples["x"][4] = np.zeros((4, 16, 16), np.float32)
    assert refused(ragged.convolutional(tmp_path), samples, tmp_path / "out") == (
        "input 'x': sample 4 is [4, 16, 16], and the model takes x: float32[batch, 3, height, width], with "
        "dimension 1 fixed at 3: pad, crop or resize all samples to that, or export the model with that "
        "dimension open"
    )


def test_what_takes_one_shape_refuses_samples_that_differ(tmp_path: Path) -> None:
    model, samples = ragged.encoder(tmp_path), ragged.sentences(30)
    for options, why in (
        (
            {"ask_labels": "csv"},
            "ask_labels= needs answers of one shape, but the samples differ in shape, and so do the answers states: "
            "float32[batch, length, 16]: give labels with the data",
        ),
        ({"pad": "token=1"}, "pad= names the input 'token', but the model's inputs are ids, mask"),
        (
            {"pad": "mask"},
            "a value to pad with is an input and a number, such as pad=\"mask=0,ids=1\": got 'mask'",
        ),
    ):
        with pytest.raises(InputError) as error:
            hasten.optimize(model, samples, out=tmp_path / "out", **options)  # type: ignore[arg-type]
        assert str(error.value) == why
