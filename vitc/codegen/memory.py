"""The memory plan: where each intermediate tensor lives in the workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitc.codegen.kernel import KernelCall

ALIGNMENT = 128  # bytes: a line of a GPU's L2 cache


@dataclass(frozen=True)
class Buffer:
    """Values that share memory, since each but the first overwrites its predecessor in place.

    offset, bytes: in the workspace, at the maximum batch. first, last: calls between which it is
    live, both included.
    """

    values: tuple[str, ...]
    offset: int
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """All buffers; `bytes` is the workspace, `lower_bound` what any plan needs at least:
    the largest sum of the sizes of buffers that are live at once.
    """

    buffers: tuple[Buffer, ...]
    bytes: int
    lower_bound: int

    def offset_of(self) -> dict[str, int]:
        """Offset by value."""
        return {value: buffer.offset for buffer in self.buffers for value in buffer.values}


@dataclass
class _Live:
    values: list[str]
    bytes: int
    first: int
    last: int


def plan_memory(calls: Sequence[KernelCall], outputs: Sequence[str], max_batch: int) -> MemoryPlan:
    """Places every value that a call makes and that is no output of the library.

    Greedy by size, each at the lowest offset that is free over its lifetime (Pisarchyk and Lee,
    "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    lifetimes = _lifetimes(calls, set(outputs), max_batch)
    placed: list[tuple[int, _Live]] = []
    for live in sorted(lifetimes, key=lambda item: (-item.bytes, item.first)):
        offset = 0
        for other_offset, other in sorted(placed, key=lambda item: item[0]):
            apart = other.last < live.first or live.last < other.first
            if apart or other_offset + other.bytes <= offset:
                continue
            if other_offset >= offset + live.bytes:
                break
            offset = other_offset + other.bytes
        placed.append((offset, live))
    buffers = tuple(
        Buffer(tuple(live.values), offset, live.bytes, live.first, live.last)
        for offset, live in sorted(placed, key=lambda item: (item[1].first, item[0]))
    )
    total = max((buffer.offset + buffer.bytes for buffer in buffers), default=0)
    bound = max(
        (sum(b.bytes for b in buffers if b.first <= i <= b.last) for i in range(len(calls))),
        default=0,
    )
    return MemoryPlan(buffers, total, bound)


def _lifetimes(calls: Sequence[KernelCall], outputs: set[str], max_batch: int) -> list[_Live]:
    last_use = {operand.value: i for i, call in enumerate(calls) for operand in call.inputs}
    live: dict[str, _Live] = {}
    for i, call in enumerate(calls):
        reusable = {call.inputs[index].value for index in call.kernel.in_place(call)}
        for position, operand in enumerate(call.outputs):
            if operand.value in outputs:
                continue
            size = -(-operand.type.nbytes(max_batch) // ALIGNMENT) * ALIGNMENT
            last = last_use.get(operand.value, i)
            dying = [
                name
                for name in reusable
                if position == 0
                and name in live
                and last_use[name] == i
                and live[name].bytes >= size
            ]
            if dying:
                buffer = live[dying[0]]
                buffer.values.append(operand.value)
                buffer.last = max(buffer.last, last)
            else:
                buffer = _Live([operand.value], size, i, last)
            live[operand.value] = buffer
    unique = {id(buffer): buffer for buffer in live.values()}
    return list(unique.values())
