"""Conformance suite for passes: subclass `PassTests` and give its fixtures."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from hasten.core.model import Model
from hasten.core.records import file_digest, from_record, to_record
from hasten.core.target import Target
from hasten.core.tensors import Array, TensorSpec
from hasten.engines.base import Engine
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped
from hasten.passes.onnx_files import saturates
from hasten.testing.words import assert_for_people

SAMPLES = 32
"""Number of samples to calibrate on and to compare answers on."""


def host() -> Target:
    """Return this machine, with one thread."""
    return Target.host().with_threads(1)


NARROW = saturates(host())
"""Whether products of 8-bit weights overflow on this machine, so that weights need 7 bits."""


def samples_of(model: Model, count: int = SAMPLES, scale: float = 1.0) -> ArrayDataset:
    """Return normally distributed samples for a model with float inputs.

    Args:
        model: Model with its `request` settled.
        count: Number of samples.
        scale: Standard deviation of the samples.
    """
    random = np.random.default_rng(7)

    def draw(spec: TensorSpec) -> Array:
        shape = (count, *(int(size) for size in spec.shape[1:]))
        return (scale * random.standard_normal(shape)).astype(spec.dtype)

    return ArrayDataset({spec.name: draw(spec) for spec in model.request})


def answers(
    model: Model, data: Dataset, workdir: Path, engine: Engine | None = None, batch: int = 1
) -> dict[str, Array]:
    """Run a model on all samples of a data set, one after another or in batches.

    Returns:
        Outputs by name, concatenated along the batch axis.
    """
    runner = engine or OnnxRuntime()
    workdir.mkdir()
    rows: dict[str, list[Array]] = {}
    with runner.open(runner.build(model, host(), workdir), host()) as session:
        for start in range(0, len(data), batch):
            inputs = data.inputs(range(start, min(start + batch, len(data))))
            for name, value in session.run(inputs).items():
                rows.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def error_between(some: dict[str, Array], others: dict[str, Array]) -> float:
    """Return the outputs' largest RMS difference, relative to the RMS of the first answers."""
    return max(
        float(np.sqrt(np.mean((others[name] - some[name]) ** 2) / np.mean(some[name] ** 2)))
        for name in some
    )


_MADE: dict[tuple[object, ...], tuple[Model, dict[str, bytes]]] = {}
"""Results by pass, model and request, with their files by name."""


