"""Comparison of a bundle with what is deployed today: fresh, paired rounds, with an interval."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle import Manifest, Part, artifact_of, engine_of, kept_requests, read, unpacked
from hasten.core.devices import at_hand, check_measurable
from hasten.core.presence import is_folder, is_there
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.core.words import amount
from hasten.engines.end_to_end import EndToEnd, asked_by_file
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.python_function import PythonFunction
from hasten.errors import CandidateError, InputError
from hasten.evaluation.rivals import CANDIDATE, Rival, raced, row_of
from hasten.inputs.chains import is_chain
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.files import sample_files, spread
from hasten.inputs.data.requests import first_requests, telling
from hasten.inputs.data.spool import Spool, write_spool
from hasten.inputs.models import onnx as onnx_frontend
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.deadline import Deadline
from hasten.measure.effort import Effort, effort_of
from hasten.measure.race import AGAIN, BASELINE
from hasten.measure.stages import Stage, reported
from hasten.reporting.card import Card, latency_bars, times
from hasten.reporting.notebook import as_html
from hasten.reporting.result import UNEVEN, Row

_FILES = 64
"""Number of files that are timed, in turns."""
WITHIN = (
    "the bundle's time includes the normalization of pixels, which its model does itself; the "
    "other model gets pixels that are already normalized, and its time leaves that work out"
)
"""Note on a comparison in which only the bundle's model does the end of the pipeline itself."""
_FEWER = (
    "the bundle runs on {}, those that it was made for, so both have as many here, where there are {}: run hasten "
    "optimize on this machine for a bundle that uses all"
)
"""Note on a comparison on fewer threads than this machine has."""

CHAIN = "chain"
"""Role of a chain."""
EXACT, EXACT_CHAIN, GIVEN = "exact model", "exact chain", "given model"
"""Roles of what a bundle or a chain is compared with: its own exact models, or what `against` names."""


