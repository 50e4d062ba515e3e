"""What the kernels' choices depend on: the architecture, and the batches to be good at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitc.ir.types import DType


@dataclass(frozen=True)
class Architecture:
    """One GPU architecture: `sm` such as 80, multiprocessors of its usual card, shared memory a
    block may ask for in bytes, whether tensor cores multiply tf32 faster than FMA units do, and
    "a" where kernels may use what only this chip has.
    """

    sm: int
    multiprocessors: int
    shared_bytes: int
    fast_tf32: bool
    suffix: str = ""

    @property
    def name(self) -> str:
        return f"sm_{self.sm}{self.suffix}"

    @property
    def async_copies(self) -> bool:
        return self.sm >= 80

    def policy(self, dtype: DType) -> str:
        """The arithmetic policy of vitc/gpu/mma.h. Raises KeyError for what the card lacks."""
        if self.sm < 80:
            return {DType.FLOAT16: "Mma<half, 8>", DType.FLOAT32: "Simt"}[dtype]
        return {
            DType.FLOAT16: "Mma<half>",
            DType.BFLOAT16: "Mma<bfloat16>",
            DType.TF32: "Tf32",
            DType.FLOAT32: "Tf32x3" if self.fast_tf32 else "Simt",
        }[dtype]


# Shared memory: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
ARCHITECTURES = {
    arch.name: arch
    for arch in (
        Architecture(75, 40, 64 << 10, False),  # T4
        Architecture(80, 108, 163 << 10, True),  # A100
        Architecture(86, 72, 99 << 10, False),  # A10
        Architecture(89, 142, 99 << 10, False),  # L40S
        Architecture(90, 132, 227 << 10, True),  # H100
        Architecture(90, 132, 227 << 10, True, "a"),  # H100, with its own instructions
        Architecture(100, 148, 227 << 10, True),  # B200
        Architecture(120, 170, 99 << 10, False),  # RTX 5090
    )
}


@dataclass(frozen=True)
class Tuning:
    """What a kernel is chosen for. batches: ascending; the last is the largest that runs."""

    arch: Architecture
    batches: tuple[int, ...]

    def up_to(self, position: int) -> int:
        """The largest batch for which the choice for batches[position] is used: the geometric mean
        with the next, since costs grow by ratios.
        """
        if position + 1 == len(self.batches):
            return self.batches[-1]
        return int((self.batches[position] * self.batches[position + 1]) ** 0.5)

    def spans(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """(name, largest batch that it is for) of what was chosen for each of `batches`; neighbours
        that agree are one.
        """
        return [
            (name, self.up_to(i))
            for i, name in enumerate(names)
            if i + 1 == len(names) or names[i + 1] != name
        ]
