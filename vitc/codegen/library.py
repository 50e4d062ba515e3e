"""From selected calls to the sources and the manifest of one library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitc.codegen.kernel import KernelCall, Rendered, Target
from vitc.codegen.memory import MemoryPlan
from vitc.codegen.model_source import (
    ArgRef,
    ModelSource,
    PortParam,
    StepParam,
    WeightParam,
    render_model,
)
from vitc.codegen.render import KERNEL, TEMPLATES, comment
from vitc.codegen.select import Selection
from vitc.codegen.sources import Source
from vitc.errors import UnsupportedModelError, UnsupportedOp
from vitc.ir.graph import Graph
from vitc.ir.text import print_graph, print_node
from vitc.ir.types import Batch, DType, TensorType, shape_at
from vitc.runtime.payload import WeightSpec, plan_payload
from vitc.version import __version__

LINK_FLAGS = (f"-Wl,--version-script={TEMPLATES / 'exports.map'}", "-lpthread", "-ldl")


@dataclass(frozen=True)
class LibrarySource:
    """All that the compilers and the loader need: one source per object, and the manifest."""

    sources: tuple[Source, ...]
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Step:
    call: KernelCall
    symbol: str
    ir: str
    config: str
    isas: tuple[str, ...]
    args: tuple[tuple[ArgRef, str], ...]


def library_source(
    selection: Selection,
    plan: MemoryPlan,
    target: Target,
    *,
    batches: Sequence[int],
    weights_mode: str,
    about: Mapping[str, Any],
) -> LibrarySource:
    """Renders every kernel and the model's tables. `about`: further manifest keys.

    Raises UnsupportedModelError for inputs and outputs that do not begin with the batch.
    """
    _check_boundary(selection.graph)
    graph, max_batch = selection.graph, max(batches)
    specs = weight_specs(selection.recipes)
    layout = plan_payload(specs)
    places = _places(selection, plan, list(specs))
    sources: dict[str, Source] = {}
    steps: list[_Step] = []
    for call in selection.calls:
        rendered, ir = target.render(call), print_node(call.node, graph)
        symbol = _symbol(rendered)
        for isa, part in rendered.items():
            name = f"{symbol}_{isa}"
            if name not in sources:
                text = f"{comment(ir)}\n{part.body.replace(KERNEL, symbol)}"
                sources[name] = target.source(name, isa, text)
        operands = (*call.inputs, *call.outputs)
        args = tuple((places[operand.value], operand.value) for operand in operands)
        config = " | ".join(dict.fromkeys(part.config for part in rendered.values()))
        steps.append(_Step(call, symbol, ir, config, tuple(rendered), args))
    manifest = {
        **about,
        "format": 1,
        "vitc": __version__,
        "name": graph.name,
        "target": target.name,
        "isas": list(target.isas),
        "batch": {"max": max_batch, "tuned": list(batches)},
        "inputs": [_port(p.name, p.type) for p in graph.inputs],
        "outputs": [_port(name, graph.types[name]) for name in graph.outputs],
        "weights_mode": weights_mode,
        "weights_bytes": layout.total_bytes,
        "weights": [
            {
                "name": n,
                "dtype": s.dtype,
                "shape": list(s.shape),
                "offset": layout.offsets[n],
                "bytes": s.bytes,
            }
            for n, s in specs.items()
        ],
        "steps": [_manifest_step(step, graph) for step in steps],
        "workspace": _workspace(plan),
        "maps": selection.maps(),
        "recipes": print_graph(selection.recipes),
    }
    model = ModelSource(
        name=graph.name,
        device=target.device,
        isas=target.isas,
        inputs=tuple(_param(p.name, p.type, max_batch) for p in graph.inputs),
        outputs=tuple(_param(n, graph.types[n], max_batch) for n in graph.outputs),
        weights=tuple(WeightParam(n, layout.offsets[n], s.bytes) for n, s in specs.items()),
        payload_header=layout.header,
        payload_data_bytes=layout.data_bytes,
        workspace_bytes=plan.bytes,
        steps=tuple(
            StepParam(s.call.node.output, s.symbol, tuple(a for a, _ in s.args), s.ir, s.isas)
            for s in steps
        ),
        manifest=json.dumps(manifest),
    )
    return LibrarySource((*sources.values(), target.model_source(render_model(model))), manifest)


def _check_boundary(graph: Graph) -> None:
    """The C ABI counts the rows of what a caller passes in batches."""
    names = (*(port.name for port in graph.inputs), *graph.outputs)
    wrong = tuple(
        UnsupportedOp("return", name, f"it is {type_}; vitc passes [B, ...] alone")
        for name in names
        if (type_ := graph.types[name]).batched and type_.shape[0] != Batch()
    )
    if wrong:
        raise UnsupportedModelError(
            "inputs and outputs must begin with the batch, reshape them:", ops=wrong
        )


def weight_specs(recipes: Graph) -> dict[str, WeightSpec]:
    """Type and shape of each final constant, in the order of the payload."""
    return {name: _spec(recipes.types[name]) for name in recipes.outputs}


def _spec(type_: TensorType) -> WeightSpec:
    return WeightSpec(_stored(type_.dtype).value, shape_at(type_.shape, 1))


def _stored(dtype: DType) -> DType:
    return DType.FLOAT32 if dtype is DType.TF32 else dtype


def _places(selection: Selection, plan: MemoryPlan, constants: Sequence[str]) -> dict[str, ArgRef]:
    """Where each stored value lies. An output's place wins over a workspace place."""
    places = {name: ArgRef("workspace", at) for name, at in plan.offset_of().items()}
    places |= {name: ArgRef("weight", i) for i, name in enumerate(constants)}
    places |= {port.name: ArgRef("input", i) for i, port in enumerate(selection.graph.inputs)}
    places |= {name: ArgRef("output", i) for i, name in enumerate(selection.graph.outputs)}
    return places


