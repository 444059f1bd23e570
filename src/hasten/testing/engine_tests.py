"""Conformance suite for engines: subclass `EngineTests` and name the engine."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from hasten import bundle
from hasten.bundle import Manifest, Part, part
from hasten.core.cache_folder import CacheFolder
from hasten.core.model import Model
from hasten.core.records import from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.compile_cache import CompileCache
from hasten.engines.layers import LayerTime, summarize
from hasten.engines.origins import traced
from hasten.engines.pool import SessionPool
from hasten.engines.reference import Reference
from hasten.errors import CandidateError, InputError
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.models.embedding import lookups_of
from hasten.inputs.models.onnx import load, read
from hasten.measure.environment import environment
from hasten.testing import models
from hasten.testing.words import assert_for_people

TOLERANCE = 1e-4
"""Tolerance of an exact engine's float32 answers against the reference engine's."""

EVERY_MODEL = (
    models.linear_classifier,
    models.small_cnn,
    models.two_inputs,
    models.tiny_transformer_block,
)


def request_for(specs: tuple[TensorSpec, ...], batch: int = 1, seed: int = 0) -> dict[str, Array]:
    """Draw a request of normal floats, and integers and booleans 0 or 1; open sizes are `batch`."""
    rng = np.random.default_rng(seed)
    request = {}
    for spec in specs:
        shape = [size if isinstance(size, int) else batch for size in spec.shape]
        floats = np.dtype(spec.dtype).kind == "f"
        drawn = rng.standard_normal(shape) if floats else rng.integers(0, 2, shape)
        request[spec.name] = np.ascontiguousarray(drawn.astype(spec.dtype))
    return request


def _mixed_sample(seed: int) -> dict[str, Array]:
    """Draw a sample of `models.mixed_inputs`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.standard_normal(8).astype(np.float32),
        "ids": rng.integers(0, 10, 3),
        "mask": rng.random(3) < 0.5,
        "kind": np.array(rng.integers(0, 10), np.int32),
        "scale": np.array(rng.uniform(1, 2), np.float32),
        "rate": np.array(seed % 2),
    }


def _exact(written: Part, target: Target) -> Manifest:
    """Return the manifest of a bundle that states no certificate."""
    return Manifest(
        status="exact",
        why="nothing was compared",
        winner=written,
        exact=written,
        metric=to_record(Agreement()),
        certificate=None,
        source_sha256="0" * 64,
        sealed={"samples": 0},
        target=target,
        environment=environment(target),
        pipeline=None,
        created="2026-01-01T00:00:00+00:00",
    )


