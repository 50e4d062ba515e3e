"""A library made by hand: y = x * w + b per channel, s = sum of y; no compiler of vitc involved.

x: [B, 3, 5, 7]; w, b: [3]; y like x; s: [B, 3]; B up to 4. Three steps: scale (x, w -> workspace),
shift (workspace, b -> y), total (y -> s).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vitc.codegen.model_source import (
    ArgRef,
    ModelSource,
    PortParam,
    StepParam,
    WeightParam,
    render_model,
)
from vitc.runtime.artifact import WeightsMode, write_library
from vitc.runtime.payload import WeightArray, WeightSpec, plan_payload

TEMPLATES = Path(__file__).parents[2] / "vitc" / "templates"
MAX_BATCH = 4
SHAPE = (3, 5, 7)
Array = np.ndarray[Any, np.dtype[Any]]
Edit = Callable[[dict[str, Any]], Any]

# `element` is the type of x, y and s. A negative first element of x makes the kernel slow, or fail.
KERNELS = """
#include <stdint.h>
#include <unistd.h>
#include <new>
#include "vitc/cpu/executor.h"

constexpr int64_t kPlane = 35, kImage = 3 * kPlane;

#define PASTE2(a, b) a##_##b
#define PASTE(a, b) PASTE2(a, b)
#define KERNEL(name) extern "C" int PASTE(name, VITC_ISA)(const vitc::Call& call)
#define SCRATCH(name, bytes) \\
  extern "C" uint64_t PASTE(name##_scratch, VITC_ISA)(int threads) { return bytes * threads; }

KERNEL(vitc_k_scale) {
  auto x = vitc::arg<element>(call, 0);
  auto w = vitc::arg<float>(call, 1);
  auto h = vitc::arg<float>(call, 2);
  auto tile = static_cast<float*>(call.scratch);
  if (float(x[0]) == -1000) usleep(20000);
  if (float(x[0]) == -2000) return 7;
  if (float(x[0]) == -3000) throw std::bad_alloc();
  vitc::parallel_for(call.exec, call.batch * 3, [&](int64_t row, int thread) {
    for (int64_t i = 0; i < kPlane; ++i) tile[thread * 64 + i] = float(x[row * kPlane + i]);
    for (int64_t i = 0; i < kPlane; ++i) h[row * kPlane + i] = tile[thread * 64 + i] * w[row % 3];
  });
  return 0;
}
SCRATCH(vitc_k_scale, 256)

KERNEL(vitc_k_shift) {
  auto h = vitc::arg<float>(call, 0);
  auto b = vitc::arg<float>(call, 1);
  auto y = vitc::arg<element>(call, 2);
  for (int64_t i = 0; i < call.batch * kImage; ++i) y[i] = element(h[i] + b[i / kPlane % 3]);
  return 0;
}
SCRATCH(vitc_k_shift, 0)

KERNEL(vitc_k_total) {
  auto y = vitc::arg<element>(call, 0);
  auto s = vitc::arg<element>(call, 1);
  for (int64_t row = 0; row < call.batch * 3; ++row) {
    float sum = 0;
    for (int64_t i = 0; i < kPlane; ++i) sum += float(y[row * kPlane + i]);
    s[row] = element(sum);
  }
  return 0;
}
SCRATCH(vitc_k_total, 0)
"""
BFLOAT16 = """
struct element {
  uint16_t bits;
  element(float value) { uint32_t u; __builtin_memcpy(&u, &value, 4); bits = u >> 16; }
  operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float v;
    __builtin_memcpy(&v, &u, 4);
    return v;
  }
};
"""


def constants(w: float = 2.0, b: float = 1.0) -> dict[str, WeightArray]:
    """w and b in three channels each: (w, w + 1, w + 2)."""
    steps = np.arange(3, dtype=np.float32)
    return {
        "w": WeightArray(steps + np.float32(w), "float32"),
        "b": WeightArray(steps + np.float32(b), "float32"),
    }


def expected(x: Array, w: float = 2.0, b: float = 1.0) -> Array:
    """y in float32."""
    weights = constants(w, b)
    column = (3, 1, 1)
    return x * weights["w"].data.reshape(column) + weights["b"].data.reshape(column)


def manifest(dtype: str = "float32") -> dict[str, Any]:
    """As code generation would write it, as far as the runtime reads it."""
    layout = plan_payload({name: weight.spec for name, weight in constants().items()})
    port = {"name": "x", "dtype": dtype, "shape": ["B", *SHAPE]}
    return {
        "format": 1,
        "name": 'toy é "quoted" \\ ??/',
        "target": "cpu",
        "inputs": [port],
        "outputs": [
            port | {"name": "y"},
            {"name": "s", "dtype": dtype, "shape": ["B", 3]},
        ],
        "weights": [
            {"name": name, "dtype": "float32", "shape": [3], "offset": offset, "bytes": 12}
            for name, offset in layout.offsets.items()
        ],
        "steps": [
            {"name": name, "flops": 105, "bytes": 852, "constant_bytes": 12}
            for name in ("scale", "shift", "total")
        ],
        "workspace": {"bytes": MAX_BATCH * 105 * 4},
        "parameters": [
            {"name": name, "dtype": "float32", "shape": [3]} for name in ("scale", "offset")
        ],
        "recipes": "swap scale and offset",
    }


def source(
    dtype: str = "float32",
    manifest_text: str | None = None,
    workspace_bytes: int = MAX_BATCH * 105 * 4,
) -> ModelSource:
    """The parameters of the toy's model.cc."""
    layout = plan_payload({name: weight.spec for name, weight in constants().items()})
    return ModelSource(
        name="toy",
        isas=("avx2", "avx512"),
        inputs=(PortParam("x", dtype, (MAX_BATCH, *SHAPE)),),
        outputs=(
            PortParam("y", dtype, (MAX_BATCH, *SHAPE)),
            PortParam("s", dtype, (MAX_BATCH, 3)),
        ),
        weights=tuple(
            WeightParam(name, offset, WeightSpec("float32", (3,)).bytes)
            for name, offset in layout.offsets.items()
        ),
        payload_header=layout.header,
        payload_data_bytes=layout.data_bytes,
        workspace_bytes=workspace_bytes,
        steps=(
            StepParam(
                "scale",
                "vitc_k_scale",
                (ArgRef("input", 0), ArgRef("weight", 0), ArgRef("workspace", 0)),
                "%h = scale(%x, %w)  \\",
            ),
            StepParam(
                "shift",
                "vitc_k_shift",
                (ArgRef("workspace", 0), ArgRef("weight", 1), ArgRef("output", 0)),
                "%y = shift(%h, %b)",
                isas=("avx2",),
            ),
            StepParam(
                "total",
                "vitc_k_total",
                (ArgRef("output", 0), ArgRef("output", 1)),
                "%s = total(%y)",
            ),
        ),
        manifest=json.dumps(manifest(dtype)) if manifest_text is None else manifest_text,
    )