def _symbol(rendered: Mapping[str, Rendered]) -> str:
    text = "\0".join(f"{isa}\0{part.body}" for isa, part in rendered.items())
    return f"vitc_k_{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _manifest_step(step: _Step, graph: Graph) -> dict[str, Any]:
    call = step.call
    moved = [operand.type.nbytes() for operand in (*call.inputs, *call.outputs)]
    return {
        "name": call.node.output,
        "symbol": step.symbol,
        "kernel": call.kernel.name,
        "config": step.config,
        "ir": step.ir,
        "module": call.node.loc,
        "flops": call.site.op.flops(call.site.inputs, call.site.results),
        # At batch 1; constants are read once whatever the batch.
        "bytes": sum(moved),
        "constant_bytes": sum(
            operand.type.nbytes()
            for operand, constant in zip(call.inputs, call.site.constant, strict=True)
            if constant
        ),
        "args": [
            {
                "space": ref.space,
                ("offset" if ref.space == "workspace" else "index"): ref.at,
                "value": v,
            }
            for ref, v in step.args
        ],
        "outputs": [
            {
                "value": operand.value,
                "dtype": _stored(operand.type.dtype).value,
                "shape": _dims(operand.type),
            }
            for operand in call.outputs
        ],
    }


def _workspace(plan: MemoryPlan) -> dict[str, Any]:
    return {
        "bytes": plan.bytes,
        "lower_bound": plan.lower_bound,
        "buffers": [
            {
                "value": " = ".join(b.values),
                "offset": b.offset,
                "bytes": b.bytes,
                "first": b.first,
                "last": b.last,
            }
            for b in plan.buffers
        ],
    }


def _dims(type_: TensorType) -> list[str | int]:
    return [str(dim) if isinstance(dim, Batch) else dim for dim in type_.shape]


def _port(name: str, type_: TensorType) -> dict[str, Any]:
    return {"name": name, "dtype": _stored(type_.dtype).value, "shape": _dims(type_)}


def _param(name: str, type_: TensorType, max_batch: int) -> PortParam:
    return PortParam(name, _stored(type_.dtype).value, shape_at(type_.shape, max_batch))
