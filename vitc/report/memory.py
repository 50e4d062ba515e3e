"""The memory plan: buffers with lifetimes, and a map of what lies where while the steps run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from vitc.report.units import show_bytes, show_share

Manifest = Mapping[str, Any]
Buffer = Mapping[str, Any]


def memory_table(manifest: Manifest) -> Table:
    """Buffers by offset, with the steps between which each lives."""
    workspace = manifest["workspace"]
    table = Table(title="memory plan", title_justify="left", header_style="bold")
    for name in ("offset", "bytes", "steps", "value"):
        table.add_column(name, justify="left" if name == "value" else "right")
    for buffer in _buffers(manifest):
        span = f"{buffer['first']}-{buffer['last']}"
        size = show_bytes(buffer["bytes"])
        table.add_row(str(buffer["offset"]), size, span, escape(str(buffer["value"])))
    bytes_, bound = workspace["bytes"], workspace["lower_bound"]
    step, peak = peak_step(manifest)
    table.caption = (
        f"{show_bytes(bytes_)} at batch {manifest['batch']['max']}; lower bound "
        f"{show_bytes(bound)} ({show_share(bound, bytes_)} of it); most is alive at step {step}: "
        f"{show_bytes(peak)}"
    )
    return table


def peak_step(manifest: Manifest) -> tuple[int, int]:
    """The step at which most bytes are alive, and how many."""
    alive = [0] * max(1, len(manifest["steps"]))
    for buffer in _buffers(manifest):
        for step in range(buffer["first"], min(buffer["last"], len(alive) - 1) + 1):
            alive[step] += buffer["bytes"]
    most = max(range(len(alive)), key=alive.__getitem__)
    return most, alive[most]


def lifetimes(manifest: Manifest, *, width: int = 100, height: int = 16) -> str:
    """Steps from left to right, the workspace from bottom to top; a letter stands for a buffer.

    Each cell shows the buffer that holds most of its bytes at its steps, '.' where there is none.
    """
    total, steps = int(manifest["workspace"]["bytes"]), len(manifest["steps"])
    if not total or not steps:
        return "no workspace"
    columns, rows = min(width, steps), height
    buffers = _buffers(manifest)
    lines: list[str] = []
    for row in reversed(range(rows)):
        low, high = total * row / rows, total * (row + 1) / rows
        cells = [_cell(buffers, steps * c // columns, low, high) for c in range(columns)]
        lines.append(f"{show_bytes(high):>10} |{''.join(cells)}|")
    left, right = "step 0", f"{steps - 1}"
    gap = " " * max(1, columns - len(left) - len(right))
    return "\n".join([*lines, f"{'':>10}  {left}{gap}{right}"])


def _cell(buffers: Sequence[Buffer], step: int, low: float, high: float) -> str:
    best, covered = ".", 0.0
    for index, buffer in enumerate(buffers):
        start = max(low, buffer["offset"])
        end = min(high, buffer["offset"] + buffer["bytes"])
        if buffer["first"] <= step <= buffer["last"] and end - start > covered:
            best, covered = _LETTERS[index % len(_LETTERS)], end - start
    return best


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _buffers(manifest: Manifest) -> list[Buffer]:
    buffers: Sequence[Buffer] = manifest["workspace"]["buffers"]
    return sorted(buffers, key=lambda buffer: (buffer["first"], buffer["offset"]))
