"""What benchmarks/models.py measures: a plan is a list of libraries to make and time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """One library. disable: passes or rules left out. profiled: batches whose kernels are timed one
    by one.
    """

    model: str
    dtype: str
    target: str
    batches: tuple[int, ...]
    profiled: tuple[int, ...] = ()
    disable: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        without = [f"without {','.join(self.disable)}"] if self.disable else []
        return " ".join([self.model, self.dtype, self.target, *without])


_VIT_B, _VIT_L = "vit_base_patch16_224", "vit_large_patch16_384"
_FEW = (1, 8, 32)
_TO_256 = (1, 8, 32, 256)
_CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_SWIN_T, _SWIN_B = "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224"
_OTHERS = (
    _SWIN_T,
    "swin_small_patch4_window7_224",
    _SWIN_B,
    "swin_large_patch4_window7_224",
    "swin_base_patch4_window12_384",
    "levit_128s",
    "levit_256",
    "levit_384",
)

# Kernels of Hopper's own where there are any, all families.
_HOPPER = (
    Library(_VIT_B, "float16", "cuda:sm_90a", _CURVE, profiled=(1, 32, 256)),
    Library(_VIT_B, "bfloat16", "cuda:sm_90a", _TO_256),
    Library(_VIT_B, "float16", "cuda:sm_90a", _TO_256, disable=("sink_rows",)),
    Library(_VIT_L, "float16", "cuda:sm_90a", _FEW, profiled=(1, 32)),
    Library(_VIT_L, "bfloat16", "cuda:sm_90a", _FEW),
    Library("vit_tiny_patch16_224", "float16", "cuda:sm_90a", _TO_256),
    Library("vit_small_patch16_224", "float16", "cuda:sm_90a", _TO_256),
    *(
        Library(model, "float16", "cuda:sm_90a", (1, 16 if "levit" in model else 8, 32, 256), (32,))
        for model in _OTHERS
    ),
    *(Library(model, "bfloat16", "cuda:sm_90a", (1, 8, 32, 256)) for model in (_SWIN_T, _SWIN_B)),
    Library("levit_256", "bfloat16", "cuda:sm_90a", (1, 16, 32, 256)),
)

# The kernels that any NVIDIA card since Turing runs, on the H100.
_PORTABLE = (
    *(Library(_VIT_B, dtype, "cuda:sm_80", _TO_256) for dtype in ("float16", "bfloat16", "tf32")),
    Library(_VIT_B, "float16", "cuda:sm_75", _FEW),
    *(
        Library(model, dtype, "cuda:sm_80", _FEW)
        for model in ("vit_tiny_patch16_224", "vit_small_patch16_224", _VIT_L)
        for dtype in ("float16", "bfloat16", "tf32")
    ),
    *(Library(model, "tf32", "cuda:sm_80", _FEW) for model in (_SWIN_T, "levit_256")),
)

_CPU = (
    *(
        Library(model, dtype, "cpu", (1, 8), (8,))
        for model in (_VIT_B, "swin_tiny_patch4_window7_224", "levit_256")
        for dtype in ("float32", "bfloat16")
    ),
)

# name: (libraries, peers, folder of the results)
PLANS: dict[str, tuple[tuple[Library, ...], tuple[str, ...], str]] = {
    "h100": (_HOPPER, ("eager", "graph"), "h100"),
    "portable": (_PORTABLE, ("eager", "graph"), "h100"),
    "cpu": (_CPU, ("eager", "compile"), "cpu"),
}
