"""When every kernel does what its IR says: is the imported graph wrong, or did a pass break it?"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vitc.codegen.targets import find_target
from vitc.ir.graph import Graph, Node
from vitc.ir.interp import interpret
from vitc.ir.op import Array
from vitc.ir.text import parse_graph
from vitc.ir.types import DType
from vitc.passes import pipeline
from vitc.passes.options import PassOptions
from vitc.verify.handle import Compiled
from vitc.verify.reference import reference
from vitc.verify.values import relative

EXACT = 1e-9  # two ways to compute the same in float64


def blame(
    module: Compiled,
    graph: Graph,
    model: nn.Module,
    weights: Mapping[str, Array],
    images: Tensor,
    *,
    features: bool = False,
) -> tuple[Literal["frontend", "pass", "unknown"], str] | None:
    """The stage before the kernels that changed the meaning, or None when none did."""
    expected = reference(model, images, features=features).cpu().numpy()
    if meaning_error(graph, weights, images, expected) <= EXACT:
        return None
    imported: Any = getattr(module, "imported", None)
    if not isinstance(imported, Graph):
        return "unknown", "the optimised graph differs from timm, and the imported one is not kept"
    error = meaning_error(imported, weights, images, expected)
    if error > EXACT:
        where = first_module(imported, model, weights, images)
        return "frontend", f"the imported graph differs from timm by {error:.1e}{where}"
    for name, after in pass_graphs(module, imported):
        error = meaning_error(after, weights, images, expected)
        if error > EXACT:
            return "pass", f"pass '{name}' changes the result by {error:.1e}"
    return "pass", "a pass changed the result, but not when all of them run again"


def meaning_error(
    graph: Graph, weights: Mapping[str, Array], images: Tensor, expected: Array
) -> float:
    """Relative L2 error of the graph's first output, interpreted in float64."""
    inputs = {graph.inputs[0].name: images.double().cpu().numpy()}
    return relative(interpret(graph, inputs, weights)[graph.outputs[0]], expected)


def pass_graphs(module: Compiled, imported: Graph) -> Iterator[tuple[str, Graph]]:
    """The graph after each pass, "NN-name", by running them again as the compilation did."""
    manifest = module.manifest
    with tempfile.TemporaryDirectory(prefix="vitc-") as folder:
        options = PassOptions(
            dtype=DType.parse(str(manifest["dtype"])),
            input_dtype=DType.parse(str(manifest["inputs"][0]["dtype"])),
            output_dtype=DType.parse(str(manifest["outputs"][0]["dtype"])),
            stats_width=find_target(str(manifest["target"])).stats_width,
            disable=frozenset(manifest.get("disable", ())),
            dump_dir=Path(folder),
        )
        pipeline.run_pipeline(imported, options, pipeline.PIPELINE)
        for path in sorted(Path(folder).glob("*.vit")):
            yield path.stem, parse_graph(path.read_text(encoding="utf-8"))


def first_module(
    imported: Graph, model: nn.Module, weights: Mapping[str, Array], images: Tensor
) -> str:
    """ ", first in '<module path>'" by comparing the results of modules with those of their nodes.

    Only modules without parts are compared, whose last node makes their result, and only results
    of equal shape: the graph keeps images channels-last.
    """
    results: dict[str, list[Array]] = {}

    def keep(node: Node, values: tuple[Array, ...]) -> None:
        path = node.loc.partition(" ")[0]  # the source line follows
        results.setdefault(path, []).append(values[0])

    inputs = {imported.inputs[0].name: images.double().cpu().numpy()}
    interpret(imported, inputs, weights, observe=keep)
    for path, output in _module_results(model, images):
        values = [v for v in results.get(path, []) if v.shape == output.shape]
        if values and relative(values[-1], output) > EXACT:
            return f", first in '{path}'"
    return ""


def _module_results(model: nn.Module, images: Tensor) -> list[tuple[str, Array]]:
    """Results of all modules without parts, in float64, in the order in which they run."""
    twin = copy.deepcopy(model).double().eval()
    seen: list[tuple[str, Array]] = []
    named = cast(Iterator[tuple[str, nn.Module]], twin.named_modules())
    paths = {part: path for path, part in named if not any(True for _ in part.children())}

    def record(part: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            seen.append((paths[part], output.cpu().numpy()))

    for part in paths:
        part.register_forward_hook(record)
    with torch.inference_mode():
        twin(images.to(torch.float64))
    return seen
