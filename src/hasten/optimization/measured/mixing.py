"""Mixed precision: the layers of a quantized model to return to more bits, found in a few trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from hasten.optimization.measured.screening import SCREEN_NOISE, Screening
from hasten.passes.base import Pass, Selective, Skipped
from hasten.passes.float_layers import FloatLayers
from hasten.passes.onnx_files import saturates
from hasten.passes.word_layers import WordLayers

_REFINEMENTS = 2
_NEAR = 4
"""Multiple of that noise by which an engine may look slower and still deserve a mix of its own."""
_PROFILED_REQUESTS = 30
_FALL_BACK = (0.5,)
"""Factors on the noise that may remain where only a mix to fall back on is needed."""
_LEAST_SHARE = 1e-3
"""Share of the noise that counts where none was seen."""
_LOOK_S = 30.0
"""Time for measuring the noise of every layer in int8, in seconds."""

Likely: TypeAlias = Callable[[Trial, float], bool]
"""Predicate: would a trial probably be certified if its flips and drop were scaled by a factor?"""
Least: TypeAlias = Callable[[str | None], Floor | None]
"""Function from a precision to the model's least time on this machine; None where it is unknown."""


@dataclass(frozen=True)
class _Aim:
    """Goal of a search for a mix.

    Attributes:
        base: The quantized trial whose layers return.
        safe: Whether it surely passes, or changed no score.
        scale: Factor to which its flips must shrink for it to pass probably.
        target: Factor to which its flips must shrink for it to be safe enough.
        enough: Predicate of trials that are safe enough.
    """

    base: Trial
    safe: bool
    scale: float
    target: float
    enough: Likely

    @property
    def alone(self) -> bool:
        """Whether no layer must return for its noise: only those do that int8 itself slows."""
        return self.target in (0, 1)


