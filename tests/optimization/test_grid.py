from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty

from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.installed import engine_kinds
from hasten.engines.litert.engine import LiteRt
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime, OnnxRuntimeSettled
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.split.engine import Split
from hasten.errors import InputError
from hasten.measure.candidate import Single
from hasten.optimization.grid import grid, hurried, neighbours, substitutes, variations
from hasten.passes.base import Pass, Selective
from hasten.passes.fix_shapes import FixShapes
from hasten.passes.litert_quantization import LitertQuantization
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.small_model import SmallModel, small_model_of
from hasten.passes.static_quantization import StaticQuantization


@pytest.fixture
def host() -> Target:
    isa = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16")
    return replace(Target.host(), cpus=(0, 1), threads=2, isa=isa)


def test_the_untouched_model_on_every_engine_comes_first(desk: Desk, host: Target) -> None:
    proposals = grid(desk.model, host)
    settled = OnnxRuntime().settling()
    untouched = [c for c in proposals if not c.passes and c.engine != settled]
    assert proposals[: len(untouched)] == untouched
    kinds = [type(c.engine).__name__ for c in untouched[:2]]
    assert kinds == ["OnnxRuntime", "OpenVino"]
    assert untouched[0] == Single((), OnnxRuntime())
    assert untouched[0].exact


def test_a_split_is_proposed_for_what_it_takes_alone(desk: Desk, host: Target) -> None:
    why = "the compiled engine doesn't take NonMaxSuppression (node 'n'): it isn't covered"
    refused = [
        Single(passes, engine)
        for passes in ((), (StaticQuantization(),), (NncfQuantization("performance"),))
        for engine in (CompiledC(), CompiledC(threads=2), OnnxRuntime())
    ]
    assert substitutes(dict.fromkeys(refused, why), desk.model) == [
        Single(passes, Split(engine))
        for passes in ((), (StaticQuantization(),))
        for engine in (CompiledC(), CompiledC(threads=2))
    ]
    assert not substitutes(dict.fromkeys(refused, "there is nothing to do"), desk.model)


def test_a_model_of_float64_is_tried_rounded_by_openvino_as_inexact(desk: Desk) -> None:
    why = "OpenVINO computes float64 in float32, as in Exp (node 'e')"
    (found,) = substitutes(
        {Single((), OpenVino()): why, Single((), OnnxRuntime()): why}, desk.model
    )
    assert found == Single((), OpenVino(narrows=True))
    assert not found.exact


def test_a_short_time_reaches_each_kind_of_candidate(desk: Desk, host: Target) -> None:
    proposals = grid(desk.model, host)
    order = hurried(proposals)
    assert sorted(c.key for c in order) == sorted(c.key for c in proposals)
    ready = [c for c in order if not c.passes]
    assert order[: len(ready)] == ready
    assert [c.exact for c in ready] == sorted((c.exact for c in ready), reverse=True)
    made = order[len(ready) :]
    assert {c.exact for c in ready} == {c.exact for c in made} == {True, False}
    exact = sum(c.exact for c in made)
    assert [c.exact for c in made[: 2 * exact]] == [False, True] * exact
    assert [c for c in made if c.exact] == [c for c in proposals if c.passes and c.exact]
    inexact = [c for c in made if not c.exact]
    kinds = [c for c in proposals if c.passes and not c.exact]
    assert [type(c.passes[-1]) for c in inexact] == [type(c.passes[-1]) for c in kinds]
    for step in {type(c.passes[-1]) for c in inexact}:  # what is usually fastest comes first
        engines = [type(c.engine).__name__ for c in inexact if type(c.passes[-1]) is step]
        quickest = ("CompiledC", "OpenVino", "LiteRt", "OnnxRuntime")
        assert engines == sorted(engines, key=quickest.index)


def test_no_proposal_comes_twice_and_each_engine_takes_its_model(desk: Desk, host: Target) -> None:
    proposals = grid(desk.model, host)
    assert len({c.key for c in proposals}) == len(proposals)
    for candidate in proposals:
        if candidate.passes:
            assert candidate.passes[-1].gives in candidate.engine.formats
        if any(step.exact for step in candidate.passes):
            assert candidate.exact


def test_shapes_are_not_fixed_for_an_engine_that_settles_them_itself(
    desk: Desk, host: Target
) -> None:
    one = replace(desk.model, inputs=desk.model.request)  # its batch is closed, so nothing is lost
    fixed = {type(c.engine) for c in grid(one, host) if FixShapes() in c.passes}
    assert fixed == {OnnxRuntime}
    proposals = grid(desk.model, host)
    lossy = [c for c in proposals if c.passes and not c.exact]
    around = neighbours(lossy, [FixShapes()], host)
    assert {type(c.engine) for c in around if FixShapes() in c.passes} == {OnnxRuntime}
    assert {type(c.engine) for c in lossy} == {OnnxRuntime, OpenVino, LiteRt, CompiledC}


