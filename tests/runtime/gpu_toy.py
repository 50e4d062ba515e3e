"""The toy of toy.py with GPU kernels: for a GPU, or emulated.

A value in x[0] plants trouble: -1000 makes `scale` slow (GPU only), -2000 makes it write far
outside the workspace.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from runtime import toy

from vitc.codegen.build import build_library
from vitc.codegen.cache import BuildCache
from vitc.codegen.model_source import ModelSource, render_model
from vitc.codegen.sources import Source
from vitc.codegen.toolchain import find_toolchain

Device = Literal["cuda", "emulated"]
EMULATED_FLAGS = tuple("-DVITC_EMULATE -O1 -g1 -march=x86-64-v3 -fstack-clash-protection".split())
C_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat16"}
LIBRARY_FLAGS = (f"-Wl,--version-script={toy.TEMPLATES / 'exports.map'}", "-lpthread", "-ldl")

KERNELS = """
#include "vitc/gpu/launch.h"
#include "vitc/kernel.h"

namespace gpu = vitc::gpu;
using gpu::to_float;

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define ENTRY(name)                                                       \\
  extern "C" uint64_t PASTE(name##_scratch, VITC_ISA)(int) { return 0; } \\
  extern "C" int PASTE(name, VITC_ISA)(const vitc::Call& call)

namespace {  // the kernels of two architectures have the same names

constexpr int kThreads = 64, kPlane = 35, kImage = 3 * kPlane;

gpu::Stream stream_of(const vitc::Call& call) { return reinterpret_cast<gpu::Stream>(call.exec); }

VITC_KERNEL(kThreads, 1) scale(const element* x, const float* w, float* h, int count) {
  const int i = gpu::block() * kThreads + gpu::thread();
  const float trouble = to_float(x[0]);
#if !defined(VITC_EMULATE)
  if (trouble == -1000) {
    for (int n = 0; n < 20000; ++n) __nanosleep(1000);
  }
#endif
  if (trouble == -2000 && i == 3) h[int64_t(1) << 34] = 0;
  if (i < count) h[i] = to_float(x[i]) * w[i / kPlane % 3];
}

}  // namespace

ENTRY(vitc_k_scale) {
  const int count = int(call.batch) * kImage;
  auto x = vitc::arg<const element>(call, 0);
  const size_t shared = call.batch == 3 ? LARGE_AT_3 : 0;
  return gpu::launch({"scale", gpu::Dim3(gpu::divide_up(count, kThreads)), kThreads, shared,
                      stream_of(call)},
                     scale, x, vitc::arg<const float>(call, 1), vitc::arg<float>(call, 2), count);
}

namespace {

VITC_KERNEL(kThreads, 1) shift(const float* h, const float* b, element* y, int count) {
  const int i = gpu::block() * kThreads + gpu::thread();
  if (i < count) y[i] = gpu::from_float<element>(h[i] + b[i / kPlane % 3]);
}

}  // namespace

ENTRY(vitc_k_shift) {
  const int count = int(call.batch) * kImage;
  return gpu::launch({"shift", gpu::Dim3(gpu::divide_up(count, kThreads)), kThreads, 0,
                      stream_of(call)},
                     shift, vitc::arg<const float>(call, 0), vitc::arg<const float>(call, 1),
                     vitc::arg<element>(call, 2), count);
}

namespace {

// One block a row: each thread one element, then a tree through shared memory.
VITC_KERNEL(kThreads, 1) total(const element* y, element* s) {
  VITC_SHARED(float, sums, kThreads);
  const int t = gpu::thread(), row = gpu::block();
  sums[t] = t < kPlane ? to_float(y[row * kPlane + t]) : 0.f;
  for (int half_of = kThreads / 2; half_of > 0; half_of /= 2) {
    gpu::sync_block();
    if (t < half_of) sums[t] += sums[t + half_of];
  }
  if (t == 0) s[row] = gpu::from_float<element>(sums[0]);
}

}  // namespace

ENTRY(vitc_k_total) {
  return gpu::launch({"total", gpu::Dim3(3 * unsigned(call.batch)), kThreads, 0, stream_of(call)},
                     total, vitc::arg<const element>(call, 0), vitc::arg<element>(call, 1));
}
"""


def manifest(target: str, dtype: str = "float32") -> dict[str, Any]:
    """toy.manifest for a GPU target."""
    return toy.manifest(dtype) | {"target": target}


def source(
    device: Device, archs: Sequence[str], dtype: str = "float32", **changes: Any
) -> ModelSource:
    """The parameters of model.cc; `changes` are fields of ModelSource."""
    target = "cuda:" + "+".join(archs) + (":emulated" if device == "emulated" else "")
    cpu = toy.source(dtype, json.dumps(manifest(target, dtype)))
    steps = tuple(replace(step, isas=()) for step in cpu.steps)
    return replace(cpu, device=device, isas=tuple(archs), steps=steps, **changes)


def build_elf(
    output: Path,
    *,
    device: Device,
    archs: Sequence[str] = ("sm_80",),
    dtype: str = "float32",
    ptx_only: bool = False,
    large_at_3: bool = False,
    kernels: str = KERNELS,
    **changes: Any,
) -> Path:
    """Compiles the toy through vitc's own build; the result has no weights yet.

    ptx_only: no machine code, so that the driver has to compile. large_at_3: a launch of batch 3
    asks for too much shared memory. kernels: their text. changes: fields of ModelSource.
    """
    head = f"#define LARGE_AT_3 {1 << 20 if large_at_3 else 0}\n"
    head += '#include "vitc/gpu/device.h"\n'
    head += (
        f"using vitc::gpu::half; using vitc::gpu::bfloat16;\nusing element = {C_TYPES[dtype]};\n"
    )
    language = "cuda" if device == "cuda" else "c++"
    common = ("-O2",) if device == "cuda" else EMULATED_FLAGS
    sources: list[Source] = []
    for arch in archs:
        flags = _arch_flags(arch, ptx_only) if device == "cuda" else ()
        flags = (*common, f"-DVITC_ISA={arch}", *flags)
        sources.append(Source(f"kernels_{arch}", head + kernels, flags, language))
    text = render_model(source(device, archs, dtype, **changes))
    sources.append(Source("model", text, common, language))
    build_library(
        sources,
        toolchain=find_toolchain({language} - {"c++"}),
        link_flags=LIBRARY_FLAGS,
        output=output,
        cache=BuildCache(output.parent / "cache"),
    )
    return output


def _arch_flags(arch: str, ptx_only: bool) -> tuple[str, str]:
    compute = arch.replace("sm_", "compute_")
    code = compute if ptx_only else arch if not arch[-1].isdigit() else f"[{arch},{compute}]"
    return "-gencode", f"arch={compute},code={code}"


class Builder:
    """Builds variants of the toy into one folder, which test processes may share."""

    def __init__(self, base: Path, device: Device) -> None:
        # pytest-xdist gives each worker a folder under that of the run.
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        self._folder = shared / f"gpu-toy-{device}"
        self._folder.mkdir(exist_ok=True)
        self._device: Device = device

    def __call__(self, key: str = "float32", **options: Any) -> Path:
        """The complete library called `key`, built at the first call with these options."""
        library = self._folder / f"{key}.so"
        if not library.exists():
            elf = library.with_suffix(f".{os.getpid()}.elf")
            toy.make_library(build_elf(elf, device=self._device, **options), library)
        return library
