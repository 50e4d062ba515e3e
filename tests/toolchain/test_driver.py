"""What is said of an NVIDIA driver that is missing, too old, or without a GPU, by a fake one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runtime import gpu_toy, toy

from vitc.codegen.toolchain import Toolchain

ROOT = Path(__file__).parents[2]

# As much of libcuda.so.1 as CUDA's runtime asks for before it gives up.
FAKE = r"""
#include <stdlib.h>
#include <string.h>
static int asked(const char* name) { return atoi(getenv(name)); }
int cuInit(unsigned flags) { return asked("FAKE_INIT"); }
int cuDriverGetVersion(int* version) { *version = asked("FAKE_VERSION"); return 0; }
static int unsupported(void) { return 801; }
int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long long flags,
                        int* status) {
  *function = !strcmp(name, "cuInit") ? (void*)cuInit
      : !strcmp(name, "cuDriverGetVersion") ? (void*)cuDriverGetVersion
      : !strcmp(name, "cuGetProcAddress") ? (void*)cuGetProcAddress_v2 : (void*)unsupported;
  if (status) *status = 0;
  return 0;
}
int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
  return cuGetProcAddress_v2(name, function, version, flags, 0);
}
"""

# No torch, and nothing on PATH: what a machine has that only runs libraries.
LOAD = """
import sys
sys.modules.update(torch=None, timm=None, jinja2=None)
from vitc.runtime import load
try:
    load(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""

# error.h with a runtime that says what the test wants; prints status and text of a failure.
DESCRIBE = r"""
#include "vitc/host/cuda/error.h"
#include <cstdlib>

static int driver;
cudaError_t cudaDriverGetVersion(int* version) { return *version = driver, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "text"; }
const char* cudaGetErrorName(cudaError_t) { return "name"; }

int main(int, char** argv) {
  driver = std::atoi(argv[2]);
  const auto error = static_cast<cudaError_t>(std::atoi(argv[1]));
  const vitc_status status = vitc::host::guarded("f", [&] {
    vitc::host::cuda_fail(error, "what");
  });
  std::printf("%d %s", status, vitc::host::last_error);
}
"""


@pytest.fixture(scope="module")
def library(cuda_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpu_toy.Builder(tmp_path_factory.getbasetemp(), "cuda")()


@pytest.fixture(scope="module")
def fake(cuda_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that does as FAKE_INIT and FAKE_VERSION say."""
    folder = tmp_path_factory.mktemp("fake")
    (folder / "fake.cc").write_text('extern "C" {' + FAKE + "}")
    flags = ("-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "fake.cc")
    subprocess.run([cuda_toolchain.host.driver, *flags], check=True)
    return folder


def load_beside(library: Path, driver: Path, version: int = 0, init: int = 0) -> str:
    """What vitc.load prints in a process of its own that finds this folder's driver first."""
    environment = {
        "PATH": "",
        "PYTHONPATH": str(ROOT),
        "LD_LIBRARY_PATH": str(driver),
        "FAKE_INIT": str(init),
        "FAKE_VERSION": str(version),
    }
    command = [sys.executable, "-c", LOAD, str(library)]
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_too_old(library: Path, fake: Path) -> None:
    text = load_beside(library, fake, version=11080)
    assert text.startswith("DeviceError cannot use an NVIDIA GPU: ")
    assert "the NVIDIA driver supports CUDA 11.8, the library was built with CUDA 1" in text
    assert "update the driver, or compile with an older CUDA toolkit" in text


def test_missing(library: Path, tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").write_bytes(b"")  # hides that of the system
    text = load_beside(library, tmp_path)
    assert text.startswith("DeviceError cannot use an NVIDIA GPU: ")
    assert "this machine has no NVIDIA driver (libcuda.so.1)" in text


def test_no_gpu(library: Path, fake: Path) -> None:
    text = load_beside(library, fake, version=99000, init=100)
    assert text.startswith("DeviceError cannot use an NVIDIA GPU: ")
    assert "a GPU is not (or is hidden, see CUDA_VISIBLE_DEVICES)" in text


@pytest.fixture(scope="module")
def describe(cuda_toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("describe")
    (folder / "describe.cc").write_text(DESCRIBE)
    assert cuda_toolchain.cuda is not None
    command = [*cuda_toolchain.cuda.command, "-ccbin", cuda_toolchain.host.driver]
    flags = ("-x=c++", "-std=c++17", "-cudart=none", f"-I{toy.TEMPLATES / 'include'}")
    subprocess.run([*command, *flags, folder / "describe.cc", "-o", folder / "program"], check=True)
    return folder / "program"


@pytest.mark.parametrize(
    ("error", "driver", "status", "says"),
    [
        (2, 13000, 2, ""),  # cudaErrorMemoryAllocation
        (3, 13000, 5, "start processes with 'spawn'"),  # cudaErrorInitializationError
        (35, 0, 4, "no NVIDIA driver"),  # cudaErrorInsufficientDriver
        (35, 12040, 4, "the NVIDIA driver supports CUDA 12.4, the library was built with"),
        (100, 13000, 4, "a GPU is not"),  # cudaErrorNoDevice
        (222, 12080, 4, "supports CUDA 12.8 and cannot compile the PTX"),  # UnsupportedPtxVersion
        (700, 13000, 5, "must start anew"),  # cudaErrorIllegalAddress
        (709, 13000, 5, ""),  # cudaErrorContextIsDestroyed
    ],
)
def test_errors(describe: Path, error: int, driver: int, status: int, says: str) -> None:
    command = [describe, str(error), str(driver)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    start = f"{status} f: what: text (name)"
    assert text.startswith(start)
    assert says in text if says else text == start