@dataclass(frozen=True)
class Comparison:
    """A bundle's latency beside that of another model.

    Attributes:
        against: Row of the other model, whose ratio is its twin's: the effect of noise.
        bundle: Row of the bundle, whose ratio is its latency divided by the other model's.
        threads: Number of threads of each.
        requests: Origin of the requests: the data, the bundle, or made up.
        notes: Further notes for the reader.
        stages: Stages of the bundle's way from bytes to decision; empty where only models are
            compared.
        stages_against: Stages of the other model's way; empty for a function, which does all by
            itself.
    """

    against: Row
    bundle: Row
    threads: int
    requests: str
    notes: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    stages_against: tuple[Stage, ...] = ()

    @property
    def speedup(self) -> float:
        """Return how many times faster the bundle is."""
        return self.bundle.speedup

    def _repr_html_(self) -> str:
        """Return the comparison as a card, for notebooks."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        rows = (
            ("speed", times(self.bundle.ratio, f"that of {self.against.label}")),
            ("noise", times(self.against.ratio, "between two runs of one model")),
            ("with", f"{threads}, one sample in a request"),
            ("requests", self.requests),
        )
        ratio = self.bundle.ratio
        faster = "is faster" if ratio.high < 1 else "is slower" if ratio.low > 1 else "is as fast"
        return as_html(
            Card(
                f"The {'chain' if self.bundle.role == CHAIN else 'bundle'} {faster}: {1 / ratio.estimate:.2f}x",
                good=ratio.high < 1,
                rows=rows,
                notes=self.notes,
                bars=latency_bars(self.against, self.bundle),
            )
        )


def bench(
    bundle: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    data: Any = None,
    rounds: int | None = None,
    effort: str | Effort = "normal",
    seed: int = 0,
    custom_ops: Sequence[Path] = (),
    end_to_end: bool = False,
    pipeline: Pipeline | None = None,
    time_limit_s: float | None = None,
) -> Comparison:
    """Compare a bundle with an .onnx file on ONNX Runtime's defaults, or with a Python function.

    Args:
        bundle: Folder of the bundle. Or a chain, by a line or a file, with `end_to_end`: then it is
            compared with the chain of its exact models, or with a function.
        against: Path of an .onnx file, or "file.py:predict", which is called with the inputs as
            arrays in the model's order. By default the exact model that the bundle holds.
        data: Requests, in any form that `optimize` takes. By default those that the bundle keeps;
            where it keeps none, made-up ones, which the result says.
        rounds: Number of rounds to count; by default the effort's.
        effort: "quick", "normal", "thorough", or an `Effort`, for the lengths of turns and rounds.
        seed: Seed of the orders.
        custom_ops: Paths of libraries with the model's own operators.
        end_to_end: Whether to compare the whole way from a file's bytes to the decision. `data` is a
            folder of the files then, and a function gets a file's bytes.
        pipeline: Steps before and after the model that the bundle is compared with, where they
            aren't the bundle's own; only with `end_to_end`.
        time_limit_s: Time for the whole comparison, in seconds, which may end a tenth later, or 5 s if that is more; None
            for no limit. Opening both models and two rounds aren't cut. A note says how many rounds were left.

    Returns:
        The latencies of both, and their ratio.

    Raises:
        InputError: the bundle, the other model or the data can't be used.
        CandidateError: one of the models failed.
    """
    if pipeline is not None and not end_to_end:
        raise InputError(
            "pipeline= is for a comparison from bytes to decision: add end_to_end=True"
        )
    timed = isinstance(time_limit_s, (int, float)) and 0 < time_limit_s < math.inf
    if time_limit_s is not None and not timed:
        raise InputError(f"the time limit is in seconds, above 0: got {time_limit_s!r}")
    deadline = Deadline(time_limit_s)
    tries = effort_of(effort)
    if rounds is not None:
        tries = replace(tries, final_rounds=rounds)
    if is_chain(bundle):
        if not end_to_end or pipeline is not None or custom_ops:
            raise InputError(
                f"{os.fspath(bundle)} is a chain, which is measured from bytes to decision: give "
                "end_to_end=True and a folder of pictures as data=, and no pipeline or operator library"
            )
        from hasten.evaluation.chain_benchmark import bench_chain

        return bench_chain(os.fspath(bundle), against, data, tries, seed, deadline)
    folder = unpacked(bundle)
    manifest = read(folder)
    target = at_hand(manifest.target)
    check_measurable(target)
    fewer = []
    threads = max(1, min(manifest.target.threads, target.threads))  # as `load` opens it
    if threads < target.threads:
        fewer = [_FEWER.format(amount(threads, "thread"), target.threads)]
        target = target.with_threads(threads)
    winner = _held(folder, manifest.winner, manifest, custom_ops)
    with tempfile.TemporaryDirectory(prefix="hasten-bench-") as work:
        place = Path(work)
        files = files_of(data, manifest.pipeline) if end_to_end else ()
        if end_to_end and manifest.pipeline is None:
            raise InputError(f"{folder} was made from arrays: it has no pipeline to measure")
        requests, said = first_requests(
            None if end_to_end else data,
            winner.artifact.inputs,
            winner.artifact.request,
            manifest.pipeline,
            kept_requests(folder, manifest),
            seed,
        )
        samples = write_spool(requests, place / "requests")
        other = _against(against, folder, manifest, samples, custom_ops, place)
        if manifest.pipeline is not None and end_to_end:
            shipped = manifest.pipeline_of("winner") or manifest.pipeline
            winner = _whole(winner, shipped, files)
            own = manifest.pipeline if other.samples is None else manifest.pipeline.whole
            other = _whole(other, own if pipeline is None else pipeline.behind(own), files)
            numbers = ArrayDataset({"file": np.arange(len(files))})
            samples, said = (
                write_spool(numbers, place / "numbers"),
                f"{amount(len(set(files)), 'file')} of {data}",
            )
        with telling(said):
            standings, notes, facts = raced(
                other, winner, samples, place, tries, seed, deadline, target
            )
            if not standings.stands(CANDIDATE):
                raise CandidateError(f"the bundle failed: {standings.failed[CANDIDATE]}")
        notes += fewer
        if other.samples is not None:
            notes.append(WITHIN)
        if winner.uneven:
            notes.append(UNEVEN.format(winner.label))
        return Comparison(
            against=row_of(EXACT if against is None else GIVEN, other, standings, AGAIN),
            bundle=row_of("bundle", winner, standings, CANDIDATE),
            threads=standings.threads,
            requests=said,
            notes=tuple(notes),
            stages=reported(facts[CANDIDATE]),
            stages_against=reported(facts[BASELINE]),
        )


def _held(folder: Path, part: Part, manifest: Manifest, custom_ops: Sequence[Path]) -> Rival:
    """Return one of the models that the bundle holds."""
    artifact = artifact_of(folder, part, manifest, custom_ops)
    engine = engine_of(part, Target.host().threads, manifest.environment)
    return Rival(part.label, engine, artifact, engine.uneven)


def files_of(data: Any, pipeline: Pipeline | None) -> tuple[Path, ...]:
    """Return the files of a folder of samples, as many as are timed.

    Args:
        data: The folder.
        pipeline: Pipeline that reads the files; see `sample_files`.

    Raises:
        InputError: there is no such folder, or it has no files.
    """
    if not isinstance(data, (str, os.PathLike)) or not is_folder(data):
        raise InputError(
            "a comparison from bytes to decision needs the files that samples come in: give a folder "
            f"as data; got {data!r:.100}"
        )
    return spread(sample_files(Path(data), pipeline), _FILES)


def _whole(rival: Rival, pipeline: Pipeline, files: tuple[Path, ...]) -> Rival:
    """Return a rival that is asked for the whole way from a file's bytes to the decision."""
    function = isinstance(rival.engine, PythonFunction)
    inputs = (TensorSpec("raw", "uint8", ("size",)),) if function else rival.artifact.inputs
    engine = EndToEnd(
        rival.engine, None if function else pipeline, files, inputs, rival.artifact.request
    )
    return Rival(rival.label, engine, asked_by_file(rival.artifact), rival.uneven)


