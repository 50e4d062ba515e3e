"""The list of passes, as data, and the driver that verifies, times and dumps after each."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from vitc.errors import GraphError, VitcError
from vitc.ir.graph import Graph
from vitc.ir.text import print_graph
from vitc.ir.verify import verify
from vitc.passes import (
    assign_dtypes,
    average_heads,
    centre_residual,
    clean,
    embed_table,
    fold_affine,
    fold_attention,
    fold_norm_affine,
    fuse_epilogue,
    hoist_constants,
    merge_linears,
    patch_embed,
    recognise_attention,
    row_statistics,
    sink_rows,
    slide_moves,
)
from vitc.passes.options import PassOptions, PassReport
from vitc.passes.rewrite import Rule


@dataclass(frozen=True)
class Pass:
    """A named function Graph -> Graph whose docstring is the contract, and the rules it tries."""

    name: str
    function: Callable[[Graph, PassOptions], Graph]
    rules: tuple[Rule, ...] = ()


def _pass(module: ModuleType) -> Pass:
    """The pass of a module: its function has the module's name."""
    name = module.__name__.rpartition(".")[2]
    return Pass(name, getattr(module, name), getattr(module, "RULES", ()))


CLEAN = _pass(clean)
FUSE = _pass(fuse_epilogue)
HEADS = _pass(average_heads)
NORM_AFFINE = _pass(fold_norm_affine)

PIPELINE: tuple[Pass, ...] = (
    CLEAN,
    _pass(hoist_constants),
    _pass(patch_embed),
    CLEAN,
    FUSE,
    _pass(recognise_attention),
    _pass(merge_linears),
    FUSE,
    _pass(embed_table),
    FUSE,
    _pass(fold_affine),
    HEADS,
    _pass(sink_rows),
    CLEAN,
    NORM_AFFINE,
    HEADS,
    _pass(fold_attention),
    _pass(slide_moves),
    NORM_AFFINE,
    FUSE,
    CLEAN,
    _pass(centre_residual),
    _pass(row_statistics),
    CLEAN,
    _pass(assign_dtypes),
)


def known_names() -> tuple[str, ...]:
    """What can be disabled: passes in the order they run, each followed by its rules."""
    names: dict[str, None] = {}
    for pass_ in PIPELINE:
        names.update(dict.fromkeys((pass_.name, *(rule.name for rule in pass_.rules))))
    return tuple(names)


def run_pipeline(
    graph: Graph, options: PassOptions | None = None, pipeline: Sequence[Pass] = PIPELINE
) -> Graph:
    """The graph after all passes that are not disabled.

    Raises GraphError naming the pass and `repro.vit` (the graph before it, in `options.dump_dir` or
    a new temporary folder) when a pass fails or leaves a graph that does not verify, and VitcError
    for an unknown name in `options.disable`.
    """
    options = options or PassOptions()
    _check_names(options.disable, pipeline)
    if options.dump_dir is not None:
        options.dump_dir.mkdir(parents=True, exist_ok=True)
        (options.dump_dir / "00-imported.vit").write_text(print_graph(graph))
    for index, pass_ in enumerate(pipeline, 1):
        if pass_.name not in options.disable:
            graph = _run(index, pass_, graph, options)
    return graph


def run_passes(graph: Graph, names: Sequence[str], options: PassOptions | None = None) -> Graph:
    """The graph after the named passes, in the order given. Raises as `run_pipeline`."""
    by_name = {pass_.name: pass_ for pass_ in PIPELINE}
    for name in names:
        if name not in by_name:
            raise VitcError(f"unknown pass '{name}'", hint=f"known: {', '.join(by_name)}")
    return run_pipeline(graph, options, [by_name[name] for name in names])


def _check_names(disable: frozenset[str], pipeline: Sequence[Pass]) -> None:
    own = {name for p in pipeline for name in (p.name, *(rule.name for rule in p.rules))}
    unknown = sorted(disable - own - set(known_names()))
    if unknown:
        raise VitcError(
            f"cannot disable {', '.join(map(repr, unknown))}: no such pass or rule",
            hint=f"known: {', '.join(known_names())}",
        )


def _run(index: int, pass_: Pass, graph: Graph, options: PassOptions) -> Graph:
    start = time.perf_counter()
    try:
        result = pass_.function(graph, options)
        verify(result)
        _check_interface(graph, result)
    except Exception as error:
        repro = _write_repro(graph, options.dump_dir)
        message = error.message if isinstance(error, GraphError) else repr(error)
        raise GraphError(message, pass_name=pass_.name, repro=repro) from error
    seconds = time.perf_counter() - start
    if options.dump_dir is not None:
        path = options.dump_dir / f"{index:02d}-{pass_.name}.vit"
        path.write_text(print_graph(result))
    if options.report is not None:
        sizes = (len(graph.nodes), len(result.nodes))
        options.report(PassReport(index, pass_.name, seconds, *sizes))
    return result


def _check_interface(before: Graph, after: Graph) -> None:
    """A pass may rename no input and change no output's shape."""
    same_inputs = [p.name for p in before.inputs] == [p.name for p in after.inputs]
    shapes = [[graph.types[n].shape for n in graph.outputs] for graph in (before, after)]
    if not same_inputs or shapes[0] != shapes[1]:
        raise GraphError(f"inputs or outputs changed: {shapes[0]} to {shapes[1]}")


def _write_repro(graph: Graph, folder: Path | None) -> Path | None:
    """The file with the graph, in a temporary folder of its own where none is given. None, and
    nothing is left, where it cannot be written: what the pass did is the error to report.
    """
    text = print_graph(graph)
    with ExitStack() as undo, suppress(OSError):
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="vitc-"))
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
        path = folder / "repro.vit"
        path.write_text(text)
        undo.pop_all()
        return path
    return None
