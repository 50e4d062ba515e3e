"""The forms in which CPU kernels read constants, as recipe nodes."""

from __future__ import annotations

from vitc.codegen.kernel import Packing
from vitc.ir.builder import Builder, Value
from vitc.ir.types import DType, per_image
from vitc.ops import Pointwise

PANEL = 32  # columns of a weight panel: kPanel of vitc/cpu/tile.h


def weight_packing(dtype: DType) -> Packing:
    """[N, ...] to panels of 32 columns, zero padded (vitc/cpu/README.md, "Weights")."""

    def build(b: Builder, w: Value) -> Value:
        n, k = per_image(w.shape[:1]), per_image(w.shape[1:])
        return _panels(b, b.reshape(w, (1, n, k)), dtype)

    return Packing(f"panels{PANEL}", build)


def group_packing(dtype: DType, groups: int) -> Packing:
    """As `weight_packing` for each group of output channels by itself."""

    def build(b: Builder, w: Value) -> Value:
        n, k = per_image(w.shape[:1]), per_image(w.shape[1:])
        return _panels(b, b.reshape(w, (groups, n // groups, k)), dtype)

    return Packing(f"group_panels{PANEL}", build)


def _panels(b: Builder, w: Value, dtype: DType) -> Value:
    groups, n, k = (per_image((dim,)) for dim in w.shape)
    depth = 2 if dtype is DType.BFLOAT16 else 1  # bf16 products take pairs of k
    if -n % PANEL:
        w = b.pad(w, 1, 0, -n % PANEL)
    if -k % depth:
        w = b.pad(w, 2, 0, -k % depth)
    panels, steps = -(-n // PANEL), -(-k // depth)
    w = b.reshape(w, (groups * panels, PANEL, steps, depth))
    return b.permute(w, (0, 2, 1, 3))


def planes_packing() -> Packing:
    """[N, kh, kw, C] to float32 panels of [N, C, kh, kw]."""

    def build(b: Builder, w: Value) -> Value:
        n, k = per_image(w.shape[:1]), per_image(w.shape[1:])
        planes = b.permute(_float32(b, w), (0, 3, 1, 2))
        return _panels(b, b.reshape(planes, (1, n, k)), DType.FLOAT32)

    return Packing(f"planes{PANEL}", build)


def depthwise_packing() -> Packing:
    """[C, kh, kw, 1] to float32 [kh, kw, C]."""

    def build(b: Builder, w: Value) -> Value:
        channels, height, width, _ = w.shape
        return b.permute(b.reshape(_float32(b, w), (channels, height, width)), (1, 2, 0))

    return Packing("depthwise", build)


def _float32(b: Builder, w: Value) -> Value:
    return w if w.type.dtype is DType.FLOAT32 else b.emit(Pointwise(dtype=DType.FLOAT32), w)


def cast_packing(stored: DType, wanted: DType) -> Packing | None:
    """A conversion of the constant as it is, or None when it has the dtype already."""
    if stored is wanted:
        return None
    return Packing(wanted.short, lambda b, value: b.emit(Pointwise(dtype=wanted), value))
