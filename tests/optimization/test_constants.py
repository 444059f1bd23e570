"""Inputs that are the same in all samples: which of them an engine may take for constants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tests.support import models

from hasten.core.model import Model
from hasten.core.sequences import Sequences
from hasten.core.tensors import Array, TensorSpec
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.dataset import Subset
from hasten.inputs.data.parts import Parts, lay_out
from hasten.inputs.data.spool import write_spool
from hasten.inputs.models.onnx import load
from hasten.optimization.constants import constant_inputs

COUNT = 40
AT_16000 = (("rate", (16_000,)),)


def arrays(rate: Array) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.standard_normal((COUNT, 256), np.float32),
        "state": rng.standard_normal((COUNT, 8), np.float32),
        "rate": rate,
    }


def detector(folder: Path, data: dict[str, Array]) -> Model:
    return load(models.voice_detector(folder)).settled_by({n: a[0] for n, a in data.items()})


def laid_out(folder: Path, data: dict[str, Array]) -> Parts:
    return lay_out(ArrayDataset(data), folder / "laid", calibration=4, seed=0, training=None)


def test_a_rate_that_all_samples_have_is_constant(tmp_path: Path) -> None:
    data = arrays(np.full(COUNT, 16_000))
    found = constant_inputs(detector(tmp_path, data), laid_out(tmp_path, data), None)
    assert found == AT_16000


def test_one_other_sample_is_enough_in_any_part_of_the_data(tmp_path: Path) -> None:
    alike = laid_out(tmp_path, arrays(np.full(COUNT, 16_000)))
    model = detector(tmp_path, arrays(np.full(COUNT, 16_000)))
    other = ArrayDataset(arrays(np.where(np.arange(COUNT) == COUNT - 1, 8_000, 16_000)))
    spool = write_spool(other, tmp_path / "other")
    assert constant_inputs(model, replace(alike, search=spool), None) == ()
    assert constant_inputs(model, replace(alike, calibration=spool), None) == ()
    sealed = Subset(other, np.arange(COUNT))
    assert constant_inputs(model, replace(alike, sealed=sealed), None) == ()


def test_data_and_open_sizes_are_no_settings(tmp_path: Path) -> None:
    data = arrays(np.full(COUNT, 16_000))
    model, parts = detector(tmp_path, data), laid_out(tmp_path, data)
    own = {spec.name: spec for spec in model.inputs}
    opened = (own["audio"], own["state"], TensorSpec("rate", "int64", ("batch",)))
    one = tuple(
        replace(spec, shape=(1,)) if spec.name == "rate" else spec for spec in model.request
    )
    assert constant_inputs(replace(model, inputs=opened, request=one), parts, None) == ()
    floats = tuple(replace(s, dtype="float32") if s.name == "rate" else s for s in model.request)
    assert constant_inputs(replace(model, request=floats), parts, None) == ()


def test_steps_that_are_padding_do_not_count_and_states_are_no_settings(tmp_path: Path) -> None:
    data = arrays(np.full(COUNT, 16_000))
    model = detector(tmp_path, data)
    lengths = np.arange(COUNT) % 3 + 1
    counts = np.arange(3) < lengths[:, np.newaxis]
    rate = np.where(counts, 16_000, 0)
    steps = {
        "audio": np.repeat(data["audio"][:, np.newaxis], 3, axis=1),
        "rate": rate,
        "lengths": lengths,
    }
    parts = laid_out(tmp_path, steps)
    carried = Sequences((("state", "next"),), lengths=True)
    assert constant_inputs(model, parts, carried) == AT_16000
    whole = replace(carried, lengths=False)
    assert constant_inputs(model, parts, whole) == ()
    steps["rate"] = np.where(np.arange(COUNT)[:, np.newaxis] == 7, rate // 2, rate)
    (tmp_path / "other").mkdir()
    assert constant_inputs(model, laid_out(tmp_path / "other", steps), carried) == ()
