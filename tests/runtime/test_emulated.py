"""A library whose GPU kernels run on the CPU: the same C ABI, the same Module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from runtime import gpu_toy, toy

from vitc.errors import DeviceError, InputError
from vitc.runtime import Module, load


@pytest.fixture(scope="session")
def emulate(tmp_path_factory: pytest.TempPathFactory) -> gpu_toy.Builder:
    """Builds variants of the toy."""
    return gpu_toy.Builder(tmp_path_factory.getbasetemp(), "emulated")


@pytest.fixture
def module(emulate: gpu_toy.Builder) -> Iterator[Module]:
    with load(emulate()) as loaded:
        yield loaded


def test_runs(module: Module) -> None:
    assert module.manifest["target"] == "cuda:sm_80:emulated"
    assert str(module.place) == "the CPU"
    for batch in range(1, toy.MAX_BATCH + 1):
        x = toy.images(batch, seed=batch)
        y, s = module(x)
        np.testing.assert_array_equal(y, toy.expected(x))
        np.testing.assert_allclose(s, toy.expected(x).sum((2, 3)), rtol=1e-5)


def test_torch_on_the_cpu_without_copies(module: Module) -> None:
    x = torch.from_numpy(toy.images())
    y = module(x).y
    np.testing.assert_array_equal(y.numpy(), toy.expected(x.numpy()))
    assert y.device.type == "cpu"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(emulate: gpu_toy.Builder, dtype: str) -> None:
    with load(emulate(dtype, dtype=dtype)) as module:
        x = torch.from_numpy(toy.images()).to(getattr(torch, dtype))
        y = module(x).y
        expected = torch.from_numpy(toy.expected(x.float().numpy())).to(y.dtype)
        torch.testing.assert_close(y, expected, rtol=0, atol=0)
        if dtype == "float16":
            np.testing.assert_array_equal(module(x.numpy()).y, expected.numpy())
        else:
            with pytest.raises(InputError, match="numpy has no bfloat16: pass a torch tensor"):
                module(x.float().numpy())


def test_steps_read_and_profile(module: Module) -> None:
    x = toy.images(2)
    context = module.new_context()
    outputs = context.run_steps((x,), (0, 1))
    h = context.read(0, x.nbytes).view(np.float32).reshape(x.shape)
    np.testing.assert_array_equal(h, x * toy.constants()["w"].data.reshape(3, 1, 1))
    context.run_steps((x,), (1, 3), outputs)
    np.testing.assert_array_equal(outputs[0], toy.expected(x))
    profile = context.profile(x, repeats=2)
    assert [step.name for step in profile] == ["scale", "shift", "total"]
    assert all(step.microseconds > 0 for step in profile)


def test_workspace_is_nan_until_written(module: Module) -> None:
    context = module.new_context()
    first = context.read(0, 64).view(np.float32)
    assert np.isnan(first).all()


def test_weights_and_save(module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = toy.constants(w=5, b=-1)
    monkeypatch.setattr("vitc.runtime.module.final_constants", lambda *_: new)
    module.load_weights({"scale": np.zeros(3), "offset": np.zeros(3)})
    x = toy.images()
    np.testing.assert_array_equal(module(x).y, toy.expected(x, 5, -1))
    with load(module.save(tmp_path / "copy.so")) as copy:
        np.testing.assert_array_equal(copy(x).y, toy.expected(x, 5, -1))


def test_a_fault_names_kernel_place_and_line(module: Module) -> None:
    x = toy.images()
    x.flat[0] = -2000
    with pytest.raises(DeviceError) as caught:
        module(x)
    text = str(caught.value)
    assert text.startswith("step 0 (scale): emulated kernel scale, block (0,0,0), thread 3: ")
    assert "illegal memory access" in text
    assert "kernels_sm_80.cc:" in text
    # It is as if nothing had happened, which no GPU offers.
    np.testing.assert_array_equal(module(toy.images()).y, toy.expected(toy.images()))


def test_past_the_end_of_the_workspace(emulate: gpu_toy.Builder) -> None:
    """The workspace ends at a page that cannot be touched."""
    kernels = gpu_toy.KERNELS.replace("if (i < count) h[i]", "if (i <= count) h[i]")
    assert kernels != gpu_toy.KERNELS
    with load(emulate("past_end", kernels=kernels)) as module:
        module(toy.images(3))
        with pytest.raises(
            DeviceError, match=r"0 bytes past the end of the workspace \(1680 bytes"
        ):
            module(toy.images(4))


def test_a_missing_barrier_is_reported(emulate: gpu_toy.Builder) -> None:
    kernels = gpu_toy.KERNELS.replace("gpu::sync_block();", "if (t < 40) gpu::sync_block();")
    assert kernels != gpu_toy.KERNELS
    text = r"step 2 \(total\): emulated kernel total, .*thread"
    with (
        load(emulate("barrier", kernels=kernels)) as module,
        pytest.raises(DeviceError, match=text),
    ):
        module(toy.images(1))


def test_too_much_shared_memory(emulate: gpu_toy.Builder) -> None:
    with load(emulate("shared", large_at_3=True)) as module:
        module(toy.images(2))
        with pytest.raises(
            DeviceError, match=r"step 0 \(scale\): .* cannot launch .* 1048576 bytes"
        ):
            module(toy.images(3))


def test_alignment_as_on_a_gpu(module: Module) -> None:
    x = toy.images(3)
    assert x[1:].ctypes.data % 16 != 0
    with pytest.raises(
        InputError, match="data of input 'x' is not aligned to 16 bytes; pass a copy"
    ):
        module(x[1:])
    np.testing.assert_array_equal(module(x[1:].copy()).y, toy.expected(x[1:]))


def test_devices(emulate: gpu_toy.Builder) -> None:
    path = emulate()
    for device in ("cpu", "cpu:0", 0):
        load(path, device=device).close()
    with pytest.raises(DeviceError, match="cannot run on device 'cuda'"):
        load(path, device="cuda")
    with pytest.raises(DeviceError, match="device 1: the library emulates one GPU"):
        load(path, device=1)


def test_architectures(emulate: gpu_toy.Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    path = emulate("two", archs=("sm_80", "sm_90"))
    x = toy.images()
    for wish in ("", "sm_80", "sm_90"):
        monkeypatch.setenv("VITC_ISA", wish)
        with load(path) as module:
            np.testing.assert_array_equal(module(x).y, toy.expected(x))
    monkeypatch.setenv("VITC_ISA", "sm_70")
    with pytest.raises(InputError, match="'sm_70', the library has code for: sm_80, sm_90"):
        load(path)


def test_threads(module: Module) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = toy.images(1 + seed % toy.MAX_BATCH, seed)
        wrong.extend(seed for _ in range(5) if not np.array_equal(module(x).y, toy.expected(x)))

    threads = [Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
