"""The library and its handle on a GPU, with the kernels of the toy: order, memory, refusals."""

from __future__ import annotations

import ctypes
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from runtime import gpu_toy, toy

from vitc.devices import Device
from vitc.errors import DeviceError, InputError
from vitc.runtime import Module, load
from vitc.runtime.dtypes import DTYPES
from vitc.runtime.library import TensorView

SLOW = -1000.0  # as x[0]: the first kernel takes at least 20 ms


def images(batch: int = toy.MAX_BATCH, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(toy.images(batch, seed)).cuda()


def expected(x: torch.Tensor, w: float = 2.0, b: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(toy.expected(x.cpu().numpy(), w, b)).to(x.device)


def check(module: Module, x: torch.Tensor) -> None:
    y, s = module(x)
    torch.testing.assert_close(y, expected(x))
    torch.testing.assert_close(s, expected(x).sum((2, 3)), rtol=1e-5, atol=1e-4)


# --- graphs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("graphs", ["1", "0"])
def test_every_batch(
    cuda_toy: gpu_toy.Builder, monkeypatch: pytest.MonkeyPatch, graphs: str
) -> None:
    monkeypatch.setenv("VITC_GRAPHS", graphs)
    with load(cuda_toy()) as module:
        for round_ in range(4):  # plain, captured, replayed
            for batch in range(1, toy.MAX_BATCH + 1):
                check(module, images(batch, seed=10 * round_ + batch))


def test_addresses_that_change(toy_module: Module) -> None:
    """More of them than graphs are kept, in no order."""
    inputs = {batch: [images(batch, seed) for seed in range(7)] for batch in (1, 3, 4)}
    generator = np.random.default_rng(0)
    held: list[Any] = []
    for _ in range(200):
        batch = int(generator.choice([1, 3, 4]))
        x = inputs[batch][generator.integers(7)]
        y = toy_module(x).y
        if generator.random() < 0.5:
            held.append((x, y))
        torch.testing.assert_close(y, expected(x))
    for x, y in held:
        torch.testing.assert_close(y, expected(x))


def test_replays_see_new_contents(toy_module: Module) -> None:
    x = images()
    for seed in range(6):
        x.copy_(images(seed=seed))
        check(toy_module, x)


def test_weights_change_under_graphs(toy_module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = images()
    for round_ in range(6):
        w, b = float(round_), float(-round_)
        monkeypatch.setattr(
            "vitc.runtime.module.final_constants", lambda *_, w=w, b=b: toy.constants(w, b)
        )
        toy_module.load_weights({"scale": np.zeros(3), "offset": np.zeros(3)})
        for _ in range(3):
            torch.testing.assert_close(toy_module(x).y, expected(x, w, b))


def test_steps_read_and_profile(toy_module: Module) -> None:
    x = images(2)
    context = toy_module.new_context()
    outputs = context.run_steps((x,), (0, 1))
    h = context.read(0, x.nbytes).view(np.float32).reshape(x.shape)
    np.testing.assert_array_equal(h, x.cpu().numpy() * toy.constants()["w"].data.reshape(3, 1, 1))
    context.run_steps((x,), (1, 3), outputs)
    torch.testing.assert_close(outputs[0], expected(x))
    profile = context.profile(x, repeats=5)
    assert [step.name for step in profile] == ["scale", "shift", "total"]
    assert all(0.1 < step.microseconds < 1000 for step in profile), profile
    x[0, 0, 0, 0] = SLOW
    assert context.profile(x, repeats=1)[0].microseconds > 10000


# --- order ----------------------------------------------------------------------------------------


def test_runs_on_the_current_stream_without_waiting(toy_module: Module) -> None:
    slow = images()
    slow[0, 0, 0, 0] = SLOW
    for _ in range(3):  # plain, captured, replayed
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            y = toy_module(slow).y
            done = stream.record_event()
        assert not done.query(), "the call waited for the GPU, or ran elsewhere"
        stream.synchronize()
        torch.testing.assert_close(y, expected(slow))


def test_one_context_on_two_streams(toy_module: Module) -> None:
    """The second run waits for the first, whose workspace it uses."""
    slow, fast = images(), images(seed=1)
    slow[0, 0, 0, 0] = SLOW
    torch.cuda.synchronize()
    for _ in range(4):
        streams = torch.cuda.Stream(), torch.cuda.Stream()
        results: list[torch.Tensor] = []
        for stream, x in zip(streams, (slow, fast), strict=True):
            with torch.cuda.stream(stream):
                results.append(toy_module(x).y)
        torch.cuda.synchronize()
        torch.testing.assert_close(results[0], expected(slow))
        torch.testing.assert_close(results[1], expected(fast))


def test_threads_on_streams_of_their_own(toy_module: Module) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(60):
                x = images(int(generator.integers(1, 5)), int(generator.integers(1000)))
                if not torch.equal(toy_module(x).y, expected(x)):
                    wrong.append(f"thread {seed}, batch {len(x)}")

    threads = [Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_many_contexts_in_one_thread(toy_module: Module) -> None:
    contexts = [toy_module.new_context() for _ in range(5)]
    x = images()
    for _ in range(3):
        results = [context(x).y for context in contexts]
        for y in results:
            torch.testing.assert_close(y, expected(x))


# --- the caller's own graph -----------------------------------------------------------------------


@pytest.mark.parametrize("warm", [True, False])
def test_captured_by_the_caller(
    toy_module: Module, monkeypatch: pytest.MonkeyPatch, warm: bool
) -> None:
    x = images()
    context = toy_module.new_context()
    if warm:
        for _ in range(3):
            context(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        if not warm:  # even its memory is allocated while the caller captures
            context = toy_module.new_context()
        y = context(x).y
    for seed in range(3):
        x.copy_(images(seed=seed))
        graph.replay()
        torch.testing.assert_close(y, expected(x))
    # The recorded run keeps its weights; new calls have the new ones.
    monkeypatch.setattr("vitc.runtime.module.final_constants", lambda *_: toy.constants(7, 8))
    toy_module.load_weights({"scale": np.zeros(3), "offset": np.zeros(3)})
    torch.testing.assert_close(context(x).y, expected(x, 7, 8))
    graph.replay()
    torch.testing.assert_close(y, expected(x))


def test_others_capture_while_we_allocate(cuda_toy: gpu_toy.Builder) -> None:
    """A capture in one thread forbids others what it calls unsafe, such as allocating."""
    stop = False
    errors: list[str] = []

    def capture() -> None:
        while not stop:
            graph, a = torch.cuda.CUDAGraph(), torch.zeros(8, device="cuda")
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    graph.capture_begin(capture_error_mode="global")
                    for _ in range(200):
                        a.add_(1)
                    graph.capture_end()
            except RuntimeError as error:
                errors.append(str(error))

    thread = Thread(target=capture)
    thread.start()
    try:
        x = toy.images()
        for _ in range(10):
            with load(cuda_toy()) as module:
                for _ in range(4):
                    np.testing.assert_array_equal(module(x).y, toy.expected(x))
    finally:
        stop = True
        thread.join()
    assert not errors


# --- dtypes and devices ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(cuda_toy: gpu_toy.Builder, dtype: str) -> None:
    with load(cuda_toy(dtype, dtype=dtype)) as module:
        x = images().to(getattr(torch, dtype))
        for _ in range(3):
            y = module(x).y
            assert y.dtype is x.dtype
            torch.testing.assert_close(y, expected(x.float()).to(x.dtype), rtol=0, atol=0)
        with pytest.raises(InputError, match=rf"is float32, .* for {dtype}(.|\n)*x\.to\(torch"):
            module(x.float())


def test_torch_on_the_wrong_device(toy_module: Module) -> None:
    with pytest.raises(InputError, match=r"'x' is on cpu, .* on cuda:0(.|\n)*x\.cuda\(\)"):
        toy_module(torch.zeros(1, *toy.SHAPE))
    if torch.cuda.device_count() > 1:
        with pytest.raises(InputError, match=r"'x' is on cuda:1, the library runs on cuda:0"):
            toy_module(torch.zeros(1, *toy.SHAPE, device="cuda:1"))
    with pytest.raises(InputError, match="not aligned to 16 bytes"):
        toy_module(images(3)[1:])


def test_device_index(cuda_toy: gpu_toy.Builder) -> None:
    count = torch.cuda.device_count()
    with pytest.raises(DeviceError, match=f"device {count}: this process sees {count} NVIDIA GPU"):
        load(cuda_toy(), device=f"cuda:{count}")
    with pytest.raises(DeviceError, match="device -1"):
        load(cuda_toy(), device=-1)
    with pytest.raises(DeviceError, match=r"cannot run on device 'cpu': .* cuda:sm_80"):
        load(cuda_toy(), device="cpu")


def test_second_gpu(cuda_toy: gpu_toy.Builder) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    with load(cuda_toy(), device="cuda:1") as module:
        x = images().to("cuda:1")
        for _ in range(3):
            y = module(x).y
            assert y.device == x.device
            torch.testing.assert_close(y, expected(x))
        assert torch.cuda.current_device() == 0
        np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))


def test_addresses_the_kernels_cannot_reach(toy_module: Module) -> None:
    """From C one can pass anything; the library must not let the GPU fault."""
    context = toy_module.new_context()
    x, y, s = toy.images(1), images(1), torch.zeros(1, 3, device="cuda")
    element = DTYPES["float32"]
    outputs = [TensorView(tensor.data_ptr(), element, tuple(tensor.shape)) for tensor in (y, s)]
    host = TensorView(x.ctypes.data, element, x.shape)
    for steps in (None, (0, 1)):
        with pytest.raises(InputError, match="input 'x' is in host memory, the model is on GPU 0"):
            toy_module._library.run(context._live(), [host], outputs, 0, steps)
    pinned = torch.from_numpy(x).pin_memory()
    view = TensorView(pinned.data_ptr(), element, x.shape)
    for _ in range(3):
        toy_module._library.run(context._live(), [view], outputs)
    torch.testing.assert_close(y, expected(torch.from_numpy(x).cuda()))


# --- architectures --------------------------------------------------------------------------------


def test_another_architecture(cuda_toy: gpu_toy.Builder, nvidia: Device) -> None:
    if nvidia.arch == "sm_120":
        pytest.skip("this is the GPU that the library is for")
    library = cuda_toy("sm_120", archs=("sm_120",))
    text = rf"GPU 0 \({nvidia.name}\) has compute capability .*, the library has code for sm_120; "
    with pytest.raises(DeviceError, match=f"{text}compile the model for {nvidia.arch}"):
        load(library)


def test_driver_compiles_ptx(cuda_toy: gpu_toy.Builder) -> None:
    with load(cuda_toy("ptx", archs=("sm_75",), ptx_only=True)) as module:
        for _ in range(3):
            check(module, images())


def test_several_architectures(cuda_toy: gpu_toy.Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    library = cuda_toy("several", archs=("sm_75", "sm_80", "sm_90", "sm_120"))
    for wish in ("", "sm_75", "sm_80"):
        monkeypatch.setenv("VITC_ISA", wish)
        with load(library) as module:
            for _ in range(3):
                check(module, images())
    monkeypatch.setenv("VITC_ISA", "sm_86")
    with pytest.raises(InputError, match="'sm_86', the library has code for: sm_75, sm_80"):
        load(library)


# --- memory and failures --------------------------------------------------------------------------


def test_out_of_memory(cuda_toy: gpu_toy.Builder, nvidia: Device) -> None:
    with load(cuda_toy("huge", workspace_bytes=1 << 44)) as module:
        text = (
            rf"cannot allocate {1 << 44} bytes \(16384.00 GiB\) for the workspace on GPU 0 "
            rf"\({nvidia.name}\): [\d.]+ of [\d.]+ GiB are free"
        )
        for _ in range(2):
            with pytest.raises(DeviceError, match=text):
                module(images())
    with load(cuda_toy()) as module:  # nothing is left of it
        check(module, images())


def test_a_launch_that_fails(cuda_toy: gpu_toy.Builder) -> None:
    with load(cuda_toy("large", large_at_3=True)) as module:
        for _ in range(3):  # plain, and while capturing
            check(module, images(2))
            with pytest.raises(DeviceError, match=r"step 0 \(scale\): .*\(cudaError\w+\)"):
                module(images(3))


def test_memory_is_released(cuda_toy: gpu_toy.Builder) -> None:
    library = cuda_toy("roomy", workspace_bytes=1 << 28)

    def used() -> int:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def work() -> None:
        with load(library) as module:
            for batch in (1, 2, 3):
                for _ in range(3):
                    check(module, images(batch))
                module(toy.images(batch))

    work()
    before = used()
    for _ in range(10):
        work()
    assert used() - before < 1 << 26
    module = load(library)
    check(module, images())
    assert used() - before >= 1 << 28
    module.close()
    assert used() - before < 1 << 26


def test_save_and_external_weights(cuda_toy: gpu_toy.Builder, tmp_path: Path) -> None:
    elf = cuda_toy()
    toy.make_library(elf, tmp_path / "toy.so", "external", w=3, b=4)
    x = images()
    with load(tmp_path / "toy.so") as module:
        torch.testing.assert_close(module(x).y, expected(x, 3, 4))
        module.save(tmp_path / "copy.so")
    with load(tmp_path / "copy.so") as module:
        torch.testing.assert_close(module(x).y, expected(x, 3, 4))


def test_current_device_is_left_alone(toy_module: Module) -> None:
    """A thread that knows no CUDA still knows none after a call."""
    seen: list[int] = []
    driver = ctypes.CDLL("libcuda.so.1")
    x = toy.images()

    def work() -> None:
        np.testing.assert_array_equal(toy_module(x).y, toy.expected(x))
        context = ctypes.c_void_p(1)
        driver.cuCtxGetCurrent(ctypes.byref(context))
        seen.append(context.value or 0)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
