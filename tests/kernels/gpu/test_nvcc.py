"""Real compilation: warnings are errors, nothing spills, matrix instructions are there.

Needs nvcc, but no GPU. The configurations are those of real models, unlike the emulated tests'.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from kernels.emu.emulation import INCLUDE, cache_directory, header_digest
from kernels.gpu.attention_cases import Shape, attention
from kernels.gpu.case import Case, bundle
from kernels.gpu.gemm_cases import Tile, norm_chain
from kernels.gpu.rows_cases import conv, rows_cases

from vitc.codegen.toolchain import find_compiler, install_command

ARCHS = (75, 80, 86, 89, 90, 100, 120)
FLAGS = (
    "-std=c++17 -O3 -cubin -Werror all-warnings -Xcompiler -Wall,-Wextra -Xptxas -v,-warn-spills"
).split()
VIT = Shape(197, 197, 64, 64, 208, 4, 1, 1)
LONG = Shape(577, 577, 64, 64, 64, 4, 1, 1)
SWIN = Shape(49, 49, 32, 32, 64, 4, 2, 2)


def forms(arch: int) -> list[str]:
    """The arithmetic that selection uses on an architecture (vitc/gpu/mma.h says why)."""
    if arch == 75:
        return ["float16 sm_75", "float32 sm_75"]
    single = "float32" if arch in (80, 90, 100) else "float32 sm_75"
    return ["float16", "bfloat16", "tf32", single]


def tiles(form: str) -> list[Tile]:
    unit = 16 if "32" in form else 32
    if "sm_75" in form:
        return [Tile(form, 128, 64, unit, 2, 2), Tile(form, 64, 64, unit, 2, 2)]
    if form == "float32":
        return [Tile(form, 128, 64, unit, 4, 2, 3), Tile(form, 64, 64, unit, 2, 2, 3)]
    return [
        Tile(form, 128, 128, unit, 2, 4, 4),
        Tile(form, 128, 128, unit, 2, 2, 4),
        Tile(form, 64, 64, 2 * unit, 2, 2, 3),
    ]


def representative(arch: int) -> list[Case]:
    cases = []
    for form in forms(arch):
        cases += [norm_chain(form, 192, chosen=t) for t in tiles(form)]
        vit, long = VIT, LONG
        if form == "float32":  # three products a pair: registers allow 48 keys at once
            vit, long = replace(VIT, block_keys=48), replace(LONG, block_keys=48)
        cases += [attention("vit", form, vit), attention("window", form, SWIN, bias="masked")]
        cases += [attention("long", form, long)] if form in ("float16", "float32") else []
    cases.append(conv(forms(arch)[0], 16, 9, 3, 2, 1))
    cases.append(conv(forms(arch)[0], 3, 12, 3, 2, 1))
    if arch == 80:
        cases += rows_cases("bfloat16")
    return cases


@cache
def nvcc() -> str:
    compiler = find_compiler("cuda").compiler
    if compiler is None:
        pytest.skip(f"no nvcc: {install_command('cuda')}")
    return compiler.command[-1]


@cache
def compiled(arch: int) -> tuple[Path, str]:
    """(cubin, ptxas's report); kept beside the emulated libraries."""
    text = bundle(representative(arch))
    folder = cache_directory() / f"nvcc-{arch}"
    folder.mkdir(exist_ok=True)
    source, cubin, report = folder / "cases.cu", folder / "cases.cubin", folder / "report.txt"
    stamp = f"// {nvcc()} {header_digest()} {' '.join(FLAGS)}\n"
    if not report.exists() or source.read_text() != stamp + text:
        report.unlink(missing_ok=True)
        source.write_text(stamp + text)
        command = [nvcc(), *FLAGS, f"-arch=sm_{arch}", f"-I{INCLUDE}", str(source)]
        done = subprocess.run(
            [*command, "-o", str(cubin)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[:6000]}"
        report.write_text(done.stderr)
    return cubin, report.read_text()


@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_without_spills(arch: int) -> None:
    _, report = compiled(arch)
    functions = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        report,
        flags=re.DOTALL,
    )
    assert len(functions) >= len(forms(arch)) * 4
    spilling = [f for f in functions if set(f[1:]) != {"0"}]
    assert not spilling


def find_cuobjdump() -> str | None:
    """NVIDIA's toolkit or the copy that comes with triton."""
    bundled = Path(sysconfig.get_path("purelib"), "triton/backends/nvidia/bin/cuobjdump")
    return shutil.which("cuobjdump") or (str(bundled) if bundled.exists() else None)


@pytest.mark.parametrize("arch", ARCHS)
def test_matrix_instructions_are_there(arch: int) -> None:
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("no cuobjdump: it comes with CUDA's toolkit and with triton")
    cubin, _ = compiled(arch)
    sass = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True
    )
    pattern = r"Function : (\w+)(.*?)(?=Function :|\Z)"
    functions = dict(re.findall(pattern, sass.stdout, re.DOTALL))
    shapes = {"75": "1688"}
    for name, body in functions.items():
        if (
            "Simt" in name
            or "reduce" in name
            or not re.search(r"gemm_kernel|attention_kernel", name)
        ):
            continue
        wanted = "1688" if "Tf32" in name else shapes.get(str(arch), "16816")
        count = len(re.findall(rf"\bHMMA\.{wanted}\.F32", body))
        assert count >= 16, f"{count} HMMA.{wanted} in {name}"
        if arch >= 80:
            assert "LDGSTS" in body or "ConvRows" in name, f"no asynchronous copy in {name}"
        assert "LDSM" in body, f"no ldmatrix in {name}"
