"""`linear` on Hopper: tensor memory copies and warpgroup products (vitc/gpu/sm90/README.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.access import row_access, row_count
from vitc.codegen.kernel import KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.records import Choice
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.gpu.epilogue import (
    C_TYPES,
    Epilogue,
    multiples,
    readable_step,
    refusal,
    render_epilogue,
    step_kinds,
    writable,
)
from vitc.codegen.targets.gpu.kernel import GpuKernel
from vitc.codegen.targets.gpu.sm90_tiles import Problem, Tile, choose_tile, tile_choice, tile_named
from vitc.codegen.targets.gpu.sources import row_total
from vitc.ir.builder import Builder, Value
from vitc.ir.op import Op
from vitc.ir.types import DType, Shape, per_image
from vitc.ops import Fused, Linear

STATS_WIDTHS = (32, 64)
COLUMN_GROUP = 32  # kColumnGroup of vitc/gpu/sm90/tile.h
_CHUNK = 8  # elements of 16 bytes


@dataclass(frozen=True)
class Sm90Config:
    """A tile's C++ type, the function that launches it, and the largest batch that it is for."""

    tile: str
    function: str
    up_to: int


@dataclass(frozen=True)
class Sm90GemmParams:
    """Parameters of templates/gpu/sm90_gemm.cu.jinja. stride, offset: of A's rows, in elements.
    slice: columns that statistics are of. row_operand: where the one operand lies that differs from
    row to row and is of the kernel's type, or "". loaded_lines: the steps with it at `operand`.
    """

    label: str
    type: str
    m: str
    n: int
    k: int
    stride: int
    offset: int
    slice: int
    epilogue: Epilogue
    row_operand: str
    loaded_lines: tuple[str, ...]
    configs: tuple[Sm90Config, ...]


class Sm90Gemm(GpuKernel):
    """[M, K] x [N, K]^T of float16 or bfloat16, A in evenly spaced rows, W a constant."""

    name: ClassVar[str] = "sm90_gemm"
    ops: ClassVar[tuple[type[Op], ...]] = (Linear,)
    reversible: ClassVar[bool] = True

    def refuses(self, site: Site) -> str | None:
        a, w = site.inputs[:2]
        n, k = per_image(w.shape[:1]), per_image(w.shape[1:])
        if not site.constant[1]:
            return "the weight depends on the input"
        if w.dtype not in (DType.FLOAT16, DType.BFLOAT16) or a.dtype is not w.dtype:
            return f"multiplies float16 or bfloat16, not {a.dtype.value} with {w.dtype.value}"
        if n % _CHUNK or k % _CHUNK:
            return f"rows of 16-byte chunks are needed, N x K is {n} x {k}"
        if isinstance(site.op, Fused) and site.op.stats not in (0, *STATS_WIDTHS):
            return f"statistics are emitted for slices of {STATS_WIDTHS} columns"
        return refusal(site)

    def declines(self, site: Site, operands: tuple[Operand | None, ...]) -> str | None:
        a = operands[0]
        if a is not None and _even_rows(a, site.inputs[0].shape) is None:
            return "copies take evenly spaced, 16-byte aligned rows"
        return super().declines(site, operands)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return _even_rows(operand, site.inputs[0].shape) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def packing(self, site: Site, index: int) -> Packing | None:
        return Packing(f"columns{COLUMN_GROUP}", pack_weight) if index == 1 else None

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=2)

    def render(self, call: KernelCall) -> Rendered:
        return self.render_with(call, self.choose(call.site))

    def choice(self, call: KernelCall, batch: int) -> Choice:
        return tile_choice(problem(call.site, batch), self.tuning.arch.multiprocessors)

    def render_choice(self, call: KernelCall, name: str) -> Rendered:
        return self.render_with(call, [(tile_named(name), self.tuning.batches[-1])])

    def choose(self, site: Site) -> list[tuple[Tile, int]]:
        """(tile, largest batch) for each batch of the tuning; neighbours that agree are one."""
        processors = self.tuning.arch.multiprocessors
        names = [choose_tile(problem(site, b), processors).name for b in self.tuning.batches]
        return [(tile_named(name), up_to) for name, up_to in self.tuning.spans(names)]

    def render_with(self, call: KernelCall, tiles: list[tuple[Tile, int]]) -> Rendered:
        """The kernel's text with these tiles, each up to a batch."""
        op, site = call.site.op, call.site
        assert isinstance(op, Fused)
        result = site.results[0].shape
        n, k = per_image(result[-1:]), per_image(site.inputs[0].shape[-1:])
        rows = _even_rows(call.inputs[0], site.inputs[0].shape)
        assert rows is not None, call.inputs[0].map
        type_ = C_TYPES[site.inputs[0].dtype]
        epilogue = render_epilogue(op, call.inputs, call.outputs, result, constant=site.constant)
        where = _row_operand(epilogue, type_)
        params = Sm90GemmParams(
            label=f"gemm {n}x{k}",
            type=type_,
            m=row_total(result),
            n=n,
            k=k,
            stride=rows[0],
            offset=rows[1],
            slice=op.stats or STATS_WIDTHS[0],
            epilogue=epilogue,
            row_operand=where,
            loaded_lines=tuple(
                line.replace(where, "operand") if where else line for line in epilogue.lines[:-1]
            ),
            configs=tuple(
                Sm90Config(t.cpp(type_, call.backwards), t.function, up_to) for t, up_to in tiles
            ),
        )
        return Rendered(
            render("gpu/sm90_gemm.cu.jinja", params), "; ".join(tile.name for tile, _ in tiles)
        )


