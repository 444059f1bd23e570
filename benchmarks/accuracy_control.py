"""hasten's mixed precision against NNCF's accuracy control: how many full evaluations each takes.

    python benchmarks/accuracy_control.py [MODEL ...] [--max-drop 0.03]

Both begin with NNCF's int8 model by the same settings, and may lose at most so much agreement on
the same samples. A full evaluation answers all of them once; that of the original and that of the
int8 model, which both take, aren't counted. What both come to is then asked for the samples that
neither saw, and timed in paired rounds on OpenVINO in f32, against the model in float.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from models import CACHE, MODELS

from hasten.certificate.promise import Promise
from hasten.core.model import Model
from hasten.core.target import Target
from hasten.core.telemetry import telemetry_off
from hasten.engines.base import Artifact
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.parts import Parts, lay_out
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.models.source import load_model
from hasten.measure.candidate import Single, Trial
from hasten.measure.ceilings import measure
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.race import AGAIN, BASELINE, Rules, race
from hasten.measure.roofline import Floor, floor
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.mixing import Mixing
from hasten.optimization.measured.screening import Screening
from hasten.passes.calibration import CalibrationRequests
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import saturates
from hasten.passes.openvino_graphs import converted

ENGINE = OpenVino()
PLAIN = Single((), ENGINE)


@dataclasses.dataclass(frozen=True)
class Found:
    """What one of the two came to.

    Attributes:
        artifact: IR with some layers in int8 and the others in float.
        evaluations: Number of passes over the samples that mixed models made.
        drop: Fall of the mean score on the samples.
        unseen: Share of changed answers among samples that it wasn't chosen by.
        float_layers: Number of convolutions and matrix products that stay in float.
        seconds: Time from the finished int8 model to the finished mixed one.
    """

    artifact: Artifact
    evaluations: float
    drop: float
    unseen: float
    float_layers: int
    seconds: float


def by_hasten(
    trials: Screening, recipe: NncfQuantization, max_drop: float, unseen: Unseen
) -> Found | None:
    """Mix; the first full evaluation is that of the int8 model."""
    base = trials.run(Single((recipe,), ENGINE))
    tried = [base]
    begin = time.monotonic()

    def attempt(candidates: Sequence[Single]) -> None:
        tried.extend(trials.run(candidate) for candidate in candidates)

    def likely(trial: Trial, scale: float) -> bool:
        return trial.candidate.exact or (
            bool(trial.scores) and scale * trials.drop(trial) <= max_drop
        )

    notes: list[str] = []
    ranked = sorted(trials.measured(), key=lambda t: trials.ratio(t).estimate)
    Mixing(
        trials, attempt, likely, likely, lambda: math.inf, partial(_least, trials.bench), notes
    ).mix(ranked)
    seconds = time.monotonic() - begin
    passing = [t for t in tried if t.scores and likely(t, 1.0)]
    for trial in tried:
        print(f"  {trial.candidate.label}: {trials.outcome(trial)}", flush=True)
    if not passing:
        print(f"  nothing passes; {notes}")
        return None
    best = min(passing, key=lambda t: trials.ratio(t).estimate)
    answered = sum(len(t.scores or ()) for t in tried[1:]) / len(trials.samples)
    assert best.artifact is not None
    path = best.artifact.path
    return Found(
        best.artifact, answered, trials.drop(best), unseen.lost(path), floats_of(path), seconds
    )


def _least(bench: Workbench, precision: str | None) -> Floor:
    layers = bench.work()
    everywhere = {layer.name: precision for layer in layers} if precision else None
    return floor(layers, measure(bench.target, bench.folder), everywhere)


def by_nncf(
    model: Model,
    parts: Parts,
    exact: np.ndarray[Any, Any],
    recipe: NncfQuantization,
    max_drop: float,
    folder: Path,
    unseen: Unseen,
) -> Found:
    """Let NNCF's accuracy control give layers back until the drop is small enough."""
    import nncf
    import openvino

    graph = converted(model)
    requests = CalibrationRequests(model, parts.calibration, recipe.samples)
    samples = CalibrationRequests(model, parts.search, len(parts.search))
    answered = 0

    def validate(compiled: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        nonlocal answered
        request = compiled.create_infer_request()
        right = []
        for position, inputs in items:
            answered += 1
            scores = next(iter(request.infer(inputs).values()))
            right.append(float(scores.argmax() == exact[position]))
        return float(np.mean(right)), right

    begin = time.monotonic()
    with telemetry_off():
        mixed = nncf.quantize_with_accuracy_control(
            graph,
            nncf.Dataset(requests),
            nncf.Dataset(list(enumerate(samples)), lambda item: item[1]),
            lambda compiled, items: validate(compiled, items),
            max_drop=max_drop,
            preset=nncf.QuantizationPreset(recipe.preset),
            subset_size=len(requests),
            fast_bias_correction=recipe.fast_bias_correction,
            advanced_quantization_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.ENABLE
                if recipe.reduce_range
                else nncf.OverflowFix.DISABLE
            ),
        )
    seconds = time.monotonic() - begin
    path = folder / "accuracy-control.xml"
    openvino.save_model(mixed, path, compress_to_fp16=False)
    before = answered - 2 * len(parts.search)  # the original's and the int8 model's
    drop = 1 - validate(_compiled(path), enumerate(samples))[0]
    artifact = Artifact(
        path, model.inputs, model.outputs, model.request, (path.with_suffix(".bin"),)
    )
    return Found(
        artifact, before / len(parts.search), drop, unseen.lost(path), floats_of(path), seconds
    )


