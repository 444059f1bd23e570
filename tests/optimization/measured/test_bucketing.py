"""Which lengths requests are padded up to."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support import ragged

from hasten.core.tensors import Array
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.padding import Bucket
from hasten.inputs.data.source import open_data
from hasten.inputs.models.onnx import load
from hasten.measure.candidate import Single
from hasten.optimization.measured.bucketing import Bucketing, bucket_sets, chosen


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