class Mixing:
    """Finds the layers of the fastest quantized model to return to float, or to 16-bit activations.

    Args:
        trials: Trials, which screen the candidates.
        attempt: Callback that tries candidates, as far as the time allows.
        likely: Predicate of trials that would probably be certified.
        surely: Predicate of trials that would almost surely be certified.
        left_s: Function that returns the time left, in seconds.
        least: Function that returns the least time of the model, for engines without a profiler.
        notes: Notes for the reader of the result, added to here.
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
        """Return layers to float where int8 is slower, and as many of the costly ones as it takes.

        Where an engine sums 16-bit activations in integers, the costly ones get such first; if the weights' 8 bits
        cost too much, or that is slow, they return to float.

        What each layer costs in accuracy isn't measured where the fastest surely passes as it is, or where it
        has the scores of the original, so that nothing could be seen to be safer. The model's floor then names
        the layers; if it isn't known, the cost is measured after all.

        Args:
            ranked: Measured trials, fastest first.
        """
        base = self._base(ranked)
        if base is None:
            return
        safe = self._surely(base, 1.0) or not self._trials.flips(base)
        try:
            noise = self._without_noise(base) if safe else self._noise(base)
        except (CandidateError, Skipped) as why:
            self._notes.append(f"the layers that int8 suits could not be found: {why}")
            return
        scale = _scale_that_passes(base, self._likely)
        # Where it passes probably but not surely, something safer backs it up.
        enough = self._surely if scale == 1 else self._likely
        aim = _Aim(base, safe, scale, _scale_that_passes(base, enough), enough)
        candidates = [base.candidate] if aim.alone else _alternatives(base, ranked, self._trials)
        for candidate in candidates:
            in_words = candidate.engine.sums_words and not aim.alone
            for words in (True, False) if in_words else (False,):
                if self._found(candidate, words, noise, aim):
                    return

    def _found(self, candidate: Single, words: bool, noise: Mapping[str, float], aim: _Aim) -> bool:
        """Search for the layers to return on a candidate's engine; return whether no other search is needed.

        Args:
            candidate: Quantized candidate.
            words: Whether layers return to 16-bit activations, and not to float.
            noise: Node -> noise that int8 adds there.
            aim: Goal of the search.
        """
        shares = self._shares(candidate, aim)
        if aim.scale not in (0, 1) and len(shares) == 1:
            return False  # this engine's float alone costs more answers than may be lost
        whole = self._in_words(candidate, noise) if words else None
        if words and (whole is None or not aim.enough(whole, 1.0)):
            return False  # 8-bit weights alone cost more answers than may be lost
        rest = 0.0 if whole is None else self._rest(candidate, whole)
        costs = self._layer_costs(candidate, noise, whole)
        if not costs:
            return False
        tried = {} if whole is None else {max(rest, _LEAST_SHARE): whole}
        for share in shares:
            tried |= self._try(candidate, costs, share, rest, words)
            if self._left_s() <= 0 or (share in tried and aim.enough(tried[share], 1.0)):
                break  # with less noise it would pass too, but take longer
        enough = any(aim.enough(trial, 1.0) for trial in tried.values())
        if aim.scale == 1 and aim.target < 1 and not enough:
            return False  # another float precision may need fewer layers
        if aim.scale in (0, 1):
            return True
        self._refine(candidate, costs, tried, rest, words)
        near = (1 + 2 * SCREEN_NOISE) * self._trials.ratio(aim.base).estimate
        return any(  # else another form of the layers that return, or another engine, may be faster
            self._likely(trial, 1.0) and self._trials.ratio(trial).estimate < near
            for trial in tried.values()
        )

    def _refine(
        self,
        candidate: Single,
        costs: Sequence[LayerCost],
        tried: dict[float, Trial],
        rest: float,
        words: bool,
    ) -> None:
        """Try mixes between the one that passes with most noise and the next that doesn't, and add them."""
        for _ in range(_REFINEMENTS):
            passes = {share: self._likely(trial, 1.0) for share, trial in tried.items()}
            between = between_shares({**passes, 1.0: passes.get(1.0, False)})
            if between is None or self._left_s() <= 0:
                break
            tried |= self._try(candidate, costs, between, rest, words)

    def _shares(self, candidate: Single, aim: _Aim) -> list[float]:
        """Return the shares of the noise that are worth trying on a candidate's engine."""
        if aim.safe:
            return [1.0]
        own = self._own_noise(aim.base, candidate.engine)
        noises = (aim.target, own, self._own_noise(aim.base, aim.base.candidate.engine))
        found = shares_for(*noises, _FALL_BACK) if aim.scale == 1 else shares_for(*noises)
        return [1.0, *found]

    def _in_words(self, candidate: Single, noise: Mapping[str, float]) -> Trial | None:
        """Try a candidate with 16-bit activations everywhere, which shows what they take and what weights cost.

        Returns:
            The trial; None where it failed, or is slower than the original.
        """
        kept = candidate.passes[-1].keep_float
        every = mixed(candidate, [node for node in noise if node not in kept], True)
        self._attempted.add(every.key)
        self._attempt([every])
        trial = self._trials.done.get(every.key)
        return trial if trial is not None and trial.scores else None

    def _rest(self, candidate: Single, whole: Trial) -> float:
        """Return the share of a candidate's noise that stays with 16-bit activations everywhere: the weights'."""
        flips = self._trials.flips(self._trials.done[candidate.key])
        return min(1.0, (self._trials.flips(whole) / max(flips, 1e-9)) ** 2)

    def _base(self, ranked: Sequence[Trial]) -> Trial | None:
        """Return the fastest trial whose layers can go back to float.

        Among trials that a few turns can't tell from the fastest, one that surely passes comes
        first, then one that probably does, then the safest.
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
        self,
        candidate: Single,
        costs: Sequence[LayerCost],
        share: float,
        rest: float,
        words: bool,
    ) -> dict[float, Trial]:
        """Try a mix with a share of the noise; return it by that share, or nothing where it wasn't tried.

        Args:
            candidate: Quantized candidate.
            costs: Cost of each layer.
            share: Largest share of its noise that may remain.
            rest: Share that no choice of layers removes.
            words: Whether layers return to 16-bit activations, and not to float.
        """
        if share <= rest:
            return {}
        kept = kept_for(costs, (share - rest) / (1 - rest))
        if not kept or len(kept) == len(costs):
            return {}
        proposal = mixed(candidate, kept, words)
        if proposal.key not in self._attempted:
            self._attempted.add(proposal.key)
            self._attempt([proposal])
        trial = self._trials.done.get(proposal.key)
        return {} if trial is None else {share: trial}

    def _own_noise(self, base: Trial, engine: Engine) -> float:
        """Return the error of an engine's own float, as a share of the quantized model's error.

        It is estimated from the answers that flip, which grow as the root of the error's energy.
        """
        own = self._trials.done.get(Single((), engine).key)
        if engine.exact or own is None or not own.scores:
            return 0.0
        return (self._trials.flips(own) / max(self._trials.flips(base), 1e-9)) ** 2

    def _layer_costs(
        self, candidate: Single, noise: Mapping[str, float], whole: Trial | None
    ) -> tuple[LayerCost, ...]:
        """Return what each layer in int8 costs in accuracy and saves in time, on a candidate's engine.

        Args:
            candidate: Quantized candidate.
            noise: Node -> noise that int8 adds there.
            whole: The same with 16-bit activations everywhere, if layers return to these; None for float.
        """
        engine, kept = candidate.engine, candidate.passes[-1].keep_float
        noise = {node: own for node, own in noise.items() if node not in kept}
        plain = self._trials.done.get(Single((), engine).key)
        int8 = self._trials.done.get(candidate.key)
        if plain is None or int8 is None:
            return ()
        floats = self._least(engine.precision or "f32")
        try:
            if engine.has_profiler():
                moved = floats.moved_ns if floats else {}
                steps = self._profile(int8)
                if whole is not None:  # what has 16 bits takes half as long to move
                    halves = {node: each / 2 for node, each in moved.items()}
                    return layer_costs(noise, self._profile(whole), steps, halves)
                unable = plain.failure or plain.skipped
                if unable and plain.artifact is None:  # it takes a few layers in float alone
                    slower = 1 / self._trials.ratio(int8).estimate
                    return layer_costs(noise, _slowed(steps, slower), steps, moved)
                return layer_costs(noise, self._profile(plain), steps, moved)
            int8s = self._least("i8")
            if floats is None or int8s is None:
                raise CandidateError(
                    f"{engine} has no profiler, and no lower bound of its time is known"
                )
            return costs_at_least(noise, floats, int8s)
        except CandidateError as why:
            self._notes.append(f"the layers that int8 suits could not be found: {why}")
            return ()

    def _without_noise(self, base: Trial) -> dict[str, float]:
        """Return the same noise for each layer, where only those that int8 slows matter."""
        floor = self._least(None)
        return self._noise(base) if floor is None else {layer.name: 1.0 for layer in floor.layers}

    def _noise(self, base: Trial) -> dict[str, float]:
        """Return each layer's noise in int8, measured once per run with as many bits as the base has."""
        narrow = any(getattr(step, "reduce_range", False) for step in base.candidate.passes)
        exactly = base.candidate.engine.sums_exactly and not narrow
        bits = 7 if saturates(self._trials.bench.target) and not exactly else 8
        known = self._trials.journal.last("sensitivities")
        if known is None or known.get("bits", bits) != bits:
            self._trials.opened_baseline().worker.sleep()
            noise = self._trials.bench.sensitivities(
                bits, within_s=min(_LOOK_S, self._left_s() / 4)
            )
            self._trials.journal.append("sensitivities", noise=noise, bits=bits)
            return noise
        return dict(known["noise"])

    def _profile(self, trial: Trial) -> tuple[LayerTime, ...]:
        """Return the time of each step of a built candidate, measured once per run."""
        key = trial.candidate.key
        for event in self._trials.journal.events("profile"):
            if event["key"] == key:
                return tuple(from_record(LayerTime, record) for record in event["steps"])
        if trial.artifact is None:
            raise CandidateError(f"{trial.candidate.label} was not built")
        self._trials.opened_baseline().worker.sleep()
        bench = self._trials.bench
        steps = bench.profile(
            trial.candidate.engine,
            trial.artifact,
            self._trials.samples if bench.sequences is None else bench.calibration,
            requests=_PROFILED_REQUESTS,
        )
        self._trials.journal.append("profile", key=key, steps=to_record(list(steps)))
        return steps