class PassTests:
    """Claims that hold for every pass; subclasses give `value`, `model` and `idle_model`.

    Attributes:
        bound: Largest RMS change of the answers, relative to their own RMS.
        engine: Engine that runs the result; None for ONNX Runtime.
    """

    bound: float = 1e-5
    engine: Engine | None = None

    @pytest.fixture
    def value(self) -> Pass:
        """Pass under test, with settings worth trying."""
        raise NotImplementedError

    @pytest.fixture
    def model(self) -> Model:
        """Model with its `request` settled, an open batch dimension and float inputs."""
        raise NotImplementedError

    @pytest.fixture
    def idle_model(self) -> Model:
        """Model that leaves the pass nothing to do."""
        raise NotImplementedError

    @pytest.fixture
    def result(self, value: Pass, model: Model, tmp_path: Path) -> Model:
        """Result of the pass on the model, made once for all tests that begin with the same."""
        key = (repr(value), model.sha256, model.request)
        if key not in _MADE:
            made = run(value, model, tmp_path)
            _MADE[key] = made, {file.name: file.read_bytes() for file in (made.path, *made.files)}
            return made
        made, data = _MADE[key]
        workdir = tmp_path / "result"
        workdir.mkdir()
        for name, content in data.items():
            (workdir / name).write_bytes(content)
        return dataclasses.replace(
            made,
            path=workdir / made.path.name,
            files=tuple(workdir / file.name for file in made.files),
        )

    def test_it_writes_another_file_and_leaves_the_source_alone(
        self, value: Pass, model: Model, tmp_path: Path
    ) -> None:
        before = [file_digest(file) for file in (model.path, *model.files)]
        result = run(value, model, tmp_path)
        assert result.sha256 != model.sha256
        assert [file_digest(file) for file in (model.path, *model.files)] == before

    def test_its_folder_holds_the_result_and_nothing_else(
        self, value: Pass, model: Model, tmp_path: Path
    ) -> None:
        result = run(value, model, tmp_path)
        assert {result.path, *result.files} == set((tmp_path / "result").iterdir())

    def test_names_types_and_settled_sizes_stay(self, model: Model, result: Model) -> None:
        for old, new in zip(
            (*model.inputs, *model.outputs), (*result.inputs, *result.outputs), strict=True
        ):
            assert (old.name, old.dtype, len(old.shape)) == (new.name, new.dtype, len(new.shape))
            assert all(
                was == now
                for was, now in zip(old.shape, new.shape, strict=True)
                if isinstance(was, int)
            )
        assert result.request == model.request

    def test_answers_stay_within_the_bound(
        self, model: Model, result: Model, tmp_path: Path
    ) -> None:
        data = samples_of(model)
        exact = answers(model, data, tmp_path / "before")
        quick = answers(result, data, tmp_path / "after", self.engine)
        assert error_between(exact, quick) <= self.bound

    def test_a_batch_that_was_open_takes_several_samples_unless_it_says_otherwise(
        self, model: Model, result: Model, tmp_path: Path
    ) -> None:
        if all(spec.static for spec in result.inputs):
            return
        data = samples_of(model)
        singly = answers(model, data, tmp_path / "singly")
        batched = answers(result, data, tmp_path / "batched", self.engine, batch=8)
        assert error_between(singly, batched) <= self.bound

    def test_the_same_samples_make_the_same_model(
        self, value: Pass, model: Model, result: Model, tmp_path: Path
    ) -> None:
        data = samples_of(model)
        again = answers(run(value, model, tmp_path, "again"), data, tmp_path / "a", self.engine)
        assert error_between(answers(result, data, tmp_path / "b", self.engine), again) == 0

    def test_nothing_to_do_is_skipped_with_a_reason(
        self, value: Pass, idle_model: Model, tmp_path: Path
    ) -> None:
        with pytest.raises(Skipped, match=r".{10,}"):
            run(value, idle_model, tmp_path)

    def test_a_draft_can_be_timed_in_the_results_place(
        self, value: Pass, model: Model, result: Model, tmp_path: Path
    ) -> None:
        data, workdir = samples_of(model), tmp_path / "draft"
        workdir.mkdir()
        draft = value.draft(model, data, workdir)
        assert {draft.path, *draft.files} == set(workdir.iterdir())
        assert (draft.format, draft.inputs, draft.request) == (
            result.format,
            result.inputs,
            result.request,
        )
        whole = answers(result, data, tmp_path / "whole", self.engine)
        drafted = answers(draft, data, tmp_path / "drafted", self.engine)
        assert {name: one.shape for name, one in drafted.items()} == {
            name: one.shape for name, one in whole.items()
        }

    def test_a_draft_of_nothing_is_skipped_too(
        self, value: Pass, idle_model: Model, tmp_path: Path
    ) -> None:
        with pytest.raises(Skipped, match=r".{10,}"):
            value.draft(idle_model, samples_of(idle_model), tmp_path)

    def test_it_says_nothing_and_leaves_logging_as_it_was(
        self, value: Pass, model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = (logging.root.handlers[:], logging.root.level, logging.root.manager.disable)
        run(value, model, tmp_path)
        assert capfd.readouterr() == ("", "")
        after = (logging.root.handlers[:], logging.root.level, logging.root.manager.disable)
        assert before == after

    def test_a_record_brings_it_back(self, value: Pass) -> None:
        record = json.loads(json.dumps(to_record(value)))
        assert from_record(Pass, record, trusted=True) == value

    def test_variants_are_distinct(self, value: Pass, model: Model) -> None:
        variants = list(type(value).variants(model, host()))
        assert len(set(variants)) == len(variants)

    def test_its_words_are_for_people_and_differ_between_variants(
        self, value: Pass, model: Model
    ) -> None:
        steps = dict.fromkeys((value, *type(value).variants(model, host())))
        words = [step.words() for step in steps]
        assert len(set(words)) == len(words)
        for said in words:
            assert_for_people(said)


def run(
    value: Pass, model: Model, tmp_path: Path, name: str = "result", scale: float = 1.0
) -> Model:
    """Run a pass in a new folder on `samples_of` the model."""
    workdir = tmp_path / name
    workdir.mkdir()
    return value(model, samples_of(model, scale=scale), workdir)
