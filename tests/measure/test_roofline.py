"""The floor as pure arithmetic."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hasten.engines.layers import Kind, LayerTime
from hasten.errors import CandidateError, InputError
from hasten.measure.bandwidth import Level
from hasten.measure.roofline import (
    Ceilings,
    Floor,
    LayerFloor,
    LayerWork,
    floor,
    precisions,
    transfer_ns,
)

NARROWER = ("f32", "bf16", "i8")
"""Each at least as fast and as narrow as the one before, in all ceilings here."""


def level(name: str, size_bytes: int | None, gigabytes_per_s: float) -> Level:
    return Level(name, size_bytes, gigabytes_per_s * 1e9, gigabytes_per_s * 1e9 / 2)


CEILINGS = Ceilings(
    threads=2,
    operations_per_s={"f32": 100e9, "bf16": 200e9, "i8": 400e9},
    reached_by={},
    levels=(level("L1", 1000, 100), level("L2", 9000, 10), level("memory", None, 1)),
    empty_call_ns=500.0,
)

works = st.builds(
    LayerWork,
    name=st.text("abc", min_size=1, max_size=3),
    operator=st.just("Conv"),
    operations=st.integers(1, 10**9),
    read=st.integers(0, 10**6),
    weights=st.integers(0, 10**6),
    written=st.integers(0, 10**6),
)
layers = st.lists(works, min_size=1, max_size=6, unique_by=lambda layer: layer.name)
rates = st.floats(1e6, 1e12)


@st.composite
def ceilings(draw: st.DrawFn) -> Ceilings:
    slow, middle, fast = sorted(draw(st.tuples(rates, rates, rates)))
    near, far = draw(st.tuples(st.integers(1, 10**6), st.integers(1, 10**7)))
    kinds = [Level(f"L{i}", size, draw(rates), draw(rates)) for i, size in ((1, near), (2, far))]
    return Ceilings(
        threads=1,
        operations_per_s={"f32": slow, "bf16": middle, "i8": fast},
        reached_by={},
        levels=(*kinds, Level("memory", None, draw(rates), draw(rates))),
        empty_call_ns=draw(st.floats(1, 1e6)),
    )


def faster(found: Ceilings, times: float) -> Ceilings:
    return Ceilings(
        found.threads,
        {name: rate * times for name, rate in found.operations_per_s.items()},
        found.reached_by,
        tuple(
            Level(
                one.name,
                one.size_bytes,
                one.copied_bytes_per_s * times,
                one.read_bytes_per_s * times,
            )
            for one in found.levels
        ),
        found.empty_call_ns,
    )


def test_a_layer_takes_its_operations_or_its_bytes_whichever_is_longer() -> None:
    counted = (LayerWork("a", "Conv", operations=100_000, read=100, written=100),)
    found = floor(counted, CEILINGS, {"a": "f32"})
    assert found == Floor((LayerFloor("a", "Conv", "f32", 1000.0, 8.0, 8.0),), 500.0, 2)
    assert found.floor_ns == 1500.0
    assert (found.layers[0].binds, found.binds) == ("arithmetic", "arithmetic")
    assert found.parts_ns == {"arithmetic": 1000.0, "bytes": 0.0, "overhead": 500.0}


def test_bytes_come_from_the_nearest_cache_as_far_as_it_holds_them() -> None:
    assert transfer_ns(1000, CEILINGS.levels) == pytest.approx(10)
    assert transfer_ns(3000, CEILINGS.levels) == pytest.approx(10 + 200)
    assert transfer_ns(11_000, CEILINGS.levels) == pytest.approx(10 + 900 + 1000)


def test_a_farther_level_that_came_out_faster_lends_its_rate() -> None:
    swapped = (level("L1", 1000, 10), level("memory", None, 20))
    assert transfer_ns(2000, swapped) == pytest.approx(100)


def test_weights_that_all_caches_together_cannot_hold_come_from_memory_in_part() -> None:
    counted = (
        LayerWork("a", "Gemm", operations=1, weights=10_000),
        LayerWork("b", "Gemm", operations=1, weights=30_000),
    )
    found = floor(counted, CEILINGS, {"a": "i8", "b": "i8"})
    assert sum(layer.bytes_ns for layer in found.layers) == pytest.approx(10 + 900 + 30_000)
    assert found.layers[1].bytes_ns == pytest.approx(3 * found.layers[0].bytes_ns)
    assert found.binds == "bytes"


def test_weights_are_no_more_than_what_is_kept_on_disk() -> None:
    counted = (LayerWork("a", "Gemm", operations=1, weights=1000),)
    stored = floor(counted, CEILINGS, {"a": "f32"}, stored_bytes=1000)
    assert stored.layers[0].bytes_ns == pytest.approx(10)
    assert floor(counted, CEILINGS, {"a": "f32"}).layers[0].bytes_ns == pytest.approx(10 + 300)


def test_activations_are_as_narrow_as_the_narrowest_layer_of_the_candidate() -> None:
    counted = tuple(LayerWork(name, "Conv", operations=1, read=500) for name in "ab")
    found = floor(counted, CEILINGS, {"a": "f32", "b": "i8"})
    assert [layer.bytes_ns for layer in found.layers] == pytest.approx([5, 5])
    assert [layer.precision for layer in found.layers] == ["f32", "i8"]


def test_without_precisions_all_is_done_in_the_fastest_that_there_is() -> None:
    counted = (LayerWork("a", "Conv", operations=400_000),)
    assert floor(counted, CEILINGS).layers[0] == LayerFloor("a", "Conv", "i8", 1000.0, 0.0)


def test_a_layer_that_the_profile_lacks_is_done_in_the_candidates_fastest() -> None:
    counted = tuple(LayerWork(name, "Conv", operations=1) for name in "abc")
    found = floor(counted, CEILINGS, {"a": "f32", "b": "bf16"})
    assert [layer.precision for layer in found.layers] == ["f32", "bf16", "bf16"]


def test_a_precision_that_was_not_measured_has_the_fastest_rate_and_no_width_to_speak_of() -> None:
    counted = (LayerWork("a", "Conv", operations=400_000, read=1000),)
    found = floor(counted, CEILINGS, {"a": "f8e4m3"})
    assert found.layers[0] == LayerFloor("a", "Conv", "f8e4m3", 1000.0, 10.0, 10.0)


def test_a_part_of_the_layers_has_no_floor() -> None:
    unknown = [LayerWork(name, "Own") for name in "bcde"]
    found = floor((LayerWork("a", "Conv", operations=1), *unknown), CEILINGS)
    assert not found.whole
    assert found.uncounted == ("b", "c", "d", "e")
    with pytest.raises(CandidateError) as error:
        found.ratio(1e9, CEILINGS.threads)
    assert str(error.value) == "the work of 4 of 5 layers can't be counted: 'b', 'c', 'd', ..."
    assert found.layers[0].floor_ns > 0


def test_a_model_without_products_has_no_floor() -> None:
    found = floor((), CEILINGS)
    assert not found.whole
    with pytest.raises(CandidateError) as error:
        found.check_whole()
    assert str(error.value) == "the model has no products to count"


def test_a_conversion_moves_what_a_layer_reads_and_writes_but_not_its_weights() -> None:
    counted = (LayerWork("a", "Gemm", operations=1, read=100, weights=10_000, written=100),)
    found = floor(counted, CEILINGS, {"a": "f32"})
    assert found.moved_ns == pytest.approx({"a": 500 + 8})


def test_a_ratio_and_what_is_left_to_gain() -> None:
    found = floor((LayerWork("a", "Conv", operations=150_000),), CEILINGS, {"a": "f32"})
    assert found.ratio(8000, threads=2) == 4.0
    assert found.left_to_gain(8000, threads=2) == 0.75
    assert found.left_to_gain(1000, threads=2) == 0.0


def test_latencies_on_other_threads_are_not_set_against_a_floor() -> None:
    found = floor((), CEILINGS)
    for ask in (found.ratio, found.left_to_gain):
        with pytest.raises(InputError) as error:
            ask(8000, 1)
        assert str(error.value) == (
            "a latency on 1 thread can't be compared with ceilings of 2; measure both with "
            "the same number of threads"
        )


def step(precision: str, *sources: str, kind: Kind = "arithmetic") -> LayerTime:
    return LayerTime("step", "Convolution", kind, precision, "", sources, (1,))


def test_precisions_are_those_of_the_arithmetic() -> None:
    found = precisions(
        [
            step("f32", "conv1", "relu1"),
            step("i8", "conv1", kind="conversion"),
            step("i8", "conv2"),
            step("f32", "split"),
            step("bf16", "split"),
        ]
    )
    assert found == {"conv1": "f32", "relu1": "f32", "conv2": "i8", "split": "bf16"}


@given(layers, ceilings(), st.data())
def test_a_narrower_and_faster_precision_never_raises_the_floor(
    counted: list[LayerWork], found: Ceilings, data: st.DataObject
) -> None:
    before = {layer.name: data.draw(st.sampled_from(NARROWER)) for layer in counted}
    after = {
        name: data.draw(st.sampled_from(NARROWER[NARROWER.index(precision) :]))
        for name, precision in before.items()
    }
    slower, quicker = floor(counted, found, before), floor(counted, found, after)
    assert quicker.floor_ns <= slower.floor_ns * (1 + 1e-9)
    assert floor(counted, found).floor_ns <= quicker.floor_ns * (1 + 1e-9)


@given(layers, ceilings())
def test_twice_the_rates_halve_all_but_the_overhead(
    counted: list[LayerWork], found: Ceilings
) -> None:
    once, twice = (floor(counted, one) for one in (found, faster(found, 2)))
    assert twice.floor_ns - twice.overhead_ns == pytest.approx(
        (once.floor_ns - once.overhead_ns) / 2
    )
    assert sum(once.parts_ns.values()) == pytest.approx(once.floor_ns)


@given(layers, layers, ceilings())
def test_floors_of_two_models_add_up_to_no_more_than_that_of_both_in_one(
    one: list[LayerWork], other: list[LayerWork], found: Ceilings
) -> None:
    """Together their weights fill the caches; apart from that it is the sum."""
    apart = [floor(part, found, {"?": "f32"}) for part in (one, other)]
    both = floor([*one, *other], found, {"?": "f32"})
    added = sum(part.floor_ns - part.overhead_ns for part in apart)
    assert added <= (both.floor_ns - both.overhead_ns) * (1 + 1e-9)
    dry = [LayerWork(w.name, w.operator, w.operations, w.read, 0, w.written) for w in one]
    assert floor([*dry, *dry], found).floor_ns - found.empty_call_ns == pytest.approx(
        2 * (floor(dry, found).floor_ns - found.empty_call_ns)
    )


@given(st.floats(0, 1e9), st.floats(0, 1e9), ceilings())
def test_more_bytes_never_take_less(one: float, other: float, found: Ceilings) -> None:
    less, more = sorted((one, other))
    assert transfer_ns(less, found.levels) <= transfer_ns(more, found.levels) * (1 + 1e-9)
