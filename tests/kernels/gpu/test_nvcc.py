"""What selection renders compiles: warnings and spills are errors, matrix instructions are there.

Needs nvcc, but no GPU. The kernels of one test are one source, since reading the headers costs more
than most kernels.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
from codegen.op_cases import CASES
from graphs import assign
from kernels.emu.emulation import INCLUDE

from vitc.codegen.render import KERNEL
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu import gemm
from vitc.codegen.targets.gpu.device import ARCHITECTURES
from vitc.codegen.toolchain import find_compiler, install_command
from vitc.ir.graph import Graph
from vitc.ir.text import parse_graph
from vitc.ir.types import DType
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import run_pipeline

FLAGS = (
    "-std=c++17 -O3 -cubin -diag-suppress=177 -Werror all-warnings -Xcompiler -Wall,-Wextra "
    "-Xptxas -v,-warn-spills,-Werror"
).split()
ATTENTION = """
graph attention(%x: {t}[B,{n},2304]) {{
  %q = move(%x) {{map={m}, slice(0,0,1,1), reshape([B,12,{n},64]))}}
  %k = move(%x) {{map={m}, slice(0,1,2,1), reshape([B,12,{n},64]))}}
  %v = move(%x) {{map={m}, slice(0,2,3,1), reshape([B,12,{n},64]))}}
  %a = attention(%q, %k, %v) {{scale=0.125}}
  %c = move(%q) {{map=map([B,12,{n},64], slice(2,0,48,1))}}
  %b = attention(%c, %c, %c) {{scale=0.125}}
  return %a, %b
}}
"""
# The attentions of Swin (windows 7, 12), Swin v2 (8, 16, 24) and LeViT, and wide heads of ViTs:
# (queries, keys, key dimension, value dimension, heads, what stands beside the products).
SHIFTED, COSINE = "bias regions", "bias regions factors cosine"
WINDOWS = (
    (49, 49, 32, 32, 3, SHIFTED),
    (144, 144, 32, 32, 4, SHIFTED),
    (64, 64, 32, 32, 3, COSINE),
    (256, 256, 32, 32, 3, COSINE),
    (576, 576, 32, 32, 4, COSINE),
    (196, 196, 16, 32, 4, "bias"),
    (196, 196, 32, 64, 6, "bias"),
    (49, 196, 16, 64, 8, "bias"),
    (49, 49, 32, 64, 9, "bias"),
    (16, 49, 32, 128, 18, "bias"),
    (16, 16, 32, 64, 12, "bias"),
    (257, 257, 80, 80, 16, ""),
    (256, 256, 72, 72, 16, ""),
    (577, 577, 128, 128, 8, ""),
)
CHAIN = """
graph chain(%x: {t}[B,197,768], %s: f32[B,197,24], %r: {t}[B,197,1024]) {{
  weight %w: {t}[1024,768]
  weight %b: {t}[1024]
  {results} = linear(%x, %w, %s, %b, %r) {{steps=[{steps}]{stats}}}
  return {results}
}}
"""


@cache
def vit() -> Graph:
    """The imported graph of a ViT with two blocks, 197 tokens and heads of 64."""
    timm = pytest.importorskip("timm")
    from vitc.frontend import import_model

    sizes = {"embed_dim": 128, "num_heads": 2, "depth": 2, "num_classes": 10}
    return import_model(timm.models.VisionTransformer(**sizes).eval(), max_batch=8).graph


def vit_graphs(dtype: DType, boundary: DType | None = None) -> list[Graph]:
    boundary = boundary or dtype
    options = PassOptions(dtype=dtype, input_dtype=boundary, output_dtype=boundary)
    return [run_pipeline(vit(), options)]


def op_graphs(dtype: DType) -> list[Graph]:
    return [assign(text, dtype) for text in CASES.values()]


def attention_graphs(dtype: DType) -> list[Graph]:
    view = "map([B,{n},2304], reshape([B,{n},3,12,64]), permute([2,0,3,1,4])"
    return [
        parse_graph(ATTENTION.format(t=dtype.short, n=n, m=view.format(n=n))) for n in (197, 577)
    ]


def window_graphs(dtype: DType) -> list[Graph]:
    return [parse_graph(window_text(dtype.short, *sizes)) for sizes in WINDOWS]


def window_text(t: str, nq: int, nk: int, d: int, dv: int, heads: int, terms: str) -> str:
    """One attention over dense heads; a shifted one over windows of 4 kinds."""
    batch = "4B" if "regions" in terms else "B"
    types = {
        "bias": f"{t}[{heads},{nq},{nk}]",
        "regions": f"i32[4,{nq}]",
        "factors": f"f32[{heads}]",
    }
    given = [name for name in types if name in terms]
    weights = "".join(f"  weight %{name}: {types[name]}\n" for name in given)
    operands = ", ".join(f"%{name}" for name in ("q", "k", "v", *given))
    attributes = [f"{name}=true" for name in given] + ["cosine=1e-6"] * ("cosine" in terms)
    return (
        f"graph window(%q: {t}[{batch},{heads},{nq},{d}], %k: {t}[{batch},{heads},{nk},{d}], "
        f"%v: {t}[{batch},{heads},{nk},{dv}]) {{\n{weights}"
        f"  %a = attention({operands}) {{{', '.join(attributes)}}}\n  return %a\n}}\n"
    )


def kernels(graphs: Iterable[Graph], arch: str) -> list[str]:
    """The texts that the library of the graphs would have; equal ones once."""
    target = find_target(f"cuda:{arch}", (1, 8))
    return list(
        dict.fromkeys(
            target.render(call)[arch].body
            for graph in graphs
            for call in select(graph, target).calls
        )
    )


def every_tile(arch: str, dtype: DType) -> list[str]:
    """A GEMM with all tiles that selection may choose, and one that emits statistics."""
    steps = "layer_rstd($2, 768.0, 1e-6), add($3), gelu, add($4)"
    texts: list[str] = []
    for results, stats in (("%y", ""), ("%y, %z", ", stats=64, sums=true")):
        text = CHAIN.format(t=dtype.short, steps=steps, results=results, stats=stats)
        (call,) = select(parse_graph(text), find_target(f"cuda:{arch}", (1,))).calls
        assert isinstance(call.kernel, gemm.GpuGemm)
        names = call.kernel.choice(call, 1).names
        configs = [call.kernel.config(call.site, name, i) for i, name in enumerate(names, 1)]
        texts.append(call.kernel.render_with(call, tuple(configs)).body)
    return texts


def joined(texts: Iterable[str]) -> str:
    """One source: each text's anonymous namespace gets a name, which its entry calls `gpu`."""
    headers: dict[str, None] = {}
    bodies: list[str] = []
    for i, text in enumerate(texts):
        headers |= dict.fromkeys(re.findall(r"^#include .*$", text, re.MULTILINE))
        text = re.sub(r"^#include .*$", "", text, flags=re.MULTILINE).replace(KERNEL, f"kernel_{i}")
        opened, named = "namespace vitc::gpu {\nnamespace {", f"case_{i}"
        assert text.count(opened) == text.count("  using namespace vitc;\n") == 1
        text = text.replace(
            opened, f"namespace vitc::gpu {{\nnamespace {named} {{\nusing namespace vitc::gpu;"
        )
        entry = f"  using namespace vitc;\n  namespace gpu = vitc::gpu::{named};\n"
        bodies.append(text.replace("  using namespace vitc;\n", entry))
    return "\n".join([*headers, *bodies])


