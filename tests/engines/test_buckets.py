"""Models compiled for a few shapes: answers of padded requests are those at their own shapes."""

import asyncio
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.support import ragged
from tests.support.bundles import stated

from hasten.bundle import load as load_bundle
from hasten.bundle import part, write
from hasten.core.model import Model
from hasten.core.records import from_record, to_record
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines import buckets
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.buckets import Buckets
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.padding import Axis, Bucket, Dimension, Pad
from hasten.errors import CandidateError
from hasten.inputs.models.onnx import load

ORT = OnnxRuntime()
LENGTH = Dimension((Axis("ids", 1), Axis("mask", 1)), (Axis("states", 1),))
SIZES = (Bucket((4,)), Bucket((8,)), Bucket((16,)))


def request(length: int, seed: int = 0) -> dict[str, Array]:
    ids = np.random.default_rng(seed).integers(1, ragged.WORDS, (1, length))
    return {"ids": ids, "mask": np.ones((1, length), np.int64)}


def test_beside_others_both_of_its_engines_are() -> None:
    quiet = Buckets(ORT, ORT, dimensions=(LENGTH,), buckets=SIZES).beside()
    assert (quiet.inner, quiet.beyond) == (ORT.beside(), ORT.beside())
    assert ORT.beside() != ORT


@pytest.fixture
def host() -> Target:
    return Target.host().with_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return load(ragged.encoder(tmp_path)).settled_by({n: a[0] for n, a in request(7).items()})


def build(engine: Engine, model: Model, host: Target, folder: Path) -> Artifact:
    folder.mkdir()
    return engine.build(model, host, folder)


def answers(
    model: Model, host: Target, folder: Path, given: list[dict[str, Array]]
) -> list[dict[str, Array]]:
    with ORT.open(build(ORT, model, host, folder), host) as session:
        return [session.run(one) for one in given]


@pytest.mark.parametrize("inner", [ORT, OpenVino(), CompiledC()], ids=lambda engine: engine.words())
def test_padded_requests_get_the_answers_at_their_own_length(
    inner: Engine, model: Model, host: Target, tmp_path: Path
) -> None:
    beyond = inner if inner.reshapes else ORT
    engine = Buckets(inner, beyond, (LENGTH,), SIZES)
    artifact = build(engine, model, host, tmp_path / "built")
    given = [request(n, n) for n in (3, 4, 5, 16, 1, 20)]
    wanted = answers(model, host, tmp_path / "alone", given)
    with engine.open(artifact, host) as session:
        for one, own in zip(given, wanted, strict=True):
            got = session.run(one)
            assert got.keys() == own.keys()
            for name, array in own.items():
                np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)
        assert session.properties() == {"padded": "3 of 6", "beyond all buckets": "1 of 6"}


@pytest.mark.parametrize("inner", [ORT, OpenVino(), CompiledC()], ids=lambda engine: engine.words())
@pytest.mark.parametrize("limit", [1, 3])
def test_eight_threads_and_many_tasks_of_mixed_lengths_get_the_answers_that_one_gets(
    inner: Engine, limit: int, model: Model, host: Target, tmp_path: Path
) -> None:
    engine = Buckets(inner, inner if inner.reshapes else ORT, (LENGTH,), SIZES)
    artifact = build(engine, model, host, tmp_path / "built")
    given = [request(1 + seed * 7 % 20, seed) for seed in range(120)]
    whole = part("buckets", (), engine, artifact)
    shapes = [{name: a[0].shape for name, a in one.items()} for one in given]
    manifest = stated(whole, whole, status="exact", shapes=extents(model.inputs, shapes))
    write(tmp_path / "b", manifest, {})

    async def all_at_once() -> list[dict[str, Array]]:
        return await asyncio.gather(*(loaded.answer(one) for one in given))

    with load_bundle(tmp_path / "b", sessions=limit, cache=False) as loaded:
        alone = [loaded(one) for one in given]
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(loaded, given))
        tasks = asyncio.run(all_at_once())
    for got, task, own in zip(together, tasks, alone, strict=True):
        for name, array in own.items():
            np.testing.assert_array_equal(got[name], array)
            np.testing.assert_array_equal(task[name], array)


def test_what_no_mask_hides_changes_answers(model: Model, host: Target, tmp_path: Path) -> None:
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES, (Pad("mask", 1),))
    with engine.open(build(engine, model, host, tmp_path / "built"), host) as session:
        got = session.run(request(5))["logits"]
    (own,) = answers(model, host, tmp_path / "alone", [request(5)])
    assert np.abs(got - own["logits"]).max() > 1e-2


def test_without_padding_a_bucket_answers_its_own_shape_alone(
    model: Model, host: Target, tmp_path: Path
) -> None:
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES, padding=False)
    with engine.open(build(engine, model, host, tmp_path / "built"), host) as session:
        for length in (3, 4):
            session.run(request(length))
        assert session.properties() == {"padded": "0 of 2", "beyond all buckets": "1 of 2"}


