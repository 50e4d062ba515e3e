"""Every wrong input is refused with a message that names it and says what to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from runtime import toy

from vitc.errors import InputError
from vitc.runtime import Module


def numpy_of(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape, dtype)


class OnGpu:
    """Says that it is on a GPU; nothing may touch its memory."""

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("asked for memory of another device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)


class Uncooperative:
    """Refuses to be exported, as a lazy array does."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("no buffer yet")

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


CASES = {
    "height": (numpy_of(1, 3, 6, 7), r"'x' dimension 2 \(height\) is 6, .* compiled for 5"),
    "width": (numpy_of(1, 3, 5, 9), r"'x' dimension 3 \(width\) is 9, .* compiled for 7"),
    "channels": (numpy_of(1, 1, 5, 7), r"'x' dimension 1 \(channels\) is 1, .* compiled for 3"),
    "batch 0": (numpy_of(0, 3, 5, 7), r"'x' dimension 0 \(batch\) is 0, .* for 1 to 4"),
    "torch batch 0": (torch.zeros(0, 3, 5, 7), r"\(batch\) is 0, .* for 1 to 4"),
    "batch above": (numpy_of(5, 3, 5, 7), r"'x' dimension 0 \(batch\) is 5, .* for 1 to 4"),
    "no batch": (numpy_of(3, 5, 7), r"rank 3, .* rank 4 \(batch, channels, height, width\)"),
    "rank 0": (numpy_of(), "rank 0"),
    "rank 9": (numpy_of(*[1] * 9), "rank 9"),
    "float64": (numpy_of(1, 3, 5, 7, dtype="float64"), r"float64.*float32(.|\n)*astype"),
    "uint8": (numpy_of(1, 3, 5, 7, dtype="uint8"), r"is uint8"),
    "complex": (numpy_of(1, 3, 5, 7, dtype="complex64"), r"is complex64"),
    "objects": (numpy_of(1, 3, 5, 7, dtype="object"), r"is object"),
    "byte order": (numpy_of(1, 3, 5, 7, dtype=">f4"), r"foreign byte order"),
    "torch half": (torch.zeros(1, 3, 5, 7).half(), r"float16(.|\n)*x\.to\(torch\.float32\)"),
    "transposed": (numpy_of(1, 3, 7, 5).swapaxes(2, 3), r"not contiguous(.|\n)*ascontiguous"),
    "strided": (numpy_of(2, 3, 5, 7)[::-1], r"not contiguous"),
    "channels last": (
        torch.zeros(1, 3, 5, 7).contiguous(memory_format=torch.channels_last),
        r"not contiguous(.|\n)*x\.contiguous\(\)",
    ),
    "expanded": (torch.zeros(1, 3, 5, 1).expand(1, 3, 5, 7), r"not contiguous"),
    "other device": (torch.zeros(1, 3, 5, 7, device="meta"), r"on meta(.|\n)*x\.cpu\(\)"),
    "sparse": (torch.zeros(1, 3, 5, 7).to_sparse(), r"sparse_coo(.|\n)*to_dense"),
    "gradient": (torch.zeros(1, 3, 5, 7, requires_grad=True), r"gradient(.|\n)*x\.detach\(\)"),
    "GPU by DLPack": (OnGpu(), r"on a CUDA device, .* CPU"),
    "lazy DLPack": (Uncooperative(), r"DLPack: no buffer yet"),
    "list": ([[1.0]], r"cannot run on a builtins\.list(.|\n)*torch tensor"),
    "none": (None, r"NoneType"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_input(module: Module, case: str) -> None:
    value, text = CASES[case]
    with pytest.raises(InputError, match=text):
        module(value)
    # And the module is none the worse.
    np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))


def test_lazily_negated(module: Module) -> None:
    x = torch.view_as_complex(torch.randn(1, 3, 5, 7, 2)).conj().imag
    assert x.is_neg()
    with pytest.raises(InputError, match=r"contiguous|resolve_neg"):
        module(x)


def test_gradient_is_fine_where_none_is_wanted(module: Module) -> None:
    x = torch.from_numpy(toy.images()).requires_grad_()
    with torch.no_grad():
        y = module(x).y
    np.testing.assert_array_equal(y.numpy(), toy.expected(toy.images()))


@pytest.mark.parametrize("count", [0, 2])
def test_wrong_count(module: Module, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} inputs given, the library has 1: x"):
        module(*[toy.images()] * count)


def test_outputs_are_checked_too(module: Module) -> None:
    context = module.new_context()
    x = toy.images(2)
    y, s = context.run_steps((x,))
    for outputs, text in (
        ((y,), "1 output given, the library has 2: y, s"),
        ((y[:1], s), r"output 'y' has batch 1, 'x' has 2"),
        ((y, s.astype(np.float64)), "output 's' is float64"),
        ((x, s), r"output 'y' overlaps input 'x'"),
        ((y, y.reshape(-1)[:6].reshape(2, 3)), r"output 's' overlaps output 'y'"),
    ):
        with pytest.raises(InputError, match=text):
            context.run_steps((x,), None, outputs)