class EngineTests:
    """Claims that hold for every engine that reads ONNX.

    Attributes:
        engine: Engine under test.
        reads_models: Whether the engine opens model files at all; the null engine doesn't.
    """

    engine: Engine
    reads_models = True

    @pytest.fixture
    def target(self) -> Target:
        """This host with one thread."""
        return Target.host().with_threads(1)

    @contextmanager
    def opened(self, model: Model, target: Target, workdir: Path) -> Iterator[Session]:
        """Build a model and open a session."""
        with self.engine.open(self.built(model, target, workdir), target) as session:
            yield session

    def built(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build a model in its own folder."""
        folder = workdir / "built"
        folder.mkdir()
        return self.engine.build(model, target, folder)

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_outputs_are_as_specified(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        model = load(write(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            assert session.inputs == model.inputs
            assert session.outputs == model.outputs
            outputs = session.run(request_for(model.inputs))
        assert list(outputs) == [spec.name for spec in model.outputs]
        assert all(spec.fits(outputs[spec.name]) for spec in model.outputs)

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_an_exact_engine_agrees_with_the_reference(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        if not self.engine.exact:
            pytest.skip(f"{self.engine} isn't exact")
        model = load(write(tmp_path))
        request = request_for(model.inputs, batch=2)
        (tmp_path / "reference").mkdir()
        reference = Reference()
        expected = reference.build(model, target, tmp_path / "reference")
        with reference.open(expected, target) as session:
            right = session.run(request)
        with self.opened(model, target, tmp_path) as session:
            got = session.run(request)
        for name, array in right.items():
            np.testing.assert_allclose(got[name], array, rtol=TOLERANCE, atol=TOLERANCE)

    def test_a_folder_may_have_any_name(self, target: Target, tmp_path: Path) -> None:
        folder = tmp_path / "a, (b) [c]='é' #1;%"
        folder.mkdir()
        model = load(models.linear_classifier(folder))
        request = request_for(model.inputs)
        with self.opened(model, target, folder) as session:
            assert list(session.run(request)) == [spec.name for spec in model.outputs]

    def test_outputs_are_the_callers_to_keep(self, target: Target, tmp_path: Path) -> None:
        model = load(models.two_inputs(tmp_path))
        first = request_for(model.inputs, seed=1)
        with self.opened(model, target, tmp_path) as session:
            kept = session.run(first)
            before = {name: array.copy() for name, array in kept.items()}
            session.run(request_for(model.inputs, seed=2))
            for array in first.values():
                array[...] = 1 - array
        gc.collect()
        assert_same(kept, before)
        for array in kept.values():
            array[...] = 0

    def test_integers_booleans_and_scalars_come_and_go_as_they_are(
        self, target: Target, tmp_path: Path
    ) -> None:
        model = load(models.mixed_inputs(tmp_path)).settled_by(_mixed_sample(0))
        expected_by, reference_dir = Reference(), tmp_path / "expected"
        reference_dir.mkdir()
        try:
            artifact = self.built(model, target, tmp_path)
        except CandidateError as refused:
            assert_one_line(refused)
            pytest.skip(f"the engine doesn't take the model: {refused}")
        expecting = expected_by.build(model, target, reference_dir)
        with self.engine.open(artifact, target) as session:
            with expected_by.open(expecting, target) as reference:
                for seed in range(4):
                    sample = _mixed_sample(seed)
                    request = {
                        n: a if n in ("scale", "rate") else a[None] for n, a in sample.items()
                    }
                    got, expected = session.run(request), reference.run(request)
                    for name, array in expected.items():
                        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
                        if self.engine.exact:
                            np.testing.assert_allclose(got[name], array, TOLERANCE, TOLERANCE)

    def test_the_same_request_twice_gives_the_same(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        request = request_for(model.inputs)
        with self.opened(model, target, tmp_path) as session:
            first = session.run(request)
            session.run(request_for(model.inputs, seed=1))
            assert_same(session.run(request), first)

    def many(self, session: Session | SessionPool | bundle.Loaded) -> list[dict[str, Array]]:
        """Draw 300 different requests, of three batch sizes if the session accepts any."""
        sizes = (1, 2, 3) if session.batch_sizes is None else (1,)
        return [
            request_for(session.inputs, batch=sizes[seed % len(sizes)], seed=seed)
            for seed in range(300)
        ]

    @pytest.mark.parametrize("limit", [1, 3])
    def test_eight_threads_get_the_answers_that_one_gets(
        self, limit: int, target: Target, tmp_path: Path
    ) -> None:
        artifact = self.built(load(models.linear_classifier(tmp_path)), target, tmp_path)
        with self.engine.open(artifact, target) as session:
            requests = self.many(session)
            alone = [session.run(request) for request in requests]
        pool = SessionPool(self.engine, artifact, target, limit)
        try:
            with ThreadPoolExecutor(8) as threads:
                together = list(threads.map(pool.run, requests))
        finally:
            pool.close()
        for got, expected in zip(together, alone, strict=True):
            assert_same(got, expected)

    def test_tasks_that_ask_a_bundle_get_the_answers_that_one_thread_gets(
        self, target: Target, tmp_path: Path
    ) -> None:
        self.skip_without_bundles(target)
        model = load(models.linear_classifier(tmp_path))
        (row,) = request_for(model.inputs).values()
        artifact = self.built(model.settled_by({"x": row[0]}), target, tmp_path)
        written = part("tasks", (), self.engine, artifact)
        bundle.write(tmp_path / "tasks.hasten", _exact(written, target), {})

        async def all_at_once() -> list[dict[str, Array]]:
            return await asyncio.gather(*(loaded.answer(request) for request in requests))

        with bundle.load(tmp_path / "tasks.hasten", sessions=2, cache=False) as loaded:
            requests = self.many(loaded)
            alone = [loaded(request) for request in requests]
            together = asyncio.run(all_at_once())
        for got, expected in zip(together, alone, strict=True):
            assert_same(got, expected)

    def test_a_bundle_answers_the_rows_of_its_tables_and_refuses_other_numbers(
        self, target: Target, tmp_path: Path
    ) -> None:
        self.skip_without_bundles(target)
        model = load(models.mixed_inputs(tmp_path)).settled_by(_mixed_sample(0))
        try:
            artifact = self.built(model, target, tmp_path)
        except CandidateError as refused:
            pytest.skip(f"the engine doesn't take the model: {refused}")
        lookups = lookups_of(read(model.path), model.inputs)
        assert {one.input: one.least for one in lookups} == {"ids": 10, "kind": 10}
        manifest = replace(
            _exact(part("tables", (), self.engine, artifact), target), lookups=lookups
        )
        bundle.write(tmp_path / "tables.hasten", manifest, {})
        plain = {
            n: a if not a.ndim and n != "kind" else a[None] for n, a in _mixed_sample(0).items()
        }
        with bundle.load(tmp_path / "tables.hasten", cache=False) as loaded:
            right = loaded(plain)
            from_the_end = {**plain, "ids": plain["ids"] - 10, "kind": plain["kind"] - 10}
            for name, array in loaded(from_the_end).items():
                np.testing.assert_allclose(array, right[name], TOLERANCE, TOLERANCE)
            for name in ("ids", "kind"):
                for number in (10, -11):
                    wrong = plain[name].copy()
                    wrong.flat[-1] = number
                    with pytest.raises(InputError) as caught:
                        loaded({**plain, name: wrong})
                    assert f"input {name!r} has the number {number}, " in str(caught.value)
                    assert_one_line(caught.value)
            assert_same(loaded(plain), right)

    def skip_without_bundles(self, target: Target) -> None:
        """Skip a test of a bundle that can't be opened here."""
        known = to_record(self.engine)["type"] in Engine.registry
        if target.kind != "host" or "host" not in self.engine.families or not known:
            pytest.skip(f"no bundle of {self.engine} is opened on this host")

    def test_sessions_side_by_side_leave_each_other_alone(
        self, target: Target, tmp_path: Path
    ) -> None:
        artifact = self.built(load(models.linear_classifier(tmp_path)), target, tmp_path)
        with self.engine.open(artifact, target) as session:
            requests = self.many(session)
            alone = [session.run(request) for request in requests]
            start = Barrier(2)

            def beside() -> list[dict[str, Array]]:
                """Answer in reverse order, on a session that is opened and closed meanwhile."""
                start.wait()
                with self.engine.open(artifact, target) as other:
                    return [other.run(request) for request in reversed(requests)]

            with ThreadPoolExecutor(1) as thread:
                others = thread.submit(beside)
                start.wait()
                again = [session.run(request) for request in requests]
                while not others.done():
                    assert_same(session.run(requests[0]), alone[0])
        for answers in (again, others.result()[::-1]):
            for got, expected in zip(answers, alone, strict=True):
                assert_same(got, expected)

    def test_requests_are_left_as_they_were(self, target: Target, tmp_path: Path) -> None:
        model = load(models.two_inputs(tmp_path))
        request = request_for(model.inputs)
        for array in request.values():
            array.flags.writeable = False
        with self.opened(model, target, tmp_path) as session:
            session.run(request)
        assert_same(request, request_for(model.inputs))

    def test_an_open_batch_takes_any_size(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            assert session.batch_sizes is None
            whole = session.run(request_for(model.inputs, batch=3))["logits"]
            request = request_for(model.inputs, batch=3)
            rows = [session.run({"x": request["x"][i : i + 1]})["logits"] for i in range(3)]
        np.testing.assert_allclose(whole, np.concatenate(rows), rtol=1e-2, atol=1e-2)

    def test_a_fixed_batch_is_stated(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path, batch=2))
        with self.opened(model, target, tmp_path) as session:
            assert session.batch_sizes == (2,)
            assert session.run(request_for(model.inputs))["logits"].shape == (2, 10)

    def test_leaving_the_context_frees_the_session(self, target: Target, tmp_path: Path) -> None:
        model = load(models.linear_classifier(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            session.run(request_for(model.inputs))
            alive = weakref.ref(session)
        del session
        gc.collect()
        assert alive() is None

    def test_the_artifact_stands_alone_in_its_folder(self, target: Target, tmp_path: Path) -> None:
        model = load(models.linear_classifier(tmp_path))
        artifact = self.built(model, target, tmp_path)
        model.path.unlink()
        for file in (artifact.path, *artifact.files):
            assert file.parent == tmp_path / "built"
        moved = (tmp_path / "built").rename(tmp_path / "moved")
        artifact = replace(
            artifact,
            path=moved / artifact.path.name,
            files=tuple(moved / file.name for file in artifact.files),
        )
        with self.engine.open(artifact, target) as session:
            assert session.run(request_for(model.inputs))["logits"].shape == (1, 4)

    def test_a_file_that_is_no_model_is_one_line(self, target: Target, tmp_path: Path) -> None:
        if not self.reads_models:
            pytest.skip(f"{self.engine} reads no models")
        model = load(models.linear_classifier(tmp_path))
        model.path.write_bytes(b"not a model" * 10)
        with pytest.raises(CandidateError) as caught:
            self.built(model, target, tmp_path)
        assert_one_line(caught.value)

    def test_an_unknown_operator_is_named_with_its_node(
        self, target: Target, tmp_path: Path
    ) -> None:
        if not self.reads_models:
            pytest.skip(f"{self.engine} reads no models")
        model = load(models.unknown_operator(tmp_path))
        with pytest.raises(
            CandidateError, match=r"Frobnicate.*the_culprit|the_culprit.*Frobnicate"
        ) as caught:
            self.built(model, target, tmp_path)
        assert_one_line(caught.value)

    def test_a_missing_input_is_the_candidates_failure(
        self, target: Target, tmp_path: Path
    ) -> None:
        if not self.reads_models:
            pytest.skip(f"{self.engine} reads no models")
        model = load(models.two_inputs(tmp_path))
        request = request_for(model.inputs)
        del request["ids"]
        with self.opened(model, target, tmp_path) as session:
            with pytest.raises(CandidateError) as caught:
                session.run(request)
        assert_one_line(caught.value)

    def test_it_survives_a_record(self, target: Target) -> None:
        engines = (self.engine, *self.engine.variants(target), *self.engine.tunings(target))
        for engine in engines:
            record = json.loads(json.dumps(to_record(engine)))
            assert from_record(Engine, record, trusted=True) == engine

    def test_the_first_variant_is_the_default(self, target: Target) -> None:
        assert next(iter(self.engine.variants(target))) == type(self.engine)()

    def test_its_words_are_for_people_and_differ_between_variants(self, target: Target) -> None:
        two = replace(target, cpus=(*target.cpus, max(target.cpus) + 1), threads=2)
        variants = (self.engine, *self.engine.variants(two))
        engines = dict.fromkeys(e for v in variants for e in (v, *v.tunings(two)))
        words = [engine.words() for engine in engines]
        assert len(set(words)) == len(words)
        for said in words:
            assert_for_people(said)

    def test_tunings_compute_the_same(self, target: Target, tmp_path: Path) -> None:
        model = load(models.small_cnn(tmp_path))
        request = request_for(model.inputs)
        two = replace(target, cpus=(*target.cpus, max(target.cpus) + 1), threads=2)
        artifact = self.built(model, two, tmp_path)
        answers = []
        for engine in (self.engine, *self.engine.tunings(two)):
            assert engine.exact == self.engine.exact
            with engine.open(artifact, two) as session:
                answers.append(session.run(request)["logits"])
        for answer in answers:
            np.testing.assert_allclose(answer, answers[0], rtol=TOLERANCE, atol=TOLERANCE)

    @pytest.mark.parametrize("write", EVERY_MODEL)
    def test_a_cache_changes_no_answer_and_is_read_the_second_time(self, write, target, tmp_path):  # type: ignore[no-untyped-def]
        model = load(write(tmp_path))
        artifact = self.built(model, target, tmp_path)
        requests = [request_for(model.inputs, batch=batch, seed=batch) for batch in (1, 2, 3)]
        with self.engine.open(artifact, target) as session:
            if session.batch_sizes is not None:
                requests = requests[:1]
            expected = [session.run(request) for request in requests]
            properties = session.properties()
        for time in range(3):
            compiled = CompileCache(CacheFolder(tmp_path / "cache"))
            with self.engine.open_cached(artifact, target, compiled) as session:
                for request, answers in zip(requests, expected, strict=True):
                    assert_same(session.run(request), answers)
                assert session.properties() == properties
            keeps = self.engine.keeps_compiled and target.kind != "compile-only"
            assert (compiled.kept > 0) == (keeps and not time)
            assert (compiled.found > 0) == (keeps and time > 0)

    def test_the_version_is_a_word(self) -> None:
        assert self.engine.version().split() == [self.engine.version()]

    def test_properties_are_text(self, target: Target, tmp_path: Path) -> None:
        model = load(models.linear_classifier(tmp_path))
        with self.opened(model, target, tmp_path) as session:
            properties = session.properties()
        assert all(isinstance(text, str) for pair in properties.items() for text in pair)

    def profiled(self, path: Path, target: Target, workdir: Path) -> tuple[LayerTime, ...]:
        """Profile four requests, and trace the layers to the file's own nodes."""
        if not self.engine.has_profiler():
            pytest.skip(f"{self.engine} has no profiler")
        model = load(path)
        artifact = self.built(model, target, workdir)
        requests = [request_for(model.inputs, seed=seed) for seed in range(4)]
        layers = self.engine.profile(artifact, target, requests)
        return traced(layers, read(path).graph)

    @pytest.mark.parametrize("batch", [1, "batch"])
    def test_a_profile_covers_every_product_exactly_once(
        self, batch: int | str, target: Target, tmp_path: Path
    ) -> None:
        layers = self.profiled(models.small_cnn(tmp_path, batch), target, tmp_path)
        products = ["conv1", "conv2", "classifier"]
        covered = [node for layer in layers if layer.kind == "arithmetic" for node in layer.sources]
        assert [node for node in covered if node in products] == products
        elsewhere = {n for layer in layers if layer.kind != "arithmetic" for n in layer.sources}
        assert elsewhere.isdisjoint(products)

    def test_a_profile_covers_every_product_of_a_transformer_block(
        self, target: Target, tmp_path: Path
    ) -> None:
        layers = self.profiled(models.tiny_transformer_block(tmp_path), target, tmp_path)
        covered = [node for layer in layers if layer.kind == "arithmetic" for node in layer.sources]
        products = ("q", "k", "v", "qk", "mixed", "up", "down")
        assert {node: covered.count(node) for node in products} == dict.fromkeys(products, 1)

    def test_a_profile_has_one_latency_for_each_request(
        self, target: Target, tmp_path: Path
    ) -> None:
        layers = self.profiled(models.small_cnn(tmp_path), target, tmp_path)
        assert {len(layer.latency_ns) for layer in layers} == {4}
        assert min(min(layer.latency_ns) for layer in layers) >= 0
        assert summarize(layers).latency_ns > 0

    def test_a_profile_survives_a_record(self, target: Target, tmp_path: Path) -> None:
        for layer in self.profiled(models.linear_classifier(tmp_path), target, tmp_path):
            assert layer.precision
            assert from_record(LayerTime, json.loads(json.dumps(to_record(layer)))) == layer


def assert_same(got: Tensors, expected: Tensors) -> None:
    """Assert that all arrays are equal, element by element."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array)


def assert_one_line(error: Exception) -> None:
    """Assert that a message isn't empty and is one line that fits a table."""
    assert str(error).strip()
    assert "\n" not in str(error)
    assert len(str(error)) < 500
