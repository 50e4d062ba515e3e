"""Attention over heads wherever their rows lie, straight from and to the products beside it."""

from __future__ import annotations

from dataclasses import dataclass
from math import e, log2, prod
from typing import ClassVar

from vitc.codegen.access import head_access
from vitc.codegen.kernel import KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.records import Choice, chosen
from vitc.codegen.render import render
from vitc.codegen.targets.gpu.attention_tiles import AttentionTile, Problem, tiles_of
from vitc.codegen.targets.gpu.epilogue import C_TYPES, float_text, free_steps, multiples
from vitc.codegen.targets.gpu.gemm import cast
from vitc.codegen.targets.gpu.kernel import GpuKernel, layout
from vitc.ir.builder import Builder, Value
from vitc.ir.op import Op
from vitc.ir.types import DType, Shape, per_image, shape_at
from vitc.ops import Attention, Pointwise
from vitc.ops.fused import Step

LOG2_E = log2(e)
_HEADERS = ("gpu/attention.cuh", "gpu/attention_math.h", "gpu/attention_terms.h")


@dataclass(frozen=True)
class Heads:
    """A functor that says where heads lie (vitc/gpu/attention.cuh). row, guard: in b and n."""

    name: str
    type: str
    head: int
    row: str
    guard: str
    start: str


@dataclass(frozen=True)
class Term:
    """A C++ type of vitc/gpu/attention_terms.h and what fills it."""

    type: str = "Absent"
    start: str = "{}"


@dataclass(frozen=True)
class AttentionParams:
    """Parameters of templates/gpu/attention.cu.jinja. steps: on the output."""

    label: str
    tile: str
    heads: int
    batches: str
    operands: tuple[Heads, ...]
    steps: tuple[str, ...]
    cosine: bool
    scale: str
    eps: str
    bias: Term
    regions: Term
    factors: Term


class GpuAttention(GpuKernel):
    """softmax(scale q k^T + terms) v; one pass for short sequences, else online softmax."""

    name: ClassVar[str] = "attention"
    ops: ClassVar[tuple[type[Op], ...]] = (Attention,)

    def refuses(self, site: Site) -> str | None:
        op = site.op
        assert isinstance(op, Attention)
        if op.stats or any(step.operand is not None for step in op.steps):
            return "it takes no statistics and no fused steps with operands"
        dtype = site.results[0].dtype
        stored = [t for t, const in zip(site.inputs[:3], site.constant, strict=False) if not const]
        kinds = {C_TYPES.get(type_) for type_ in (dtype, *(t.dtype for t in stored))}
        if len(kinds) > 1 or None in kinds:
            return "q, k, v and the result must be stored in one floating dtype"
        chunk = 16 // dtype.itemsize
        depth, value = (per_image(site.inputs[i].shape[3:]) for i in (0, 2))
        if depth % chunk or value % chunk:
            return f"head dimensions {depth} and {value} are no multiples of {chunk}"
        if not all(site.constant[3:]):
            return "bias, regions and factors must be constants"
        if not self._tiles(site):
            arch = self.tuning.arch
            return f"no tile fits the {arch.shared_bytes >> 10} KiB of shared memory of {arch.name}"
        return None

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return index < 3 and _heads("", operand, site.results[0].shape, "") is not None

    def writes(self, site: Site, operand: Operand) -> bool:
        return _heads("", operand, site.results[0].shape, "") is not None

    def packing(self, site: Site, index: int) -> Packing | None:
        op, dtype = site.op, site.results[0].dtype
        assert isinstance(op, Attention)
        if index < 3:
            return cast(site.inputs[index].dtype, dtype)
        if index == op.bias_operand:
            return _in_lane_order(site)
        wanted = DType.INT32 if index == op.regions_operand else DType.FLOAT32
        return cast(site.inputs[index].dtype, wanted)

    def choice(self, call: KernelCall, batch: int) -> Choice:
        site = call.site
        op, problem = site.op, _problem(site)
        assert isinstance(op, Attention)
        result = site.results[0]
        terms = [name for name in ("bias", "regions", "factors", "cosine") if getattr(op, name)]
        key = (
            f"{result.dtype.short} {problem.queries}x{problem.keys} "
            f"{problem.depth},{problem.value} [{','.join(terms)}]{layout(call)}"
        )
        size = prod(shape_at(result.shape[:2], batch))
        names = tuple(self._tiles(site))
        return Choice(self.tuning.arch.name, self.name, _HEADERS, key, size, names)

    def render(self, call: KernelCall) -> Rendered:
        """One tile serves all batches: the fastest that is known of at the largest."""
        return self.render_choice(call, chosen(self.choice(call, self.tuning.batches[-1])))

    def render_choice(self, call: KernelCall, name: str) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Attention)
        result, tile = site.results[0].shape, self._tiles(site)[name]
        count = len(call.inputs)
        views: list[Heads] = []
        for i, operand in enumerate((*call.inputs[:3], call.outputs[0])):
            name = ("Query", "Key", "Value", "Output")[i]
            pointer = _argument(operand, i if i < 3 else count, constant=i < 3)
            view = _heads(name, operand, result, pointer)
            assert view is not None, operand.map
            views.append(view)
        params = AttentionParams(
            label=f"attention {tile.queries}x{tile.keys}",
            tile=tile.cpp,
            heads=per_image(result[1:2]),
            batches=_batches(result),
            operands=tuple(views),
            steps=free_steps(op.steps, site.results[0].dtype),
            cosine=op.cosine is not None,
            scale=float_text(op.scale * LOG2_E),
            eps=float_text(op.cosine or 0.0),
            bias=_bias(call, op),
            regions=_regions(call, op),
            factors=_factors(call, op),
        )
        return Rendered(render("gpu/attention.cu.jinja", params), tile.cpp)

    def _tiles(self, site: Site) -> dict[str, AttentionTile]:
        arch, dtype = self.tuning.arch, site.results[0].dtype
        return tiles_of(arch, arch.policy(dtype), dtype.itemsize, _problem(site))


