"""The targets: one folder each."""

from __future__ import annotations

from collections.abc import Sequence

from vitc.codegen.kernel import Target
from vitc.errors import InputError


def find_target(name: str, batches: Sequence[int] = ()) -> Target:
    """The target called `name`, its kernels chosen for `batches`. Raises InputError."""
    from vitc.codegen.targets import cuda
    from vitc.codegen.targets.cpu import CpuTarget

    if name == "cpu":
        return CpuTarget()
    if name.startswith("cuda"):
        return cuda.parse(name, batches)
    raise InputError(f"unknown target '{name}'", hint="known: cpu, cuda:sm_80 and others")
