"""What kernels_device.py times: ViT-B's and ViT-L's layers in several configurations."""

from __future__ import annotations

from dataclasses import dataclass

from kernels.gpu.attention_cases import Shape, from_qkv
from kernels.gpu.case import Case
from kernels.gpu.gemm_cases import PLAIN_SOURCE, Tile, program

JOBS = 16
CONFIGS = (  # BM, BN, BK, warps, stages
    (128, 128, 32, 2, 2, 4),
    (128, 128, 64, 2, 2, 3),
    (128, 128, 32, 2, 4, 4),
    (128, 128, 64, 2, 4, 3),
    (128, 256, 32, 2, 4, 3),
    (256, 128, 32, 4, 2, 3),
    (128, 256, 64, 2, 4, 3),
    (128, 192, 64, 2, 4, 3),
    (128, 64, 64, 4, 2, 3),
    (64, 128, 64, 2, 2, 4),
    (64, 64, 64, 2, 2, 4),
    (32, 64, 64, 2, 2, 4),
    (64, 96, 64, 2, 2, 4),
    (64, 32, 64, 4, 1, 4),
)


@dataclass(frozen=True)
class Plan:
    """Configurations of one problem; `runs`: (sizes, flops, bytes, shapes of the float16 args)."""

    name: str
    cases: list[Case]
    runs: list[tuple[tuple[int, ...], int, int, list[tuple[int, ...]]]]


def epilogue(steps: str) -> str:
    return f"""  template <int V>
  VITC_DEVICE void operator()(int row, int column, float (&v)[V], float) const {{
    gpu::add(v, bias + column);
    {steps}
    gpu::write(out + row * kN + column, v);
  }}"""


GELU = "gpu::apply<gpu::GeluErfHalf>(v);"
RESIDUAL = "gpu::add(v, residual + row * kN + column);"


def gemm_plan(name: str, n: int, k: int, steps: str, form: str = "float16") -> Plan:
    cases = []
    for config in CONFIGS:
        tile = Tile(form, *config)
        text = program(
            tile,
            n,
            k,
            source=PLAIN_SOURCE,
            epilogue=epilogue(steps),
            members="const T *bias, *residual; T* out;",
            arguments="epilogue.bias = (const T*)args[3]; epilogue.residual = (const T*)args[4]; "
            "epilogue.out = (T*)args[2];",
        )
        cases.append(Case("x".join(map(str, config)), text, [], print, (), 80))
    runs = []
    for m in (197, 1576, 6304, 50432):
        shapes = [(m, k), (n, k), (m, n), (n,), (m, n)]
        moved = 2 * (m * k + n * k + m * n * (2 if steps == RESIDUAL else 1))
        runs.append(((m,), 2 * m * n * k, moved, shapes))
    return Plan(f"{name} {n}x{k} {form}", cases, runs)


def attention_plan(name: str, tokens: int, heads: int, choices: list[tuple[int, int]]) -> Plan:
    """choices: (keys a block, warps)."""
    cases = []
    for keys, warps in choices:
        shape = Shape(tokens, tokens, 64, 64, keys, warps, 1, heads)
        text = from_qkv("float16", shape).text
        cases.append(
            Case(f"keys {keys} warps {warps}", text, [], print, (), 80, 0, "vitc/gpu/attention.cuh")
        )
    runs = []
    for batch in (1, 8, 32, 256) if tokens < 300 else (1, 8, 32):
        width = heads * 64
        flops = 4 * batch * heads * tokens * tokens * 64
        shapes = [(batch, tokens, 3 * width), (1,), (1,), (batch, tokens, width)]
        runs.append(((batch,), flops, 8 * batch * tokens * width, shapes))
    return Plan(f"attention {name}", cases, runs)


def plans() -> list[Plan]:
    return [
        gemm_plan("qkv", 2304, 768, ""),
        gemm_plan("proj", 768, 768, RESIDUAL),
        gemm_plan("fc1", 3072, 768, GELU),
        gemm_plan("fc2", 768, 3072, RESIDUAL),
        gemm_plan("fc1", 3072, 768, GELU, "bfloat16"),
        attention_plan(
            "197", 197, 12, [(208, 4), (208, 2), (208, 7), (64, 4), (112, 4), (64, 7), (48, 4)]
        ),
        attention_plan("577", 577, 16, [(64, 4), (96, 4), (128, 4), (64, 8), (32, 4), (112, 8)]),
    ]
