"""The x86-64 CPU target: every kernel is built once per instruction set, the library picks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitc.codegen.kernel import Kernel, KernelCall, Rendered, Target
from vitc.codegen.sources import Source
from vitc.codegen.targets.cpu.attention import CpuAttention
from vitc.codegen.targets.cpu.gemm import CpuGemm
from vitc.codegen.targets.cpu.matmul import CpuMatMul
from vitc.codegen.targets.cpu.reduce import CpuGroupNorm, CpuReduce
from vitc.codegen.targets.cpu.rowwise import CpuConcat, CpuNorm, CpuPointwise, CpuSoftmax
from vitc.codegen.targets.cpu.window import CpuConv2d, CpuPlanesConv2d, CpuPool2d
from vitc.errors import InputError
from vitc.ir.types import DType

_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c")
ISA_FLAGS = {
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "avx512": _AVX512,
    "avx512bf16": (*_AVX512, "-mavx512bf16"),
}
_FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-exceptions",
)


class CpuTarget(Target):
    """`cpu`: AVX2 and AVX-512, float32 and bfloat16; `cpu:avx512` is built for that alone."""

    dtypes = (DType.FLOAT32, DType.BFLOAT16)
    stats_width = 64
    device = "cpu"
    kernels: tuple[Kernel, ...] = (
        CpuGemm(),
        CpuAttention(),
        CpuPlanesConv2d(),
        CpuConv2d(),
        CpuNorm(),
        CpuPointwise(),
        CpuSoftmax(),
        CpuReduce(),
        CpuPool2d(),
        CpuGroupNorm(),
        CpuMatMul(),
        CpuConcat(),
    )

    def __init__(self, isas: Sequence[str] = ()) -> None:
        self.isas: tuple[str, ...] = tuple(isa for isa in ISA_FLAGS if not isas or isa in isas)
        self.name = f"cpu:{'+'.join(self.isas)}" if isas else "cpu"

    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        rendered = call.kernel.render(call)
        # avx512bf16 pays only where bf16 numbers are multiplied.
        plain = [isa for isa in self.isas if "bf16" in rendered.body or isa != "avx512bf16"]
        return dict.fromkeys(plain or self.isas, rendered)

    def source(self, name: str, isa: str, text: str) -> Source:
        return Source(name, text, (*_FLAGS, *ISA_FLAGS[isa], f"-DVITC_ISA={isa}"))

    def model_source(self, text: str) -> Source:
        return Source("model", text, ("-O2",))

    def io_dtype(self, dtype: DType) -> DType:
        return DType.FLOAT32


def parse(name: str) -> CpuTarget:
    """The target that `name` ("cpu" or "cpu:avx2+avx512") describes. Raises InputError."""
    _, _, listed = name.partition(":")
    isas = listed.split("+") if listed else []
    unknown = [isa for isa in isas if isa not in ISA_FLAGS]
    if unknown or name.endswith(":"):
        raise InputError(f"'{name}' is no CPU target", hint=f"known: {', '.join(ISA_FLAGS)}")
    return CpuTarget(isas)
