"""Passes, case by case: `cases/<pass>/<case>.vit` names the passes and holds the graph before.

The graph after is a golden. Every application of a rule is interpreted on both sides.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from passes.support import body, difference

from vitc.ir.graph import Graph
from vitc.ir.text import parse_graph, print_graph
from vitc.ir.verify import verify
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import PIPELINE, run_passes

CASES = sorted(Path(__file__).parent.glob("cases/*/*.vit"))
CHECKED = PassOptions(check=True, stats_width=3)  # a width that divides no row
every_case = pytest.mark.parametrize(
    "path", CASES, ids=[f"{path.parent.name}-{path.stem}" for path in CASES]
)


def read(path: Path) -> tuple[Graph, list[str]]:
    text = path.read_text()
    first = text.splitlines()[0]
    assert first.startswith("// passes: ")
    return parse_graph(text), first.removeprefix("// passes: ").split()


@every_case
def test_case(path: Path, golden: Any) -> None:
    before, passes = read(path)
    after = run_passes(before, passes, CHECKED)
    verify(after)
    assert parse_graph(print_graph(after)) == after
    assert difference(before, after) < 1e-10
    golden.check(body(after), suffix=".vit")


@every_case
def test_each_rule_and_pass_can_be_disabled(path: Path) -> None:
    before, passes = read(path)
    used = [pass_ for pass_ in PIPELINE if pass_.name in passes]
    names = {pass_.name for pass_ in used} | {rule.name for p in used for rule in p.rules}
    for name in sorted(names):
        options = replace(CHECKED, disable=frozenset({name}))
        after = run_passes(before, passes, options)
        assert difference(before, after) < 1e-10, name


@every_case
def test_passes_settle(path: Path) -> None:
    """A second run changes nothing but the names."""
    before, passes = read(path)
    once = run_passes(before, passes, CHECKED)
    twice = run_passes(once, passes, CHECKED)
    assert [n.op for n in twice.nodes] == [n.op for n in once.nodes]


def test_every_pass_and_every_rule_has_a_case() -> None:
    """Each does something in some case: to disable it changes the result."""
    idle = {name for pass_ in PIPELINE for name in (pass_.name, *(r.name for r in pass_.rules))}
    for path in CASES:
        before, passes = read(path)
        plain = body(run_passes(before, passes))
        for name in sorted(idle):
            options = PassOptions(disable=frozenset({name}))
            if body(run_passes(before, passes, options)) != plain:
                idle.remove(name)
    assert idle == {"assign_dtypes"}  # test_dtypes.py
