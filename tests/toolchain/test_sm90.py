"""Hopper's kernels compile for sm_90a: no spills, warpgroup products and tile copies are there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vitc.codegen.render import KERNEL
from vitc.codegen.select import select
from vitc.codegen.sources import INCLUDE
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu.sm90_attention import Sm90Attention
from vitc.codegen.targets.gpu.sm90_gather import Sm90GatherGemm
from vitc.codegen.targets.gpu.sm90_gemm import Sm90Gemm, problem
from vitc.codegen.targets.gpu.sm90_tiles import TILES
from vitc.codegen.toolchain import Toolchain
from vitc.ir.text import parse_graph

# Everything that an epilogue can have.
FULL = """
graph g(%x: {t}[B,197,768], %s: f32[B,197,12], %r: {t}[B,197,1024]) {{
  weight %w: {t}[1024,768]
  weight %b: {t}[1024]
  %y, %z = linear(%x, %w, %s, %b, %r) {{{steps}, stats=64}}
  return %y, %z
}}
"""
STEPS = "steps=[row_rstd($2, 768.0, 1e-6), add($3), gelu, add($4)]"
RESIDUAL = """
graph g(%x: {t}[B,197,768], %r: {t}[B,197,768]) {{
  weight %w: {t}[768,768]
  weight %b: {t}[768]
  %y, %z = linear(%x, %w, %b, %r) {{steps=[add($2), add($3)], stats=32}}
  return %y, %z
}}
"""
# A norm of rows that have a mean: read beside a residual, and written.
SUMS = FULL.replace("f32[B,197,12]", "f32[B,197,48]").replace("stats=64", "stats=32, sums=true")
SUMS = SUMS.replace("{{{steps}", "{{" + STEPS.replace("row_rstd", "layer_rstd"))
RESIDUAL_SUMS = RESIDUAL.replace("stats=32", "stats=32, sums=true")
PLAIN = """
graph g(%x: {t}[B,197,768]) {{
  weight %w: {t}[1000,768]
  %y = linear(%x, %w)
  return %y
}}
"""
# The patch embedding of ViT-B/16: a class token's row, positions, statistics.
VIEW = "reshape([B,3,14,16,14,16]), permute([0,2,4,1,3,5]), reshape([B,196,768]), pad(1,1,0)"
PATCHES = """
graph g(%x: {t}[B,3,224,224]) {{
  weight %w: {t}[768,768]
  weight %table: f32[1,197,768]
  %m = move(%x) {{map=map([B,3,224,224], {view})}}
  %y, %s = linear(%m, %w, %table) {{steps=[add($2)], stats=32}}
  return %y, %s
}}
"""
FLAGS = (
    "-std=c++17 -O3 -cubin -gencode=arch=compute_90a,code=sm_90a -DVITC_ISA=sm_90a "
    "-diag-suppress=177 -Werror all-warnings -Xcompiler -Wall,-Wextra -Xptxas -v,-warn-spills"
).split()


def rendered(text: str, dtype: str, tile: str, *, backwards: bool = False) -> str:
    target = find_target("cuda:sm_90a", (64,))
    (call,) = select(parse_graph(text.format(t=dtype, steps=STEPS)), target).calls
    kernel = call.kernel
    assert isinstance(kernel, Sm90Gemm)
    (chosen,) = (t for t in TILES if t.name == tile)
    assert chosen.takes(problem(call.site, 1))
    call = replace(call, backwards=backwards)
    return kernel.render_with(call, [(chosen, 64)]).body.replace(KERNEL, "kernel")


def find_cuobjdump() -> str | None:
    """NVIDIA's toolkit or the copy that comes with triton."""
    bundled = Path(sysconfig.get_path("purelib"), "triton/backends/nvidia/bin/cuobjdump")
    return shutil.which("cuobjdump") or (str(bundled) if bundled.exists() else None)


def machine_code(text: str, toolchain: Toolchain, folder: Path) -> str:
    """Compiles without spills; the disassembly. Skips where nothing can disassemble."""
    source, cubin = folder / "kernel.cu", folder / "kernel.cubin"
    source.write_text(text)
    nvcc = toolchain.compiler("cuda").command
    command = [*nvcc, *FLAGS, f"-I{INCLUDE}", str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:6000]
    assert re.findall(r"(\d+) bytes spill stores", done.stderr) == ["0"]
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("compiled; no cuobjdump to look at the code: CUDA's toolkit and triton have it")
    dump = [cuobjdump, "-sass", str(cubin)]
    return subprocess.run(dump, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("text", "dtype", "tile", "products"),
    [
        (RESIDUAL, "f16", "pp128x192c2", 16),  # 2 of 64 rows, 4 of 16 columns, first step apart
        (RESIDUAL, "bf16", "pp128x192c1n", 16),
        (RESIDUAL, "bf16", "pp192x128c1", 24),
        (FULL, "bf16", "co192x128c1", 8),
        (FULL, "f16", "co192x192c1", 8),
        (FULL, "f16", "split2_64x64s12", 8),
        (FULL, "bf16", "split1_64x128s8", 8),
        (SUMS, "f16", "split4_128x96s6", 8),
        (SUMS, "bf16", "co192x128c1", 8),
        (SUMS, "f16", "split2_64x32s8", 8),
        (SUMS, "f16", "split2_64x64s12", 8),
        (RESIDUAL_SUMS, "bf16", "pp128x192c2", 16),
        (RESIDUAL_SUMS, "f16", "pp128x160c1", 16),
        (RESIDUAL_SUMS, "f16", "pp192x128c2", 24),
        (RESIDUAL_SUMS, "bf16", "split2_128x128s6", 8),
        (RESIDUAL, "f16", "split3_64x128s8", 8),
        (PLAIN, "bf16", "pp192x128c1", 24),
        (PLAIN, "f16", "split1_64x96s10", 8),
    ],
)
def test_compiles(
    text: str, dtype: str, tile: str, products: int, cuda_toolchain: Toolchain, tmp_path: Path
) -> None:
    sass = machine_code(rendered(text, dtype, tile), cuda_toolchain, tmp_path)
    assert len(re.findall(r"\bHGMMA\.", sass)) == products
    assert "UTMALDG.2D" in sass
    assert ("UTMALDG.2D.MULTICAST" in sass) == tile.endswith("c2")
    assert ("STAS" in sass) == tile.startswith(("split2", "split3", "split4"))
    assert "LDL" not in sass
    assert re.search(r"STG\.E\.128", sass)


