"""Mixed precision on made-up networks: each layer's noise and time are known, and so is what the
answers come to; what is tried, and how often, is the search's own doing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.support.desk import Desk

from hasten.certificate.promise import Promise
from hasten.core.records import to_record
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.layers import LayerTime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError
from hasten.inputs.data.spool import Spool
from hasten.inputs.metrics.agreement import Agreement
from hasten.measure.candidate import Measurement, Single, Trial
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.roofline import Floor, LayerFloor
from hasten.measure.workbench import Workbench
from hasten.optimization.measured.mixing import Mixing, mixed
from hasten.optimization.measured.screening import Screening
from hasten.passes.float_layers import FloatLayers
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.static_quantization import StaticQuantization
from hasten.passes.word_layers import WordLayers

ENGINE = OpenVino()
PLAIN = Single((), ENGINE)
INT8 = Single((NncfQuantization(),), ENGINE)
SAMPLES = 1000
LIMIT = 0.03


@dataclass
class Network:
    """Layers with known noise and times; flips grow as the root of the noise.

    Attributes:
        noise: By layer.
        float_ns: By layer.
        int8_ns: By layer.
        flips: Share of the answers that flip with all layers in int8.
        weights: Share of each layer's noise that stays with 16-bit activations, which take twice as long as int8.
    """

    noise: dict[str, float]
    float_ns: dict[str, int]
    int8_ns: dict[str, int]
    flips: float
    weights: float = 0.0
    tried: list[Single] = field(default_factory=list)

    @classmethod
    def drawn(cls, seed: int, flips: float, layers: int = 50) -> "Network":
        """A few layers have nearly all the noise, as in real ones; int8 makes some slower."""
        rng = np.random.default_rng(seed)
        names = [f"n{i}" for i in range(layers)]
        noise = np.exp(rng.normal(-9, 2, layers))
        float_ns = rng.uniform(2e4, 2e5, layers)
        int8_ns = float_ns * rng.uniform(0.25, 1.3, layers)
        return cls(
            dict(zip(names, map(float, noise), strict=True)),
            dict(zip(names, map(int, float_ns), strict=True)),
            dict(zip(names, map(int, int8_ns), strict=True)),
            flips,
        )

    def outcome(self, kept: Sequence[str], *, words: bool = False) -> tuple[float, int]:
        """Flips and time with some layers in float, or with 16-bit activations."""
        stays, other_ns = (self.weights, self.words_ns) if words else (0.0, self.float_ns)
        left = sum(value * (stays if name in kept else 1) for name, value in self.noise.items())
        time_ns = sum((other_ns if n in kept else self.int8_ns)[n] for n in self.noise)
        return self.flips * math.sqrt(left / sum(self.noise.values())), time_ns

    @property
    def words_ns(self) -> dict[str, int]:
        """Time with 16-bit activations by layer."""
        return {name: 2 * time for name, time in self.int8_ns.items()}

    def trial(self, candidate: Single) -> Trial:
        last = candidate.passes[-1] if candidate.passes else None
        words = isinstance(last, WordLayers)
        kept = last.nodes if isinstance(last, WordLayers | FloatLayers) else ()
        flips, time_ns = self.outcome(kept, words=words)
        if not candidate.passes:
            flips, time_ns = 0.0, sum(self.float_ns.values())
        wrong = round(SAMPLES * flips)
        rounds: dict[int, tuple[int, ...]] = dict.fromkeys(range(6), (time_ns,) * 3)
        baseline: dict[int, tuple[int, ...]] = {
            i: (sum(self.float_ns.values()),) * 3 for i in range(6)
        }
        return Trial(
            candidate,
            measurement=Measurement("measured", 1, rounds),
            baseline=Measurement("measured", 1, baseline),
            scores=(0.0,) * wrong + (1.0,) * (SAMPLES - wrong) if candidate.passes else None,
        )

    def steps(self, times: dict[str, int]) -> list[LayerTime]:
        return [
            LayerTime(name, "Convolution", "arithmetic", "i8", "", (name,), (times[name],) * 3)
            for name in self.noise
        ]


class Search:
    """The search for what to keep, on a made-up network."""

    def __init__(self, network: Network, desk: Desk, spool: Spool, folder: Path) -> None:
        self.network, self.notes, self.floors = network, list[str](), False
        bench = Workbench(
            folder, desk.bench.target, model=desk.model, calibration=spool, calibration_hash="0"
        )
        journal = Journal(folder / "journal")
        self.trials = Screening(
            bench, journal, spool, Promise(Agreement(), max_drop=LIMIT), pace=Pace(), seed=0
        )
        self.trials.exact_scores = np.ones(SAMPLES)
        for candidate, times in ((PLAIN, network.float_ns), (INT8, network.int8_ns)):
            self.trials.done[candidate.key] = network.trial(candidate)
            steps = to_record(network.steps(times))
            journal.append("profile", key=candidate.key, steps=steps)
        journal.append("sensitivities", noise=network.noise)

    def add_bf16(self, flips: float) -> None:
        """Have the network tried in bf16 too, where it alone flips so many answers."""
        engine = OpenVino("bf16")
        half, int8 = Single((), engine), Single(INT8.passes, engine)
        trial = self.network.trial(half)
        wrong = round(SAMPLES * flips)
        scores = (0.0,) * wrong + (1.0,) * (SAMPLES - wrong)
        self.trials.done[half.key] = replace(trial, scores=scores)
        self.trials.done[int8.key] = self.network.trial(int8)
        for candidate, times in ((half, self.network.float_ns), (int8, self.network.int8_ns)):
            steps = to_record(self.network.steps(times))
            self.trials.journal.append("profile", key=candidate.key, steps=steps)

    def attempt(self, candidates: Sequence[Single]) -> None:
        for candidate in candidates:
            if candidate.key in self.trials.done:
                continue
            self.network.tried.append(candidate)
            self.trials.done[candidate.key] = self.network.trial(candidate)
            if isinstance(candidate.passes[-1], WordLayers):
                steps = to_record(self.network.steps(self.network.words_ns))
                self.trials.journal.append("profile", key=candidate.key, steps=steps)

    def likely(self, trial: Trial, scale: float) -> bool:
        return scale * self.trials.drop(trial) < 0.8 * LIMIT

    def surely(self, trial: Trial, scale: float) -> bool:
        return scale * self.trials.drop(trial) < 0.6 * LIMIT

    def least(self, precision: str | None) -> Floor | None:
        times = self.network.int8_ns if precision == "i8" else self.network.float_ns
        if not self.floors:
            return None
        return Floor(
            tuple(LayerFloor(n, "Conv", "", float(t), 0.0) for n, t in times.items()), 0.0, 1
        )

    def run(self) -> list[Trial]:
        """Mix; return what would probably be certified, fastest first."""
        ranked = sorted(self.trials.measured(), key=lambda t: self.trials.ratio(t).estimate)
        Mixing(
            self.trials, self.attempt, self.likely, self.surely, lambda: inf, self.least, self.notes
        ).mix(ranked)
        passing = [t for t in self.trials.measured() if t.scores and self.likely(t, 1.0)]
        return sorted(passing, key=lambda t: self.trials.ratio(t).estimate)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("flips", [0.035, 0.06, 0.15])
def test_a_passing_mix_near_the_best_is_found_in_a_few_trials(
    desk: Desk, spool: Spool, tmp_path: Path, seed: int, flips: float
) -> None:
    network = Network.drawn(seed, flips)
    search = Search(network, desk, spool, tmp_path)
    passing = search.run()
    assert passing
    assert len(network.tried) <= 6
    # The best there is, by trying every length of the order that knows all.
    slower = {n for n in network.noise if network.int8_ns[n] > network.float_ns[n]}
    order = sorted(
        network.noise.keys() - slower,
        key=lambda n: -network.noise[n] / max(1, network.float_ns[n] - network.int8_ns[n]),
    )
    times = []
    for count in range(len(order) + 1):
        lost, time_ns = network.outcome([*slower, *order[:count]])
        if lost < 0.8 * LIMIT:
            times.append(time_ns)
    best = min(times) / sum(network.float_ns.values())
    assert search.trials.ratio(passing[0]).estimate < best + 0.06


def test_no_layer_stays_in_int8_where_that_makes_it_slower(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = Network.drawn(3, flips=0.001)  # certified as it is
    slower = {n for n in network.noise if network.int8_ns[n] > 1.1 * network.float_ns[n]}
    assert slower
    search = Search(network, desk, spool, tmp_path)
    fastest = search.run()[0]
    assert network.tried == [fastest.candidate]
    assert set(fastest.candidate.passes[-1].nodes) == slower  # type: ignore[attr-defined]


@pytest.mark.parametrize("flips", [0.0, 0.001])
def test_noise_that_would_decide_nothing_is_not_measured(
    desk: Desk, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flips: float
) -> None:
    network = Network.drawn(3, flips)
    slower = {n for n in network.noise if network.int8_ns[n] > 1.1 * network.float_ns[n]}
    search = Search(network, desk, spool, tmp_path)
    search.floors = True
    monkeypatch.setattr(search, "surely", lambda trial, scale: bool(flips))
    monkeypatch.setattr(Mixing, "_noise", lambda _: pytest.fail("the noise is measured"))
    fastest = search.run()[0]
    assert set(fastest.candidate.passes[-1].nodes) == slower  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(6))
def test_behind_what_passes_by_a_hair_stands_something_safer(
    desk: Desk, spool: Spool, tmp_path: Path, seed: int
) -> None:
    network = Network.drawn(seed, flips=0.022)
    search = Search(network, desk, spool, tmp_path)
    base = search.trials.done[INT8.key]
    assert search.likely(base, 1.0)
    assert not search.surely(base, 1.0)
    search.run()
    assert any(search.surely(search.trials.done[c.key], 1.0) for c in network.tried)
    assert len(network.tried) <= 4
    assert {candidate.engine for candidate in network.tried} == {ENGINE}


def test_what_is_safer_is_in_float_where_bf16_alone_costs_as_much(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    search = Search(Network.drawn(0, flips=0.022), desk, spool, tmp_path)
    search.add_bf16(flips=0.0185)
    search.run()
    safer = [c for c in search.network.tried if search.surely(search.trials.done[c.key], 1.0)]
    assert {candidate.engine for candidate in safer} == {ENGINE}


def test_too_little_data_for_any_certificate_tries_no_mix_for_it(
    desk: Desk, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network.drawn(4, flips=0.1)
    search = Search(network, desk, spool, tmp_path)
    for name in ("likely", "surely"):
        monkeypatch.setattr(search, name, lambda trial, scale: False)
    search.run()
    assert len(network.tried) <= 1


def test_without_a_quantized_model_that_is_faster_there_is_nothing_to_mix(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = Network.drawn(5, flips=0.1)
    network.int8_ns = {name: 2 * time for name, time in network.float_ns.items()}
    search = Search(network, desk, spool, tmp_path)
    search.run()
    assert network.tried == []


def test_an_onnx_quantizer_is_told_what_to_leave_out() -> None:
    base = Single((StaticQuantization(keep_float=("mine",)),), ENGINE)
    assert mixed(base, ("a", "b")) == Single(
        (StaticQuantization(keep_float=("mine", "a", "b")),), ENGINE
    )
    other = replace(INT8, engine=OpenVino("bf16"))
    assert mixed(other, ("a",)) == Single(
        (NncfQuantization(), FloatLayers(("a",))), OpenVino("bf16")
    )


def test_what_is_left_in_float_runs_in_the_lower_precision_first(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = Network.drawn(6, flips=0.06)
    search = Search(network, desk, spool, tmp_path)
    search.add_bf16(flips=0.006)
    search.run()
    assert {candidate.engine for candidate in network.tried} == {OpenVino("bf16")}


def test_where_the_lower_precision_takes_most_layers_the_other_is_tried_too(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = Network.drawn(6, flips=0.06)
    network.noise = dict.fromkeys(network.noise, 1e-4)
    search = Search(network, desk, spool, tmp_path)
    search.add_bf16(flips=0.023)  # what is left for int8 is a hundredth of its noise
    fastest = search.run()[0]
    assert {c.engine for c in search.network.tried} == {OpenVino("bf16"), ENGINE}
    assert fastest.candidate.engine == ENGINE


def test_nothing_is_left_to_a_precision_that_alone_costs_too_many_answers(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = Network.drawn(6, flips=0.06)
    search = Search(network, desk, spool, tmp_path)
    search.add_bf16(flips=0.028)
    assert search.run()
    assert {candidate.engine for candidate in network.tried} == {ENGINE}


@pytest.mark.parametrize(("wrong", "base"), [((5, 2), 0), ((60, 20), 1), ((90, 60), 1)])
def test_the_fastest_that_passes_is_mixed_or_else_the_most_accurate(
    desk: Desk, spool: Spool, tmp_path: Path, wrong: tuple[int, int], base: int
) -> None:
    search = Search(Network.drawn(3, flips=0.001), desk, spool, tmp_path)
    fast = search.trials.done.pop(INT8.key)
    other = Single((NncfQuantization("performance"),), ENGINE)
    for candidate, lost, each_ns in ((INT8, wrong[0], 1000), (other, wrong[1], 1010)):
        search.trials.done[candidate.key] = replace(
            fast,
            candidate=candidate,
            measurement=Measurement("measured", 1, dict.fromkeys(range(6), (each_ns,) * 3)),
            baseline=Measurement("measured", 1, dict.fromkeys(range(6), (3000,) * 3)),
            scores=(0.0,) * lost + (1.0,) * (SAMPLES - lost),
        )
    steps = to_record(search.network.steps(search.network.int8_ns))
    search.trials.journal.append("profile", key=other.key, steps=steps)
    search.run()
    assert {c.passes[:1] for c in search.network.tried} == {((INT8, other)[base]).passes}


@pytest.mark.parametrize("floors", [True, False])
def test_an_engine_without_a_profiler_goes_by_the_least_that_layers_take(
    desk: Desk, spool: Spool, tmp_path: Path, floors: bool
) -> None:
    search = Search(Network.drawn(2, flips=0.06), desk, spool, tmp_path)
    search.floors = floors
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVino, "has_profiler", classmethod(lambda cls: False))
        passing = search.run()
    search.trials.close()
    assert bool(passing) == floors
    assert any("no profiler" in note for note in search.notes) != floors


def test_an_engine_that_refuses_the_original_still_mixes(
    desk: Desk, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Mixing._profile

    def profile(self: Mixing, trial: Trial) -> tuple[LayerTime, ...]:
        if trial.candidate == PLAIN:
            raise CandidateError("the original was not built")
        return known(self, trial)

    monkeypatch.setattr(Mixing, "_profile", profile)
    network = Network.drawn(2, flips=0.06)
    network.float_ns = {name: 4 * time for name, time in network.int8_ns.items()}
    search = Search(network, desk, spool, tmp_path)
    refused = replace(search.trials.done[PLAIN.key], failure="too many products of floats")
    search.trials.done[PLAIN.key] = replace(refused, artifact=None, measurement=None)
    passing = search.run()
    search.trials.close()
    assert passing
    assert not search.notes
    assert search.trials.ratio(passing[0]).estimate < 0.5


def _beside_compiled(
    search: Search,
    profiled: tuple[Engine, ...] = (ENGINE, CompiledC(), CompiledC(threads=2)),
    *,
    alike: bool = False,
) -> tuple[Single, Single]:
    """Have the network tried as compiled C on one thread and all, a bit faster than OpenVINO's 7-bit weights.

    Args:
        search: The search.
        profiled: Engines whose steps were timed.
        alike: Whether compiled C has 7-bit weights too, not 8-bit ones.
    """
    narrow = NncfQuantization(reduce_range=True)
    fast = Single((narrow if alike else narrow.suited(CompiledC()),), CompiledC(threads=2))
    slow = Single((narrow,), ENGINE)
    trial = search.trials.done.pop(INT8.key)
    one_thread = Single(fast.passes, CompiledC())
    for candidate, factor in ((fast, 0.97), (one_thread, 0.98), (slow, 1.0)):
        assert trial.measurement is not None
        rounds = {
            n: tuple(int(factor * each) for each in times)
            for n, times in trial.measurement.rounds.items()
        }
        faster = replace(trial.measurement, rounds=rounds)
        search.trials.done[candidate.key] = replace(trial, candidate=candidate, measurement=faster)
        plain = Single((), candidate.engine)
        search.trials.done[plain.key] = replace(
            search.trials.done[PLAIN.key], candidate=plain, scores=None
        )
        for key, times in (
            (candidate.key, search.network.int8_ns),
            (plain.key, search.network.float_ns),
        ):
            steps = to_record(search.network.steps(times))
            if candidate.engine in profiled:
                search.trials.journal.append("profile", key=key, steps=steps)
    return fast, slow


def test_an_engine_with_weights_of_other_bits_is_an_alternative_and_keeps_its_own(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    search = Search(Network.drawn(6, flips=0.06), desk, spool, tmp_path)
    fast, slow = _beside_compiled(search, profiled=(ENGINE,))
    assert slow.passes != fast.passes
    search.run()  # the fastest can't be profiled, so that the alternative is mixed
    search.trials.close()
    mixes = [c for c in search.network.tried if not isinstance(c.passes[-1], WordLayers)]
    assert mixes
    for candidate in mixes:
        assert candidate.engine == ENGINE
        assert candidate.passes[:1] == slow.passes


@pytest.mark.parametrize(
    ("faster", "bits"), [("compiled", 8), ("compiled narrow", 7), ("OpenVINO", 7)]
)
def test_noise_is_measured_with_the_bits_of_the_weights_that_are_mixed(
    desk: Desk,
    spool: Spool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faster: str,
    bits: int,
) -> None:
    network = Network.drawn(6, flips=0.06)
    search = Search(network, desk, spool, tmp_path)
    monkeypatch.setattr(search.trials.bench, "target", replace(desk.bench.target, isa=("avx2",)))
    if faster != "OpenVINO":
        _beside_compiled(search, alike=faster == "compiled narrow")
    asked = []

    def sensitivities(weight_bits: int, within_s: float) -> dict[str, float]:
        asked.append(weight_bits)
        return network.noise

    monkeypatch.setattr(search.trials.bench, "sensitivities", sensitivities)
    awake = SimpleNamespace(worker=SimpleNamespace(sleep=lambda: None))
    monkeypatch.setattr(search.trials, "opened_baseline", lambda: awake)
    search.trials.journal.append("sensitivities", noise={}, bits=15 - bits)
    search.run()
    search.run()
    search.trials.close()
    assert asked == [bits]
    assert search.network.tried


def test_a_profile_that_fails_is_said_and_nothing_is_made_up_instead(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    search = Search(Network.drawn(2, flips=0.06), desk, spool, tmp_path)
    search.floors = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixing, "_profile", _fails)
        assert not search.run()
    assert any("its worker died" in note for note in search.notes)


def _fails(self: Mixing, trial: Trial) -> tuple[LayerTime, ...]:
    raise CandidateError("its worker died")


def _compiled(network: Network, desk: Desk, spool: Spool, folder: Path) -> Search:
    """The search on a network that was quantized, and is fastest, as compiled C alone."""
    search = Search(network, desk, spool, folder)
    engine = CompiledC()
    del search.trials.done[INT8.key]
    int8 = Single(INT8.passes, engine)
    for candidate, times in (
        (Single((), engine), network.float_ns),
        (int8, network.int8_ns),
    ):
        search.trials.done[candidate.key] = network.trial(candidate)
        steps = to_record(network.steps(times))
        search.trials.journal.append("profile", key=candidate.key, steps=steps)
    return search


def _slow_float(seed: int, weights: float, flips: float = 0.06) -> Network:
    """A network whose float takes six times as long as int8."""
    network = Network.drawn(seed, flips)
    network.float_ns = {name: 6 * time for name, time in network.int8_ns.items()}
    return replace(network, weights=weights)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("weights", [0.0, 0.05])
def test_layers_that_int8_hurts_get_16_bit_activations_where_an_engine_sums_them(
    desk: Desk, spool: Spool, tmp_path: Path, seed: int, weights: float
) -> None:
    network = _slow_float(seed, weights)
    search = _compiled(network, desk, spool, tmp_path)
    fastest = search.run()[0]
    search.trials.close()
    last = fastest.candidate.passes[-1]
    assert isinstance(last, WordLayers)
    assert "layers with 16-bit activations" in fastest.candidate.label
    every = network.tried[0].passes[-1]
    assert isinstance(every, WordLayers)
    assert set(every.nodes) == set(network.noise)
    assert set(last.nodes) < set(network.noise)
    # The best there is, by trying every length of the order that knows all.
    order = sorted(network.noise, key=lambda n: -network.noise[n] / network.int8_ns[n])
    times = []
    for count in range(len(order) + 1):
        lost, time_ns = network.outcome(order[:count], words=True)
        if lost < 0.8 * LIMIT:
            times.append(time_ns)
    best = min(times) / sum(network.float_ns.values())
    assert search.trials.ratio(fastest).estimate < best + 0.06


@pytest.mark.parametrize("seed", range(4))
def test_where_8_bit_weights_alone_cost_too_much_layers_return_to_float(
    desk: Desk, spool: Spool, tmp_path: Path, seed: int
) -> None:
    network = _slow_float(seed, weights=0.6)
    search = _compiled(network, desk, spool, tmp_path)
    fastest = search.run()[0]
    search.trials.close()
    assert isinstance(fastest.candidate.passes[-1], FloatLayers)
    words = [c for c in network.tried if isinstance(c.passes[-1], WordLayers)]
    assert len(words) == 1  # that with all layers, which showed it


def test_what_surely_passes_in_int8_gets_no_16_bit_activations(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = _slow_float(1, weights=0.0, flips=0.001)
    search = _compiled(network, desk, spool, tmp_path)
    search.run()
    search.trials.close()
    assert not network.tried


def test_behind_what_passes_by_a_hair_stand_16_bit_activations(
    desk: Desk, spool: Spool, tmp_path: Path
) -> None:
    network = _slow_float(2, weights=0.0, flips=0.022)
    search = _compiled(network, desk, spool, tmp_path)
    search.run()
    search.trials.close()
    assert any(search.surely(search.trials.done[c.key], 1.0) for c in network.tried)
    assert all(isinstance(c.passes[-1], WordLayers) for c in network.tried)
    assert len(network.tried) <= 3
