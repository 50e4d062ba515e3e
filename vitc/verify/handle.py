"""What verification and benchmarks need of a compiled model; `vitc.Module` offers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitc.errors import VitcError
from vitc.ir.types import DType


class Port(Protocol):
    """Name, dtype and shape of an input or output; shape[0] is the maximum batch."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Stepper(Protocol):
    """A context that runs single kernels; see vitc.runtime.context.Context."""

    def run_steps(
        self,
        inputs: Sequence[Any],
        steps: tuple[int, int] | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> tuple[Any, ...]: ...

    def read(self, offset: int, size: int) -> NDArray[np.uint8]: ...
    def close(self) -> None: ...


class Compiled(Protocol):
    """A loaded library; see vitc.Module."""

    manifest: dict[str, Any]

    @property
    def inputs(self) -> Sequence[Port]: ...
    @property
    def outputs(self) -> Sequence[Port]: ...
    def __call__(self, *inputs: Any) -> Any: ...
    def new_context(self, threads: int | None = None) -> Stepper: ...
    def load_weights(self, state_dict: Mapping[str, Any]) -> None: ...


def device_of(module: Compiled) -> torch.device:
    """The device that the library's inputs live on."""
    kind, _, rest = str(module.manifest["target"]).partition(":")
    on_gpu = kind in ("cuda", "rocm") and not rest.endswith(":emulated")
    return torch.device("cuda" if on_gpu else "cpu")


def max_batch(module: Compiled) -> int:
    """The largest batch that the library takes."""
    return module.inputs[0].shape[0]


def image_shape(module: Compiled) -> tuple[int, int, int]:
    """(C, H, W) of the library's input. Raises VitcError when it does not take images."""
    shape = module.inputs[0].shape
    if len(module.inputs) != 1 or len(shape) != 4:
        shown = ", ".join(f"{port.name}{list(port.shape)}" for port in module.inputs)
        raise VitcError(f"verification needs one input [B, C, H, W]; the library takes {shown}")
    return shape[1], shape[2], shape[3]


_TORCH = {
    "float64": torch.float64,
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def torch_dtype(name: str) -> torch.dtype:
    """torch's dtype of a float dtype of vitc. Raises VitcError for the others."""
    if name not in _TORCH:
        raise VitcError(f"'{name}' is not a floating-point dtype of torch")
    return _TORCH[name]


def run(module: Compiled, images: Tensor) -> Tensor:
    """The library's first output for images, which are cast and moved as it wants them."""
    port = module.inputs[0]
    images = images.to(device_of(module), torch_dtype(port.dtype)).contiguous()
    result = cast(Tensor | tuple[Tensor, ...], module(images))
    return result[0] if isinstance(result, tuple) else result


def decode(raw: NDArray[np.uint8], dtype: DType, shape: Sequence[int]) -> NDArray[np.float64]:
    """Bytes of a dense tensor as float64."""
    if dtype is DType.BFLOAT16:
        wide = np.frombuffer(raw.tobytes(), np.uint16).astype(np.uint32) << 16
        plain: NDArray[Any] = np.frombuffer(wide.tobytes(), np.float32)
    else:
        name = "float32" if dtype is DType.TF32 else dtype.value
        plain = np.frombuffer(raw.tobytes(), np.dtype(name))
    return np.reshape(np.asarray(plain, np.float64), tuple(shape))
