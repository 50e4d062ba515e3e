"""The targets: one folder each."""

from __future__ import annotations

from collections.abc import Sequence

from vitc.codegen.kernel import Target
from vitc.errors import InputError


def find_target(name: str, batches: Sequence[int] = ()) -> Target:
    """The target called `name`, its kernels chosen for `batches`. Raises InputError."""
    from vitc.codegen.targets import cpu, cuda

    kind = name.partition(":")[0]
    if kind == "cpu":
        return cpu.parse(name)
    if kind == "cuda":
        return cuda.parse(name, batches)
    raise InputError(f"unknown target '{name}'", hint="known: cpu, cuda:sm_80 and others")


def default_target() -> str:
    """The first NVIDIA GPU of this machine, if nvcc is here too; else "cpu"."""
    from vitc.codegen.targets import cuda
    from vitc.codegen.toolchain import find_compiler
    from vitc.devices import nvidia_devices

    devices = nvidia_devices().found
    name = cuda.name_for(devices[0].arch) if devices else None
    return name if name is not None and find_compiler("cuda").compiler else "cpu"
