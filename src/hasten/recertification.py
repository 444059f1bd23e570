"""A bundle's certificate against new data: the gate of a pipeline."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hasten.bundle import artifact_of, read
from hasten.certificate.betting import BettingPrior
from hasten.certificate.verdict import Guard, Judgement, Verdict
from hasten.certification import guarded, judge_ladder, sealed_scores
from hasten.data.dataset import Dataset, Subset
from hasten.data.source import open_data
from hasten.data.spool import write_spool
from hasten.engines.base import Engine
from hasten.errors import CandidateError, InputError, IntegrityError
from hasten.measure.workbench import Bench, Opened
from hasten.metrics import parse_metric
from hasten.metrics.base import Metric
from hasten.metrics.custom import Custom
from hasten.pipeline.base import Pipeline
from hasten.records import from_record, read_json, type_name
from hasten.target import Target
from hasten.tensors import Array
from hasten.workspace import hashed_groups


@dataclass(frozen=True)
class Recheck:
    """What new data says of a bundle.

    Attributes:
        kind: "fresh data": a certificate of its own. "regression check": the samples were used
            before, so passing says that nothing changed, not that it is right.
        judgement: On these samples.
        used: How many samples were judged.
        left_out: How many were left out, since the bundle's making had seen them.
    """

    kind: Literal["fresh data", "regression check"]
    judgement: Judgement
    used: int
    left_out: int

    @property
    def passed(self) -> bool:
        """Whether the limit holds."""
        return self.judgement.verdict is Verdict.CERTIFIED

    def in_words(self) -> str:
        """One line for people."""
        seen = f"; {self.left_out:,} samples were left out: the bundle was made with them"
        note = (
            "regression check on data that was used before: "
            if self.kind == "regression check"
            else ""
        )
        return f"{note}{self.judgement.in_words()}{seen if self.left_out else ''}"


def certify(
    bundle: str | os.PathLike[str],
    data: Any,
    *,
    max_drop: float | None = None,
    confidence: float | None = None,
    guard: Guard | None = None,
    metric: str | Metric | None = None,
    pipeline: Pipeline | None = None,
    custom_ops: Sequence[Path] = (),
    listen: Callable[[int], None] = lambda done: None,
) -> Recheck:
    """Test a bundle's winner against its exact model on data.

    Args:
        bundle: Its folder; it must hold the exact model.
        data: As `optimize` takes it. Samples that the bundle was made with are left out, unless
            there are no others.
        max_drop: The limit; by default the certificate's.
        confidence: By default the certificate's.
        guard: By default the certificate's.
        metric: By default the bundle's, unless that is a function: a bundle's word alone runs no
            code, so name it again.
        pipeline: By default the bundle's.
        custom_ops: Libraries with operators of the model's own.
        listen: Told how many samples are behind.

    Raises:
        InputError: the bundle or the data can't be used.
        CandidateError: the winner failed.
    """
    folder = Path(bundle)
    manifest = read(folder)
    if manifest.exact is None:
        raise InputError(f"{folder} was made with --no-exact: there is nothing to compare with")
    limits = _limits(folder, max_drop, confidence, guard)
    judged_by = guarded(_metric(folder, manifest.metric, metric), limits["guard"])
    exact = artifact_of(folder, manifest.exact, manifest, custom_ops)
    winner = artifact_of(folder, manifest.winner, manifest, custom_ops)
    dataset = open_data(data, exact.inputs, pipeline or manifest.pipeline)
    if judged_by.needs_labels and dataset.labels is None:
        raise InputError(
            f"the bundle is judged by {type_name(judged_by)}, which needs labels; the data has none"
        )
    kind, samples, units = _fresh(folder, dataset)
    with tempfile.TemporaryDirectory(prefix="hasten-certify-") as work:
        desk = Bench(Path(work), _here(manifest.target.threads))
        opened: list[Opened] = []
        try:
            for part, artifact in ((manifest.exact, exact), (manifest.winner, winner)):
                opened.append(desk.open_built(from_record(Engine, part.engine), artifact))
            first = write_spool(Subset(samples, np.arange(1)), desk.folder / "first")
            desk.fit_chunk(opened[0], first)
            own, scores = sealed_scores(
                desk, opened[0], {"winner": opened[1]}, samples, judged_by, listen
            )
        finally:
            for one in opened:
                one.worker.kill()
    ((_, judgement),) = judge_ladder(
        own, ("winner",), scores, units, {"winner": BettingPrior()}, metric=judged_by, **limits
    )
    if isinstance(judgement, str):
        raise CandidateError(judgement)
    return Recheck(kind, judgement, len(samples), len(dataset) - len(samples))


def _metric(folder: Path, stated: dict[str, Any], given: str | Metric | None) -> Metric:
    """What the data is scored by: given here, or as the bundle states it."""
    if isinstance(given, Metric):
        return given
    if given is not None:
        return parse_metric(given)
    metric = from_record(Metric, stated)
    if isinstance(metric, Custom):
        raise InputError(
            f"{folder} was judged by the function {metric.path}: name it again by --metric, since a "
            "bundle's word alone runs no code"
        )
    return metric


def _here(threads: int) -> Target:
    """This host, with as many threads as were certified, if it has them."""
    host = Target.host()
    return host.with_threads(max(1, min(threads, host.threads)))


def _limits(
    folder: Path, max_drop: float | None, confidence: float | None, guard: Guard | None
) -> dict[str, Any]:
    """What is asked of it: given here, or as the bundle was asked."""
    manifest = read(folder)
    stated = (manifest.certificate or {}).get("judgement", {})
    limits = {
        "max_drop": max_drop if max_drop is not None else stated.get("max_drop"),
        "confidence": confidence if confidence is not None else stated.get("confidence", 0.95),
        "guard": guard or stated.get("guard", "net"),
    }
    if limits["max_drop"] is None:
        raise InputError(f"{folder} has no certificate, so no limit either: give --max-drop")
    return limits


def _fresh(
    folder: Path, dataset: Dataset
) -> tuple[Literal["fresh data", "regression check"], Dataset, Array]:
    """Leave out what the bundle's making has seen, and repeats; all of it again where nothing is left."""
    name = "evidence/sealed.json"
    record = read_json(folder / name) if name in read(folder).files else {}
    if not isinstance(record, dict):
        raise IntegrityError(f"{folder}: {name} is damaged")
    seen = {*record.get("hashes", ()), *record.get("seen", ())}
    seen_groups = set(record.get("groups", ()))
    groups = () if dataset.groups is None else hashed_groups(dataset.groups)
    hashes = [dataset.content_hash(i).hex() for i in range(len(dataset))]
    fresh = [
        i
        for i, content in enumerate(hashes)
        if content not in seen and not (groups and groups[i] in seen_groups)
    ]
    kind: Literal["fresh data", "regression check"] = "fresh data"
    if not fresh:
        kind, fresh = "regression check", list(range(len(dataset)))
    if dataset.groups is not None:
        chosen = np.array(fresh)
        units = np.unique(dataset.groups[chosen], return_inverse=True)[1].reshape(-1)
        return kind, Subset(dataset, chosen), units
    first = {hashes[i]: i for i in reversed(fresh)}
    chosen = np.array(sorted(first.values()))
    return kind, Subset(dataset, chosen), np.arange(len(chosen))
