"""What can be said of tensors for a GPU where there is none; tests/gpu has the rest."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from vitc.devices import nvidia_devices
from vitc.errors import DeviceError, InputError
from vitc.runtime import cuda, cuda_tensors, dlpack
from vitc.runtime.context import Context
from vitc.runtime.cuda_tensors import CudaFamilies
from vitc.runtime.dtypes import DTYPES
from vitc.runtime.library import Library, PortInfo
from vitc.runtime.place import Place, place_of
from vitc.runtime.staging import Staging
from vitc.runtime.tensors import view_all

PORT = PortInfo("input", "x", "float16", (4, 3, 5, 7))


@pytest.mark.parametrize(
    ("target", "device", "place"),
    [
        ("cpu", None, Place("cpu")),
        ("cpu", "cpu:0", Place("cpu")),
        ("cuda:sm_80", None, Place("cuda")),
        ("cuda:sm_80+sm_90", "cuda:1", Place("cuda", 1)),
        ("cuda:sm_80", 2, Place("cuda", 2)),
        ("cuda:sm_80:emulated", None, Place("cpu")),
        ("cuda:sm_80:emulated", "cpu", Place("cpu")),
    ],
)
def test_places(target: str, device: str | int | None, place: Place) -> None:
    assert place_of(target, device) == place


@pytest.mark.parametrize("device", ["cuda", "cpu:x", "cpu:-1", "hip:0", ""])
def test_wrong_places(device: str) -> None:
    with pytest.raises(DeviceError, match=f"cannot run on device '{device}': .* compiled for cpu"):
        place_of("cpu", device)


def test_target_of_a_later_vitc() -> None:
    with pytest.raises(DeviceError, match="cannot run libraries for xpu:1"):
        place_of("xpu:1", None)


@pytest.mark.parametrize(("index", "way"), [(0, r"x\.cuda\(\)"), (1, r"x\.to\('cuda:1'\)")])
def test_torch_on_the_cpu(index: int, way: str) -> None:
    families = CudaFamilies(Place("cuda", index))
    text = rf"'x' is on cpu, the library runs on cuda:{index}(.|\n)*pass {way}"
    with pytest.raises(InputError, match=text):
        view_all(families, [PORT], [torch.zeros(1, 3, 5, 7)])


def test_not_a_tensor() -> None:
    with pytest.raises(InputError, match=r"cannot run on a builtins\.list"):
        view_all(CudaFamilies(Place("cuda")), [PORT], [[1.0]])


def test_numpy_without_a_driver() -> None:
    if nvidia_devices().found:
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="no NVIDIA driver"):
        view_all(CudaFamilies(Place("cuda")), [PORT], [np.zeros((1, 3, 5, 7), np.float16)])


def test_numpy_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(cuda.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match=r"cuda-python, which is not(.|\n)*pip install"):
        cuda.CudaDriver(0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8", "int32", "int64"])
def test_import_of_a_capsule(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    tensor = dlpack.Imported(array.__dlpack__())
    assert (tensor.address, tensor.shape, tensor.dtype) == (array.ctypes.data, (2, 3, 4), dtype)
    assert tensor.device == (dlpack.CPU, 0)
    assert tensor.contiguous


def test_import_of_what_is_not_dense() -> None:
    array = np.zeros((4, 6), np.float32)
    for view, dense in ((array[:, ::2], False), (array.T, False), (array[1:], True)):
        assert dlpack.Imported(view.__dlpack__()).contiguous is dense
    ones = torch.zeros(4, 1, 6).as_strided((4, 1, 6), (6, 77, 1))
    assert dlpack.Imported(ones.__dlpack__()).contiguous
    assert dlpack.Imported(torch.zeros(2, dtype=torch.bfloat16).__dlpack__()).dtype == "bfloat16"
    assert dlpack.Imported(torch.zeros(2, dtype=torch.complex64).__dlpack__()).dtype == "complex64"


def test_import_holds_and_releases() -> None:
    class Tracked(np.ndarray[Any, Any]):
        alive = 0

        def __del__(self) -> None:
            Tracked.alive -= 1

    array = np.zeros(8, np.float32).view(Tracked)
    Tracked.alive = 1
    tensor = dlpack.Imported(array.__dlpack__())
    del array
    gc.collect()
    assert Tracked.alive == 1
    del tensor
    gc.collect()
    assert Tracked.alive == 0


class HostPool:
    """Stands in for GPU memory, to let others look into it."""

    def __init__(self) -> None:
        self.memory = np.zeros(1024, np.uint8)
        self.free = 1

    def take(self, size: int) -> Any:
        assert size <= self.memory.nbytes
        self.free -= 1
        return self

    @property
    def address(self) -> int:
        return self.memory.ctypes.data

    def give_back(self, buffer: Any) -> None:
        assert buffer is self
        self.free += 1


class HostArray(dlpack.DeviceArray):
    """A DeviceArray in host memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0


def host_array(pool: HostPool, dtype: str = "float32") -> HostArray:
    return HostArray(cast(dlpack.BufferPool, pool), DTYPES[dtype], (2, 3), 24)


