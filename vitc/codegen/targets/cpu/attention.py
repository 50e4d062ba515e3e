"""Attention over strided views, mostly straight from the QKV product's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.kernel import Kernel, KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.targets.cpu.epilogue import C_TYPES, float_text
from vitc.codegen.targets.cpu.packings import cast_packing
from vitc.ir.op import Op
from vitc.ir.types import DType, Shape, per_image
from vitc.ops import Attention


@dataclass(frozen=True)
class AttentionParams:
    """Parameters of templates/cpu/attention.cc.jinja; views are C++ initialisers of HeadView."""

    type: str
    heads: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    scale: str
    q: str
    k: str
    v: str
    out: str
    bias: str


class CpuAttention(Kernel):
    """softmax(scale q k^T + bias) v with all scores of a row at once."""

    name: ClassVar[str] = "attention"
    ops: ClassVar[tuple[type[Op], ...]] = (Attention,)

    def refuses(self, site: Site) -> str | None:
        op = site.op
        assert isinstance(op, Attention)
        if op.steps or op.stats:
            return "it takes no fused steps"
        if op.regions or op.factors or op.cosine is not None:
            return "it has no regions, factors and cosine form"
        dtype = site.results[0].dtype
        stored = [t for t, const in zip(site.inputs[:3], site.constant, strict=False) if not const]
        if dtype not in C_TYPES or any(type_.dtype is not dtype for type_ in stored):
            return f"q, k, v and the result must share float32 or bfloat16, not {stored}"
        if op.bias and not site.constant[3] and site.inputs[3].dtype is not DType.FLOAT32:
            return f"the bias is {site.inputs[3]}, it must be float32"
        return None

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return _view(operand, site.results[0].shape, index == 3) is not None

    def writes(self, site: Site, operand: Operand) -> bool:
        return _view(operand, site.results[0].shape, False) is not None

    def packing(self, site: Site, index: int) -> Packing | None:
        wanted = DType.FLOAT32 if index == 3 else site.results[0].dtype
        return cast_packing(site.inputs[index].dtype, wanted)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Attention)
        q, k, v = site.inputs[:3]
        result = site.results[0].shape
        ctype = C_TYPES[site.results[0].dtype]
        params = AttentionParams(
            type=ctype,
            heads=per_image(result[1:2]),
            queries=per_image(q.shape[2:3]),
            keys=per_image(k.shape[2:3]),
            depth=per_image(q.shape[3:]),
            value_depth=per_image(v.shape[3:]),
            scale=float_text(op.scale),
            q=_init(call.inputs[0], result, f"arg<const {ctype}>(call, 0)"),
            k=_init(call.inputs[1], result, f"arg<const {ctype}>(call, 1)"),
            v=_init(call.inputs[2], result, f"arg<const {ctype}>(call, 2)"),
            out=_init(call.outputs[0], result, f"arg<{ctype}>(call, {len(call.inputs)})"),
            bias=_init(call.inputs[3], result, "arg<const float>(call, 3)", True)
            if op.bias
            else "{}",
        )
        config = f"{params.heads} heads, {params.queries} x {params.keys}, d {params.depth}"
        return Rendered(render("cpu/attention.cc.jinja", params), config)


def _view(operand: Operand, result: Shape, bias: bool) -> tuple[int, tuple[int, ...]] | None:
    """(offset, strides of batch, head and row) with a dense last axis, or None."""
    affine = operand.map.strides()
    if affine is None:
        return None
    offset, strides = affine
    shape = operand.map.result
    if len(shape) < 4:
        if not bias:
            return None
        strides = (*(0 for _ in range(4 - len(shape))), *strides)
        shape = (*(1 for _ in range(4 - len(shape))), *shape)
    if strides[3] != 1 and shape[3] != 1:
        return None
    if bias and shape[3] == 1:  # broadcast over the keys
        return None
    shown = tuple(
        0 if dim == 1 and whole != 1 else stride
        for dim, whole, stride in zip(shape[:3], (*result[:2], None), strides[:3], strict=True)
    )
    return offset, shown


def _init(operand: Operand, result: Shape, pointer: str, bias: bool = False) -> str:
    view = _view(operand, result, bias)
    assert view is not None, operand.map
    offset, (batch, head, row) = view
    start = f"{pointer} + {offset}" if offset else pointer
    return f"{{{start}, {batch}, {head}, {row}}}"
