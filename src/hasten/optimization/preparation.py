"""What a run does before it tries anything, whatever the device: model and data, and what these can show."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hasten.certificate.draws import BETTING, EXACT, ONE_SHARE
from hasten.certificate.planning import samples_needed
from hasten.certificate.verdict import Guard, Judgement, goal
from hasten.core.devices import family_of
from hasten.core.model import Model
from hasten.core.records import type_name
from hasten.core.target import Target
from hasten.errors import InputError, full_disk
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.source import open_data
from hasten.inputs.metrics import default_metric, parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.models.source import check_has_program, find_model, load_with_data
from hasten.inputs.pipeline.base import Pipeline, check_steps
from hasten.inputs.pipeline.config import from_module
from hasten.measure.journal import Journal
from hasten.measure.workbench import Workbench
from hasten.optimization.workspace import Parts, lay_out


@dataclass(frozen=True)
class Prepared:
    """A model and its data, read and split.

    Attributes:
        model: With the shapes that the data settle.
        parts: The data, laid out in the run's folder.
        training: What was given besides, to train on and to calibrate from.
        pipeline: From an image file to the model's input; None where there is none.
        images: Whether the data are image files, which the pipeline prepared.
        folder: The run's.
    """

    model: Model
    parts: Parts
    training: Dataset | None
    pipeline: Pipeline | None
    images: bool
    folder: Path

    def bench(self, device: Target, limit_s: float) -> Workbench:
        """Return where candidates are made for a device, each step within a limit."""
        return Workbench(
            self.folder,
            device,
            limit_s=limit_s,
            memory_bytes=device.memory_bytes // 2,
            model=self.model,
            calibration=self.parts.calibration,
            calibration_hash=self.parts.calibration_hash,
        )


def prepare(
    model: Any,
    data: Any,
    folder: Path,
    *,
    training: Any,
    pipeline: Pipeline | None,
    calibration: int,
    seed: int,
    custom_ops: Sequence[Path] = (),
    device: Target,
) -> Prepared:
    """Read a model and data as a run was given them, and split the data.

    Args:
        model: As `hasten.optimize` takes it, and so all others.
        data: The same.
        folder: The run's, claimed.
        training: The same; None where there is none.
        pipeline: The same; by default what the model says of itself.
        calibration: How many samples set ranges, at most.
        seed: Of the split.
        custom_ops: Libraries with operators of the model's own.
        device: Whose engines may take the framework's program beside ONNX, or need it.

    Raises:
        InputError: the model or the data can't be used.
    """
    model = find_model(model)
    preparation = pipeline or from_module(model)
    check_steps(preparation)
    program = "not taken" if device.kind == "host" else family_of(device).program
    if program == "needed":
        check_has_program(model)
    source, dataset = load_with_data(
        model, data, preparation, custom_ops, folder, keep_program=program != "not taken"
    )
    images = isinstance(dataset, ImageFolder)  # tensors were prepared by whoever made them
    known = (
        None
        if training is None
        else open_data(training, source.inputs, preparation, folder / "unpacked-training")
    )
    parts = lay_out(dataset, folder, calibration=calibration, seed=seed, training=known)
    source = source.settled_by({n: a[0] for n, a in parts.search.inputs([0]).items()})
    return Prepared(source, parts, known, preparation if images else pipeline, images, folder)


def check_seconds(limits: Mapping[str, float | None]) -> None:
    """Check limits that are in seconds, by name; None is no limit.

    Raises:
        InputError: one isn't above 0.
    """
    for name, limit_s in limits.items():
        if limit_s is not None and not (math.isfinite(limit_s) and limit_s > 0):
            raise InputError(f"the {name} is in seconds, above 0: got {limit_s}")


@contextlib.contextmanager
def cleared_up(folder: Path, journal: Journal) -> Iterator[None]:
    """Remove the work folder of a run that came to nothing; one with trials stays, to be resumed.

    Raises:
        InputError: as what it is around, or the disk is full.
    """
    try:
        yield
    except (InputError, OSError) as error:
        full = None if isinstance(error, InputError) else full_disk(error)
        if not isinstance(error, InputError) and full is None:
            raise
        if journal.last("trial") is None:
            shutil.rmtree(folder, ignore_errors=True)
        if full is None:
            raise
        raise InputError(f"can't write {full.filename or folder}: {full.strerror}") from error


def metric_for(metric: str | Metric | None, parts: Parts, model: Model) -> Metric:
    """The metric asked for, or what labels and outputs suggest."""
    if isinstance(metric, Metric):
        chosen = metric
    elif metric is not None:
        chosen = parse_metric(metric)
    else:
        chosen = default_metric(parts.search.labels, model.outputs)
    if chosen.needs_labels and parts.search.labels is None:
        raise InputError(
            f"the metric {type_name(chosen)} needs labels and the data has none; give labels, or "
            "use --metric agreement"
        )
    return chosen


def warnings(
    parts: Parts,
    scored: Metric,
    guard: Guard,
    max_drop: float,
    confidence: float,
    calibration: int,
) -> list[str]:
    """Say beforehand when even a perfect candidate couldn't be certified on so little data.

    Args:
        parts: The data, split.
        scored: What is scored.
        guard: What is bounded.
        max_drop: The limit, in absolute share.
        confidence: Of the certificate.
        calibration: How many samples of this same data calibrate, at most.
    """
    sealed = len(np.unique(parts.sealed_units))
    grouped = sealed < len(parts.sealed)
    method = ONE_SHARE if guard != "net" else EXACT
    if grouped or not scored.binary:
        method = BETTING
    least = samples_needed(0.0, 0.0, max_drop, confidence, method=method)
    if sealed >= least:
        return []
    noun = "groups" if grouped else "samples"
    return [
        f"{sealed:,} sealed {noun} can't show {goal(guard, type_name(scored), max_drop)}, even where "
        f"nothing changes: that takes {least:,}, so some {_in_all(least, parts, calibration):,} {noun} "
        "in all"
    ]


def _in_all(draws: int, parts: Parts, calibration: int) -> int:
    """Return how many draws the data must have for so many of them to be sealed."""
    sealed, searched = (len(np.unique(u)) for u in (parts.sealed_units, parts.search_units))
    judging = draws * (1 + searched / sealed)
    samples_each = (len(parts.search) + len(parts.sealed)) / (searched + sealed)
    # The split calibrates on a third of all draws at most: on half as many as judge.
    return math.ceil(judging + min(calibration / samples_each, judging / 2))


def shortfall(
    judged: Sequence[tuple[str, Judgement | str]], parts: Parts, calibration: int
) -> list[str]:
    """Say how much data would probably settle what the sealed data couldn't."""
    entry = judged[0][1] if judged else None  # where the safest passed, something is certified
    if not isinstance(entry, Judgement) or entry.samples_needed is None:
        return []
    sealed = len(np.unique(parts.sealed_units))
    total = _in_all(entry.samples_needed, parts, calibration)
    return [
        f"{sealed:,} draws were sealed of the data; for {entry.samples_needed:,} of them it takes some "
        f"{total:,} in all, or a larger limit"
    ]
