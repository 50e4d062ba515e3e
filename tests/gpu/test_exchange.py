"""numpy arrays and DLPack objects in and out of a library on a GPU."""

from __future__ import annotations

import gc
import importlib
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from runtime import gpu_toy, toy

from vitc.devices import Device
from vitc.errors import InputError
from vitc.runtime import Module, load
from vitc.runtime.dlpack import CUDA, DeviceArray

# --- numpy ----------------------------------------------------------------------------------------


def test_numpy(toy_module: Module) -> None:
    for seed in range(3):
        for batch in range(1, toy.MAX_BATCH + 1):
            x = toy.images(batch, seed)
            y, s = toy_module(x)
            assert isinstance(y, np.ndarray)
            np.testing.assert_array_equal(y, toy.expected(x))
            np.testing.assert_allclose(s, toy.expected(x).sum((2, 3)), rtol=1e-4, atol=1e-4)


def test_numpy_needs_no_alignment(toy_module: Module) -> None:
    x = toy.images(3)[1:]
    np.testing.assert_array_equal(toy_module(x).y, toy.expected(x))


def test_numpy_float16(cuda_toy: gpu_toy.Builder) -> None:
    with load(cuda_toy("float16", dtype="float16")) as module:
        x = toy.images().astype(np.float16)
        y = module(x).y
        assert y.dtype == np.float16
        np.testing.assert_array_equal(y, toy.expected(x.astype(np.float32)).astype(np.float16))


def test_numpy_has_no_bfloat16(cuda_toy: gpu_toy.Builder) -> None:
    with (
        load(cuda_toy("bfloat16", dtype="bfloat16")) as module,
        pytest.raises(InputError, match="numpy has no bfloat16: pass a torch tensor"),
    ):
        module(toy.images())


@pytest.mark.parametrize(
    "shape", [(5, *toy.SHAPE), (0, *toy.SHAPE), (1, 3, 5, 8), (100, 30, 50, 70)]
)
def test_numpy_of_wrong_shape(toy_module: Module, shape: tuple[int, ...]) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=r"'x' dimension"):
            toy_module(np.zeros(shape, np.float32))
        np.testing.assert_array_equal(toy_module(toy.images()).y, toy.expected(toy.images()))


