"""Attention whose heads are read and stored through index maps: windows, packed QKV, padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vitc.codegen.access import HeadAccess, head_access
from vitc.codegen.kernel import Kernel, KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.targets.cpu.epilogue import C_TYPES, float_text, lone_step
from vitc.codegen.targets.cpu.packings import cast_packing
from vitc.ir.index_map import Reshape
from vitc.ir.op import Op
from vitc.ir.types import Batch, DType, Shape, per_image
from vitc.ops import Attention


@dataclass(frozen=True)
class HeadMap:
    """Where the rows of q, k, v or the output lie: C++ text of S::Query etc. (attention.h).

    same: the name of an earlier map with the same rows, or "".
    """

    name: str
    head: int
    row: str
    guard: str
    same: str


@dataclass(frozen=True)
class BiasMap:
    """Where the bias of image b lies, and the distances of its heads and rows in elements."""

    image: str
    head: int
    row: int


@dataclass(frozen=True)
class AttentionParams:
    """Parameters of templates/cpu/attention.cc.jinja.

    batch: number of images or windows, an expression of the call. pointers: q, k, v and the output,
    bias, regions and factors. windows: of the regions, 0 for none. eps: of the cosine form or None.
    """

    type: str
    heads: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    scale: str
    maps: tuple[HeadMap, ...]
    bias: BiasMap | None
    windows: int
    apart: str
    factors: bool
    eps: str | None
    steps: tuple[str, ...]
    batch: str
    pointers: tuple[str, ...]


class CpuAttention(Kernel):
    """softmax(scores) v with all scores of a row at once; see vitc.ops.Attention."""

    name: ClassVar[str] = "attention"
    ops: ClassVar[tuple[type[Op], ...]] = (Attention,)

    def refuses(self, site: Site) -> str | None:
        op = site.op
        assert isinstance(op, Attention)
        if op.stats:
            return "it emits no statistics"
        bad = [step for step in op.steps if lone_step(step) is None]
        if bad:
            return f"step {bad[0]} on its result has no form on the CPU"
        dtype = site.results[0].dtype
        stored = [t for t, const in zip(site.inputs[:3], site.constant, strict=False) if not const]
        if dtype not in C_TYPES or any(type_.dtype is not dtype for type_ in stored):
            return f"q, k, v and the result must share float32 or bfloat16, not {stored}"
        return _refuses_additions(site, op)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        op, result = site.op, site.results[0].shape
        assert isinstance(op, Attention)
        if index == op.bias_operand:
            return _bias_map(operand, site) is not None
        return index < 3 and head_access(operand, result) is not None

    def writes(self, site: Site, operand: Operand) -> bool:
        return head_access(operand, site.results[0].shape) is not None

    def packing(self, site: Site, index: int) -> Packing | None:
        op = site.op
        assert isinstance(op, Attention)
        if index == op.regions_operand:
            return cast_packing(site.inputs[index].dtype, DType.INT32)
        wanted = DType.FLOAT32 if index >= 3 else site.results[0].dtype
        return cast_packing(site.inputs[index].dtype, wanted)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Attention)
        q, k, v = site.inputs[:3]
        result = site.results[0].shape
        ctype = C_TYPES[site.results[0].dtype]
        maps, pointers = _head_maps(call, ctype)
        added = (op.bias_operand, op.regions_operand, op.factors_operand)
        for index, type_ in zip(added, ("float", "int32_t", "float"), strict=True):
            pointers.append("nullptr" if index is None else f"arg<const {type_}>(call, {index})")
        bias = None if op.bias_operand is None else _bias_map(call.inputs[op.bias_operand], site)
        regions = None if op.regions_operand is None else site.inputs[op.regions_operand]
        steps = [lone_step(step) for step in op.steps]
        params = AttentionParams(
            type=ctype,
            heads=per_image(result[1:2]),
            queries=per_image(q.shape[2:3]),
            keys=per_image(k.shape[2:3]),
            depth=per_image(q.shape[3:]),
            value_depth=per_image(v.shape[3:]),
            scale=float_text(op.scale),
            maps=tuple(maps),
            bias=bias,
            windows=per_image(regions.shape[:1]) if regions else 0,
            apart=float_text(op.apart),
            factors=op.factors,
            eps=None if op.cosine is None else float_text(op.cosine),
            steps=tuple(step for step in steps if step is not None),
            batch=_batch(result),
            pointers=tuple(pointers),
        )
        config = f"{params.heads} heads, {params.queries} x {params.keys}, d {params.depth}"
        return Rendered(render("cpu/attention.cc.jinja", params), config)


def _refuses_additions(site: Site, op: Attention) -> str | None:
    if op.bias_operand is not None:
        bias, keys = site.inputs[op.bias_operand], site.inputs[1].shape[2]
        if not site.constant[op.bias_operand] and bias.dtype is not DType.FLOAT32:
            return f"the bias is {bias}, it must be float32"
        if bias.shape[-1] != keys:
            return f"the bias {bias} is the same for all keys, which changes nothing"
    for index in (op.regions_operand, op.factors_operand):
        if index is not None and not site.constant[index]:
            return "regions and factors must be constants"
    return None


def _batch(result: Shape) -> str:
    first = result[0]
    return f"call.batch * {first.count}" if isinstance(first, Batch) else str(first)


def _head_maps(call: KernelCall, ctype: str) -> tuple[list[HeadMap], list[str]]:
    """Maps and pointers of q, k, v and the output; constant offsets go into the pointers."""
    result = call.site.results[0].shape
    maps: list[HeadMap] = []
    pointers: list[str] = []
    places = [(f"const {ctype}", i, operand) for i, operand in enumerate(call.inputs[:3])]
    places.append((ctype, len(call.inputs), call.outputs[0]))
    for name, (type_, index, operand) in zip(("Query", "Key", "Value", "Out"), places, strict=True):
        access = head_access(operand, result)
        assert access is not None, operand.map
        start = access.row.constant
        pointers.append(f"arg<{type_}>(call, {index}){f' + {start}' if start else ''}")
        maps.append(_head_map(name, access, maps))
    return maps, pointers


def _head_map(name: str, access: HeadAccess, earlier: list[HeadMap]) -> HeadMap:
    row = str(replace(access.row, constant=0))
    guard = " && ".join(str(guard) for guard in access.guards)
    same = [m.name for m in earlier if (m.head, m.row, m.guard) == (access.head, row, guard)]
    return HeadMap(name, access.head, row, guard, same[0] if same else "")


def _bias_map(operand: Operand, site: Site) -> BiasMap | None:
    """How scores find their bias, or None where it does not lie in rows at equal distances."""
    shape, result = operand.map.result, site.results[0].shape
    index_map = operand.map.then(Reshape((*(1 for _ in range(4 - len(shape))), *shape)))
    access = head_access(replace(operand, map=index_map), result)
    row = access.row.coefficient("n") if access else None
    if access is None or row is None or access.guards:
        return None
    return BiasMap(str(access.row.without("n")), access.head, row)
