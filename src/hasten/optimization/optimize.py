"""The run, top to bottom: model -> candidates -> measure -> choose -> certify -> bundle."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from hasten.certificate.certification import guarded
from hasten.certificate.planning import check_limits
from hasten.certificate.verdict import Guard
from hasten.core.devices import family_of, find_target
from hasten.core.invocation import invocation
from hasten.core.model import Model
from hasten.core.progress import Listener, nobody
from hasten.core.tensors import Array
from hasten.engines.installed import tried_on
from hasten.errors import InputError
from hasten.inputs.metrics.base import Metric
from hasten.inputs.models.source import find_model, load_model
from hasten.inputs.pipeline.base import Pipeline
from hasten.measure.candidate import label
from hasten.measure.environment import versions
from hasten.measure.intervals import Statistic
from hasten.measure.latency import Pace, pace_for
from hasten.measure.scenario import check_bound
from hasten.optimization.delivery import Compared, Delivery, check_place
from hasten.optimization.preparation import (
    check_seconds,
    cleared_up,
    metric_for,
    prepare,
    shortfall,
    warnings,
)
from hasten.optimization.run import Run
from hasten.optimization.search.grid import grid, originals
from hasten.optimization.search.order import Order
from hasten.optimization.workspace import (
    SEARCH_VERSION,
    Parts,
    check_same_run,
    claimed,
    data_digest,
)
from hasten.passes.little import Little, Student
from hasten.passes.onnx_files import check_nodes, read_onnx
from hasten.report.result import Result


def optimize(
    model: Any,
    data: Any,
    *,
    max_drop: float = 0.01,
    out: str | Path = "model.hasten",
    metric: str | Metric | None = None,
    guard: Guard = "net",
    confidence: float = 0.95,
    objective: Statistic = "p50",
    training: Any = None,
    little: Any = None,
    pipeline: Pipeline | None = None,
    engines: Sequence[str] = (),
    keep_float: Sequence[str] = (),
    custom_ops: Sequence[Path] = (),
    population: str = "inputs like the ones in this data",
    time_limit_s: float | None = None,
    trial_limit_s: float = 300.0,
    calibration: int = 300,
    seed: int = 0,
    keep_exact: bool = True,
    accept_uncertified: bool = False,
    latency_bound_s: float | None = None,
    budget_s: float | None = None,
    target: str = "host",
    notes: Sequence[str] = (),
    resume: bool = False,
    listen: Listener = nobody,
) -> Result:
    """Find the fastest version of a model that is certified to still give the right answers.

    Args:
        model: An .onnx, .pt2 or .keras path, "file.py:name", an `nn.Module`, an exported program
            or a Keras model.
        data: An .npz path, a folder of images, "module:function", `(inputs, labels)`, a mapping
            of arrays, or a `Dataset`.
        max_drop: The most that accuracy may fall, in absolute share: 0.01 is one point.
        out: The bundle's folder.
        metric: "top1", "top5", "agreement", "embedding", "regression:0.01", "detection_f1",
            "my.py:score", or a `Metric`. By default top-1 where there are labels, else agreement.
        guard: What is bounded: the net drop, the share lost, or the share changed.
        confidence: Of the certificate.
        objective: What of a request's latency is to be small: its "p50", its "mean", or its "p99",
            which takes longer to tell.
        training: Training data to calibrate from; then all of `data` judges.
        little: A smaller model of the same inputs and outputs, as `model` is given, or several by
            name. Each is tried in the model's place, as it is and in int8, and in a cascade: it
            answers, and the model is asked where its answer was close.
        pipeline: From an image file to the model's input, for a folder of images.
        engines: Which runtimes to try; by default all that suit the target.
        keep_float: Nodes that no pass may quantize.
        custom_ops: Libraries with operators of the model's own.
        population: What `data` was drawn from, in words, for the certificate.
        time_limit_s: The search ends in time for certification to fit.
        trial_limit_s: One step of one candidate may take so long.
        calibration: How many samples set the quantizers' ranges, at most.
        seed: Of the split and of all orders.
        keep_exact: Keep the exact model in the bundle, for `certify` and as a fallback.
        accept_uncertified: Ship the fastest even where nothing certifies, marked so.
        latency_bound_s: What requests that come at random times are to stay under, in seconds: the
            highest rate at which 99% do is measured of what ships.
        budget_s: What one request may take, in seconds: of several smaller models the most accurate
            version under it is compared, and the result says whether what ships stays under it.
        target: "host", or a device of this host: "cuda", "tpu", "npu", "igpu". For others see
            `hasten.cross_compile`.
        notes: What the result is to say besides.
        resume: Go on with the run that was stopped.
        listen: Told of each step.

    Raises:
        InputError: the model, the data or an option can't be used; nothing is written then.
    """
    asked = invocation(optimize, locals())
    begin = time.monotonic()
    check_limits(max_drop, confidence)
    if objective not in get_args(Statistic):
        raise InputError(f"the objective is p50, p99 or mean: got {objective!r}")
    check_seconds({"time limit": time_limit_s, "trial limit": trial_limit_s, "budget": budget_s})
    check_bound(latency_bound_s)
    bundle = Path(out)
    check_place(bundle)
    device = find_target(target)
    if device.kind == "compile-only":
        raise InputError(
            f"{device.device} isn't here; hasten.cross_compile makes a model for it, or hasten optimize "
            "--target on the command line"
        )
    if device.kind == "attached" or not engines:
        engines = tried_on(device.family)
    folder = bundle.with_name(bundle.name + ".work")
    with claimed(folder, resume=resume) as journal, cleared_up(folder, journal):
        ready = prepare(
            model,
            data,
            folder,
            training=training,
            pipeline=pipeline,
            calibration=calibration,
            seed=seed,
            custom_ops=custom_ops,
            device=device,
        )
        source, parts, pipeline = ready.model, ready.parts, ready.pipeline
        if device.kind == "host" or family_of(device).program != "needed":
            check_nodes(read_onnx(source, weights=False), keep_float)
        students = _students(little)
        smaller = _littles(students, source, parts, custom_ops, folder)
        scored = guarded(metric_for(metric, parts, source), guard)
        options = [max_drop, scored, guard, confidence, list(engines), list(keep_float), seed]
        check_same_run(
            journal,
            {
                "model": source.sha256,
                "data": data_digest(parts),
                "machine": device,
                "pipeline": pipeline,
                "set of versions": versions() | {"search": str(SEARCH_VERSION)},
                "options": options,
                "objective": objective,
                "little model": [(one.name, one.sha256) for one in smaller],
                "file of the metric's function": scored.source_sha256,
            },
        )
        deadline = None if time_limit_s is None else begin + time_limit_s
        kept = tuple(keep_float)
        delivery = Delivery(
            bundle,
            population,
            pipeline,
            keep_exact,
            accept_uncertified,
            latency_bound_s,
            asked,
            Compared({one.name: one.trained for one in students if one.name}, budget_s),
        )
        run = Run(
            bench=ready.bench(device, trial_limit_s),
            journal=journal,
            parts=parts,
            order=Order(scored, guard, max_drop, confidence, seed, kept, deadline, objective),
            listen=listen,
            on_better=delivery.interim,
            pace=pace_for(objective, min(Pace.limit_s, trial_limit_s)),
        )
        run.notes += notes
        calibrating = 0 if ready.training is not None else calibration
        if pipeline is not None and ready.images:
            run.notes.append(f"images were prepared by {', '.join(map(label, pipeline.steps))}")
        run.notes += warnings(parts, scored, guard, max_drop, confidence, calibrating)
        with contextlib.closing(run):
            # One way: what to try, how each did, who is worth certifying, who passes, what ships.
            proposed = grid(source, device, engine_names=engines, keep_float=kept, littles=smaller)
            run.try_all([*proposed, *originals(source)] if device.kind == "attached" else proposed)
            exact, rungs = run.freeze_ladder()
            judged = run.certify(rungs)
            run.notes += shortfall(judged, parts, calibrating)
            result = delivery.finish(run, exact, judged, begin)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _students(little: Any) -> list[Student]:
    """Return the smaller models that a caller handed in, one without a name, or several by name."""
    if little is None:
        return []
    if isinstance(little, Mapping):
        little = [Student(str(name), model) for name, model in little.items()]
    students = little if isinstance(little, (list, tuple)) else [Student("", little)]
    found = [
        one if isinstance(one, Student) else Student(f"{i + 1}", one)
        for i, one in enumerate(students)
    ]
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise InputError(f"smaller models need names of their own: got {', '.join(names)}")
    return found


def _littles(
    students: Sequence[Student],
    source: Model,
    parts: Parts,
    custom_ops: Sequence[Path],
    folder: Path,
) -> list[Little]:
    """Read the smaller models, exported with a sample of the data where they are live."""
    place = folder / "little"
    shutil.rmtree(place, ignore_errors=True)
    first = {name: array[0] for name, array in parts.search.inputs([0]).items()}

    def sample(names: Sequence[str]) -> dict[str, Array]:
        """The original's inputs by the names that a live model gives them, in order."""
        return dict(zip(names or first, first.values(), strict=False))

    found = []
    for number, student in enumerate(students):
        own = place / str(number)
        own.mkdir(parents=True)
        named = find_model(student.model)
        model = load_model(named, sample, own, custom_ops if isinstance(named, Path) else ())
        found.append(Little.of(model, source, student.name, quantized=student.quantized))
    return found
