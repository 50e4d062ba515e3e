"""Blocks of the attention kernel: how many keys at once, warps a head, heads a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vitc.codegen.targets.gpu.device import Architecture

ONE_PASS_KEYS = 208  # scores of a row that fit the registers of its lanes, three blocks beside
ONLINE_KEYS = (64, 48, 32, 16)  # a block of the online form, best first
NARROW_KEYS = 96  # the same where values are narrow and this divides the keys
THREE_PRODUCTS_KEYS = 32  # the same for Tf32x3, whose products take registers of their own
QUARTER_REGISTERS = 16384  # of a quarter of a multiprocessor
BLOCK_WARPS = 4  # of a block, which several short sequences share


@dataclass(frozen=True)
class AttentionTile:
    """Template arguments of AttentionTile in vitc/gpu/attention.cuh.

    extra: bytes a group needs beside its tiles, for labels and norms, at most. resident: blocks
    that a multiprocessor must have registers for.
    """

    policy: str
    itemsize: int
    queries: int
    keys: int
    depth: int
    value: int
    block_keys: int
    warps: int
    groups: int
    async_copies: bool
    extra: int = 0
    resident: int = 1

    @property
    def name(self) -> str:
        return f"{self.warps}x{self.groups}k{self.block_keys}"

    @property
    def cpp(self) -> str:
        sizes = (self.queries, self.keys, self.depth, self.value, self.block_keys)
        numbers = ", ".join(map(str, (*sizes, self.warps, self.groups, self.resident)))
        return f"{self.policy}, {numbers}, {'true' if self.async_copies else 'false'}"

    @property
    def shared(self) -> int:
        """Bytes of shared memory, as GroupMemory counts them (a row is at least 32 bytes)."""
        stages = 1 if self.keys <= self.block_keys else 2
        row = -(-(self.depth * self.itemsize) // 32) * 32
        value = -(-self.value // 16) * 16 * self.itemsize
        tiles = 16 * self.warps * row + stages * self.block_keys * (row + value)
        return self.groups * (-(-(tiles + self.extra) // 128) * 128)


@dataclass(frozen=True)
class Problem:
    """One attention as its tiles see it; labels, norms: whether those lie in shared memory."""

    queries: int
    keys: int
    depth: int
    value: int
    labels: bool
    norms: bool


def tiles_of(
    arch: Architecture, policy: str, itemsize: int, problem: Problem
) -> dict[str, AttentionTile]:
    """The tiles that fit, by name, best first: one pass where registers and shared memory allow it,
    else the widest online form.
    """
    found: dict[str, AttentionTile] = {}
    for warps, groups in _groupings(problem.queries):
        for block in _blocks(policy, problem):
            labels = 4 * (problem.keys + 15) if problem.labels else 0
            norms = 4 * (16 * warps + block) if problem.norms else 0
            tile = AttentionTile(
                policy=policy,
                itemsize=itemsize,
                queries=problem.queries,
                keys=problem.keys,
                depth=problem.depth,
                value=problem.value,
                block_keys=block,
                warps=warps,
                groups=groups,
                async_copies=arch.async_copies,
                extra=labels + norms,
            )
            if tile.shared <= arch.shared_bytes:
                found.setdefault(tile.name, replace(tile, resident=_resident(tile)))
    return found


def _resident(tile: AttentionTile) -> int:
    """Blocks that fit the registers of a multiprocessor when a thread takes what it needs: its
    scores and results, and in the online form the addresses of its copies. ptxas left alone takes
    more, and fewer blocks hide less latency.
    """
    if tile.itemsize > 2 or not tile.async_copies:
        return 1
    online = tile.keys > tile.block_keys
    shared = 8 if tile.groups > 1 or (online and tile.extra) else 0
    rest = (60 if online else 32) + shared
    registers = tile.block_keys // 2 + -(-tile.value // 16) * 8 + rest
    # Each quarter of a multiprocessor runs every fourth warp; a warp gets multiples of 8.
    warps = QUARTER_REGISTERS // (32 * (-(-registers // 8) * 8)) * 4
    return max(1, warps // (tile.warps * tile.groups))


def _groupings(queries: int) -> Iterator[tuple[int, int]]:
    """(warps a head, heads a block), best first: as few warps as need no more blocks."""
    tiles = -(-queries // 16)
    blocks = -(-tiles // BLOCK_WARPS)
    best = -(-tiles // blocks)
    yield best, BLOCK_WARPS // best
    yield from ((warps, 1) for warps in (4, 2, 1) if warps <= best)


def _blocks(policy: str, problem: Problem) -> list[int]:
    """Numbers of keys that a block may hold at once, best first."""
    most = THREE_PRODUCTS_KEYS if policy == "Tf32x3" else ONE_PASS_KEYS
    first = -(-problem.keys // 16) * 16
    narrow = problem.value <= 32 and problem.keys % NARROW_KEYS == 0
    blocks = (first, *((NARROW_KEYS,) if narrow else ()), *ONLINE_KEYS)
    return [block for block in blocks if block <= most]