def _against(
    against: str | os.PathLike[str] | None,
    folder: Path,
    manifest: Manifest,
    samples: Spool,
    custom_ops: Sequence[Path],
    place: Path,
) -> Rival:
    """Return the model to compare the bundle with."""
    if against is None:
        if manifest.exact is None:
            raise InputError(
                f"{folder} has no exact model: say what to compare it with in against="
            )
        return _held(folder, manifest.exact, manifest, custom_ops)
    text = os.fspath(against)
    unfolded = _unfolded(manifest, samples, place / "unfolded")
    own = unfolded or samples
    if ":" in text and not is_there(text):
        winner = artifact_of(folder, manifest.winner, manifest, custom_ops)
        if unfolded is not None:
            ((name, first),) = unfolded.inputs([0]).items()
            spec = TensorSpec(name, str(first.dtype), (winner.inputs[0].shape[0], *first.shape[1:]))
            request = replace(spec, shape=first.shape)
            winner = replace(winner, inputs=(spec,), request=(request,))
        return Rival(text, PythonFunction(text), winner, samples=unfolded)
    if text.endswith(".py"):
        raise InputError(f"{text} is a Python file: also name the function in it, {text}:predict")
    model = onnx_frontend.load(Path(text), custom_ops)
    if unfolded is not None and model.inputs[0].dtype == "uint8":
        unfolded, own = None, samples  # it does the same steps itself
    model = model.settled_by({name: array[0] for name, array in own.inputs([0]).items()})
    engine = OnnxRuntime()
    (place / "rival").mkdir()
    artifact = engine.build(model, Target.host(), place / "rival")
    return Rival(f"{text}, {engine.words()}", engine, artifact, samples=unfolded)


def _unfolded(manifest: Manifest, samples: Spool, folder: Path) -> Spool | None:
    """Return the requests as a model takes them that doesn't do the bundle's folded steps itself.

    None where nothing was folded into the bundle's model.
    """
    pipeline = manifest.pipeline
    if pipeline is None or not pipeline.folded:
        return None
    rest = Pipeline(pipeline.folded)
    (name,) = samples.names
    pixels = samples.inputs(range(len(samples)))[name]
    return write_spool(ArrayDataset({name: np.stack([rest(one) for one in pixels])}), folder)