@dataclass(frozen=True)
class Group:
    """Kernels for one architecture, and the tensor-core instruction that its products need."""

    name: str
    arch: str
    texts: Callable[[], list[str]]
    instruction: str

    def __str__(self) -> str:
        return f"{self.name}-{self.arch}"


HALF, BRAIN, TF32, SINGLE = DType.FLOAT16, DType.BFLOAT16, DType.TF32, DType.FLOAT32
# Every kernel family for every architecture, and in every dtype; sm_90a's own kernels are in
# tests/toolchain.
GROUPS = [
    Group(f"ops-{t.short}", arch, lambda a=arch, t=t: kernels(op_graphs(t), a), instruction)
    for arch, t, instruction in (
        ("sm_75", HALF, "HMMA.1688.F32"),
        ("sm_75", SINGLE, "FFMA"),
        ("sm_80", HALF, "HMMA.16816.F32"),
        ("sm_80", SINGLE, "HMMA.1688.F32"),
        ("sm_86", BRAIN, "HMMA.16816.F32.BF16"),
        ("sm_86", SINGLE, "FFMA"),
        ("sm_89", HALF, "HMMA.16816.F32"),
        ("sm_90", BRAIN, "HMMA.16816.F32.BF16"),
        ("sm_90", SINGLE, "HMMA.1688.F32"),
        ("sm_100", HALF, "HMMA.16816.F32"),
        ("sm_100", TF32, "HMMA.1688.F32.TF32"),
        ("sm_120", HALF, "HMMA.16816.F32"),
    )
]
GROUPS += [
    Group(f"tiles-{t.short}", arch, lambda a=arch, t=t: every_tile(a, t), instruction)
    for arch, t, instruction in (
        ("sm_75", HALF, "HMMA.1688.F32"),
        ("sm_75", SINGLE, "FFMA"),
        ("sm_80", HALF, "HMMA.16816.F32"),
        ("sm_80", TF32, "HMMA.1688.F32.TF32"),
        ("sm_80", SINGLE, "HMMA.1688.F32.TF32"),
        ("sm_89", SINGLE, "FFMA"),
        ("sm_90", BRAIN, "HMMA.16816.F32.BF16"),
    )
]
GROUPS += [
    Group("vit", "sm_80", lambda: kernels(vit_graphs(HALF), "sm_80"), "HMMA.16816.F32"),
    Group(
        "vit-numpy", "sm_80", lambda: kernels(vit_graphs(HALF, SINGLE), "sm_80"), "HMMA.16816.F32"
    ),
    Group("vit", "sm_75", lambda: kernels(vit_graphs(HALF), "sm_75"), "HMMA.1688.F32"),
    Group("vit", "sm_90", lambda: kernels(vit_graphs(HALF), "sm_90"), "HMMA.16816.F32"),
    Group("vit", "sm_120", lambda: kernels(vit_graphs(DType.BFLOAT16), "sm_120"), "HMMA.16816"),
    Group("vit-f32", "sm_80", lambda: kernels(vit_graphs(SINGLE), "sm_80"), "HMMA.1688.F32"),
]
GROUPS += [
    Group(f"attention-{t.short}", arch, lambda a=arch, t=t: kernels(attention_graphs(t), a), shape)
    for arch, t, shape in (
        ("sm_80", SINGLE, "HMMA.1688.F32"),
        ("sm_80", TF32, "HMMA.1688.F32"),
        ("sm_90", SINGLE, "HMMA.1688.F32"),
        ("sm_90", TF32, "HMMA.1688.F32"),
        ("sm_75", HALF, "HMMA.1688.F32"),
        ("sm_86", HALF, "HMMA.16816.F32"),
    )
]
GROUPS += [
    Group(f"windows-{t.short}", arch, lambda a=arch, t=t: kernels(window_graphs(t), a), shape)
    for arch, t, shape in (
        ("sm_75", HALF, "HMMA.1688.F32"),
        ("sm_75", SINGLE, "FFMA"),
        ("sm_80", HALF, "HMMA.16816.F32"),
        ("sm_80", SINGLE, "HMMA.1688.F32"),
        ("sm_80", TF32, "HMMA.1688.F32"),
        ("sm_90", BRAIN, "HMMA.16816.F32.BF16"),
    )
]


