"""Which lengths requests are padded up to."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import ragged

from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.padding import Bucket
from hasten.inputs.data.source import open_data
from hasten.inputs.models.onnx import load
from hasten.measure.candidate import Single
from hasten.optimization.measured.bucketing import Bucketing, bucket_sets, chosen
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization


def work(lengths: Array, counts: Array, buckets: tuple[int, ...]) -> int:
    return sum(
        int(count) * min(own for own in buckets if own >= length)
        for length, count in zip(lengths, counts, strict=True)
    )


@given(
    st.dictionaries(st.integers(1, 60), st.integers(1, 20), min_size=1, max_size=7),
    st.integers(1, 4),
)
def test_no_other_lengths_make_less_work(samples: dict[int, int], most: int) -> None:
    lengths = np.array(sorted(samples))
    counts = np.array([samples[int(n)] for n in lengths])
    found = chosen(lengths, counts, most)
    assert found == tuple(sorted(set(found)))
    assert len(found) <= most
    assert found[-1] == lengths[-1]
    others = itertools.combinations(lengths[:-1].tolist(), min(most, len(lengths)) - 1)
    least = min(work(lengths, counts, (*some, int(lengths[-1]))) for some in others)
    assert work(lengths, counts, found) == least


def test_few_shapes_get_a_bucket_each_and_many_are_padded_to_few() -> None:
    few = np.array([[16, 24], [8, 8], [16, 24]])
    assert bucket_sets(few, padding=False) == [(Bucket((8, 8)), Bucket((16, 24)))]
    many = np.arange(1, 41)[:, None]
    assert [len(one) for one in bucket_sets(many, padding=True)] == [4, 8]
    assert bucket_sets(many, padding=True)[0] == tuple(Bucket((n,)) for n in (10, 20, 30, 40))


@pytest.mark.parametrize("sizes", [np.arange(40)[:, None], np.arange(40).reshape(20, 2)])
def test_without_padding_or_in_two_dimensions_many_shapes_get_none(sizes: Array) -> None:
    assert bucket_sets(sizes, padding=sizes.shape[1] == 2) == []


@pytest.mark.parametrize("varying", [(), ("found",)])
def test_all_proposals_state_the_least_sizes_of_the_data(
    tmp_path: Path, varying: tuple[str, ...]
) -> None:
    rows = ragged.sentences(60)
    rows["ids"][41], rows["mask"][41] = np.ones(2, np.int64), np.ones(2, np.int64)
    model = load(ragged.encoder(tmp_path)).settled_by({name: one[0] for name, one in rows.items()})
    samples = open_data(rows, model.inputs)
    done: dict[str, Any] = {"plain": SimpleNamespace(candidate=Single((), OnnxRuntime()))}
    trials: Any = SimpleNamespace(
        samples=samples,
        bench=SimpleNamespace(model=model, varying=varying),
        exact_answers=[],
        done=done,
        baseline=Single((), OnnxRuntime()),
        ratio=lambda trial: SimpleNamespace(estimate=1.0),
    )
    proposed: list[Any] = []

    def attempt(some: Any) -> None:
        for one in some:
            done[one.key] = SimpleNamespace(candidate=one, measurement=1, failure="", exact=True)
            proposed.append(one.engine)

    bucketing = Bucketing(trials, attempt, lambda trial, share: True, [])
    bucketing.propose_exact(few=True)
    if varying:  # nothing says what of such an output padding adds
        assert proposed == []
        return
    assert [len(one.buckets) for one in proposed] == [4]
    bucketing.propose_exact()
    assert [len(one.buckets) for one in proposed] == [4, 4, 8]
    assert {one.least for one in proposed} == {(2,)}


STATIC, NNCF = StaticQuantization(), NncfQuantization()


def inexact(
    tmp_path: Path, *, few: bool, engines: Sequence[Engine], likely: bool = True
) -> list[Any]:
    """Propose buckets of int8, where one form was answered on the first engine; return the proposed candidates."""
    rows = ragged.pictures(60)
    tmp_path.mkdir(exist_ok=True)
    model = load(ragged.convolutional(tmp_path)).settled_by({"x": rows["x"][0]})
    done: dict[str, Any] = {}
    for engine in engines:
        done[Single((), engine).key] = trial(Single((), engine), measurement=1)
        for step in (STATIC, NNCF):
            one = Single((step,), engine)
            if step.gives in engine.formats:
                done[one.key] = trial(one, scores=(1.0,), measurement=1)
    for threads in (1, 2):
        for step in (STATIC, NNCF):
            one = Single((step,), CompiledC(threads=threads))
            done[one.key] = trial(one, skipped="the engine takes one shape")
    trials: Any = SimpleNamespace(
        samples=open_data(rows, model.inputs),
        bench=SimpleNamespace(model=model, varying=()),
        exact_answers=[],
        done=done,
        baseline=Single((), engines[0]),
        ratio=lambda _: SimpleNamespace(estimate=1.0),
    )
    proposed: list[Any] = []
    bucketing = Bucketing(trials, proposed.extend, lambda one, _: likely, [])
    bucketing.propose_inexact([one for one in done.values() if one.scores], few=few)
    return proposed


def trial(candidate: Single, **known: Any) -> SimpleNamespace:
    defaults = {"skipped": None, "failure": None, "scores": None, "measurement": None}
    return SimpleNamespace(candidate=candidate, exact=False, **{**defaults, **known})


def in_buckets(proposed: list[Any]) -> list[tuple[Any, Engine, Engine]]:
    return [(one.passes[0], one.engine.inner, one.engine.beyond) for one in proposed]


def test_engines_of_one_shape_get_the_forms_that_passed_on_another_in_buckets(
    tmp_path: Path,
) -> None:
    ort, openvino, one, two = OnnxRuntime(), OpenVino(), CompiledC(), CompiledC(threads=2)
    found = in_buckets(inexact(tmp_path, few=False, engines=[ort, openvino]))
    assert found == [
        (STATIC, ort, ort),
        (STATIC, one, ort),
        (STATIC, two, ort),
        (NNCF, one, openvino),
        (NNCF, two, openvino),
    ]
    found = in_buckets(inexact(tmp_path / "few", few=True, engines=[ort, openvino]))
    assert found == [(STATIC, one, ort), (STATIC, two, ort)]


def test_what_surely_fails_and_what_nothing_runs_beyond_the_buckets_is_not_proposed(
    tmp_path: Path,
) -> None:
    ort = OnnxRuntime()
    assert inexact(tmp_path / "fails", few=False, engines=[ort, OpenVino()], likely=False) == []
    found = in_buckets(inexact(tmp_path / "beyond", few=False, engines=[ort]))
    assert {step for step, _, _ in found} == {STATIC}
