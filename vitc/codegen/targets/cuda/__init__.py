"""CUDA: `cuda:sm_80`, several as `cuda:sm_80+sm_90`, on the host as `cuda:sm_80:emulated`.

`cuda:sm_90a` has kernels of Hopper's own. A library for further architectures beside it has not:
they share one copy of the weights, and those kernels pack theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from vitc.codegen.kernel import Kernel, KernelCall, Rendered, Target
from vitc.codegen.sources import Source
from vitc.codegen.targets.gpu.attention import GpuAttention
from vitc.codegen.targets.gpu.device import ARCHITECTURES, Architecture, Tuning
from vitc.codegen.targets.gpu.elements import (
    GpuConv2d,
    GpuGroupNorm,
    GpuMatMul,
    GpuPool2d,
    GpuReduce,
)
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.codegen.targets.gpu.rowwise import GpuConcat, GpuNorm, GpuPointwise, GpuSoftmax
from vitc.codegen.targets.gpu.sm90_attention import Sm90Attention
from vitc.codegen.targets.gpu.sm90_gather import Sm90GatherGemm
from vitc.codegen.targets.gpu.sm90_gemm import Sm90Gemm
from vitc.errors import InputError
from vitc.ir.types import DType

STATS_WIDTH = 64
# Narrower slices let Hopper's tiles have any multiple of 32 columns.
_HOPPER_STATS_WIDTH = 32
_EMULATED_FLAGS = ("-O2", "-mavx2", "-mfma", "-mf16c", "-DVITC_EMULATE")


class CudaTarget(Target):
    """NVIDIA GPUs; each architecture has its own objects. `archs` are in ascending order."""

    def __init__(
        self, archs: Sequence[Architecture], batches: Sequence[int], emulated: bool
    ) -> None:
        self.archs = tuple(archs)
        self.isas: tuple[str, ...] = tuple(arch.name for arch in self.archs)
        self.device: Literal["cpu", "cuda", "emulated"] = "emulated" if emulated else "cuda"
        self.name = f"cuda:{'+'.join(self.isas)}" + (":emulated" if emulated else "")
        turing = self.archs[0].sm < 80
        self.dtypes: tuple[DType, ...] = (
            (DType.FLOAT16, DType.FLOAT32)
            if turing
            else (DType.FLOAT16, DType.BFLOAT16, DType.TF32, DType.FLOAT32)
        )
        tuned = tuple(batches) or (1,)
        hopper = self.isas == ("sm_90a",)
        self.stats_width = _HOPPER_STATS_WIDTH if hopper else STATS_WIDTH
        self._families = {
            arch.name: (_hopper if hopper else _kernels)(Tuning(arch, tuned)) for arch in self.archs
        }
        # The oldest architecture has the least shared memory: what it takes, all take.
        self.kernels: tuple[Kernel, ...] = self._families[self.isas[0]]

    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        position = self.kernels.index(call.kernel)
        return {isa: self._families[isa][position].render(call) for isa in self.isas}

    def source(self, name: str, isa: str, text: str) -> Source:
        if self.device == "emulated":
            return Source(name, text, (*_EMULATED_FLAGS, f"-DVITC_ISA={isa}"))
        # See vitc/gpu/launch.h.
        overlap = ("-DVITC_DEPENDENT_LAUNCH",) if ARCHITECTURES[isa].sm >= 90 else ()
        return Source(name, text, (*_gencode(isa), f"-DVITC_ISA={isa}", *overlap), "cuda")

    def model_source(self, text: str) -> Source:
        if self.device == "emulated":
            return Source("model", text, _EMULATED_FLAGS)
        # Host code alone: nvcc only says where its headers are.
        return Source("model", text, ("-O2", "-x=c++"), "cuda")

    def io_dtype(self, dtype: DType) -> DType:
        return DType.FLOAT32 if dtype is DType.TF32 else dtype


def _gencode(isa: str) -> tuple[str, ...]:
    """Machine code for the architecture, and PTX for what comes after it, if it can run that."""
    virtual = isa.replace("sm_", "compute_")
    code = isa if isa.endswith("a") else f"[{isa},{virtual}]"
    # 177: a functor's methods that this kernel does not call.
    quiet = "-diag-suppress=177"
    return ("-O3", f"-gencode=arch={virtual},code={code}", "-Xptxas=-v", quiet)


def _kernels(tuning: Tuning, stats_width: int = STATS_WIDTH) -> tuple[Kernel, ...]:
    return (
        GpuGemm(tuning, stats_width),
        GpuAttention(tuning),
        GpuConv2d(tuning),
        GpuNorm(tuning),
        GpuPointwise(tuning),
        GpuSoftmax(tuning),
        GpuReduce(tuning),
        GpuPool2d(tuning),
        GpuGroupNorm(tuning),
        GpuMatMul(tuning),
        GpuConcat(tuning),
    )


def _hopper(tuning: Tuning) -> tuple[Kernel, ...]:
    """The portable kernels behind those written for Hopper."""
    return (
        Sm90Gemm(tuning),
        Sm90GatherGemm(tuning, _HOPPER_STATS_WIDTH),
        Sm90Attention(tuning),
        *_kernels(tuning, _HOPPER_STATS_WIDTH),
    )


def parse(name: str, batches: Sequence[int]) -> CudaTarget:
    """The target that `name` ("cuda:sm_80+sm_90[:emulated]") describes. Raises InputError."""
    match = re.fullmatch(r"cuda:((?:sm_)?\d+a?(?:\+(?:sm_)?\d+a?)*)(:emulated)?", name)
    known = ", ".join(ARCHITECTURES)
    if match is None:
        hint = f"for example cuda:sm_80; known: {known}; several are joined by '+'"
        raise InputError(f"'{name}' is no CUDA target", hint=hint)
    names = {f"sm_{part.removeprefix('sm_')}" for part in match.group(1).split("+")}
    for unknown in sorted(names - set(ARCHITECTURES)):
        raise InputError(f"vitc has no kernels for {unknown}", hint=f"known: {known}")
    archs = [arch for arch in ARCHITECTURES.values() if arch.name in names]
    return CudaTarget(archs, batches, match.group(2) is not None)


def name_for(arch: str) -> str | None:
    """The target for a card of `arch` ("sm_90"): the nearest architecture whose code it runs."""
    wanted = int(arch.removeprefix("sm_"))
    if wanted == 90:
        return "cuda:sm_90a"
    # Code of the same major version and a lower minor one runs as it is.
    fitting = [a for a in ARCHITECTURES.values() if a.sm // 10 == wanted // 10 and a.sm <= wanted]
    return f"cuda:{fitting[-1].name}" if fitting else None
