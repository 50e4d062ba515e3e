"""Attention on Hopper: copies by tensor maps, warpgroup products (vitc/gpu/sm90/README.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.kernel import KernelCall, Operand, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.targets.gpu.epilogue import C_TYPES, float_text
from vitc.codegen.targets.gpu.kernel import GpuKernel
from vitc.ir.op import Op
from vitc.ir.types import Batch, DType, Shape, per_image
from vitc.ops import Attention

_CHUNK = 8  # elements of 16 bytes
_DEEPEST = 128  # head dimension
_DEEPEST_OF_THREE = 80  # with three consumer warpgroups
_PANEL = 64  # columns of a copied tile
_ROWS = 64  # queries of a tile


@dataclass(frozen=True)
class HeadView:
    """Where heads lie: strides in elements, and the base pointer."""

    start: str
    batch: int
    head: int
    row: int


@dataclass(frozen=True)
class Sm90AttentionParams:
    """Parameters of templates/gpu/sm90_attention.cu.jinja. batch: images or windows, in C++. tiles:
    C++ arguments of each tile, and the largest batch that it is for.
    """

    label: str
    type: str
    tiles: list[tuple[str, int]]
    batch: str
    heads: int
    q: HeadView
    k: HeadView
    v: HeadView
    out: HeadView
    scale: str


@dataclass(frozen=True)
class Tile:
    """AttentionTile of vitc/gpu/sm90/attention_tile.h."""

    queries: int
    keys: int
    depth: int
    block_keys: int
    stages: int
    query_slots: int
    consumers: int  # warpgroups that multiply

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        row = -(-self.depth // _PANEL) * 128
        barriers = 8 * (4 * self.stages + 2 * self.query_slots)
        return row * (2 * self.stages * self.block_keys + self.query_slots * 64) + barriers

    @property
    def cpp(self) -> str:
        sizes = (self.queries, self.keys, self.depth, self.block_keys, self.stages)
        return ", ".join(map(str, (*sizes, self.query_slots, self.consumers)))


class Sm90Attention(GpuKernel):
    """softmax(scale q k^T) v of float16 or bfloat16, q, k and v in evenly spaced rows."""

    name: ClassVar[str] = "sm90_attention"
    ops: ClassVar[tuple[type[Op], ...]] = (Attention,)

    def refuses(self, site: Site) -> str | None:
        op = site.op
        assert isinstance(op, Attention)
        if op.steps or op.stats or op.main_operands != 3 or op.cosine is not None:
            return "it has no bias, mask, factors, cosine form and fused steps"
        types = (*site.inputs[:3], *site.results)
        if {t.dtype for t in types} not in ({DType.FLOAT16}, {DType.BFLOAT16}):
            return "q, k, v and the result must all be float16 or all bfloat16"
        if any(site.constant[:3]) or len({t.shape[:2] for t in types}) > 1:
            return "q, k and v must be activations with the same heads"
        depth, value = (per_image(site.inputs[i].shape[3:]) for i in (0, 2))
        if depth != value or depth % _CHUNK or depth > _DEEPEST:
            return f"head dimensions {depth} and {value}: it takes equal multiples of 8 up to 128"
        if op.scale <= 0:
            return "the scale must be positive"
        return None

    def declines(self, site: Site, operands: tuple[Operand | None, ...]) -> str | None:
        for operand in operands[:3]:
            if operand is not None and _view(operand, "") is None:
                return "copies take evenly spaced, 16-byte aligned rows"
        return super().declines(site, operands)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return index < 3 and _view(operand, "") is not None

    def writes(self, site: Site, operand: Operand) -> bool:
        return _view(operand, "") is not None

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Attention)
        result = site.results[0].shape
        type_ = C_TYPES[site.results[0].dtype]
        processors = self.tuning.arch.multiprocessors
        chosen = [choose_tile(site, batch, processors) for batch in self.tuning.batches]
        tiles = self.tuning.spans([tile.cpp for tile in chosen])
        views: list[HeadView] = []
        for i, operand in enumerate((*call.inputs[:3], call.outputs[0])):
            const = "const " if i < 3 else ""
            view = _view(operand, f"arg<{const}{type_}>(call, {i})")
            assert view is not None, operand.map
            views.append(view)
        params = Sm90AttentionParams(
            label=f"attention {chosen[0].queries}x{chosen[0].keys}",
            type=type_,
            tiles=tiles,
            batch=_count(result),
            heads=per_image(result[1:2]),
            q=views[0],
            k=views[1],
            v=views[2],
            out=views[3],
            scale=float_text(op.scale),
        )
        names = "; ".join(name for name, _ in tiles)
        return Rendered(render("gpu/sm90_attention.cu.jinja", params), names)


def choose_tile(site: Site, batch: int, multiprocessors: int) -> Tile:
    """Two consumer warpgroups or three. A warpgroup takes a tile of queries at a time; three hide
    more of each other's latencies, but have registers for smaller blocks of keys, so that a round
    of theirs takes about 1.4 times as long. Where one block holds all keys of either, three, and
    two beyond a head dimension of 80. (As measured: benchmarks/h100/log.md.)
    """
    keys, depth = per_image(site.inputs[1].shape[2:3]), per_image(site.inputs[0].shape[3:])
    two, three = (_tile(site, consumers) for consumers in (2, 3))
    if depth > _DEEPEST_OF_THREE:
        return two
    tiles = _heads(site, batch) * -(-two.queries // _ROWS)
    rounds = [-(-tiles // (multiprocessors * tile.consumers)) for tile in (two, three)]
    return three if keys <= three.block_keys or 1.4 * rounds[1] < rounds[0] else two


def _tile(site: Site, consumers: int) -> Tile:
    """Even blocks of as many keys as a thread has registers for the scores of. As many stages as
    shared memory has room for, up to those of two heads of two blocks, else three, or five for
    three warpgroups.
    """
    queries, keys = (per_image(site.inputs[i].shape[2:3]) for i in (0, 1))
    depth = per_image(site.inputs[0].shape[3:])
    most = {2: (208, 144), 3: (112, 96)}[consumers][depth > _PANEL]
    blocks = -(-keys // most)
    block_keys = -(-keys // (16 * blocks)) * 16
    most_stages = 4 if blocks == 2 else 3 if consumers == 2 else 5
    tiles = (
        Tile(queries, keys, depth, block_keys, stages, slots, consumers)
        for stages in range(most_stages, 0, -1)
        for slots in (2 * consumers, consumers)
    )
    return next(tile for tile in tiles if tile.shared <= 227 << 10)


def _heads(site: Site, batch: int) -> int:
    """Heads of all images (or windows)."""
    first, heads = site.results[0].shape[:2]
    return per_image((heads,)) * (first.count * batch if isinstance(first, Batch) else first)


def _count(result: Shape) -> str:
    first = result[0]
    return f"int(call.batch) * {first.count}" if isinstance(first, Batch) else str(first)


def _view(operand: Operand, pointer: str) -> HeadView | None:
    """The strided view of a [B, H, N, d] operand, or None where a tensor map has no such form."""
    affine = operand.map.strides()
    if affine is None or len(operand.map.result) != 4:
        return None
    offset, (batch, head, row, column) = affine
    # A dimension of 1 may have any stride, which a tensor map wants to be positive.
    dims = operand.map.result
    head = row if dims[1] == 1 else head
    row = head if dims[2] == 1 and row <= 0 else row
    strides = (batch, head, row)
    if column != 1 or offset % _CHUNK or any(s <= 0 or s % _CHUNK for s in strides):
        return None
    return HeadView(f"{pointer} + {offset}" if offset else pointer, batch, head, row)
