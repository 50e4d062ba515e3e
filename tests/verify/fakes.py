"""A library without a compiler: runs a graph kernel by kernel in float32 on a real workspace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitc.ir.graph import Graph
from vitc.ir.text import parse_graph, print_node
from vitc.ir.types import shape_at
from vitc.runtime.context import StepProfile
from vitc.verify import redraw
from vitc.verify.handle import decode
from vitc.verify.values import Evaluator

SHAPE = (3, 4, 4)
TEXT = """
graph tiny(%x: f32[B,3,4,4]) {
  weight %1.weight: f32[16,48]
  weight %1.bias: f32[16]
  weight %3.weight: f32[12,16]
  weight %3.bias: f32[12]
  weight %5.weight: f32[10,12]
  weight %5.bias: f32[10]
  %flat = move(%x) {map=map([B,3,4,4], reshape([B,48]))} : f32[B,48] @ 0
  %a = linear(%flat, %1.weight, %1.bias) {steps=[add($2), gelu]} : f32[B,16] @ 1
  %b = linear(%a, %3.weight, %3.bias) {steps=[add($2), gelu]} : f32[B,12] @ 3
  %y = linear(%b, %5.weight, %5.bias) {steps=[add($2)]} : f32[B,10] @ 5
  return %y
}
"""


def torch_model(seed: int = 0) -> nn.Module:
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.GELU(),
        nn.Linear(16, 12),
        nn.GELU(),
        nn.Linear(12, 10),
    ).eval()
    redraw(model, seed)
    return model


@dataclass(frozen=True)
class FakePort:
    name: str
    dtype: str
    shape: tuple[int, ...]


Bug = Callable[[np.ndarray], np.ndarray]


@dataclass
class FakeModule:
    """What vitc.Module offers to verification.

    bugs: by the name of the value that a kernel gets wrong. offsets: of values in the workspace.
    whole: a mistake of the library as a whole, on its result.
    """

    model: nn.Module
    batch: int = 4
    text: str = TEXT
    dtype: str = "float32"
    offsets: Mapping[str, int] = field(default_factory=lambda: {"a": 0, "b": 4096})
    bugs: Mapping[str, Bug] = field(default_factory=dict)
    whole: Callable[[Tensor], Tensor] = lambda result: result
    imported: Graph | None = None
    calls: int = 0

    def __post_init__(self) -> None:
        self.graph: Graph | None = parse_graph(self.text)
        self.meaning = self.graph
        self.weights: dict[str, np.ndarray] = {}
        self.load_weights(self.model.state_dict())
        self.inputs = [FakePort("x", "float32", (self.batch, *SHAPE))]
        self.outputs = [FakePort("y", "float32", (self.batch, 10))]
        self.manifest: dict[str, Any] = {
            "format": 1,
            "name": "tiny",
            "target": "cpu",
            "isas": ["avx2"],
            "maps": ["linear %a loads operand 0 (%x) through its map"],
            "dtype": self.dtype,
            "batch": {"max": self.batch, "tuned": [self.batch]},
            "graph_hash": "feed",
            "weights_bytes": 4096,
            "weights_mode": "embedded",
            "inputs": [{"name": "x", "dtype": "float32", "shape": ["B", *SHAPE]}],
            "outputs": [{"name": "y", "dtype": "float32", "shape": ["B", 10]}],
            "weights": [],
            "parameters": [],
            "workspace": {
                "bytes": 8192,
                "lower_bound": 4096,
                "buffers": [
                    {"value": "a", "offset": 0, "bytes": 256, "first": 0, "last": 1},
                    {"value": "b", "offset": 4096, "bytes": 192, "first": 1, "last": 2},
                ],
            },
            "steps": [
                self._step("x", "a", "1", 2 * 48 * 16),
                self._step("a", "b", "3", 2 * 16 * 12),
                self._step("b", "y", "5", 2 * 12 * 10),
            ],
        }

    def _step(self, read: str, write: str, layer: str, flops: int) -> dict[str, Any]:
        node = self.meaning.producers[write]
        weights = [{"space": "weight", "index": 0, "value": f"{layer}.weight.packed"}]
        return {
            "name": f"linear_{write}",
            "symbol": f"vitc_k_{write}",
            "kernel": "linear",
            "config": "6x16",
            "ir": print_node(node, self.meaning),
            "flops": flops,
            "bytes": 1000,
            "module": layer,
            "args": [self._ref(read), *weights, self._ref(write)],
        }

    def _ref(self, name: str) -> dict[str, Any]:
        if name in self.offsets:
            return {"space": "workspace", "offset": self.offsets[name], "value": name}
        return {"space": "input" if name == "x" else "output", "index": 0, "value": name}

    def __call__(self, images: Tensor) -> Tensor:
        return self.new_context()(images)

    def new_context(self, threads: int | None = None) -> FakeContext:
        return FakeContext(self)

    def load_weights(self, state_dict: Mapping[str, Any]) -> None:
        self.weights = {name: value.detach().numpy() for name, value in state_dict.items()}

    def profile(self, images: Tensor, repeats: int = 20) -> list[StepProfile]:
        steps = self.manifest["steps"]
        return [StepProfile(s["name"], 10.0 + i, s["flops"], 1000) for i, s in enumerate(steps)]

    def close(self) -> None:
        pass

    def __enter__(self) -> FakeModule:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FakeContext:
    def __init__(self, module: FakeModule) -> None:
        self.module = module
        self.memory = np.full(8192, 0xFF, np.uint8)

    def close(self) -> None:
        pass

    def __call__(self, images: Tensor) -> Tensor:
        self.module.calls += 1
        return self.module.whole(self.run_steps((images,))[0])

    def run_steps(
        self,
        inputs: Sequence[Tensor],
        steps: tuple[int, int] | None = None,
        outputs: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        batch = len(inputs[0])
        result = outputs[0] if outputs else torch.full((batch, 10), float("nan"))
        all_steps = self.module.manifest["steps"]
        for step in all_steps[slice(*(steps or (0, len(all_steps))))]:
            *reads, write = step["args"]
            name = write["value"]
            given = {r["value"]: self.load(r, inputs[0]) for r in reads if r["space"] != "weight"}
            evaluator = Evaluator(self.module.meaning, self.module.weights, batch)
            value = evaluator.compute((name,), given)[name].astype(np.float32)
            value = self.module.bugs.get(name, lambda v: v)(value).astype(np.float32)
            if write["space"] == "output":
                result.copy_(torch.from_numpy(value))
            else:
                raw = np.frombuffer(value.tobytes(), np.uint8)
                self.memory[write["offset"] : write["offset"] + len(raw)] = raw
        return (result,)

    def load(self, ref: Mapping[str, Any], images: Tensor) -> np.ndarray:
        if ref["space"] == "input":
            return images.numpy()
        type_ = self.module.meaning.types[ref["value"]]
        raw = self.read(ref["offset"], type_.nbytes(len(images)))
        return decode(raw, type_.dtype, shape_at(type_.shape, len(images)))

    def read(self, offset: int, size: int) -> np.ndarray:
        return self.memory[offset : offset + size].copy()
