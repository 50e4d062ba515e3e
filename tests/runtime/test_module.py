"""A loaded library gives the right numbers, for every kind of tensor, batch, thread and ISA."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runtime import toy

from vitc.errors import DeviceError, InputError, VitcError
from vitc.runtime import Module, load


class Foreign:
    """A tensor library of its own that speaks DLPack and the array API."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    @staticmethod
    def from_dlpack(other: Any) -> Foreign:
        return Foreign(np.from_dlpack(other))

    def __array_namespace__(self) -> Any:
        return Foreign

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("batch", range(1, toy.MAX_BATCH + 1))
def test_every_batch(module: Module, batch: int) -> None:
    x = toy.images(batch)
    y, s = module(x)
    np.testing.assert_array_equal(y, toy.expected(x))
    np.testing.assert_allclose(s, y.sum((2, 3)), rtol=1e-4, atol=1e-4)


def test_outputs_are_named(module: Module) -> None:
    result = module(toy.images())
    assert result._fields == ("y", "s")
    assert result.s is result[1]


def test_torch_in_torch_out(module: Module) -> None:
    x = torch.from_numpy(toy.images())
    y, s = module(x)
    assert isinstance(y, torch.Tensor)
    assert s.shape == (toy.MAX_BATCH, 3)
    np.testing.assert_array_equal(y.numpy(), toy.expected(x.numpy()))


def test_inputs_are_read_in_place(module: Module) -> None:
    """Unaligned and read-only memory is used as it is; neither input nor neighbours are written."""
    room = np.zeros(1 + toy.images().nbytes, np.uint8)
    x = room[1:].view(np.float32).reshape((toy.MAX_BATCH, *toy.SHAPE))
    x[...] = toy.images()
    x.flags.writeable = False
    before = room.copy()
    np.testing.assert_array_equal(module(x).y, toy.expected(toy.images()))
    np.testing.assert_array_equal(room, before)


def test_dlpack_comes_back_as_its_own_kind(module: Module) -> None:
    y, _ = module(Foreign(toy.images()))
    assert isinstance(y, Foreign)
    np.testing.assert_array_equal(y.array, toy.expected(toy.images()))


def test_bfloat16(build: Callable[..., Path], tmp_path: Path) -> None:
    path = toy.make_library(build("bfloat16", dtype="bfloat16"), tmp_path / "toy.so")
    with load(path) as module:
        x = torch.from_numpy(toy.images()).bfloat16()
        y, _ = module(x)
        assert y.dtype == torch.bfloat16
        np.testing.assert_allclose(y.float(), toy.expected(x.float().numpy()), rtol=1e-2, atol=1e-2)
        with pytest.raises(InputError, match=r"x' is float32.*bfloat16") as error:
            module(toy.images())
        assert "input_dtype='float32'" in str(error.value)


@pytest.mark.parametrize("isa", ["avx2", "avx512", ""])
def test_isa(library: Path, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = Path("/proc/cpuinfo").read_text()
    if isa and {"avx2": "avx2", "avx512": "avx512vl"}[isa] not in flags:
        pytest.skip(f"this processor has no {isa}")
    monkeypatch.setenv("VITC_ISA", isa)
    with load(library) as module:
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))