def _problem(site: Site) -> Problem:
    op = site.op
    assert isinstance(op, Attention)
    q, k, v = (site.inputs[i].shape for i in range(3))
    return Problem(
        queries=per_image(q[2:3]),
        keys=per_image(k[2:3]),
        depth=per_image(q[3:]),
        value=per_image(v[3:]),
        labels=op.regions,
        norms=op.cosine is not None,
    )


def _argument(operand: Operand, index: int, constant: bool) -> str:
    const = "const " if constant else ""
    return f"arg<{const}{C_TYPES[operand.type.dtype]}>(call, {index})"


def _heads(name: str, operand: Operand, result: Shape, start: str) -> Heads | None:
    """The view of a [B, H, N, d] operand, or None where its rows are not dense and aligned."""
    access = head_access(operand, result)
    chunk = 16 // operand.type.dtype.itemsize
    if access is None or access.head % chunk or not multiples(access.row, chunk):
        return None
    const = "" if name == "Output" else "const "
    guard = " && ".join(str(guard) for guard in access.guards)
    type_ = const + C_TYPES[operand.type.dtype]
    return Heads(name, type_, access.head, str(access.row), guard, start)


def _batches(result: Shape) -> str:
    """Entries of the leading dimension at the batch of the call, as a C++ expression."""
    each = per_image(result[:1])
    return f"int(call.batch) * {each}" if result[0] != each else str(each)


def _in_lane_order(site: Site) -> Packing:
    """The bias as a BiasTable: padded to tiles of 16 by 16, in the lanes' order, in units of log2.

    16-bit models get float16: where the values are those of biases, bfloat16 only loses digits.
    """
    q, k = site.inputs[:2]
    queries, keys = per_image(q.shape[2:3]), per_image(k.shape[2:3])
    dtype = DType.FLOAT16 if site.results[0].dtype.itemsize == 2 else DType.FLOAT32

    def build(b: Builder, bias: Value) -> Value:
        shape = (1, 1, 1, *bias.shape)[-3:]
        heads = per_image(shape[:1])
        x = b.expand(b.reshape(bias, shape), (heads, queries, keys))
        x = b.pad(x, 1, 0, -queries % 16) if queries % 16 else x
        x = b.pad(x, 2, 0, -keys % 16) if keys % 16 else x
        # head, query tile, upper or lower half, lane / 4; key tile, one of two, lane % 4, column
        x = b.reshape(x, (heads, -(-queries // 16), 2, 8, -(-keys // 16), 2, 4, 2))
        x = b.permute(x, (0, 1, 4, 3, 6, 5, 2, 7))
        x = b.reshape(x, (heads, -(-queries // 16), -(-keys // 16), 32, 8))
        return b.emit(Pointwise((Step("scale", None, (LOG2_E,)),), dtype=dtype), x)

    return Packing(f"lanes {queries}x{keys} {dtype.short}", build)


def _bias(call: KernelCall, op: Attention) -> Term:
    if op.bias_operand is None:
        return Term()
    table = call.inputs[op.bias_operand]
    heads, queries, keys = (per_image((dim,)) for dim in table.type.shape[:3])
    type_ = C_TYPES[table.type.dtype]
    start = f"{{arg<const {type_}>(call, {op.bias_operand})}}"
    return Term(f"BiasTable<{type_}, {heads}, {queries}, {keys}>", start)


def _regions(call: KernelCall, op: Attention) -> Term:
    if op.regions_operand is None:
        return Term()
    windows, tokens = (per_image((dim,)) for dim in call.inputs[op.regions_operand].type.shape)
    apart = float_text(op.apart * LOG2_E)
    start = f"{{arg<const int32_t>(call, {op.regions_operand}), {apart}}}"
    return Term(f"Regions<{windows}, {tokens}>", start)


def _factors(call: KernelCall, op: Attention) -> Term:
    if op.factors_operand is None:
        return Term()
    return Term("HeadFactors<float>", f"{{arg<const float>(call, {op.factors_operand})}}")
