"""Bugs planted in a copy of the kernels' headers, which the emulation must catch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernels.emu.emulation import EmulationError, build, patched_headers
from kernels.gpu.case import Case, bundle


@dataclass(frozen=True)
class Bug:
    """`old` stands once in vitc/gpu/`header`; with `new` in its place the case must fail."""

    name: str
    case: Case
    header: str
    old: str
    new: str
    message: str = ""  # of the failed launch; "" if the numbers show it

    def __str__(self) -> str:
        return self.name


def check_caught(bug: Bug, folder: Path, schedules: Sequence[str]) -> None:
    """The launch fails or the result differs in one of the schedules."""
    include = patched_headers(folder, f"gpu/{bug.header}", bug.old, bug.new)
    library, case = build(bundle([bug.case]), include=include, flags=["-Wno-error"]), bug.case
    seen: list[str] = []
    for schedule in schedules:
        try:
            arrays = library.run(
                case.arrays, case.sizes, schedule=schedule, entry="run_0", held=case.held
            )
            case.check(arrays)
            seen.append("")
        except EmulationError as error:
            seen.append(str(error))
        except AssertionError:
            seen.append("the numbers differ")
    assert any(seen), "not caught in any order"
    if bug.message:
        assert any(bug.message in text for text in seen), seen