def test_unknown_isa(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITC_ISA", "sse2")
    with pytest.raises(InputError, match=r"'sse2'.*avx2, avx512"):
        load(library)


def test_threads_with_a_context_each(module: Module) -> None:
    """Bit-equal to one thread, and every thread has a context of its own."""
    inputs = [toy.images(1 + i % toy.MAX_BATCH, seed=i) for i in range(24)]
    alone = [module(x) for x in inputs]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[Any]:
        barrier.wait(30)
        return [module(x) for x in inputs * 5]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for result, want in zip(results, alone * 5, strict=True):
                np.testing.assert_array_equal(result.y, want.y)
                np.testing.assert_array_equal(result.s, want.s)


def test_contexts_of_ended_threads_are_released(module: Module) -> None:
    for _ in range(3):
        thread = threading.Thread(target=module, args=(toy.images(),))
        thread.start()
        thread.join()
    assert len(module._contexts) == 0


def test_the_interpreter_runs_while_the_library_does(module: Module) -> None:
    x = toy.images()
    x[0, 0, 0, 0] = -1000  # makes the kernel sleep for 20 ms
    ticks = 0
    thread = threading.Thread(target=lambda: [module(x) for _ in range(3)])
    thread.start()
    while thread.is_alive():
        ticks += 1
    assert ticks > 100


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_thread_counts_agree(module: Module, threads: int) -> None:
    with_own = module.new_context(threads=threads)
    np.testing.assert_array_equal(with_own(toy.images()).y, module(toy.images()).y)
    with_own.close()
    with pytest.raises(VitcError, match="closed"):
        with_own(toy.images())


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_bad_thread_counts(module: Module, threads: int) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}"):
        module.new_context(threads=threads)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_run(module: Module) -> None:
    want = module(toy.images()).y
    child = os.fork()
    if child == 0:
        same = np.array_equal(module(toy.images()).y, want)
        module.close()
        os._exit(0 if same else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0


def test_steps_one_by_one_equal_a_run(module: Module) -> None:
    x = toy.images()
    context = module.new_context()
    outputs = context.run_steps((x,), (0, 1))
    size = module.manifest["workspace"]["bytes"]
    scaled = context.read(0, size).view(np.float32).reshape(x.shape)
    np.testing.assert_array_equal(scaled, x * toy.constants()["w"].data.reshape(3, 1, 1))
    for step in (1, 2):
        context.run_steps((x,), (step, step + 1), outputs)
    want = context(x)
    np.testing.assert_array_equal(outputs[0], want.y)
    np.testing.assert_array_equal(outputs[1], want.s)
    for steps in ((-1, 1), (2, 1), (0, 4)):
        with pytest.raises(InputError, match="0 to 3"):
            context.run_steps((x,), steps)
    for offset, count in ((size, 1), (0, size + 1), (2**64 - 8, 16)):
        with pytest.raises(InputError, match="not in the workspace"):
            context.read(offset, count)


def test_profile(module: Module) -> None:
    times = module.profile(toy.images(2), repeats=5)
    assert [step.name for step in times] == ["scale", "shift", "total"]
    assert all(step.microseconds > 0 for step in times)
    assert times[0].flops == 2 * 105
    assert times[0].bytes == 2 * 840 + 12
    with pytest.raises(InputError, match="repeats is 0"):
        module.profile(toy.images(), repeats=0)


def test_repr_explains(module: Module) -> None:
    text = repr(module)
    for part in ("toy", "x: float32[1..4, 3, 5, 7]", "s: float32[1..4, 3]", "cpu", "3 steps"):
        assert part in text


def test_close(library: Path) -> None:
    with load(library) as module:
        context = module.new_context()
        module(toy.images())
    assert "closed" in repr(module)
    for call in (module, context, module.new_context, module.profile):
        with pytest.raises(VitcError, match="closed"):
            call(*([toy.images()] if call != module.new_context else []))
    module.close()


def test_close_waits_for_a_running_call(library: Path) -> None:
    x = toy.images()
    x[0, 0, 0, 0] = -1000
    module = load(library)
    context = module.new_context()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(context(x)))
    thread.start()
    while not context._lock.locked() and not results:
        pass
    module.close()
    thread.join()
    np.testing.assert_array_equal(results[0].y, toy.expected(x))


def test_failing_kernel(module: Module) -> None:
    x = toy.images()
    x[0, 0, 0, 0] = -2000
    with pytest.raises(VitcError, match=r"step 0 \(scale\) failed with code 7"):
        module(x)
    x[0, 0, 0, 0] = -3000
    with pytest.raises(DeviceError, match="out of host memory"):
        module(x)
    np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))


def test_out_of_memory(build: Callable[..., Path], tmp_path: Path) -> None:
    path = toy.make_library(build("huge", workspace_bytes=1 << 50), tmp_path / "toy.so")
    with load(path) as module:
        for call in (module.new_context, lambda: module(toy.images())):
            with pytest.raises(DeviceError, match=f"cannot allocate {1 << 50} bytes for the work"):
                call()


@pytest.mark.parametrize("device", ["cpu", "cpu:0", 0])
def test_device(library: Path, device: str | int) -> None:
    load(library, device=device).close()


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu:x", "cpu:1", 1, -1])
def test_wrong_device(library: Path, device: str | int) -> None:
    with pytest.raises(DeviceError, match="device"):
        load(library, device=device)
