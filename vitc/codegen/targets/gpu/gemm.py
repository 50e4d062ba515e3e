"""`linear` as a tensor-core GEMM; a cost model chooses the tile for each batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vitc.codegen.access import row_count, run_access
from vitc.codegen.kernel import KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.records import Choice, chosen
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.gpu.device import Architecture, Tuning
from vitc.codegen.targets.gpu.epilogue import (
    Epilogue,
    readable_step,
    refusal,
    render_epilogue,
    step_kinds,
    writable,
)
from vitc.codegen.targets.gpu.kernel import GpuKernel, layout
from vitc.codegen.targets.gpu.sources import RowSource, row_source, row_total
from vitc.ir.op import Op
from vitc.ir.types import DType, Shape, per_image
from vitc.ops import Fused, Linear, Pointwise


@dataclass(frozen=True)
class Tile:
    """A tile of vitc/gpu/gemm.cuh: rows, columns, warps along each, and stages. Depth is 64 bytes
    a row, or 128 where `deep`.
    """

    rows: int
    columns: int
    warps_m: int
    warps_n: int
    stages: int
    deep: bool = False

    @property
    def slice(self) -> int:
        return self.columns // self.warps_n

    @property
    def name(self) -> str:
        deep = "d" if self.deep else ""
        return f"{self.rows}x{self.columns}w{self.warps_m}x{self.warps_n}s{self.stages}{deep}"

    def depth(self, itemsize: int) -> int:
        return (128 if self.deep else 64) // itemsize

    def shared_bytes(self, arch: Architecture) -> int:
        stages = self.stages if arch.async_copies else 2
        return stages * (self.rows + self.columns) * (128 if self.deep else 64) + 4 * self.rows

    def cpp(self, arch: Architecture, dtype: DType) -> str:
        """Its C++ type."""
        stages, copies = (self.stages, "true") if arch.async_copies else (2, "false")
        depth = self.depth(dtype.itemsize)
        sizes = (self.rows, self.columns, depth, self.warps_m, self.warps_n, stages)
        return f"GemmTile<{arch.policy(dtype)}, {', '.join(map(str, sizes))}, {copies}>"


_HEADERS = ("gpu/gemm.cuh", "gpu/loader.h", "gpu/warp_tile.h")

# Writers of statistics take the tiles whose warps are as wide as the target's statistics.
TILES = (
    Tile(128, 128, 4, 2, 4),
    Tile(128, 128, 4, 2, 3, deep=True),
    Tile(128, 64, 4, 1, 4),
    Tile(128, 64, 2, 2, 4),
    Tile(64, 128, 2, 2, 4),
    Tile(64, 64, 4, 1, 4, deep=True),
    Tile(64, 64, 2, 2, 4),
    Tile(32, 64, 2, 1, 4, deep=True),
    Tile(32, 64, 1, 2, 4, deep=True),
    Tile(16, 64, 1, 1, 4, deep=True),
)


@dataclass(frozen=True)
class Config:
    """A tile's C++ type, the largest batch that it is for, and the function that launches it, with
    the header where it is.
    """

    tile: str
    up_to: int
    function: str = "gemm"
    header: str = "gpu/gemm.cuh"


@dataclass(frozen=True)
class GemmParams:
    """Parameters of templates/gpu/gemm.cu.jinja."""

    label: str
    m: str
    n: int
    k: int
    source: RowSource
    epilogue: Epilogue
    configs: tuple[Config, ...]


class GpuGemm(GpuKernel):
    """[M, K] x [N, K]^T with fused steps; the weight must be a constant."""

    name: ClassVar[str] = "gemm"
    ops: ClassVar[tuple[type[Op], ...]] = (Linear,)

    def __init__(self, tuning: Tuning, stats_width: int) -> None:
        super().__init__(tuning)
        self.stats_width = stats_width

    def refuses(self, site: Site) -> str | None:
        if not site.constant[1]:
            return "the weight depends on the input"
        if isinstance(site.op, Fused) and site.op.stats not in (0, self.stats_width):
            return f"statistics are emitted for slices of {self.stats_width} columns"
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return run_access(operand, site.inputs[0].shape) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=2)

    def render(self, call: KernelCall) -> Rendered:
        names = [chosen(self.choice(call, batch)) for batch in self.tuning.batches]
        spans = self.tuning.spans(names)
        return self.render_with(call, tuple(self.config(call.site, *span) for span in spans))

    def choice(self, call: KernelCall, batch: int) -> Choice:
        site = call.site
        op, result = _fused(site), site.results[0].shape
        n, k = per_image(result[-1:]), per_image(site.inputs[0].shape[-1:])
        arch, dtype, rows = self.tuning.arch, site.inputs[1].dtype, rows_at(result, batch)
        choice = tile_choice(arch, dtype, rows, n, k, op.stats, step_kinds(op))
        return replace(choice, problem=choice.problem + layout(call))

    def render_choice(self, call: KernelCall, name: str) -> Rendered:
        return self.render_with(call, (self.config(call.site, name, self.tuning.batches[-1]),))

    def config(self, site: Site, name: str, up_to: int) -> Config:
        """The configuration of a choice called `name`, for batches up to `up_to`."""
        arch, dtype = self.tuning.arch, site.inputs[1].dtype
        return Config(tiles_of(arch, dtype)[name].cpp(arch, dtype), up_to)

    def render_with(self, call: KernelCall, configs: tuple[Config, ...]) -> Rendered:
        """The kernel's text with these tiles, each up to a batch."""
        op, site = _fused(call.site), call.site
        result = site.results[0].shape
        n, k = per_image(result[-1:]), per_image(site.inputs[0].shape[-1:])
        params = GemmParams(
            label=f"gemm {n}x{k}",
            m=row_total(result),
            n=n,
            k=k,
            source=row_source(call.inputs[0], site.inputs[0].shape, loaded=site.inputs[1].dtype),
            epilogue=render_epilogue(op, call.inputs, call.outputs, result, constant=site.constant),
            configs=configs,
        )
        text = render("gpu/gemm.cu.jinja", params)
        return Rendered(text, "; ".join(config.tile for config in configs))