@pytest.mark.parametrize("module", [np, torch])
def test_export(module: Any) -> None:
    pool = HostPool()
    ours = host_array(pool)
    theirs = module.from_dlpack(ours)
    assert tuple(theirs.shape) == (2, 3)
    assert "float32" in str(theirs.dtype)
    pool.memory.view(np.float32)[:6] = range(6)
    np.testing.assert_array_equal(np.asarray(theirs), np.arange(6, dtype=np.float32).reshape(2, 3))
    del ours
    gc.collect()
    assert pool.free == 0
    del theirs
    gc.collect()
    assert pool.free == 1


def test_export_that_nobody_takes() -> None:
    pool = HostPool()
    capsule = host_array(pool).__dlpack__()
    gc.collect()
    assert pool.free == 0
    del capsule
    gc.collect()
    assert pool.free == 1
    assert not dlpack._exported


class Recorder:
    """Stands in for the driver: what was called, in order. Its handles are all addresses."""

    index = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.memory: list[np.ndarray[Any, Any]] = []

    def __call__(self, function: str, *arguments: Any) -> int:
        self.calls.append((function, *arguments))
        self.memory.append(np.zeros(1 << 12, np.uint8))
        return self.memory[-1].ctypes.data

    def release(self, function: str, *handle: Any) -> None:
        self(function, *handle)

    def succeeds(self, function: str, *arguments: Any) -> bool:
        self(function, *arguments)
        return function != "cuEventQuery"  # the GPU is late

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


@pytest.mark.parametrize("stream", [None, 1, 2, -1, 77])
def test_memory_that_another_stream_has_is_not_used_again(stream: int | None) -> None:
    """Its consumer may be done on the CPU while its kernels still read; nothing says when."""
    driver = Recorder()
    pool = dlpack.BufferPool(cast(cuda.CudaDriver, driver))
    first = dlpack.DeviceArray(pool, DTYPES["float32"], (2, 3), 24)
    address = first.address
    capsule = first.__dlpack__(stream=stream)
    assert ("cuStreamWaitEvent" in driver.names) is (stream in (2, 77))
    del first, capsule
    gc.collect()
    again = dlpack.DeviceArray(pool, DTYPES["float32"], (2, 3), 24).address == address
    assert again is (stream in (None, 1))
    assert (("cuMemFree", address) in driver.calls) is not again
    if not again:
        assert driver.names.index("cuCtxSynchronize") < driver.names.index("cuMemFree")


class Given:
    """A tensor of another library, in memory that stands for a GPU's."""

    def __init__(self, driver: Recorder) -> None:
        class Memory(np.ndarray[Any, Any]):
            def __del__(self) -> None:
                if self.base is None:
                    driver("released")

        self.memory = Memory(PORT.shape, np.float16)

    def __dlpack__(self, *, stream: int) -> Any:
        assert stream == cuda.DEFAULT_STREAM
        return self.memory.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0


class FakeLibrary:
    """Queues a kernel that reads its input; the next one may fail to start."""

    inputs = (PORT,)
    outputs = (replace(PORT, kind="output", name="y"),)

    def __init__(self, driver: Recorder, fails: bool) -> None:
        self.driver, self.fails = driver, fails

    def context_create(self, model: int, threads: int) -> int:
        return model + threads

    def context_destroy(self, handle: int) -> None:
        del handle

    def run(self, *arguments: Any) -> None:
        self.driver("launch")
        if self.fails:
            raise DeviceError("step 1: no such kernel")


@pytest.mark.parametrize("fails", [False, True])
def test_inputs_are_released_behind_the_queued_kernels(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Also where the run failed after its first kernel; only then is there a wait."""
    driver = Recorder()
    monkeypatch.setattr(cuda_tensors, "cuda_driver", lambda index: driver)
    library = cast(Library, FakeLibrary(driver, fails))
    context = Context(library, 1, 0, [], Place("cuda"))
    with pytest.raises(DeviceError, match="no such") if fails else nullcontext():
        context(Given(driver))
    gc.collect()
    assert ("released" in driver.names) is fails
    if fails:
        waits = ("cuStreamSynchronize", cuda.DEFAULT_STREAM)
        assert driver.names.index("launch") < driver.calls.index(waits)
        assert driver.calls.index(waits) < driver.names.index("released")
    else:
        assert "cuStreamSynchronize" not in driver.names
        context.close()
        assert driver.names.index("cuEventSynchronize") < driver.names.index("released")


def test_staging_waits_for_its_copies_before_its_memory_is_freed() -> None:
    driver = Recorder()
    staging = Staging(cast(cuda.CudaDriver, driver))
    staging.upload(PORT, np.zeros((4, 3, 5, 7), np.float16))  # and the call fails
    copied = driver.names.index("cuMemcpyHtoDAsync")
    del staging
    gc.collect()
    waited = driver.names.index("cuStreamSynchronize")
    freed = min(driver.names.index(name) for name in ("cuMemFree", "cuMemFreeHost"))
    assert copied < waited < freed


def test_export_refuses_copies() -> None:
    array = host_array(HostPool())
    for wish in ({"copy": True}, {"dl_device": (dlpack.CUDA, 3)}):
        with pytest.raises(BufferError, match="without a copy"):
            array.__dlpack__(**wish)  # type: ignore[arg-type]


def test_bfloat16_out_to_torch() -> None:
    assert torch.from_dlpack(host_array(HostPool(), "bfloat16")).dtype is torch.bfloat16
