"""The tiles of Hopper's GEMM; one is chosen by records of measured times, else by a model."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from vitc.codegen.records import Choice, fastest
from vitc.ir.types import DType

_HEADERS = ("gpu/sm90/gemm.cuh", "gpu/sm90/split_gemm.cuh", "gpu/sm90/tile.h")
_SHARED_BYTES = 227 << 10  # of a block
_INTO_SHARED = 48.7  # bytes a clock


@dataclass(frozen=True)
class Problem:
    """A product as tiles are chosen for it.

    m, n, k: rows, columns, depth. steps: kinds of the fused steps in order. stats: width of the
    slices whose sums of squares are emitted, 0 for none. bias: whether the first operand of a step
    is the same for all rows.
    """

    dtype: DType
    m: int
    n: int
    k: int
    steps: tuple[str, ...] = ()
    stats: int = 0
    bias: bool = True

    @property
    def key(self) -> str:
        """The problem without its rows, as records name it."""
        steps = ",".join(self.steps)
        return f"{self.dtype.short} {self.n}x{self.k} [{steps}] stats={self.stats}"


@dataclass(frozen=True)
class LargeTile:
    """A tile of vitc/gpu/sm90/gemm.cuh: rows and columns of a consumer warpgroup, stages, whether
    two warpgroups have a tile each (ping-pong), blocks of a cluster, consumer warpgroups, and
    whether operands of every epilogue are brought to L2 ahead, or only those of the last.
    """

    rows: int
    columns: int
    stages: int
    ping_pong: bool
    cluster: int = 1
    consumers: int = 2
    fetch: bool = True

    @property
    def tile_rows(self) -> int:
        return self.rows if self.ping_pong else self.consumers * self.rows

    @property
    def name(self) -> str:
        kind = "pp" if self.ping_pong else "co"
        return f"{kind}{self.tile_rows}x{self.columns}c{self.cluster}{'' if self.fetch else 'n'}"

    function = "gemm"

    def cpp(self, type_: str, backwards: bool) -> str:
        sizes = f"{self.rows}, {self.columns}, {self.stages}, {self.consumers}"
        ping_pong, fetch, back = (
            str(flag).lower() for flag in (self.ping_pong, self.fetch, backwards)
        )
        return f"GemmTile<{type_}, {sizes}, {ping_pong}, {self.cluster}, {fetch}, {back}>"

    def takes(self, problem: Problem) -> bool:
        stage = (self.tile_rows + self.columns) * 128
        assert self.stages * stage + 2048 <= _SHARED_BYTES
        if problem.stats and self.columns % problem.stats:
            return False  # a slice is one tile's
        terms = sum(step in _WITH_OPERAND for step in problem.steps)
        operands = terms > (1 if problem.bias else 0)
        if not operands and not self.fetch:
            return False  # the same kernel as that with fetch
        if operands and "row_rstd" in problem.steps:
            return self.consumers == 3  # else those who fetch both have but 24 registers
        # Beside 192 sums of a thread and a residual in flight there are no registers for a gate,
        # columns past the end or the numbers of wide slices.
        full = self.rows * self.columns == 128 * 192
        whole = problem.n % self.columns == 0 and problem.stats in (0, 32)
        return not (full and operands) or (terms <= 2 and whole)


@dataclass(frozen=True)
class SplitTile:
    """A tile of vitc/gpu/sm90/split_gemm.cuh: columns, stages, parts of K, and warpgroups, each of
    which has 64 rows.
    """

    columns: int
    stages: int
    split: int
    groups: int = 1

    function = "split_gemm"

    @property
    def tile_rows(self) -> int:
        return 64 * self.groups

    @property
    def name(self) -> str:
        return f"split{self.split}_{self.tile_rows}x{self.columns}s{self.stages}"

    @property
    def sent_bytes(self) -> int:
        """Sums that a block receives from the others."""
        return (self.split - 1) * self._share * self.columns * 4

    @property
    def shared_bytes(self) -> int:
        """Those of `SplitTile::kSharedBytes`."""
        stage = (self.tile_rows + self.columns) * 128 + 16
        return ceil(self.sent_bytes / 1024) * 1024 + self.stages * stage + 8 + (self._share + 1) * 4

    @property
    def _share(self) -> int:
        return ceil(self.tile_rows / self.split)

    @property
    def shares(self) -> bool:
        """Whether two blocks fit a multiprocessor, one of the next kernel beside its own, say."""
        return 2 * (self.shared_bytes + 1024) <= _SHARED_BYTES + 1024

    def cpp(self, type_: str, backwards: bool) -> str:  # one tile a block: there is no order
        del backwards
        return f"SplitTile<{type_}, {self.columns}, {self.stages}, {self.split}, {self.groups}>"

    def takes(self, problem: Problem) -> bool:
        assert self.shared_bytes <= _SHARED_BYTES
        aligned = not problem.stats or self.columns % problem.stats == 0
        return aligned and -(-problem.k // 64) >= self.split


_WITH_OPERAND = frozenset(("add", "sub", "rsub", "mul", "div", "rdiv", "maximum", "minimum"))

Tile = LargeTile | SplitTile
TILES: tuple[Tile, ...] = (
    LargeTile(128, 192, 5, True),
    LargeTile(128, 192, 5, True, fetch=False),
    LargeTile(128, 192, 5, True, 2),
    LargeTile(128, 192, 5, True, 2, fetch=False),
    LargeTile(128, 160, 6, True),
    LargeTile(128, 160, 6, True, 2),
    LargeTile(128, 128, 6, True),
    LargeTile(128, 128, 6, True, 2),
    LargeTile(128, 96, 7, True),
    LargeTile(64, 192, 6, True),
    LargeTile(64, 128, 8, True),
    LargeTile(64, 96, 10, True),
    LargeTile(192, 128, 5, True),
    LargeTile(192, 128, 5, True, 2),
    LargeTile(192, 96, 6, True),
    LargeTile(64, 256, 4, False),
    LargeTile(64, 192, 5, False),
    LargeTile(64, 160, 6, False),
    LargeTile(64, 128, 6, False),
    LargeTile(64, 96, 7, False),
    LargeTile(128, 128, 4, False),
    LargeTile(64, 192, 4, False, 1, 3),
    LargeTile(64, 128, 5, False, 1, 3),
    LargeTile(64, 96, 5, False, 1, 3),
    SplitTile(64, 12, 1),
    SplitTile(64, 12, 2),
    SplitTile(96, 10, 1),
    SplitTile(96, 10, 2),
    SplitTile(128, 8, 1),
    SplitTile(128, 8, 3),
    SplitTile(64, 6, 1, 2),
    SplitTile(96, 6, 1, 2),
    SplitTile(128, 6, 2, 2),
    SplitTile(32, 8, 1),
    SplitTile(32, 8, 2),
    SplitTile(64, 6, 1),
    SplitTile(64, 6, 2),
    SplitTile(64, 12, 4),
    SplitTile(64, 8, 2, 2),
    SplitTile(64, 8, 4, 2),
    SplitTile(96, 7, 2, 2),
    SplitTile(96, 6, 4, 2),
)


def choose_tile(problem: Problem, multiprocessors: int) -> Tile:
    """The tile measured fastest for the problem, or else the one with the least estimated time."""
    tiles = {tile.name: tile for tile in TILES if tile.takes(problem)}
    choice = tile_choice(problem, multiprocessors)
    return next(tiles[name] for name in (*fastest(choice), *choice.names) if name in tiles)


def tile_choice(problem: Problem, multiprocessors: int) -> Choice:
    """The tiles that may win, by estimated time: none far behind the first, fourteen at most.
    Behind them those that share a multiprocessor, which the estimate was not fitted to.
    """
    times = {t: cost(t, problem, multiprocessors) for t in TILES if t.takes(problem)}
    order = sorted(times, key=lambda tile: times[tile])
    alone = [tile for tile in order if not _shares(tile)]
    reach = (1.7 if problem.m < 2000 else 1.2) * times[alone[0]]
    offered = (*alone[: 14 if problem.m < 4000 else 8], *filter(_shares, order))
    names = tuple(tile.name for tile in offered if times[tile] <= reach)
    return Choice("sm_90a", "sm90_gemm", _HEADERS, problem.key, problem.m, names)


def tile_named(name: str) -> Tile:
    """Raises StopIteration for an unknown name."""
    return next(tile for tile in TILES if tile.name == name)


def _shares(tile: Tile) -> bool:
    return isinstance(tile, SplitTile) and tile.shares


def cost(tile: Tile, problem: Problem, multiprocessors: int) -> float:
    """Estimated clocks; the constants are fitted to the records (benchmarks/h100/log.md).

    Per multiprocessor and clock: 2048 multiply-adds, about 49 bytes into shared memory, of which
    multicast saves less than half. The first rows of A come from memory. An epilogue costs by its
    elements, more where columns are left over; ping-pong hides it behind the other warpgroup's
    products.
    """
    rows, columns = tile.tile_rows, tile.columns
    epilogue = rows * columns / 128 * 6.47 * (1.6 if problem.n % columns else 1)
    tiles_m, tiles_n = ceil(problem.m / rows), ceil(problem.n / columns)
    steps = ceil(problem.k / 64)
    if isinstance(tile, SplitTile):
        return _split_cost(tile, steps, tiles_m * tiles_n, epilogue, multiprocessors)
    weights = columns * (0.567 + 0.433 / tile.cluster)
    main = steps * max(rows * columns * 64 / 2048, (rows + weights) * 128 / _INTO_SHARED)
    turns = ceil(ceil(tiles_m / tile.cluster) * tiles_n / (multiprocessors // tile.cluster))
    start = 10.5 * rows + 1772 * (tile.cluster - 1)
    if tile.ping_pong:
        return start + turns * max(main, (main + epilogue) / 2) + 5.16 * epilogue
    return start + turns * (main + 7.01 * epilogue / tile.consumers)


def _split_cost(
    tile: SplitTile, steps: int, tiles: int, epilogue: float, multiprocessors: int
) -> float:
    """That of a split tile. Clusters of more than two blocks do not fill the groups of
    multiprocessors that they lie in.
    """
    rows, columns = tile.tile_rows, tile.columns
    step = max(rows * columns * 64 / 2048, (rows + columns) * 128 / _INTO_SHARED)
    clusters = (
        multiprocessors // tile.split if tile.split < 3 else multiprocessors * 0.839 // tile.split
    )
    together = 2 if tile.shares else 1
    waves = ceil(tiles / (clusters * together))
    shared = min(together, ceil(tiles * tile.split / multiprocessors)) if tile.shares else 1.148
    exchange = 4485 if tile.split > 1 else 0
    return waves * (
        ceil(steps / tile.split) * step * shared
        + 9.52 * epilogue / tile.groups / tile.split
        + exchange
    )
