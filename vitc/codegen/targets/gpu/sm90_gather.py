"""`linear` over gathered rows on Hopper: patch embeddings (vitc/gpu/sm90/gather_gemm.cuh)."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import ClassVar

from vitc.codegen.kernel import KernelCall, Operand, Site
from vitc.codegen.records import Choice
from vitc.codegen.targets.gpu.epilogue import C_TYPES
from vitc.codegen.targets.gpu.gemm import Config, GpuGemm
from vitc.codegen.targets.gpu.sm90_gemm import COLUMN_GROUP, STATS_WIDTHS, problem
from vitc.codegen.targets.gpu.sm90_tiles import TILES, LargeTile, Problem
from vitc.codegen.targets.gpu.sources import row_source
from vitc.ir.types import DType, per_image
from vitc.ops import Fused

_HEADERS = ("gpu/sm90/gather_gemm.cuh", "gpu/sm90/gather.h", "gpu/sm90/gemm.cuh", "gpu/sm90/tile.h")
# The producer has registers for twelve rows of a lane.
_TILES = {
    tile.name: tile
    for tile in TILES
    if isinstance(tile, LargeTile)
    and (tile.cluster, tile.consumers, tile.fetch) == (1, 2, True)
    and tile.tile_rows <= 192
}
_MOST = 6  # tiles that a tuner tries beside the portable ones


class Sm90GatherGemm(GpuGemm):
    """Tiles of Hopper's own, and behind them the portable GEMM's for the tuner. The first by the
    cost model was the faster on the card for patches of all sizes measured; other rows, such as
    LeViT's subsampled queries, were not measured (benchmarks/h100/log.md).
    """

    name: ClassVar[str] = "gather_gemm"

    def refuses(self, site: Site) -> str | None:
        op, a, w = site.op, *site.inputs[:2]
        assert isinstance(op, Fused)
        if w.dtype not in (DType.FLOAT16, DType.BFLOAT16) or a.dtype is not w.dtype:
            return f"multiplies float16 or bfloat16, not {a.dtype.value} with {w.dtype.value}"
        if per_image(w.shape[:1]) % COLUMN_GROUP:
            return f"W must have whole groups of {COLUMN_GROUP} rows, it has {w.shape[0]}"
        if any(step.scales_rows for step in op.steps):
            return "it scales no rows"
        return super().refuses(site)

    def declines(self, site: Site, operands: tuple[Operand | None, ...]) -> str | None:
        a = operands[0]
        if a is None or not self.reads(site, 0, a) or not row_source(a, a.map.result).vector:
            return "rows are gathered in whole, aligned chunks of 16 bytes"
        if row_source(a, a.map.result).inner:
            return "a row padded within takes registers that its producer does not have"
        return super().declines(site, operands)

    def choice(self, call: KernelCall, batch: int) -> Choice:
        portable, wanted = super().choice(call, batch), problem(call.site, batch)
        tiles = sorted(
            (tile for tile in _TILES.values() if _takes(tile, wanted)),
            key=lambda tile: cost(tile, wanted, self.tuning.arch.multiprocessors),
        )
        names = (*(tile.name for tile in tiles[:_MOST]), *portable.names)
        return replace(
            portable,
            kernel=self.name,
            headers=(*portable.headers, *_HEADERS),
            names=names,
        )

    def config(self, site: Site, name: str, up_to: int) -> Config:
        if name not in _TILES:
            return super().config(site, name, up_to)
        tile, op = _TILES[name], site.op
        assert isinstance(op, Fused)
        ping_pong = str(tile.ping_pong).lower()
        sizes = (tile.rows, tile.columns, tile.stages, ping_pong, op.stats or STATS_WIDTHS[0])
        return Config(
            f"sm90::GatherTile<{C_TYPES[site.inputs[1].dtype]}, {', '.join(map(str, sizes))}>",
            up_to,
            "sm90::gather_gemm",
            "gpu/sm90/gather_gemm.cuh",
        )


def _takes(tile: LargeTile, problem: Problem) -> bool:
    # 24576 sums of a ping-pong tile and a row's statistics spill 4 bytes (nvcc 13.0).
    spills = problem.stats and tile.ping_pong and tile.rows * tile.columns == 128 * 192
    return tile.takes(problem) and not spills


def cost(tile: LargeTile, problem: Problem, multiprocessors: int) -> float:
    """Estimated clocks of the steps, which are those of the copies: as many for a row and a column
    of a tile as fit benchmarks/h100/patches.json, at 1.7 GHz.
    """
    tiles = ceil(problem.m / tile.tile_rows) * ceil(problem.n / tile.columns)
    step = 10.6 * tile.tile_rows + 3.74 * tile.columns - 204
    return ceil(tiles / multiprocessors) * ceil(problem.k / 64) * step
