"""Int8 forms of models with open sizes on compiled C: one plan for each bucket, and the answers of the form itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from tests.support import ragged

from hasten.core.cache_folder import CacheFolder
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Artifact, Engine
from hasten.engines.buckets import Buckets
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.integers import Integers
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.padding import Axis, Bucket, Dimension
from hasten.inputs.data.source import open_data
from hasten.inputs.models.onnx import load
from hasten.passes.base import Pass
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization

pytestmark = pytest.mark.seconds

ORT = OnnxRuntime()
LENGTH = Dimension((Axis("ids", 1), Axis("mask", 1)), (Axis("states", 1),))
LENGTHS = tuple(Bucket((n,)) for n in (6, 11, 16, 24))
SIDES = (Dimension((Axis("x", 2),), (Axis("y", 2),)), Dimension((Axis("x", 3),), (Axis("y", 3),)))
SHAPES = (Bucket((16, 16)), Bucket((16, 24)), Bucket((32, 16)))


class Case(NamedTuple):
    """Int8 form of a model, with buckets and requests of one row for each of them."""

    model: Model
    engine: Buckets
    requests: tuple[dict[str, Array], ...]


@pytest.fixture(scope="module")
def host() -> Target:
    return Target.host().with_threads(1)


def int8(path: Path, data: dict[str, list[Array]], step: Pass) -> Model:
    model = load(path).settled_by({name: rows[0] for name, rows in data.items()})
    (path.parent / "int8").mkdir()
    return step(model, open_data(data, model.inputs), path.parent / "int8")


def pictures_in(folder: Path, step: Pass, beyond: Engine) -> Case:
    """A network of convolutions for pictures of three sizes."""
    path, data = ragged.convolutional(folder), ragged.pictures(60)
    engine = Buckets(CompiledC(), beyond, SIDES, SHAPES, padding=False)
    rng = np.random.default_rng(3)
    sizes = [bucket.sizes for bucket in SHAPES]
    given = tuple({"x": rng.standard_normal((1, 3, *own), np.float32)} for own in sizes)
    return Case(int8(path, data, step), engine, given)


def encoder_in(folder: Path, step: Pass, beyond: Engine) -> Case:
    """An encoder with attention, whose requests are padded up to four lengths."""
    path, data = ragged.encoder(folder), ragged.sentences(60)
    engine = Buckets(CompiledC(), beyond, (LENGTH,), LENGTHS)
    rng = np.random.default_rng(4)
    given = []
    for length in (6, 4, 9, 16, 13, 24, 19):
        ids = rng.integers(1, ragged.WORDS, (1, length))
        given.append({"ids": ids, "mask": np.ones((1, length), np.int64)})
    return Case(int8(path, data, step), engine, tuple(given))


CASES: dict[str, Callable[[Path], Case]] = {
    "pictures in QDQ": lambda folder: pictures_in(folder, StaticQuantization(), ORT),
    "pictures in IR": lambda folder: pictures_in(folder, NncfQuantization(), OpenVino()),
    "encoder in QDQ": lambda folder: encoder_in(folder, StaticQuantization(compute_only=True), ORT),
    "encoder in IR": lambda folder: encoder_in(
        folder, NncfQuantization("mixed", transformer=True), OpenVino()
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return CASES[request.param](tmp_path_factory.mktemp("model"))


def made(engine: Engine, model: Model, host: Target, folder: Path) -> Artifact:
    folder.mkdir()
    return engine.build(model, host, folder)


def close(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Check that answers are within 3% of the largest one, as two engines' answers to one form are."""
    assert found.keys() == wanted.keys()
    for name, own in wanted.items():
        assert found[name].shape == own.shape
        assert np.abs(found[name] - own).max() < 0.03 * np.abs(own).max()


def test_each_bucket_answers_as_the_int8_form_does_elsewhere(
    case: Case, host: Target, tmp_path: Path
) -> None:
    beyond = case.engine.beyond
    artifact = made(case.engine, case.model, host, tmp_path / "buckets")
    plain = made(beyond, case.model, host, tmp_path / "plain")
    with case.engine.open(artifact, host) as session, beyond.open(plain, host) as wanted:
        for one in case.requests:
            close(session.run(one), wanted.run(one))
        assert session.shares()["beyond all buckets"] == (0, len(case.requests))


@pytest.mark.parametrize("which", ["pictures in QDQ", "pictures in IR"])
def test_each_bucket_of_convolutions_answers_bit_for_bit_as_the_integer_reference(
    which: str, host: Target, tmp_path: Path
) -> None:
    model, engine, requests = CASES[which](tmp_path)
    slow = replace(engine, inner=Integers())
    artifact = made(engine, model, host, tmp_path / "buckets")
    with engine.open(artifact, host) as session, slow.open(artifact, host) as reference:
        for one in requests:
            assert session.run(one)["y"].tobytes() == reference.run(one)["y"].tobytes()


def test_what_was_compiled_for_each_bucket_is_kept_for_the_next_start(
    host: Target, tmp_path: Path
) -> None:
    model, engine, requests = CASES["pictures in QDQ"](tmp_path)
    artifact = made(engine, model, host, tmp_path / "buckets")
    assert engine.keeps_compiled
    answers = []
    for first in (True, False):
        cache = CompileCache(CacheFolder(tmp_path / "cache"))
        with engine.open_cached(artifact, host, cache) as session:
            answers.append([session.run(one)["y"].tobytes() for one in requests])
        assert (cache.compiling_s > 0) == first
        assert cache.kept == (3 * len(SHAPES) if first else 0)
    assert answers[0] == answers[1]