def test_buckets_open_when_they_are_needed_and_close_for_want_of_room(
    model: Model, host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "OPEN_BYTES", 1)
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES)
    artifact = build(engine, model, host, tmp_path / "built")
    assert engine.loaded_bytes(artifact) == 2 * artifact.size_bytes
    with engine.open(artifact, host) as session:
        held = session._opened._open  # type: ignore[attr-defined]
        assert list(held) == [1]
        for length in (3, 12, 30):
            session.run(request(length))
        assert list(held) == [2, -1]
    with pytest.raises(CandidateError) as error:
        session.run(request(3))
    assert str(error.value) == "the session is closed: open the artifact again"


def test_a_device_warms_up_and_is_timed_by_the_clocks_of_the_bucket_asked_last(
    model: Model, host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, warmed = Buckets(ORT, ORT, (LENGTH,), SIZES), list[Session]()
    with engine.open(build(engine, model, host, tmp_path / "built"), host) as session:
        monkeypatch.setattr(Session, "settle", lambda session, again: warmed.append(session))
        monkeypatch.setattr(
            Session, "device_times", lambda session: {"stream_ns": str(id(session))}
        )
        for length in (3, 12, 3):
            session.run(request(length))
            session.settle(lambda: None)
            assert session.device_times() == {"stream_ns": str(id(warmed[-1]))}
    first, second, third = warmed
    assert first is third
    assert first is not second


def test_too_large_buckets_are_refused(
    model: Model, host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MOST_BYTES", 2 << 10)
    with pytest.raises(CandidateError, match="3 buckets of the model would take"):
        build(Buckets(CompiledC(), ORT, (LENGTH,), SIZES), model, host, tmp_path / "built")


def test_inputs_of_two_lengths_are_answered_as_the_model_does(
    model: Model, host: Target, tmp_path: Path
) -> None:
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES)
    odd = {"ids": request(5)["ids"], "mask": request(3)["mask"]}
    with engine.open(build(engine, model, host, tmp_path / "built"), host) as session:
        with pytest.raises(CandidateError):
            session.run(odd)
        with pytest.raises(CandidateError) as error:
            session.run({"ids": odd["ids"]})
    assert str(error.value) == "the request has no axis 1 of 'mask'"


def test_requests_shorter_than_any_that_was_compared_are_not_padded(
    model: Model, host: Target, tmp_path: Path
) -> None:
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES, (Pad("mask", 1),), least=(5,))
    artifact = build(engine, model, host, tmp_path / "built")
    wanted = answers(model, host, tmp_path / "alone", [request(3)])
    with engine.open(artifact, host) as session:
        np.testing.assert_array_equal(session.run(request(3))["logits"], wanted[0]["logits"])
        session.run(request(5))
        session.run(request(4))
        assert session.properties() == {"padded": "1 of 3", "beyond all buckets": "1 of 3"}


@pytest.mark.parametrize("inner", [ORT, OpenVino()], ids=lambda engine: engine.words())
def test_another_size_of_an_axis_that_never_varied_is_answered_by_the_open_model(
    inner: Engine, host: Target, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((3, 3, 20, 32), np.float32)
    model = load(ragged.convolutional(tmp_path)).settled_by({"x": x[0, :, :16, :24]})
    width = Dimension((Axis("x", 3),), (Axis("y", 3),))
    engine = Buckets(inner, inner, (width,), (Bucket((16,)), Bucket((24,))), padding=False)
    given = [{"x": x[:1, :, :20, :24]}, {"x": x[:1, :, :16, :24]}, {"x": x[:, :, :16, :24]}]
    wanted = answers(model, host, tmp_path / "alone", given)
    with engine.open(build(engine, model, host, tmp_path / "built"), host) as session:
        for one, own in zip(given, wanted, strict=True):
            np.testing.assert_allclose(session.run(one)["y"], own["y"], rtol=1e-4, atol=1e-5)
        assert session.shares()["beyond all buckets"] == (1, 5)


@pytest.mark.parametrize("damage", ["{", "{}", '{"open": {"files": ["../x"], "outputs": []}}'])
def test_a_damaged_list_is_one_line(
    model: Model, host: Target, tmp_path: Path, damage: str
) -> None:
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES)
    artifact = build(engine, model, host, tmp_path / "built")
    artifact.path.write_text(damage)
    with (
        pytest.raises(CandidateError, match=r"buckets\.json is damaged"),
        engine.open(artifact, host),
    ):
        pass


def test_a_size_of_thousands_of_digits_is_one_line(
    model: Model, host: Target, tmp_path: Path
) -> None:
    engine = Buckets(ORT, ORT, (LENGTH,), SIZES)
    artifact = build(engine, model, host, tmp_path / "built")
    index = json.loads(artifact.path.read_text())
    for one in index.values():
        one["outputs"][0]["shape"][-1] = 10**4000
    artifact.path.write_text(json.dumps(index))
    with pytest.raises(CandidateError) as error, engine.open(artifact, host):
        pass
    said = "buckets.json is damaged: it has a number that is larger than 64 bits"
    assert str(error.value) == said


def test_it_survives_a_record_and_has_words(host: Target) -> None:
    engine = Buckets(ORT, dataclasses.replace(ORT, threads=1), (LENGTH,), SIZES, (Pad("mask", 1),))
    engine = dataclasses.replace(engine, least=(3,))
    assert from_record(Engine, json.loads(json.dumps(to_record(engine)))) == engine
    assert engine.words() == (
        "ONNX Runtime, padded to 3 shapes, 4 to 16, beyond them ONNX Runtime, 1 thread"
    )
