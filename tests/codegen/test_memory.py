"""The memory plan: no two live buffers share memory, and the stated bound is one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vitc.codegen.memory import MemoryPlan, plan_memory
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.ir.text import parse_graph


def plan_of(text: str, max_batch: int = 2) -> MemoryPlan:
    graph = parse_graph(text)
    return plan_memory(select(graph, find_target("cpu")).calls, graph.outputs, max_batch)


def chain(widths: list[int], residual: list[bool]) -> str:
    """Linears of the given widths; where `residual`, one adds the value two before it."""
    lines = ["graph chain(%v0: f32[B,4,8]) {"]
    sizes = [8, *widths]
    lines += [f"  weight %w{i}: f32[{n},{sizes[i]}]" for i, n in enumerate(widths)]
    for i, n in enumerate(widths):
        adds = residual[i] and i > 0 and sizes[i - 1] == n
        operands = f"%v{i}, %w{i}" + (f", %v{i - 1}" if adds else "")
        steps = " {steps=[add($2)]}" if adds else ""
        lines.append(f"  %v{i + 1} = linear({operands}){steps}")
    return "\n".join([*lines, f"  return %v{len(widths)}", "}"])


@given(
    st.lists(st.sampled_from([8, 24, 100]), min_size=1, max_size=9),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_live_buffers_never_overlap(widths: list[int], residual: list[bool]) -> None:
    plan = plan_of(chain(widths, residual))
    for i, a in enumerate(plan.buffers):
        for b in plan.buffers[i + 1 :]:
            together = a.first <= b.last and b.first <= a.last
            apart = a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset
            assert apart or not together, (a, b)
    assert plan.lower_bound <= plan.bytes
    assert all(buffer.offset % 128 == 0 for buffer in plan.buffers)


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    plan = plan_of(chain([24, 8, 24, 8], [False] * 4))
    assert plan.bytes == plan.lower_bound == 2 * 4 * (24 + 8) * 4


def test_a_residual_is_overwritten_in_place() -> None:
    # v1 is last read as the residual of v3, so v3 takes its place; the output v4 is not planned.
    plan = plan_of(chain([8, 24, 8, 8], [False, False, True, False]))
    shared = [buffer.values for buffer in plan.buffers if len(buffer.values) > 1]
    assert shared == [("v1", "v3")]


def test_a_value_that_is_also_multiplied_is_not_overwritten() -> None:
    text = """
graph square(%x: f32[B,4,8]) {
  weight %w: f32[8,8]
  %a = linear(%x, %w)
  %b = linear(%a, %w, %a) {steps=[add($2)]}
  %c = linear(%b, %w)
  return %c
}"""
    assert all(len(buffer.values) == 1 for buffer in plan_of(text).buffers)