def test_numpy_steps_and_threads(toy_module: Module) -> None:
    context = toy_module.new_context()
    x = toy.images(2)
    outputs = context.run_steps((x,), (0, 2))
    context.run_steps((x,), (2, 3), outputs)
    np.testing.assert_array_equal(outputs[0], toy.expected(x))
    np.testing.assert_allclose(outputs[1], toy.expected(x).sum((2, 3)), rtol=1e-4, atol=1e-4)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(50):
            images = toy.images(1 + i % 4, seed + i)
            if not np.array_equal(toy_module(images).y, toy.expected(images)):
                wrong.append(seed)

    threads = [Thread(target=work, args=(1000 * seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.usefixtures("nvidia")
def test_numpy_and_torch_do_not_mix() -> None:
    """Their work runs on different streams; the toy has one input, so this asks view_all."""
    from vitc.runtime.cuda_tensors import CudaFamilies
    from vitc.runtime.library import PortInfo
    from vitc.runtime.place import Place
    from vitc.runtime.tensors import view_all

    ports = [PortInfo("input", name, "float32", (4, 3)) for name in "ab"]
    values = [np.zeros((1, 3), np.float32), torch.zeros(1, 3, device="cuda")]
    with pytest.raises(InputError, match="all inputs must be of one kind, not Tensor, ndarray"):
        view_all(CudaFamilies(Place("cuda")), ports, values)


# --- DLPack ---------------------------------------------------------------------------------------


class Foreign:
    """A tensor of an unknown library: all that one can do with it is DLPack."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.streams: list[Any] = []

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.streams.append(stream)
        return self.tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return tuple(map(int, self.tensor.__dlpack_device__()))  # type: ignore[return-value]


def images(batch: int = toy.MAX_BATCH, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(toy.images(batch, seed)).cuda()


def test_dlpack_without_copies(toy_module: Module) -> None:
    for seed in range(4):
        x = Foreign(images(seed=seed))
        y = toy_module(x).y
        assert isinstance(y, DeviceArray)
        assert x.streams == [1]  # the default stream, by DLPack's numbers
        assert y.__dlpack_device__() == (CUDA, 0)
        assert "float32[4, 3, 5, 7] on cuda:0" in repr(y)
        ours = torch.from_dlpack(y)
        assert ours.data_ptr() == y.address
        np.testing.assert_array_equal(ours.cpu().numpy(), toy.expected(toy.images(seed=seed)))


def test_dlpack_output_to_another_stream(toy_module: Module) -> None:
    x = images()
    x[0, 0, 0, 0] = -1000  # slow
    for _ in range(3):
        y = toy_module(Foreign(x)).y
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            copy = torch.from_dlpack(y).clone()
        stream.synchronize()
        np.testing.assert_array_equal(copy.cpu().numpy(), toy.expected(x.cpu().numpy()))


def test_dlpack_output_stays_while_another_stream_reads(toy_module: Module) -> None:
    """Its owner lets go on the CPU long before the GPU has read it."""
    wanted = toy.expected(toy.images(seed=1))
    for _ in range(3):
        y = toy_module(Foreign(images(seed=1))).y
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            theirs = torch.from_dlpack(y)
            torch.cuda._sleep(1 << 27)  # clocks, some 70 ms
            copy = theirs.clone()
        del y, theirs
        toy_module(Foreign(images(seed=2)))
        stream.synchronize()
        np.testing.assert_array_equal(copy.cpu().numpy(), wanted)


def test_dlpack_memory_is_used_again(toy_module: Module) -> None:
    context = toy_module.new_context()
    x = Foreign(images())
    seen: set[int] = set()
    for _ in range(10):
        outputs = context(x)
        seen.add(outputs.y.address)
        del outputs
        gc.collect()
    assert len(seen) <= 2
    y = torch.from_dlpack(context(x).y)  # outlives its context and its pool
    context.close()
    gc.collect()
    np.testing.assert_array_equal(y.cpu().numpy(), toy.expected(toy.images()))


def test_dlpack_input_is_held_while_it_is_read(toy_module: Module) -> None:
    x = images()
    x[0, 0, 0, 0] = -1000  # slow
    wanted = toy.expected(x.cpu().numpy())
    y = toy_module(Foreign(x)).y
    del x
    gc.collect()
    other = [torch.full((4, *toy.SHAPE), 1e9, device="cuda") for _ in range(8)]
    np.testing.assert_array_equal(torch.from_dlpack(y).cpu().numpy(), wanted)
    del other


def test_dlpack_refusals(toy_module: Module) -> None:
    for value, text in (
        (images().cpu(), r"'x' is on the CPU, the library runs on cuda:0"),
        (images().half(), r"'x' is float16, .* compiled for float32"),
        (images().to(torch.complex64), r"'x' is complex64"),
        (images().transpose(2, 3), r"\[4, 3, 7, 5\] is not contiguous"),
        (images()[:, :, :, :6], r"not contiguous"),
        (images(3)[1:], r"not aligned to 16 bytes"),
    ):
        with pytest.raises(InputError, match=text):
            toy_module(Foreign(value))
    np.testing.assert_array_equal(toy_module(toy.images()).y, toy.expected(toy.images()))


@pytest.mark.parametrize("name", ["cupy", "jax.numpy"])
def test_other_libraries(toy_module: Module, name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name.partition('.')[0]} is not installed")
    for seed in range(4):
        x = toy.images(seed=seed)
        y = toy_module(module.asarray(x)).y
        assert type(y) is type(module.asarray(x))
        np.testing.assert_array_equal(y.get() if name == "cupy" else np.asarray(y), toy.expected(x))


def test_second_device_by_dlpack(toy_module: Module, nvidia: Device) -> None:
    class Elsewhere(Foreign):
        def __dlpack_device__(self) -> tuple[int, int]:
            return CUDA, 5

    with pytest.raises(InputError, match="'x' is on cuda:5, the library runs on cuda:0"):
        toy_module(Elsewhere(images()))
    assert nvidia.index == 0
