"""Mixed precision: which layers of a quantized model go back to float, found in a few trials."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from hasten.core.records import from_record, to_record
from hasten.engines.base import Engine
from hasten.engines.layers import LayerTime
from hasten.errors import CandidateError
from hasten.measure.candidate import Single, Trial
from hasten.measure.roofline import Floor
from hasten.optimization.measured.layers import (
    LayerCost,
    between_shares,
    costs_at_least,
    kept_for,
    layer_costs,
    shares_for,
)
from hasten.optimization.measured.screening import Screening
from hasten.passes.base import Pass, Skipped
from hasten.passes.float_layers import FloatLayers
from hasten.passes.onnx_files import saturates

SCREEN_NOISE = 0.05
"""A few turns settle a ratio no better than this."""
_REFINEMENTS = 2
_NEAR = 4
"""How many times that noise an engine may seem slower and still be worth a mix of its own."""
_PROFILED_REQUESTS = 30
_FALL_BACK = (0.5,)
"""Of the noise that may stay: one mix to fall back on will do."""
_LOOK_S = 30.0
"""For a look at every layer in int8."""

Likely: TypeAlias = Callable[[Trial, float], bool]
"""Whether a trial would probably be certified, were its flips and drop so many times as large."""
Least: TypeAlias = Callable[[str | None], Floor | None]
"""The least time that the machine can take for the model in a precision; None where it can't be told."""


class Mixing:
    """Finds what to keep in float of the fastest quantized model.

    Args:
        trials: Where each is tried.
        attempt: Tries some candidates, as far as the time allows.
        likely: Tells who would probably be certified.
        surely: Tells of whom there is little doubt.
        left_s: Tells how much time is left, in seconds.
        least: For engines that don't say how long each layer takes.
        notes: What the reader should know is added here.
    """

    def __init__(
        self,
        trials: Screening,
        attempt: Callable[[Sequence[Single]], Any],
        likely: Likely,
        surely: Likely,
        left_s: Callable[[], float],
        least: Least,
        notes: list[str],
    ) -> None:
        self._trials, self._attempt = trials, attempt
        self._likely, self._surely = likely, surely
        self._left_s, self._least, self._notes = left_s, least, notes
        self._attempted: set[str] = set()

    def mix(self, ranked: Sequence[Trial]) -> None:
        """Leave in float what int8 makes slower, and of what costs answers as much as it takes.

        Args:
            ranked: What ran through, fastest first.
        """
        base = self._base(ranked)
        if base is None:
            return
        try:
            noise = self._noise()
        except (CandidateError, Skipped) as why:
            self._notes.append(f"which layers int8 suits wasn't found out: {why}")
            return
        scale = _scale_that_passes(base, self._likely)
        # Where it probably passes but not surely, something safer stands behind it.
        enough = self._surely if scale == 1 else self._likely
        target = _scale_that_passes(base, enough)
        runs = base.candidate.engine
        within = self._own_noise(base, runs)
        # Where none is to go back for its noise, what int8 slows is the base's own engine's.
        engines = [runs] if target in (0, 1) else _engines_of(base, ranked, self._trials)
        for engine in engines:
            noises = (target, self._own_noise(base, engine), within)
            shares = [
                1.0,
                *(shares_for(*noises, _FALL_BACK) if scale == 1 else shares_for(*noises)),
            ]
            if scale not in (0, 1) and len(shares) == 1:
                continue  # its float alone costs more answers than there are to lose
            costs = self._layer_costs(base, engine, noise)
            if not costs:
                continue
            tried: dict[float, Trial] = {}
            for share in shares:
                tried |= self._try(base, engine, costs, [share])
                if self._left_s() <= 0 or (share in tried and enough(tried[share], 1.0)):
                    break  # with less noise it passes too, and takes longer
            if scale == 1 and target < 1 and not any(enough(t, 1.0) for t in tried.values()):
                continue  # another float precision may take fewer layers
            if scale in (0, 1):
                return
            for _ in range(_REFINEMENTS):
                passes = {share: self._likely(trial, 1.0) for share, trial in tried.items()}
                between = between_shares({**passes, 1.0: passes.get(1.0, False)})
                if between is None or self._left_s() <= 0:
                    break
                tried |= self._try(base, engine, costs, [between])
            near = (1 + 2 * SCREEN_NOISE) * self._trials.ratio(base).estimate
            if any(
                self._likely(trial, 1.0) and self._trials.ratio(trial).estimate < near
                for trial in tried.values()
            ):
                return  # else another float precision may take fewer layers

    def _base(self, ranked: Sequence[Trial]) -> Trial | None:
        """Return the fastest whose layers can go back to float; the most accurate, where none passes.

        Of those that are as fast as any, as far as a few turns tell.
        """
        ratio = self._trials.ratio
        able = [
            trial
            for trial in ranked
            if trial.scores
            and len(trial.candidate.passes) == 1
            and _quantizes(trial.candidate.passes[0])
            and ratio(trial).estimate < 1
        ]
        if not able:
            return None
        best = ratio(able[0])
        limit = max(best.high, best.estimate * (1 + SCREEN_NOISE))
        near = [trial for trial in able if ratio(trial).low < limit]
        for passes in (self._surely, self._likely):
            passing = [trial for trial in near if passes(trial, 1.0)]
            if passing:
                return passing[0]
        return min(near, key=self._trials.risk)

    def _try(
        self, base: Trial, engine: Engine, costs: Sequence[LayerCost], shares: Sequence[float]
    ) -> dict[float, Trial]:
        """Keep in float what leaves a share of the noise, for each share; return those that were tried."""
        proposals = {}
        for share in shares:
            kept = kept_for(costs, share)
            if kept and len(kept) < len(costs):
                proposals[share] = mixed(base.candidate, kept, engine)
        new = [c for c in dict.fromkeys(proposals.values()) if c.key not in self._attempted]
        self._attempted.update(c.key for c in new)
        self._attempt(new)
        done = {share: self._trials.done.get(c.key) for share, c in proposals.items()}
        return {share: trial for share, trial in done.items() if trial is not None}

    def _own_noise(self, base: Trial, engine: Engine) -> float:
        """What an engine's own float adds to the answers' error, as a share of the quantized model's.

        By the answers that flip, which grow as the root of the error's energy.
        """
        own = self._trials.done.get(Single((), engine).key)
        if engine.exact or own is None or not own.scores:
            return 0.0
        return (self._trials.flips(own) / max(self._trials.flips(base), 1e-9)) ** 2

    def _layer_costs(
        self, base: Trial, engine: Engine, noise: Mapping[str, float]
    ) -> tuple[LayerCost, ...]:
        """What each layer of a quantized model costs in answers, and saves in time on an engine."""
        step = base.candidate.passes[-1]
        kept = getattr(step, "keep_float", ())
        noise = {node: own for node, own in noise.items() if node not in kept}
        plain = self._trials.done.get(Single((), engine).key)
        int8 = self._trials.done.get(Single(base.candidate.passes, engine).key)
        if plain is None or int8 is None:
            return ()
        floats = self._least(getattr(engine, "precision", "f32"))
        try:
            if engine.has_profiler():
                moved = floats.moved_ns if floats else {}
                return layer_costs(noise, self._profile(plain), self._profile(int8), moved)
            int8s = self._least("i8")
            if floats is None or int8s is None:
                raise CandidateError(f"{engine} has no profiler, and no floor is known")
            return costs_at_least(noise, floats, int8s)
        except CandidateError as why:
            self._notes.append(f"which layers int8 suits wasn't found out: {why}")
            return ()

    def _noise(self) -> dict[str, float]:
        """Return each layer's noise in int8; found out once a run."""
        known = self._trials.journal.last("sensitivities")
        if known is None:
            bits = 7 if saturates(self._trials.bench.target) else 8
            self._trials.opened_baseline().worker.sleep()
            noise = self._trials.bench.sensitivities(
                bits, within_s=min(_LOOK_S, self._left_s() / 4)
            )
            self._trials.journal.append("sensitivities", noise=noise)
            return noise
        return dict(known["noise"])

    def _profile(self, trial: Trial) -> tuple[LayerTime, ...]:
        """Return the time of each step of a built candidate; taken once a run."""
        key = trial.candidate.key
        for event in self._trials.journal.events("profile"):
            if event["key"] == key:
                return tuple(from_record(LayerTime, record) for record in event["steps"])
        if trial.artifact is None:
            raise CandidateError(f"{trial.candidate.label} was not built")
        self._trials.opened_baseline().worker.sleep()
        steps = self._trials.bench.profile(
            trial.candidate.engine,
            trial.artifact,
            self._trials.samples,
            requests=_PROFILED_REQUESTS,
        )
        self._trials.journal.append("profile", key=key, steps=to_record(list(steps)))
        return steps


