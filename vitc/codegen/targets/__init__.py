"""The targets: one folder each."""

from __future__ import annotations

from vitc.codegen.kernel import Target
from vitc.errors import VitcError


def find_target(name: str) -> Target:
    """The target called `name`, such as "cpu". Raises VitcError listing the known ones."""
    from vitc.codegen.targets.cpu import CpuTarget

    if name == "cpu":
        return CpuTarget()
    raise VitcError(f"unknown target '{name}'", hint="known: cpu")