def problem(site: Site, batch: int) -> Problem:
    """What a tile is chosen for, at one batch."""
    op, result = site.op, site.results[0].shape
    assert isinstance(op, Fused)
    rows, batched = row_count(result)
    first = next((step.operand for step in op.steps if step.operand and not step.scales_rows), None)
    return Problem(
        site.inputs[1].dtype,
        rows * (batch if batched else 1),
        per_image(result[-1:]),
        per_image(site.inputs[0].shape[-1:]),
        step_kinds(op),
        op.stats,
        first is None or all(extent == 1 for extent in site.inputs[first].shape[:-1]),
    )


def pack_weight(b: Builder, w: Value) -> Value:
    """[N, K] with N padded to a multiple of 32 by zeros and, within 32 rows, row 8 q + 2 j + e
    moved to 8 j + 2 q + e (q, j < 4; e < 2), which makes a thread's sums neighbours (tile.h).
    """
    n, k = per_image(w.shape[:1]), per_image(w.shape[1:])
    if -n % COLUMN_GROUP:
        w = b.pad(w, 0, 0, -n % COLUMN_GROUP)
    groups = -(-n // COLUMN_GROUP)
    w = b.permute(b.reshape(w, (groups, 4, 4, 2, k)), (0, 2, 1, 3, 4))
    return b.reshape(w, (groups * COLUMN_GROUP, k))


def _row_operand(epilogue: Epilogue, type_: str) -> str:
    """Where the only operand lies that goes with the row, if it is of this type, else ""."""
    if len(epilogue.operands) != 1:
        return ""
    (where,) = epilogue.operands
    pointer = where.split(" ", 1)[0]
    typed = any(m.name == pointer and m.type == f"const {type_}*" for m in epilogue.members)
    uses = sum(line.count(pointer) for line in epilogue.lines)
    return where if typed and uses == 1 else ""


def _even_rows(operand: Operand, shape: Shape) -> tuple[int, int] | None:
    """(stride, offset) in elements when row m of `shape` lies at offset + m * stride."""
    access = row_access(operand, shape)
    if access is None or access.guards or access.column != 1 or not multiples(access.row, _CHUNK):
        return None
    stride = access.row.coefficient("m")
    if not stride or access.row.without("m").terms:
        return None
    return stride, access.row.constant