def test_where_the_batch_is_open_shapes_are_settled_for_one_sample_alone(
    desk: Desk, host: Target
) -> None:
    proposals = grid(desk.model, host)
    assert not any(FixShapes() in c.passes for c in proposals)
    settled = [c for c in proposals if isinstance(c.engine, OnnxRuntimeSettled)]
    assert settled == [Single((), OnnxRuntimeSettled())]
    assert settled[0].exact
    lossy = [c for c in proposals if c.passes and not c.exact]
    around = {c.engine for c in neighbours(lossy, [], host, settled=True)}
    assert OnnxRuntimeSettled() in around
    assert not any(isinstance(c.engine, OnnxRuntimeSettled) for c in neighbours(lossy, [], host))
    assert not any(
        isinstance(c.engine, OnnxRuntimeSettled)
        for c in grid(desk.model, host, pass_names=["simplify"])
    )


def test_litert_is_tried_with_what_its_own_quantizer_makes_alone(desk: Desk, host: Target) -> None:
    found = [c.passes for c in grid(desk.model, host) if isinstance(c.engine, LiteRt)]
    assert found[0] == ()
    lossy = [steps for steps in found if any(not step.exact for step in steps)]
    assert [_kinds(steps) for steps in lossy] == [(LitertQuantization,)]
    assert LitertQuantization in [type(c.passes[0]) for c in grid(desk.model, host) if c.passes]


@pytest.mark.parametrize("isa", [(), ("avx2", "fma")])
def test_an_engine_whose_sums_never_saturate_gets_8_bit_weights(
    desk: Desk, host: Target, isa: tuple[str, ...]
) -> None:
    narrow = replace(host, isa=isa)
    proposals = [
        c
        for c in grid(desk.model, narrow)
        if c.passes and isinstance(c.passes[-1], StaticQuantization)
    ]
    # First where they aren't slower, and else among the variations, as those of the fastest calibration.
    others = {(OnnxRuntime, True), (OpenVino, True)}
    assert _ranges(proposals) == {*others, (CompiledC, bool(isa))}
    varied = variations(proposals[::-1], desk.model, narrow)
    assert (CompiledC, False) in _ranges(varied)
    first = proposals[0].passes[-1]
    assert isinstance(first, StaticQuantization)
    usual = replace(first, reduce_range=False)
    compiled = [c for c in varied if isinstance(c.engine, CompiledC)]
    assert (usual in [c.passes[-1] for c in compiled]) == bool(isa)
    assert all(not getattr(c.passes[-1], "reduce_range", False) for c in compiled)


def _ranges(candidates: Sequence[Single]) -> set[tuple[type[Engine], bool]]:
    """Return engines, and whether weights have 7 bits."""
    return {
        (type(c.engine), c.passes[-1].reduce_range)
        for c in candidates
        if isinstance(c.passes[-1], StaticQuantization)
    }


def _kinds(passes: Sequence[Pass]) -> tuple[type[Pass], ...]:
    return tuple(map(type, passes))


def test_only_the_engines_asked_for_are_tried(desk: Desk, host: Target) -> None:
    proposals = grid(desk.model, host, engine_names=["onnxruntime"])
    assert {type(c.engine) for c in proposals} == {OnnxRuntime, OnnxRuntimeSettled}


def test_nodes_to_keep_float_reach_every_pass_that_quantizes(desk: Desk, host: Target) -> None:
    proposals = grid(desk.model, host, keep_float=("a", "b"))
    settings = {
        step.keep_float
        for candidate in proposals
        for step in candidate.passes
        if isinstance(step, Selective)
    }
    assert settings == {("a", "b")}


def test_engines_are_found_by_name_or_by_import_path() -> None:
    path = "tests.support.faults:Faulty"
    assert engine_kinds(["null", path, "onnxruntime"]) == [Null, Faulty, OnnxRuntime]


def test_an_unknown_engine_is_named_with_those_that_there_are() -> None:
    with pytest.raises(InputError) as error:
        engine_kinds(["onnxruntime", "tvm"])
    assert str(error.value) == (
        "no engine is called 'tvm'; this version has: onnxruntime, openvino, litert, compiled"
    )


def test_where_no_engine_is_named_those_of_the_host_are_looked_for() -> None:
    assert engine_kinds() == engine_kinds(["onnxruntime", "openvino", "litert", "compiled"])


