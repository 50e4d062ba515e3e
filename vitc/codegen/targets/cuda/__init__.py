"""CUDA: `cuda:sm_80`, several as `cuda:sm_80+sm_90`, on the host as `cuda:sm_80:emulated`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from vitc.codegen.kernel import Kernel, KernelCall, Rendered, Target
from vitc.codegen.sources import Source
from vitc.codegen.targets.gpu.attention import GpuAttention
from vitc.codegen.targets.gpu.device import ARCHITECTURES, Tuning
from vitc.codegen.targets.gpu.elements import (
    GpuConv2d,
    GpuGroupNorm,
    GpuMatMul,
    GpuPool2d,
    GpuReduce,
)
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.codegen.targets.gpu.rowwise import GpuConcat, GpuNorm, GpuPointwise, GpuSoftmax
from vitc.errors import InputError
from vitc.ir.types import DType

STATS_WIDTH = 64
_EMULATED_FLAGS = ("-O2", "-mavx2", "-mfma", "-mf16c", "-DVITC_EMULATE")


class CudaTarget(Target):
    """NVIDIA GPUs by portable mma.sync kernels; each architecture has its own objects."""

    def __init__(self, archs: Sequence[int], batches: Sequence[int], emulated: bool) -> None:
        self.archs = tuple(ARCHITECTURES[sm] for sm in sorted(archs))
        self.isas: tuple[str, ...] = tuple(arch.name for arch in self.archs)
        self.device: Literal["cpu", "cuda", "emulated"] = "emulated" if emulated else "cuda"
        self.name = f"cuda:{'+'.join(self.isas)}" + (":emulated" if emulated else "")
        turing = self.archs[0].sm < 80
        self.dtypes: tuple[DType, ...] = (
            (DType.FLOAT16, DType.FLOAT32)
            if turing
            else (DType.FLOAT16, DType.BFLOAT16, DType.TF32, DType.FLOAT32)
        )
        self.stats_width = STATS_WIDTH
        tuned = tuple(batches) or (1,)
        self._families = {arch.name: _kernels(Tuning(arch, tuned)) for arch in self.archs}
        # The oldest architecture has the least shared memory: what it takes, all take.
        self.kernels: tuple[Kernel, ...] = self._families[self.isas[0]]

    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        position = self.kernels.index(call.kernel)
        return {isa: self._families[isa][position].render(call) for isa in self.isas}

    def source(self, name: str, isa: str, text: str) -> Source:
        if self.device == "emulated":
            return Source(name, text, (*_EMULATED_FLAGS, f"-DVITC_ISA={isa}"))
        return Source(name, text, (*_gencode(isa), f"-DVITC_ISA={isa}"), "cuda")

    def model_source(self, text: str) -> Source:
        if self.device == "emulated":
            return Source("model", text, _EMULATED_FLAGS)
        return Source("model", text, ("-O2",), "cuda")

    def io_dtype(self, dtype: DType) -> DType:
        return DType.FLOAT32 if dtype is DType.TF32 else dtype


def _gencode(isa: str) -> tuple[str, ...]:
    """Machine code for the architecture, and PTX for those that come after it."""
    virtual = isa.replace("sm_", "compute_")
    # 177: a functor's methods that this kernel does not call.
    quiet = "-diag-suppress=177"
    return ("-O3", f"-gencode=arch={virtual},code=[{isa},{virtual}]", "-Xptxas=-v", quiet)


def _kernels(tuning: Tuning) -> tuple[Kernel, ...]:
    return (
        GpuGemm(tuning, STATS_WIDTH),
        GpuAttention(tuning),
        GpuConv2d(tuning),
        GpuNorm(),
        GpuPointwise(),
        GpuSoftmax(),
        GpuReduce(),
        GpuPool2d(),
        GpuGroupNorm(),
        GpuMatMul(),
        GpuConcat(),
    )


def parse(name: str, batches: Sequence[int]) -> CudaTarget:
    """The target that `name` ("cuda:sm_80+sm_90[:emulated]") describes. Raises InputError."""
    match = re.fullmatch(r"cuda:((?:sm_)?\d+(?:\+(?:sm_)?\d+)*)(:emulated)?", name)
    known = ", ".join(arch.name for arch in ARCHITECTURES.values())
    if match is None:
        hint = f"for example cuda:sm_80; known: {known}; several are joined by '+'"
        raise InputError(f"'{name}' is no CUDA target", hint=hint)
    archs = [int(part.removeprefix("sm_")) for part in match.group(1).split("+")]
    for sm in archs:
        if sm not in ARCHITECTURES:
            raise InputError(f"vitc has no kernels for sm_{sm}", hint=f"known: {known}")
    return CudaTarget(sorted(set(archs)), batches, match.group(2) is not None)
