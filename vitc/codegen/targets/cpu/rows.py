"""Row functors: how CPU kernels read the rows of an operand (vitc/cpu/operands.h)."""

from __future__ import annotations

from dataclasses import dataclass

from vitc.codegen.access import row_access, row_count, run_access
from vitc.codegen.kernel import Operand
from vitc.codegen.targets.cpu.epilogue import C_TYPES
from vitc.ir.types import Shape, per_image


@dataclass(frozen=True)
class Rows:
    """The row functor of the left operand: C++ type, its map if any, and how it is filled."""

    type: str
    init: str
    map: str = ""
    arguments: str = ""
    guard: str = ""


def left_rows(operand: Operand, shape: Shape, index: int, number: str = "") -> Rows:
    """The functor that reads rows of `shape` [..., K] out of the stored operand.

    index: of the operand among the call's arguments. number: tells maps of one kernel apart.
    """
    type_, k = C_TYPES[operand.type.dtype], per_image(shape[-1:])
    data = f"arg<const {type_}>(call, {index})"
    access = row_access(operand, shape)
    if access is not None and access.column == 1:
        stride = access.row.coefficient("m")
        if stride is not None and not access.guards and access.row.without("m").terms == ():
            offset = access.row.constant
            init = f"{{{data}{f' + {offset}' if offset else ''}}}"
            return Rows(f"DenseRows<{type_}, {k}, {stride}>", init)
        guard = " && ".join(str(g) for g in access.guards)
        return Rows(
            f"MappedRows<{type_}, {k}, Map{number}>",
            f"{{{data}, Map{number}{{}}}}",
            str(access.row),
            "int64_t m",
            guard,
        )
    runs = run_access(operand, shape)
    assert runs is not None, operand.map
    guard = " && ".join(str(g) for g in runs.guards)
    return Rows(
        f"GatherRows<{type_}, {k}, {runs.run}, Map{number}>",
        f"{{{data}, Map{number}{{}}}}",
        str(runs.start),
        "[[maybe_unused]] int64_t m, [[maybe_unused]] int64_t k",
        guard,
    )


def row_total(shape: Shape) -> str:
    """The number of rows of one call, as a C++ expression."""
    rows, batched = row_count(shape)
    return f"call.batch * {rows}" if batched else str(rows)
