"""Numbers as people read them."""

from __future__ import annotations


def show_bytes(count: float) -> str:
    """340 B, 1.5 KiB, 330.2 MiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def show_flops(count: float) -> str:
    """2.1 kFLOP, 35.1 GFLOP."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP"):
        if abs(count) < 1000:
            return f"{count:.0f} FLOP" if unit == "FLOP" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TFLOP"


def show_seconds(seconds: float) -> str:
    """0.8 ms, 340 ms, 12.4 s."""
    if seconds < 0.01:
        return f"{1e3 * seconds:.1f} ms"
    return f"{1e3 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def show_share(part: float, whole: float) -> str:
    """12.3 %; a dash of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"