def test_an_engine_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(cls: type[Null]) -> str:
        raise InputError("the null engine isn't installed: pip install nothing")

    monkeypatch.setattr(Null, "version", classmethod(missing))
    assert engine_kinds(["null", "onnxruntime"]) == [OnnxRuntime]
    with pytest.raises(InputError) as error:
        engine_kinds(["null"])
    assert str(error.value) == (
        "no engine to try: the null engine isn't installed: pip install nothing"
    )


def test_neighbours_differ_by_one_step(desk: Desk, host: Target) -> None:
    proposals = grid(desk.model, host)
    lossy = next(c for c in proposals if c.passes and not c.exact)
    exact = next(step for c in proposals for step in c.passes if step.exact)
    around = neighbours([lossy, proposals[0]], [exact], host)
    assert Single((exact, *lossy.passes), lossy.engine) in around
    assert len(set(around)) == len(around)
    assert {c.passes[1:] for c in around if len(c.passes) > 1} == {lossy.passes}
    for candidate in around:
        same_passes = candidate.passes in (lossy.passes, ())
        same_engine = candidate.engine in (lossy.engine, proposals[0].engine)
        assert same_passes != same_engine


def test_variations_are_the_other_variants_on_the_two_engines_that_did_best(
    desk: Desk, host: Target
) -> None:
    proposals = grid(desk.model, host, keep_float=("a",))
    fastest = [c for c in proposals if c.passes and not c.exact][::-1]
    found = variations(fastest, desk.model, host, ("a",))
    assert found
    assert not set(found) & set(proposals)
    for candidate in found:
        (step,) = candidate.passes
        ranked = [c.engine for c in fastest if type(c.passes[0]) is type(step)]
        assert candidate.engine in list(dict.fromkeys(ranked))[:2]
        assert getattr(step, "keep_float", ("a",)) == ("a",)
    assert variations([proposals[0]], desk.model, host) == []


def test_activations_of_16_bits_are_tried_only_where_an_engine_calculates_with_them(
    desk: Desk, host: Target
) -> None:
    proposals = [c for c in grid(desk.model, host) if c.passes and not c.exact]
    for fastest in (proposals, proposals[::-1]):
        wide = [
            c
            for c in variations(fastest, desk.model, host)
            if getattr(c.passes[-1], "activations", "") == "wide"
        ]
        assert {type(c.engine) for c in wide} == {CompiledC}
    others = [c for c in proposals if not isinstance(c.engine, CompiledC)]
    varied = variations(others, desk.model, host)
    assert all(getattr(c.passes[-1], "activations", "") != "wide" for c in varied)


def test_where_a_passs_first_variant_failed_everywhere_the_others_are_tried_on_one_engine(
    desk: Desk, host: Target
) -> None:
    proposals = grid(desk.model, host)
    lossy = [c for c in proposals if c.passes and not c.exact]
    static = [c for c in lossy if type(c.passes[-1]) is StaticQuantization]
    rest = [c for c in lossy if c not in static]
    assert len({c.engine for c in static}) > 1

    def engines(fastest: list[Single], failed: list[Single]) -> set[Engine]:
        varied = variations(fastest, desk.model, host, failed=failed)
        return {c.engine for c in varied if type(c.passes[-1]) is StaticQuantization}

    assert engines(rest, []) == set()
    assert engines(rest, static) == {static[0].engine}
    assert engines([], static) == {static[0].engine}
    assert engines([*rest, static[1]], [static[0]]) == {static[1].engine}


def test_a_small_model_is_tried_as_it_is_and_in_int8_and_chooses_no_engine_for_the_original(
    desk: Desk, host: Target
) -> None:
    little = SmallModel(desk.model.path, (), "0")
    proposals = grid(desk.model, host, small_models=[little])
    beside = [c for c in proposals if little in c.passes]
    assert {type(c.engine) for c in beside if c.passes == (little,)} == {
        OnnxRuntime,
        OpenVino,
        LiteRt,
        CompiledC,
    }
    plain = {c.passes for c in proposals if c.passes and not c.exact and little not in c.passes}
    assert {c.passes[1:] for c in beside if len(c.passes) == 2} == plain
    varied = variations(beside, desk.model, host)
    assert varied
    assert all(c.passes[0] == little and len(c.passes) == 2 for c in varied)
    assert not set(varied) & set(proposals)


def test_of_many_small_models_the_two_fastest_are_varied(desk: Desk, host: Target) -> None:
    littles = [SmallModel(desk.model.path, (), "0", name) for name in ("a", "b", "c")]
    proposals = grid(desk.model, host, small_models=littles)
    by_speed = sorted(proposals, key=lambda c: (not c.passes, c.passes[:1] != (littles[1],)))
    varied = variations(by_speed, desk.model, host)
    named = {step.name for c in varied for step in c.passes if isinstance(step, SmallModel)}
    assert "b" in named
    assert len({small_model_of(c.passes) for c in varied}) == 2