def test_backwards_compiles(cuda_toolchain: Toolchain, tmp_path: Path) -> None:
    """And the bias is read as a constant, which the residual is not: the result takes its place."""
    text = rendered(RESIDUAL, "f16", "pp128x192c1", backwards=True)
    assert "GemmTile<half, 128, 192, 5, 2, true, 1, true, true>" in text
    sass = machine_code(text, cuda_toolchain, tmp_path)
    assert len(re.findall(r"\bHGMMA\.", sass)) == 16
    assert "LDL" not in sass
    loads = Counter(re.findall(r"\bLDG\.E\.128\S*", sass))
    groups, rows = 192 // 32, 4  # of a thread
    assert loads == {"LDG.E.128.CONSTANT": groups, "LDG.E.128": groups * rows}


@pytest.mark.parametrize(
    ("dtype", "tile", "rows", "products"),
    [
        ("f16", "pp64x192c1", 64, 8),
        ("bf16", "pp192x96c1", 192, 24),
        ("f16", "co128x256c1", 128, 8),
    ],
)
def test_gathered_rows_compile(
    dtype: str, tile: str, rows: int, products: int, cuda_toolchain: Toolchain, tmp_path: Path
) -> None:
    graph = parse_graph(PATCHES.format(t=dtype, view=VIEW))
    (call,) = select(graph, find_target("cuda:sm_90a", (256,))).calls
    assert isinstance(call.kernel, Sm90GatherGemm)
    text = call.kernel.render_choice(call, tile).body.replace(KERNEL, "kernel")
    sass = machine_code(text, cuda_toolchain, tmp_path)
    assert len(re.findall(r"\bHGMMA\.", sass)) == products
    # A lane copies so many of a stage's chunks of 16 bytes.
    assert len(re.findall(r"\bLDGSTS\.E\.BYPASS\.128", sass)) == rows * 8 // 32
    # They have landed and are fenced before the warp says so.
    assert re.search(r"DEPBAR\.LE SB0, 0x0.*?FENCE\.VIEW\.ASYNC.*?SYNCS\.ARRIVE", sass, re.DOTALL)
    assert "UTMALDG.5D" in sass
    assert "LDL" not in sass
    assert re.search(r"STG\.E\.128", sass)


ATTENTION = """
graph g(%q: {t}[B,4,{n},{d}], %k: {t}[B,4,{n},{d}], %v: {t}[B,4,{n},{d}]) {{
  %y = attention(%q, %k, %v)
  return %y
}}
"""


@pytest.mark.parametrize(
    ("dtype", "tokens", "depth", "batch", "products"),
    [
        ("f16", 197, 64, 64, 2 * 4 + 7 + 6),  # steps of 16 columns of the head, of 16 keys
        ("f16", 197, 64, 1, 2 * 4 + 13),  # two warpgroups, one block of keys
        ("f16", 65, 64, 64, 2 * 4 + 5),  # those of the first tile's scores stand apart
        ("bf16", 577, 64, 1, 2 * 4 + 13 + 11),  # full blocks, and the last
        ("bf16", 577, 64, 64, 2 * 4 + 7 + 2),  # three warpgroups
        ("f16", 257, 80, 64, 2 * 5 + 9 + 8),
        ("bf16", 257, 80, 256, 2 * 5 + 6 + 5),
    ],
)
def test_attention_compiles(
    dtype: str,
    tokens: int,
    depth: int,
    batch: int,
    products: int,
    cuda_toolchain: Toolchain,
    tmp_path: Path,
) -> None:
    graph = parse_graph(ATTENTION.format(t=dtype, n=tokens, d=depth))
    (call,) = select(graph, find_target("cuda:sm_90a", (batch,))).calls
    assert isinstance(call.kernel, Sm90Attention)
    text = call.kernel.render(call).body.replace(KERNEL, "kernel")
    sass = machine_code(text, cuda_toolchain, tmp_path)
    assert len(re.findall(r"\bHGMMA\.", sass)) == products
    assert "UTMALDG.4D" in sass
    assert set(re.findall(r"\bSTG\.E\S*", sass)) == {"STG.E.128"}
    assert "LDL" not in sass