def _compiled(path: Path) -> Any:
    """Compile as accuracy control itself does: in f32."""
    import openvino

    return openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


class Unseen:
    """Samples that nothing was chosen by, and what the original answers.

    Args:
        original: IR of the original model.
        model: The original model, for the names of its inputs.
        samples: Samples seen neither by hasten's search nor by accuracy control.
    """

    def __init__(self, original: Path, model: Model, samples: Dataset) -> None:
        self._requests = CalibrationRequests(model, samples, len(samples))
        self._right = self._answers(original)

    def lost(self, path: Path) -> float:
        """Return the share of the answers that an IR changes."""
        return float(np.mean(self._answers(path) != self._right))

    def _answers(self, path: Path) -> np.ndarray[Any, Any]:
        request = _compiled(path).create_infer_request()
        return np.array([next(iter(request.infer(r).values())).argmax() for r in self._requests])


def floats_of(path: Path) -> int:
    """Count the products that don't read a rounded input."""
    import openvino

    return sum(
        operation.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
        and operation.input_value(0).get_node().get_type_name() != "FakeQuantize"
        for operation in openvino.Core().read_model(path).get_ordered_ops()
    )


def run(name: str, max_drop: float) -> None:
    """Compare the two on one model."""
    module, data = MODELS[name].module(CACHE), MODELS[name].data()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "source").mkdir()

        def sample(_: Any) -> dict[str, Any]:
            return {key: array[0] for key, array in data.inputs([0]).items()}

        model = load_model(module, sample, folder / "source").settled_by(sample(None))
        parts = lay_out(data, folder, calibration=300, seed=0, training=None)
        target = Target.host()
        recipe = NncfQuantization("performance", reduce_range=saturates(target))
        trials = Screening(
            Workbench(
                folder,
                target,
                model=model,
                calibration=parts.calibration,
                calibration_hash=parts.calibration_hash,
            ),
            Journal(folder / "trials.jsonl"),
            parts.search,
            Promise(Agreement(), max_drop=0.999),  # each is answered in full
            pace=Pace(),
            seed=0,
        )
        trials.begin([PLAIN])
        plain = trials.done[PLAIN.key].artifact
        assert plain is not None
        unseen = Unseen(plain.path, model, parts.sealed)
        ours = by_hasten(trials, recipe, max_drop, unseen)
        exact = np.concatenate(
            [next(iter(own.values())).argmax(axis=1) for own, _ in trials.exact_answers]
        )
        trials.close()
        theirs = by_nncf(model, parts, exact, recipe, max_drop, folder, unseen)
        report(name, trials, ours, theirs)


def report(name: str, trials: Screening, ours: Found | None, theirs: Found) -> None:
    """Time both and print a row for each."""
    found = {"hasten": ours, "NNCF's accuracy control": theirs}
    plain = trials.done[PLAIN.key].artifact
    assert plain is not None
    opened = {
        who: trials.bench.open_built(ENGINE, artifact).worker
        for who, artifact in (
            (BASELINE, plain),
            (AGAIN, plain),
            *((who, one.artifact) for who, one in found.items() if one is not None),
        )
    }
    standings = race(
        "figures",
        opened,
        trials.samples,
        Journal(trials.bench.folder / "figures.jsonl"),
        Rules(threads=trials.bench.target.threads, count=40, pace=Pace(), seed=0, settle=0.03),
        probe=lambda _: True,
    )
    for worker in opened.values():
        worker.kill()
    for who, one in found.items():
        if one is None:
            continue
        ratio = standings.ratio(who)
        print(
            f"| {name} | {who} | {1 / ratio.estimate:.2f}x ({1 / ratio.high:.2f} to "
            f"{1 / ratio.low:.2f}) | {100 * one.drop:.1f} points on {len(trials.samples)} | "
            f"{100 * one.unseen:.1f} points | "
            f"{one.float_layers} | {one.evaluations:.1f} | {one.seconds:.0f} s |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=["efficientnet_lite0", "mobilenet_v2"])
    parser.add_argument("--max-drop", type=float, default=0.03)
    arguments = parser.parse_args()
    print(
        "| model | by | over fp32 on OpenVINO | lost | lost of unseen | layers in float | "
        "full evaluations | time |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.models:
        run(name, arguments.max_drop)


if __name__ == "__main__":
    main()
