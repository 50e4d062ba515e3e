"""What the passes are told about the target and the user's wishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitc.ir.types import DType

if TYPE_CHECKING:
    from vitc.passes.rewrite import Rule


@dataclass(frozen=True)
class PassReport:
    """One pass that ran: its place in the list, its name, seconds, and nodes before and after."""

    index: int
    name: str
    seconds: float
    nodes_before: int
    nodes_after: int


@dataclass(frozen=True)
class PassOptions:
    """Options of all passes.

    dtype: storage and multiplication type of activations and matrix weights. input_dtype,
    output_dtype: of the graph's inputs and outputs. stats_width: columns of a row that one
    statistic covers (the target's epilogue tile). disable: names of passes and rules to leave out.
    check: interpret both sides of every rule application on random arrays (slow; for tests).
    dump_dir: folder for `NN-name.vit` after each pass, and for `repro.vit` when one fails. report:
    called after each pass.
    """

    dtype: DType = DType.FLOAT32
    input_dtype: DType = DType.FLOAT32
    output_dtype: DType = DType.FLOAT32
    stats_width: int = 64
    disable: frozenset[str] = frozenset()
    check: bool = False
    dump_dir: Path | None = None
    report: Callable[[PassReport], None] | None = None

    def enabled(self, rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(rule for rule in rules if rule.name not in self.disable)