def _slowed(steps: Sequence[LayerTime], factor: float) -> list[LayerTime]:
    """Return steps that take so many times as long, as all of them together do in float elsewhere."""
    return [
        replace(step, latency_ns=tuple(round(time * factor) for time in step.latency_ns))
        for step in steps
    ]


def mixed(base: Single, kept: Sequence[str], words: bool = False) -> Single:
    """Return a quantized candidate with further layers in float, or with 16-bit activations there.

    Args:
        base: Candidate whose last pass quantizes.
        kept: Names of ONNX nodes.
        words: Whether these get 16-bit activations, and aren't in float.
    """
    step: Any = base.passes[-1]
    if words:
        return Single((*base.passes, WordLayers(tuple(kept))), base.engine)
    if step.gives == "openvino":
        return Single((*base.passes, FloatLayers(tuple(kept))), base.engine)
    wider = step.keeping((*step.keep_float, *kept))
    return Single((*base.passes[:-1], wider), base.engine)


def _quantizes(step: Pass) -> bool:
    return isinstance(step, Selective)


def _alternatives(base: Trial, ranked: Sequence[Trial], trials: Screening) -> list[Single]:
    """Return a quantized model's best candidate and one about as fast on another engine, lowest float first.

    Layers in float run faster on an engine whose float is bf16, and quantized layers no slower.
    """
    limit = trials.ratio(base).estimate * (1 + _NEAR * SCREEN_NOISE)
    near = [t.candidate for t in ranked if trials.ratio(t).low < limit]
    own = base.candidate
    others = [one for one in near if one.engine != own.engine and _quantized_alike(own, one)]

    def rank(one: Single) -> tuple[bool, bool, bool]:
        other_kind = type(one.engine) is not type(own.engine)
        same_float = not other_kind and one.engine.precision == own.engine.precision
        return one.engine.exact == own.engine.exact, same_float, other_kind

    return sorted([own, *sorted(others, key=rank)[:1]], key=lambda one: one.engine.exact)


def _quantized_alike(one: Single, other: Single) -> bool:
    """Whether two candidates' passes are the same but for what suits only one of their engines."""
    if len(one.passes) != len(other.passes):
        return False
    pairs = list(zip(one.passes, other.passes, strict=True))
    return any(
        all(mine.suited(engine) == its.suited(engine) for mine, its in pairs)
        for engine in (one.engine, other.engine)
    )


def _scale_that_passes(base: Trial, passes: Likely) -> float:
    """Return the factor to which a candidate's flips must shrink for it to pass.

    The factor is 1 where it passes as it is, and 0 where none would do, for lack of data.
    """
    if passes(base, 1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(base, middle) else (low, middle)
    return low
