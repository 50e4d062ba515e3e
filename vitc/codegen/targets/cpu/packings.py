"""The forms in which CPU kernels read constants, as recipe nodes."""

from __future__ import annotations

from vitc.codegen.kernel import Packing
from vitc.ir.builder import Builder, Value
from vitc.ir.types import DType, per_image
from vitc.ops import Pointwise

PANEL = 32  # columns of a weight panel: kPanel of vitc/cpu/tile.h


def weight_packing(dtype: DType) -> Packing:
    """[N, K] to panels of 32 columns, zero padded (vitc/cpu/README.md, "Weights")."""

    def build(b: Builder, w: Value) -> Value:
        n, k = (per_image((dim,)) for dim in w.shape)
        depth = 2 if dtype is DType.BFLOAT16 else 1  # bf16 products take pairs of k
        if -n % PANEL:
            w = b.pad(w, 0, 0, -n % PANEL)
        if -k % depth:
            w = b.pad(w, 1, 0, -k % depth)
        panels, steps = -(-n // PANEL), -(-k // depth)
        w = b.reshape(w, (panels, PANEL, steps, depth))
        return b.permute(w, (0, 2, 1, 3))

    return Packing(f"panels{PANEL}", build)


def cast_packing(stored: DType, wanted: DType) -> Packing | None:
    """A conversion of the constant as it is, or None when it has the dtype already."""
    if stored is wanted:
        return None
    return Packing(wanted.short, lambda b, value: b.emit(Pointwise(dtype=wanted), value))
