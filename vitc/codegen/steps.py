"""Questions that every target asks of the operands of fused steps."""

from __future__ import annotations

from vitc.codegen.access import row_access
from vitc.codegen.kernel import KernelCall, Operand, Site
from vitc.ir.types import Shape
from vitc.ops import Fused


def readable(operand: Operand, result: Shape) -> bool:
    """Whether a step can read the operand: whole rows, or one value a row, none of them guarded."""
    access = row_access(operand, result)
    return access is not None and not access.guards


def step_shape(site: Site, index: int) -> Shape:
    """The shape that step operand `index` is read over: statistics keep their own columns."""
    assert isinstance(site.op, Fused)
    result = site.results[0].shape
    for step in site.op.steps:
        if step.operand == index and step.scales_rows:
            return (*result[:-1], site.inputs[index].shape[-1])
    return result


def aliasable(call: KernelCall, first_step_operand: int) -> tuple[int, ...]:
    """Step operands with the very elements of the output: each is read before it is written."""
    output = call.outputs[0]
    names = [operand.value for operand in call.inputs]
    return tuple(
        index
        for index, operand in enumerate(call.inputs)
        if index >= first_step_operand
        and not call.site.constant[index]
        and operand.type == output.type
        and names.count(operand.value) == 1  # not also the product's own operand
        and operand.is_dense
        and output.is_dense
        and call.site.inputs[index].shape == call.site.results[0].shape
    )
