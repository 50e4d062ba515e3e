"""Who runs: the compiled library and what its users would otherwise pick."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitc.errors import InputError

Run = Callable[[Tensor], Tensor]


def _eager(model: nn.Module) -> Run:
    return model


def _compiled(model: nn.Module) -> Run:
    # One graph per batch size: what torch does best when it knows the shape.
    return _torch_compile(model)


def _frozen(model: nn.Module) -> Run:
    return _torch_compile(model, options={"freezing": True})


def _autotuned(model: nn.Module) -> Run:
    return _torch_compile(model, mode="max-autotune")


def _autotuned_cudnn(model: nn.Module) -> Run:
    """The attention is chosen when the model is traced, which is at the first call."""
    run = _torch_compile(model, mode="max-autotune")

    def call(images: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return run(images)

    return call


def _graph(model: nn.Module) -> Run:
    """Eager torch captured once per input in a CUDA graph; what it returns is overwritten later."""
    if next(model.parameters()).device.type != "cuda":
        raise InputError("peer 'graph' needs an NVIDIA GPU")
    captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def run(images: Tensor) -> Tensor:
        if images.data_ptr() not in captured:
            side = torch.cuda.Stream()
            # It waits for nobody by itself, and weights and images may still be on their way.
            side.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(side):
                    for _ in range(3):  # libraries choose their kernels before the capture
                        model(images)
            finally:  # nor does anybody wait for it before the memory of a failed run is used again
                side.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = model(images)
            captured[images.data_ptr()] = graph, result
        graph, result = captured[images.data_ptr()]
        graph.replay()
        return result

    return run


def _torch_compile(model: nn.Module, **options: Any) -> Run:
    compiled: Any = torch.compile(model, dynamic=False, **options)
    return cast(Run, compiled)


def forget_compiled() -> None:
    """Drops what torch.compile holds of other batches; it would keep their memory, and give up
    compiling after some.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


# name: (what it is, how to make it of a model in eval mode and the dtype wanted)
PEERS: Mapping[str, tuple[str, Callable[[nn.Module], Run]]] = {
    "eager": ("torch eager", _eager),
    "compile": ("torch.compile", _compiled),
    "autotune": ("torch.compile, max-autotune", _autotuned),
    "autotune-cudnn": ("torch.compile, max-autotune, attention by cuDNN", _autotuned_cudnn),
    "graph": ("torch eager in a CUDA graph", _graph),
    "frozen": ("torch.compile with weights as constants (freezing)", _frozen),
}


def peer(name: str, model: nn.Module, dtype: torch.dtype, device: torch.device) -> Run:
    """A copy of the model in `dtype`, run as `name` says. Raises InputError for unknown names."""
    if name not in PEERS:
        raise InputError(f"unknown peer '{name}'", hint=f"known: {', '.join(PEERS)}")
    twin = copy.deepcopy(model).to(device, dtype).eval()
    run = PEERS[name][1](twin)

    def call(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return run(images)

    return call


class Features(nn.Module):
    """A model whose forward is `forward_features`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        whole: Any = self.model
        return cast(Tensor, whole.forward_features(images))


@contextmanager
def torch_settings(threads: int, dtype: str) -> Generator[None]:
    """torch's CPU threads, and tf32 products where the library has them, for a block."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.backends.cudnn.allow_tf32 = convolutions
