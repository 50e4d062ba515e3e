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
