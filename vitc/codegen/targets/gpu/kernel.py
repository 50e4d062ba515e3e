"""What all GPU kernels share: the tuning, and the limit of 32-bit offsets."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from vitc.codegen.kernel import Kernel, KernelCall, Operand, Site
from vitc.codegen.targets.gpu.device import Tuning
from vitc.ir.text import print_attributes
from vitc.ir.types import TensorType, shape_at
from vitc.ops import Move

MOST_ELEMENTS = 2**31  # offsets are int in device code (vitc/gpu/source.cuh)


class GpuKernel(Kernel):
    """A kernel of templates/include/vitc/gpu. Kernels that decline more ask this class first."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning = tuning

    def declines(self, site: Site, operands: tuple[Operand | None, ...]) -> str | None:
        return oversized(site, operands, self.tuning.batches[-1])


def layout(call: KernelCall) -> str:
    """Through which maps operands are read and the result is written, for a choice's problem: each
    takes its own time. "" where all lie dense.
    """
    named = [(f"${i}", operand) for i, operand in enumerate(call.inputs)]
    named.append(("out", call.outputs[0]))
    return "".join(
        f" {name}{print_attributes(Move(operand.map))}"
        for name, operand in named
        if not operand.is_dense
    )


def oversized(site: Site, operands: tuple[Operand | None, ...], batch: int) -> str | None:
    """Which operand or result, stored or viewed, has too many elements at `batch`, or None."""
    for name, type_ in _tensors(site, operands):
        elements = prod(shape_at(type_.shape, batch))
        if elements >= MOST_ELEMENTS:
            return (
                f"%{name} has {elements} elements at batch {batch}, and GPU kernels address fewer "
                f"than 2^31 ({MOST_ELEMENTS}) per tensor; compile for a smaller batch"
            )
    return None


def _tensors(site: Site, operands: tuple[Operand | None, ...]) -> Iterator[tuple[str, TensorType]]:
    yield from ((operand.value, operand.type) for operand in operands if operand is not None)
    yield from zip(site.node.inputs, site.inputs, strict=True)
    yield from zip(site.node.outputs, site.results, strict=True)