def mixed(base: Single, kept: Sequence[str], engine: Engine) -> Single:
    """Return a quantized candidate with further layers in float, on an engine.

    Args:
        base: Its last pass quantizes.
        kept: Names of ONNX nodes.
        engine: What runs it.
    """
    step: Any = base.passes[-1]
    if step.gives == "openvino":
        return Single((*base.passes, FloatLayers(tuple(kept))), engine)
    wider = dataclasses.replace(step, keep_float=(*step.keep_float, *kept))
    return Single((*base.passes[:-1], wider), engine)


def _quantizes(step: Pass) -> bool:
    return any(field.name == "keep_float" for field in dataclasses.fields(step))  # type: ignore[arg-type]


def _engines_of(base: Trial, ranked: Sequence[Trial], trials: Screening) -> list[Engine]:
    """The engine that a quantized model did best on and one more that runs it as fast, as far as a few
    turns tell: first one whose float is of lower precision.

    What goes back to float runs faster there, in bf16, and no quantized layer slower.
    """
    same = [t for t in ranked if t.candidate.passes == base.candidate.passes]
    limit = trials.ratio(base).estimate * (1 + _NEAR * SCREEN_NOISE)
    near = [t.candidate.engine for t in same if trials.ratio(t).low < limit]
    own = base.candidate.engine
    others = sorted(
        (e for e in near if e != own), key=lambda e: (e.exact, type(e) is not type(own))
    )
    if not own.exact:  # then one in float is the other way
        others.sort(key=lambda e: (not e.exact, type(e) is not type(own)))
    return sorted([own, *others[:1]], key=lambda engine: engine.exact)


def _scale_that_passes(base: Trial, passes: Likely) -> float:
    """Return to what part its flips must shrink for a candidate to pass.

    1 where it does as it is, 0 where no part would do: there is too little data.
    """
    if passes(base, 1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(base, middle) else (low, middle)
    return low