@cache
def nvcc() -> str:
    compiler = find_compiler("cuda").compiler
    if compiler is None:
        pytest.skip(f"no nvcc: {install_command('cuda')}")
    return compiler.command[-1]


def find_cuobjdump() -> str | None:
    """NVIDIA's toolkit or the copy that comes with triton."""
    bundled = Path(sysconfig.get_path("purelib"), "triton/backends/nvidia/bin/cuobjdump")
    return shutil.which("cuobjdump") or (str(bundled) if bundled.exists() else None)


def compiled(texts: list[str], arch: str, folder: Path) -> Path:
    source, cubin = folder / "kernels.cu", folder / "kernels.cubin"
    source.write_text(joined(texts))
    flags = [*FLAGS, f"-arch={arch}", f"-DVITC_ISA={arch}", f"-I{INCLUDE}"]
    command = [nvcc(), *flags, str(source), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{errors_of(done.stderr)}"
    spilt = [n for n in re.findall(r"(\d+) bytes spill", done.stderr) if n != "0"]
    assert not spilt, errors_of(done.stderr)
    return cubin


def errors_of(report: str) -> str:
    lines = report.splitlines()
    telling = [line for line in lines if re.search(r"error|warning|[1-9]\d* bytes spill", line)]
    return "\n".join(telling or lines)[:6000]


def check_overlap(name: str, body: str) -> None:
    """A kernel waits for the previous one before it touches activations (vitc/gpu/launch.h)."""
    before, waits, after = body.partition("ACQBULK")
    assert waits, f"{name} does not wait"
    assert "PREEXIT" in after, f"{name} does not let the next kernel start"
    assert "STG" not in before, f"{name} stores before it waits"
    # What a GEMM copies and attention looks up that early are constants.
    if not re.search(r"gemm_kernel|attention_kernel", name):
        assert not re.search(r"\bLDG", before), f"{name} loads before it waits"


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_rendered_kernels_compile(group: Group, tmp_path: Path) -> None:
    nvcc()  # skips before anything is rendered
    cubin = compiled(group.texts(), group.arch, tmp_path)
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("compiled; no cuobjdump to look at the code: CUDA's toolkit and triton have it")
    dump = [cuobjdump, "-sass", str(cubin)]
    sass = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    products = 0
    for name, body in re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", sass, re.DOTALL):
        if ARCHITECTURES[group.arch].sm >= 90:
            check_overlap(name, body)
        if not re.search(r"gemm_kernel|attention_kernel", name):
            continue
        products += 1
        # An attention over a few keys needs one for the scores, one for the values.
        assert len(re.findall(rf"\b{group.instruction}", body)) >= 2, name
        if group.instruction != "FFMA":
            assert "LDSM" in body, f"no ldmatrix in {name}"
        if group.arch != "sm_75" and "attention_kernel" in name:
            assert "LDGSTS" in body, f"no asynchronous copy in {name}"
    assert products


def test_a_spill_is_an_error(tmp_path: Path) -> None:
    """Three products a pair over 197 keys at once do not fit the registers."""
    nvcc()
    with patch("vitc.codegen.targets.gpu.attention_tiles.THREE_PRODUCTS_KEYS", 208):
        texts = kernels(attention_graphs(SINGLE)[:1], "sm_80")
    with pytest.raises(AssertionError, match="spill"):
        compiled(texts, "sm_80", tmp_path)
