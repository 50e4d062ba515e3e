"""Attention over strided heads, straight from and to the products beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.kernel import KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.targets.gpu.epilogue import C_TYPES, float_text
from vitc.codegen.targets.gpu.gemm import cast
from vitc.codegen.targets.gpu.kernel import GpuKernel
from vitc.ir.builder import Builder, Value
from vitc.ir.op import Op
from vitc.ir.types import Batch, Shape, per_image
from vitc.ops import Attention

ONE_PASS_KEYS = 256  # scores of a row that fit the registers of its lanes
ONLINE_KEYS = (64, 48, 32, 16)  # a block of the online form, best first
THREE_PRODUCTS_KEYS = 48  # the same two for Tf32x3, whose products take registers of their own
WARPS = (4, 2, 1)


@dataclass(frozen=True)
class Heads:
    """A StridedHeads of vitc/gpu/attention.cuh: strides in elements, and the base pointer."""

    type: str
    batch: int
    row: int
    head: int
    start: str


@dataclass(frozen=True)
class BiasTable:
    """A TableBias: [heads, queries, stride] where each row holds `keys` numbers."""

    type: str
    heads: int
    rows: int
    columns: int
    stride: int
    start: str


@dataclass(frozen=True)
class AttentionParams:
    """Parameters of templates/gpu/attention.cu.jinja."""

    label: str
    tile: str
    heads: int
    q: Heads
    k: Heads
    v: Heads
    out: Heads
    bias: BiasTable | None
    scale: str


class GpuAttention(GpuKernel):
    """softmax(scale q k^T + bias) v; one pass for short sequences, online softmax for long ones."""

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
        kinds = {C_TYPES.get(type_) for type_ in (dtype, *(t.dtype for t in stored))}
        if len(kinds) > 1 or None in kinds:
            return "q, k, v and the result must be stored in one floating dtype"
        chunk = 16 // dtype.itemsize
        depth, value = (per_image(site.inputs[i].shape[3:]) for i in (0, 2))
        if depth % chunk or value % chunk:
            return f"head dimensions {depth} and {value} are no multiples of {chunk}"
        if op.bias and (not site.constant[3] or len(site.inputs[3].shape) < 3):
            return "the bias must be a constant [heads, queries, keys]"
        if self._tile(site) is None:
            arch = self.tuning.arch
            return f"no tile fits the {arch.shared_bytes >> 10} KiB of shared memory of {arch.name}"
        return None

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return index < 3 and _heads(operand, site.results[0].shape, "") is not None

    def writes(self, site: Site, operand: Operand) -> bool:
        return _heads(operand, site.results[0].shape, "") is not None

    def packing(self, site: Site, index: int) -> Packing | None:
        if index < 3:
            return cast(site.inputs[index].dtype, site.results[0].dtype)
        return _padded_rows(site)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Attention)
        result, tile = site.results[0].shape, self._tile(site)
        assert tile is not None, self.tuning.arch
        count = len(call.inputs)
        views: list[Heads] = []
        for i, operand in enumerate((*call.inputs[:3], call.outputs[0])):
            pointer = _argument(operand, i if i < 3 else count, constant=i < 3)
            view = _heads(operand, result, pointer)
            assert view is not None, operand.map
            views.append(view)
        params = AttentionParams(
            label=f"attention {tile.queries}x{tile.keys}",
            tile=tile.cpp,
            heads=per_image(result[1:2]),
            q=views[0],
            k=views[1],
            v=views[2],
            out=views[3],
            bias=_bias(call, site) if op.bias else None,
            scale=float_text(op.scale),
        )
        return Rendered(render("gpu/attention.cu.jinja", params), tile.cpp)

    def _tile(self, site: Site) -> _Tile | None:
        """One pass where registers and shared memory allow it, else the widest online form."""
        q, k, v = site.inputs[:3]
        arch, dtype = self.tuning.arch, site.results[0].dtype
        policy, keys = arch.policy(dtype), per_image(k.shape[2:3])
        most = THREE_PRODUCTS_KEYS if policy == "Tf32x3" else ONE_PASS_KEYS
        blocks = [block for block in ONLINE_KEYS if block <= most]
        if keys <= most:
            blocks.insert(0, -(-keys // 16) * 16)
        tiles = (
            _Tile(
                policy=policy,
                itemsize=dtype.itemsize,
                queries=per_image(q.shape[2:3]),
                keys=keys,
                depth=per_image(q.shape[3:]),
                value=per_image(v.shape[3:]),
                block_keys=block,
                warps=warps,
                async_copies=arch.async_copies,
            )
            for warps in WARPS
            for block in blocks
        )
        return next((tile for tile in tiles if tile.shared <= arch.shared_bytes), None)


@dataclass(frozen=True)
class _Tile:
    policy: str
    itemsize: int
    queries: int
    keys: int
    depth: int
    value: int
    block_keys: int
    warps: int
    async_copies: bool

    @property
    def cpp(self) -> str:
        """AttentionTile's template arguments."""
        sizes = (self.queries, self.keys, self.depth, self.value, self.block_keys, self.warps)
        copies = "true" if self.async_copies else "false"
        return f"{self.policy}, {', '.join(map(str, sizes))}, {copies}"

    @property
    def shared(self) -> int:
        """Bytes of shared memory, as AttentionTile counts them (a row is at least 32 bytes)."""
        stages = 1 if self.keys <= self.block_keys else 2
        row = -(-(self.depth * self.itemsize) // 64) * 64
        value = -(-(self.value * self.itemsize) // 64) * 64
        return 16 * self.warps * row + stages * self.block_keys * (row + value)


def _argument(operand: Operand, index: int, constant: bool) -> str:
    const = "const " if constant else ""
    return f"arg<{const}{C_TYPES[operand.type.dtype]}>(call, {index})"


def _heads(operand: Operand, result: Shape, pointer: str) -> Heads | None:
    """The strided view of a [B, H, N, d] operand, or None where its rows are not dense, aligned."""
    affine = operand.map.strides()
    shape = operand.map.result
    if affine is None or len(shape) != 4:
        return None
    offset, strides = affine
    chunk = 16 // operand.type.dtype.itemsize
    shared = [dim == 1 and whole != 1 for dim, whole in zip(shape[:2], result[:2], strict=True)]
    batch, head = (0 if same else s for same, s in zip(shared, strides[:2], strict=True))
    if strides[3] != 1 or any(s % chunk for s in (offset, batch, head, strides[2])):
        return None
    start = f"{pointer} + {offset}" if offset else pointer
    return Heads(C_TYPES[operand.type.dtype], batch, strides[2], head, start)


def _padded_rows(site: Site) -> Packing:
    """[..., H, Nq, Nk] to rows padded to whole mma steps of 16 keys, broadcast over heads."""
    q, k = site.inputs[:2]
    heads = per_image(site.results[0].shape[1:2])
    queries, keys = per_image(q.shape[2:3]), per_image(k.shape[2:3])

    def build(b: Builder, bias: Value) -> Value:
        shape = bias.shape[-3:]
        assert not any(isinstance(dim, Batch) for dim in shape)
        bias = b.expand(b.reshape(bias, shape), (heads, queries, keys))
        return b.pad(bias, 2, 0, -keys % 16) if keys % 16 else bias

    return Packing("rows16", build)


def _bias(call: KernelCall, site: Site) -> BiasTable:
    heads, rows, stride = (per_image((dim,)) for dim in call.inputs[3].type.shape)
    columns = per_image(site.inputs[1].shape[2:3])
    type_ = C_TYPES[call.inputs[3].type.dtype]
    return BiasTable(type_, heads, rows, columns, stride, f"arg<const {type_}>(call, 3)")
