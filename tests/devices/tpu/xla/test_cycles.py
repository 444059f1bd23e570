import pytest

from hasten.engines.tpu.cycles import Cycles, estimated_cycles

STRAIGHT = """HloModule jit_call, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} add(%p, %p), backend_config={"window_config":{"estimated_cycles":"999"}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0)
  %copy-start = (f32[8]{0}, f32[8]{0}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[8]{0} copy-done(%copy-start)
  %f = f32[8]{0} fusion(%copy-done), kind=kLoop, calls=%fused, metadata={op_name="jit(call)/linear/dot_general"}, backend_config={"window_config":{"estimated_cycles":"120","x":["1"]}}
  ROOT %g = (f32[8]{0}, f32[8]{0}) fusion(%f), kind=kLoop, calls=%fused, metadata={op_name="jit(call)/linear/add"}, backend_config={"window_config":{"estimated_cycles":"30"}}
}
"""

LOOP = """HloModule jit_loop, is_scheduled=true

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one = s32[]{:T(128)} constant(STEP)
  %t = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %v = f32[8]{0} get-tuple-element(%t), index=1
  %next = s32[]{:T(128)} add(%i, %one)
  %w = f32[8]{0} fusion(%v), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
  ROOT %r = (s32[]{:T(128)}, f32[8]{0}) tuple(%next, %w)
}

%condition (t: (s32[], f32[8])) -> pred[] {
  %end = s32[]{:T(128)} constant(37)
  %t.1 = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %end), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %zero = s32[]{:T(128)} constant(2)
  %copy = s32[]{:T(128)} copy(%zero)
  %tuple = (s32[]{:T(128)}, f32[8]{0}) tuple(%copy, %x)
  %while = (s32[]{:T(128)}, f32[8]{0}) while(%tuple), condition=%condition, body=%body
  ROOT %y = f32[8]{0} get-tuple-element(%while), index=1
}
"""

BRANCHES = """HloModule jit_cond, is_scheduled=true

%left (t: f32[8]) -> f32[8] {
  ROOT %a = f32[8]{0} add(%t, %t), backend_config={"estimated_cycles":"5"}
}

%right (t: f32[8]) -> f32[8] {
  ROOT %b = f32[8]{0} add(%t, %t), backend_config={"estimated_cycles":"8"}
}

%both (t: f32[8]) -> f32[8] {
  ROOT %c = f32[8]{0} add(%t, %t), backend_config={"estimated_cycles":"1"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %p = s32[] parameter(1)
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} conditional(%p, %x, %x), branch_computations={%left, %right}
  ROOT %z = f32[8]{0} call(%y), to_apply=%both
}
"""


def test_what_runs_is_added_up_and_not_what_a_fusion_is_made_of() -> None:
    assert estimated_cycles(STRAIGHT) == Cycles(150, 2, 0, {"linear": 150})


def test_a_loop_that_counts_by_one_counts_as_often_as_it_runs() -> None:
    assert estimated_cycles(LOOP.replace("STEP", "1")) == Cycles(350, 1, 0, {"": 350})


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("constant(STEP)", "constant(3)"),
        ("direction=LT", "direction=NE"),
        ("constant(37)", "negate(%x)"),
        ("%zero = s32[]{:T(128)} constant(2)", "%zero = s32[]{:T(128)} parameter(1)"),
        ("add(%i, %one)", "multiply(%i, %one)"),
    ],
)
def test_a_loop_that_nobody_knows_the_end_of_is_counted_once_and_said(
    was: str, becomes: str
) -> None:
    assert was in LOOP
    found = estimated_cycles(LOOP.replace(was, becomes).replace("STEP", "1"))
    assert (found.total, found.endless) == (10, 1)


def test_of_branches_the_longest_counts() -> None:
    assert estimated_cycles(BRANCHES) == Cycles(9, 2, 0, {"": 9})


def test_text_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no entry computation in the HLO$"):
        estimated_cycles("nothing")