class Sources(NamedTuple):
    """The files of the toy."""

    model: Path
    kernels: Path


def write_sources(
    folder: Path, *, dtype: str = "float32", more_code: str = "", **options: Any
) -> Sources:
    """Writes the toy's C++; kernels are to be compiled once with each -DVITC_ISA.

    options: of source().
    """
    sources = Sources(folder / "model.cc", folder / "kernels.cc")
    sources.model.write_text(render_model(source(dtype, **options)))
    element = BFLOAT16 if dtype == "bfloat16" else "using element = float;\n"
    head = '#include <stdint.h>\n#include "vitc/kernel.h"\n' + element
    sources.kernels.write_text(head + KERNELS + more_code)
    return sources


def build_elf(folder: Path, *, model_defines: tuple[str, ...] = (), **options: Any) -> Path:
    """Compiles the toy with plain g++; the result has no weights yet.

    options: of write_sources().
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, kernels = write_sources(folder, **options)
    elf = folder / "toy.elf"
    flags = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
    compiler = (os.environ.get("CXX", "g++"), *flags, f"-I{TEMPLATES / 'include'}")
    objects: list[str] = []
    # Without vector flags: the two variants differ in name only, so that the tests run anywhere.
    todo = (
        (model, model_defines),
        (kernels, ("-DVITC_ISA=avx2",)),
        (kernels, ("-DVITC_ISA=avx512",)),
    )
    for index, (text, defines) in enumerate(todo):
        objects.append(str(folder / f"{index}.o"))
        command = [*compiler, *defines, "-c", str(text), "-o", objects[-1]]
        subprocess.run(command, check=True)
    exports = f"-Wl,--version-script={TEMPLATES / 'exports.map'}"
    link = [compiler[0], "-shared", "-Wl,-z,defs", exports, *objects, "-o", str(elf)]
    subprocess.run([*link, "-lpthread", "-ldl"], check=True)
    return elf


def make_library(
    elf: Path, output: Path, mode: WeightsMode = "embedded", w: float = 2.0, b: float = 1.0
) -> Path:
    """A complete library."""
    write_library(elf, constants(w, b), output, mode)
    return output


def images(batch: int = MAX_BATCH, seed: int = 0) -> Array:
    """Distinct inputs, float32."""
    generator = np.random.default_rng(seed)
    return generator.standard_normal((batch, *SHAPE)).astype(np.float32)