def _fused(site: Site) -> Fused:
    assert isinstance(site.op, Fused)
    return site.op


def choose_configs(tuning: Tuning, dtype: DType, result: Shape, k: int) -> tuple[Config, ...]:
    """What the model prefers for each batch of the tuning; neighbours that agree are one."""
    arch, n = tuning.arch, per_image(result[-1:])
    tiles = tiles_of(arch, dtype)
    names = [
        tile_choice(arch, dtype, rows_at(result, batch), n, k, 0, ()).names[0]
        for batch in tuning.batches
    ]
    return tuple(Config(tiles[name].cpp(arch, dtype), up_to) for name, up_to in tuning.spans(names))


def rows_at(result: Shape, batch: int) -> int:
    """Rows of a product's result at a batch."""
    rows, batched = row_count(result)
    return rows * (batch if batched else 1)


def tiles_of(arch: Architecture, dtype: DType) -> dict[str, Tile]:
    """The tiles that an architecture has shared memory for, by name."""
    # Three products a pair, or one by lanes, leave no registers for the fragments of a deep step.
    shallow = arch.policy(dtype) in ("Tf32x3", "Simt")
    tiles = (replace(tile, deep=False) for tile in TILES) if shallow else TILES
    return {tile.name: tile for tile in tiles if tile.shared_bytes(arch) <= arch.shared_bytes}


def tile_choice(
    arch: Architecture, dtype: DType, m: int, n: int, k: int, stats: int, steps: tuple[str, ...]
) -> Choice:
    """The tiles that can emit the statistics, by estimated time."""
    tiles = tiles_of(arch, dtype)
    fitting = [name for name, tile in tiles.items() if not stats or tile.slice == stats]
    fitting.sort(key=lambda name: cost(arch, dtype, tiles[name], m, n, k))
    problem = f"{dtype.short} {n}x{k} [{','.join(steps)}] stats={stats}"
    return Choice(arch.name, "gemm", _HEADERS, problem, m, tuple(fitting))


def cost(arch: Architecture, dtype: DType, tile: Tile, m: int, n: int, k: int) -> float:
    """Relative time: waves of blocks, each as long as its slower side, copies or arithmetic.

    A block's step of depth d multiplies rows x columns x d and copies (rows + columns) x d; the
    ratio of the two rates is that of tensor cores to L2 per multiprocessor. Filling the pipeline
    and the epilogue cost a block some steps more.
    """
    blocks = -(-m // tile.rows) * -(-n // tile.columns)
    together = min(2, arch.shared_bytes // tile.shared_bytes(arch))
    waves = -(-blocks // (arch.multiprocessors * together)) * together
    depth = tile.depth(dtype.itemsize)
    steps = -(-k // depth)
    # Per multiprocessor and clock: 1024 multiply-adds of 16 bits, 32 bytes from L2. Small warp
    # tiles read shared memory more often per multiply-add.
    warp = tile.rows // tile.warps_m * tile.slice / (tile.rows // tile.warps_m + tile.slice)
    arithmetic = tile.rows * tile.columns * depth / 1024 * (1 + 16 / warp)
    copies = (tile.rows + tile.columns) * depth * dtype.itemsize / 32
    overhead = tile.stages * 200 + tile.rows * tile.columns / 8
    return waves * (steps * max(arithmetic, copies) + overhead)


def cast(stored: DType, wanted: DType) -> Packing | None:
    """A conversion of a constant, or None when it has the dtype already."""
    if stored is wanted:
        return None
    return Packing(wanted.short, lambda b, value: b.emit(Pointwise(dtype=wanted), value))
