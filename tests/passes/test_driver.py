"""The drivers: order, dumps, reports, failures; rules that are wrong or never end."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from passes.support import difference

from vitc.errors import GraphError, VitcError
from vitc.ir.graph import Graph, Node
from vitc.ir.text import parse_graph, print_graph
from vitc.ops import Norm, Pointwise
from vitc.passes.options import PassOptions, PassReport
from vitc.passes.pipeline import PIPELINE, Pass, known_names, run_passes, run_pipeline
from vitc.passes.rewrite import Match, Replacement, Rule, rewrite, rule

GRAPH = parse_graph(
    """
graph small(%x: f32[B,5,4]) {
  weight %g: f32[4]
  weight %w: f32[3,4]
  %n = norm(%x)
  %m = pointwise(%n, %g) {steps=[mul($1)]}
  %y = linear(%m, %w)
  return %y
}
"""
)


def breaks(graph: Graph, options: PassOptions) -> Graph:
    """Leaves a node that reads what is not there."""
    return graph.with_nodes([replace(graph.nodes[0], inputs=("nobody",)), *graph.nodes[1:]])


def fails(graph: Graph, options: PassOptions) -> Graph:
    """Stumbles over its own feet."""
    raise KeyError("lost")


def reshapes(graph: Graph, options: PassOptions) -> Graph:
    """Returns another value than before."""
    return graph.with_nodes(graph.nodes, ("m",))


def test_dumps_are_numbered_and_parse(tmp_path: Path) -> None:
    result = run_pipeline(GRAPH, PassOptions(dump_dir=tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names[0] == "00-imported.vit"
    assert names[1:] == [f"{i:02d}-{pass_.name}.vit" for i, pass_ in enumerate(PIPELINE, 1)]
    assert parse_graph((tmp_path / names[0]).read_text()) == GRAPH
    assert parse_graph((tmp_path / names[-1]).read_text()) == result


def test_reports_tell_nodes_and_time() -> None:
    reports: list[PassReport] = []
    run_pipeline(GRAPH, PassOptions(report=reports.append, disable=frozenset({"clean"})))
    assert [r.name for r in reports] == [p.name for p in PIPELINE if p.name != "clean"]
    fuse = next(r for r in reports if r.name == "fuse_epilogue")
    assert (fuse.nodes_before, fuse.nodes_after) == (3, 2)
    assert all(0 <= r.seconds < 10 for r in reports)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (breaks, "operand '%nobody' is not defined"),
        (fails, "KeyError.*lost"),
        (reshapes, "inputs or outputs changed"),
    ],
)
@pytest.mark.parametrize("dumped", [True, False])
def test_a_failing_pass_leaves_its_input(
    function: Callable[[Graph, PassOptions], Graph],
    message: str,
    dumped: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    pipeline = (PIPELINE[0], Pass("planted", function), PIPELINE[1])
    options = PassOptions(dump_dir=tmp_path / "dump" if dumped else None)
    with pytest.raises(GraphError, match=message) as caught:
        run_pipeline(GRAPH, options, pipeline)
    assert caught.value.pass_name == "planted"
    repro = caught.value.repro
    assert repro is not None
    assert str(repro) in str(caught.value)
    assert repro.name == "repro.vit"
    assert [repro.parent] == ([tmp_path / "dump"] if dumped else list(temporary.iterdir()))
    assert parse_graph(repro.read_text()) == run_passes(GRAPH, ["clean"])


def test_a_failing_pass_that_cannot_leave_its_input_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk hides neither which pass it was nor what went wrong."""

    def full(self: Path, text: str) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(GraphError, match=r"KeyError.*lost") as caught:
        run_pipeline(GRAPH, pipeline=(Pass("planted", fails),))
    assert (caught.value.pass_name, caught.value.repro) == ("planted", None)
    assert "repro" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused_and_known_ones_listed() -> None:
    with pytest.raises(VitcError, match=r"cannot disable 'fold_v_bais'.*\n.*fold_v_bias"):
        run_pipeline(GRAPH, PassOptions(disable=frozenset({"fold_v_bais"})))
    with pytest.raises(VitcError, match=r"unknown pass 'fuse'.*\n.*fuse_epilogue"):
        run_passes(GRAPH, ["fuse"])


def test_known_names_hold_passes_and_rules_once() -> None:
    names = known_names()
    assert len(set(names)) == len(names)
    assert {"clean", "fold_softmax_scale", "drop_k_bias", "fold_v_bias", "sink_rows"} <= {*names}
    assert all(p.function.__doc__ for p in PIPELINE)
    assert all("=" in r.equation for p in PIPELINE for r in p.rules)


def test_passes_run_in_the_order_given() -> None:
    fused = run_passes(GRAPH, ["fuse_epilogue"])
    assert [node.op.name for node in fused.nodes] == ["norm", "linear"]
    folded = run_passes(GRAPH, ["fuse_epilogue", "fold_norm_affine"])
    assert difference(GRAPH, folded) < 1e-12
    assert "norm(%x) :" in print_graph(folded)


@rule
def forgets_gamma(match: Match, node: Node) -> Replacement:
    """x * g = x"""
    return match.value(node.inputs[0]) if isinstance(node.op, Pointwise) else None


@rule
def forgets_the_mean(match: Match, node: Node) -> Replacement:
    """layer(x) = rms(x)"""
    if not isinstance(node.op, Norm) or node.op.kind == "rms":
        return None
    return match.build.emit(Norm(kind="rms"), match.value(node.inputs[0]))


@rule
def never_ends(match: Match, node: Node) -> Replacement:
    """f(x) = f(x)"""
    return match.build.emit(node.op, *match.values(node)) if isinstance(node.op, Norm) else None


@rule
def changes_the_shape(match: Match, node: Node) -> Replacement:
    """f(x) = reshape(f(x))"""
    if not isinstance(node.op, Norm):
        return None
    return match.build.reshape(match.value(node.inputs[0]), (*match.types[node.output].shape, 1))


@pytest.mark.parametrize("wrong", [forgets_gamma, forgets_the_mean])
def test_check_mode_names_a_rule_that_is_not_exact(wrong: Rule) -> None:
    rewrite(GRAPH, [wrong])  # nobody looks
    with pytest.raises(GraphError, match=f"rule '{wrong.name}' is not exact"):
        rewrite(GRAPH, [wrong], check=True)


def test_rules_that_never_settle_are_named() -> None:
    with pytest.raises(GraphError, match="still apply after 64 sweeps: never_ends"):
        rewrite(GRAPH, [never_ends])


def test_a_rule_may_not_change_a_type() -> None:
    with pytest.raises(GraphError, match=r"rule 'changes_the_shape' replaced %n: f32\[B,5,4\]"):
        rewrite(GRAPH, [changes_the_shape])


def test_an_input_that_is_an_output_stays_one() -> None:
    graph = parse_graph(
        "graph g(%x: f32[B,4]) {\n%a = pointwise(%x)\n%b = pointwise(%a)\nreturn %b, %x\n}"
    )
    result = run_pipeline(graph)
    assert result.outputs == ("b", "x")
    assert len(result.nodes) == 1
