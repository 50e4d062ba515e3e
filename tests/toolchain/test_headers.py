"""The headers that GPU code includes compile as they are."""

from __future__ import annotations

from pathlib import Path

from vitc.codegen.build import compile_objects
from vitc.codegen.sources import INCLUDE, Source
from vitc.codegen.toolchain import Toolchain


def test_nvcc_reads_the_kernel_interface(cuda_toolchain: Toolchain):
    assert (INCLUDE / "vitc" / "kernel.h").is_file()
    source = Source("kernel_h", '#include "vitc/kernel.h"\n', ("-arch=sm_80",), "cuda")
    (report,) = compile_objects([source], toolchain=cuda_toolchain)
    assert Path(report.path).suffix == ".o"


def test_hipcc_reads_the_kernel_interface(hip_toolchain: Toolchain):
    source = Source("kernel_h", '#include "vitc/kernel.h"\n', ("--offload-arch=gfx90a",), "hip")
    (report,) = compile_objects([source], toolchain=hip_toolchain)
    assert Path(report.path).suffix == ".o"
