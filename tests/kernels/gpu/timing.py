"""What kernels_device.py times: layers of ViT, Swin and LeViT in several configurations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from kernels.gpu.attention_cases import (
    HARD_SWISH,
    Shape,
    Terms,
    Windows,
    attention,
    from_qkv,
    windows,
)
from kernels.gpu.case import Case
from kernels.gpu.gather_cases import Patches, gather
from kernels.gpu.gather_cases import program as patch_program
from kernels.gpu.gemm_cases import PLAIN_SOURCE, Tile, program
from kernels.gpu.rows_cases import BOTH, conv_program

JOBS = 16
GATHER_TILES = (  # rows and columns of a warpgroup, stages, ping-pong
    "128, 192, 5, true",
    "128, 128, 6, true",
    "192, 96, 6, true",
    "64, 192, 6, true",
    "64, 96, 10, true",
    "64, 256, 4, false",
    "64, 128, 6, false",
)
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


@dataclass(frozen=True)
class Block:
    """What may be chosen for one attention: keys at once, warps a head, heads a block, and blocks
    that a multiprocessor must have registers for.
    """

    keys: int
    warps: int
    groups: int = 1
    resident: int = 1

    def shape(self, s: Shape) -> Shape:
        return replace(
            s,
            block_keys=self.keys,
            warps=self.warps,
            groups=self.groups,
            resident=self.resident,
        )

    def __str__(self) -> str:
        return f"keys {self.keys} warps {self.warps} x {self.groups} resident {self.resident}"


def measured(case: Case, name: str) -> Case:
    """The text alone: timing needs no reference."""
    return replace(case, name=name, arrays=[], check=print)


def attention_plan(name: str, tokens: int, heads: int, blocks: list[Block]) -> Plan:
    s = Shape(tokens, tokens, 64, 64, 16, 1, 1, heads)
    cases = [measured(from_qkv("float16", b.shape(s)), str(b)) for b in blocks]
    runs = []
    for batch in (1, 8, 32, 256) if tokens < 300 else (1, 8, 32):
        width = heads * 64
        flops = 4 * batch * heads * tokens * tokens * 64
        shapes = [(batch, tokens, 3 * width), (1,), (1,), (batch, tokens, width)]
        runs.append(((batch,), flops, 8 * batch * tokens * width, shapes))
    return Plan(f"attention {name}", cases, runs)


def window_plan(name: str, w: Windows, heads: int, terms: Terms, blocks: list[Block]) -> Plan:
    """Windows of a batch of 32 images in a qkv product, head dimension 32."""
    tokens, count = w.side**2, w.grid[0] * w.grid[1]
    s = Shape(tokens, tokens, 32, 32, 16, batch=count, heads=heads)
    cases = [measured(windows("", "float16", w, b.shape(s), terms), str(b)) for b in blocks]
    images, width = 32, heads * 32
    pixels = images * w.height * w.width
    tiles = heads * (-(-tokens // 16) * 16) ** 2
    shapes = [
        (pixels, 3 * width),
        (1,),
        (1,),
        (pixels, width),
        (tiles,),
        (2 * count, tokens),
        (99,),
    ]
    flops = 4 * images * count * heads * tokens * tokens * 32
    return Plan(
        f"attention {name}", cases, [((images * count,), flops, 8 * pixels * width, shapes)]
    )


def levit_plan(name: str, s: Shape, images: int, blocks: list[Block]) -> Plan:
    """LeViT's attention with biases and hard-swish; q, k and v in arrays of their own."""
    form, terms = "float16", Terms("heads")
    cases = [
        measured(attention("", form, b.shape(s), terms, activation=HARD_SWISH), str(b))
        for b in blocks
    ]
    rows = [(s.queries, s.head_dim), (s.keys, s.head_dim), (s.keys, s.value_dim)]
    rows.append((s.queries, s.value_dim))
    shapes = [(images, tokens, s.heads * width) for tokens, width in rows]
    tiles = s.heads * -(-s.queries // 16) * -(-s.keys // 16) * 256
    flops = 2 * images * s.heads * s.queries * s.keys * (s.head_dim + s.value_dim)
    nbytes = sum(2 * images * tokens * s.heads * width for tokens, width in rows)
    run = ((images,), flops, nbytes, [*shapes, (tiles,), (1,), (1,)])
    return Plan(f"attention {name}", cases, [run])


def window_plans() -> list[Plan]:
    """The windows of Swin and Swin v2 at batch 32 and the attentions of LeViT-384 at 256."""
    shifted, cosine = Terms("heads", 4), Terms("heads", 4, factors=True, cosine=True)
    seven = [Block(64, 4), Block(64, 4, 1, 6), Block(64, 4, 1, 7), Block(64, 4, 2, 3)]
    found = [
        window_plan(
            f"swin_tiny stage {i + 1}",
            Windows(56 >> i, 56 >> i, 7, 3 if i < 3 else 0),
            3 << i,
            replace(shifted, windows=0 if i == 3 else (8 >> i) ** 2),
            seven,
        )
        for i in range(4)
    ]
    found += [
        window_plan(
            "swin_base 384 window 12",
            Windows(96, 96, 12, 6),
            4,
            replace(shifted, windows=64),
            [Block(144, 3), Block(144, 3, 1, 5), Block(80, 3, 1, 5), Block(48, 3, 1, 6)],
        ),
        window_plan(
            "swinv2_tiny window 8",
            Windows(64, 64, 8, 4),
            3,
            replace(cosine, windows=64),
            [Block(64, 4), Block(64, 4, 1, 6)],
        ),
        window_plan(
            "swinv2_tiny window 16",
            Windows(64, 64, 16, 8),
            3,
            replace(cosine, windows=16),
            [Block(256, 4, 1, 2), Block(64, 4, 1, 4), Block(64, 4, 1, 5), Block(128, 4, 1, 3)],
        ),
        window_plan(
            "swinv2_base window 24",
            Windows(96, 96, 24, 12),
            4,
            replace(cosine, windows=16),
            [Block(64, 4, 1, 4), Block(64, 4, 1, 5), Block(96, 4, 1, 4), Block(128, 4, 1, 3)],
        ),
    ]
    long = [Block(208, 4, 1, 3), Block(112, 4, 1, 4), Block(112, 4, 1, 3), Block(64, 4, 1, 4)]
    small = [Block(64, 4), Block(64, 4, 1, 6), Block(64, 4, 1, 8)]
    for name, sizes, heads, blocks in (
        ("levit 196", (196, 196, 32, 64), 6, long),
        (
            "levit 49 of 196",
            (49, 196, 32, 128),
            12,
            [Block(208, 4), Block(208, 4, 1, 3), Block(112, 4)],
        ),
        ("levit 49", (49, 49, 32, 64), 9, small),
        ("levit 16 of 49", (16, 49, 32, 128), 18, [Block(64, 1, 4), Block(64, 1, 4, 4)]),
        ("levit 16", (16, 16, 32, 64), 12, [Block(16, 1, 4), Block(16, 1, 8), Block(16, 1, 2)]),
    ):
        found.append(levit_plan(name, Shape(*sizes, 16, batch=1, heads=heads), 256, blocks))
    return found


def conv_plan(name: str, channels: int, out: int, size: int, planes: bool) -> Plan:
    """3x3 convolutions of stride 2, by which LeViT begins, in several configurations."""
    cases = []
    for config in ((128, 64, 32, 4, 1, 4), (64, 64, 32, 2, 2, 4), (128, 64, 32, 2, 2, 4)):
        t = Tile("float16", *config)
        made = conv_program(t, channels, out, size, 3, 2, 1, planes=planes)
        cases.append(Case("x".join(map(str, config)), made, [], print, (), 80, 0, BOTH))
    images, depth = 256, -(-9 * channels // 8) * 8
    m = images * (size // 2) ** 2
    shapes = [(images, size, size, channels), (out, depth), (m, out)]
    moved = 2 * (images * size * size * channels + m * out)
    return Plan(f"conv {name}", cases, [((m,), 18 * m * out * channels, moved, shapes)])


def conv_plans() -> list[Plan]:
    return [
        conv_plan("stem 3 to 16", 3, 16, 224, True),
        conv_plan("stem 16 to 32", 16, 32, 112, False),
        conv_plan("stem 32 to 64", 32, 64, 56, False),
        conv_plan("stem 64 to 128", 64, 128, 28, False),
    ]


def patch_plan(hopper: bool) -> Plan:
    """The patch embedding of ViT-B/16 by the portable GEMM, and by Hopper's own."""
    p, n = Patches(1, 3, (16, 16), (224, 224)), 768
    forms = {
        "x".join(map(str, sizes)): ("gpu::gemm", Tile("float16", *sizes).cpp, "vitc/gpu/gemm.cuh")
        for sizes in ((128, 64, 32, 2, 2, 4), (64, 64, 32, 2, 2, 4), (32, 64, 64, 1, 2, 4))
    }
    for sizes in GATHER_TILES if hopper else ():
        forms[sizes] = (*gather(sizes, "float16"), "vitc/gpu/sm90/gather_gemm.cuh")
    cases = [
        Case(name, patch_program(function, tile, p, n), [], print, (), 80, 0, header)
        for name, (function, tile, header) in forms.items()
    ]
    runs = []
    for images in (1, 8, 32, 256):
        rows = images * p.period
        # The table and the sums are float32: two of the arrays' float16.
        shapes = [(images, 3, 224, 224), (n, p.depth), (p.period, 2 * n), (rows, n), (rows, 48)]
        moved = 2 * sum(math.prod(shape) for shape in shapes)
        runs.append(((rows,), 2 * rows * n * p.depth, moved, shapes))
    return Plan("patches of ViT-B", cases, runs)


def plans(hopper: bool) -> list[Plan]:
    return [
        patch_plan(hopper),
        *window_plans(),
        *conv_plans(),
        gemm_plan("qkv", 2304, 768, ""),
        gemm_plan("proj", 768, 768, RESIDUAL),
        gemm_plan("fc1", 3072, 768, GELU),
        gemm_plan("fc2", 768, 3072, RESIDUAL),
        gemm_plan("fc1", 3072, 768, GELU, "bfloat16"),
        attention_plan(
            "197",
            197,
            12,
            [Block(208, 4, 1, 3), Block(112, 4, 1, 4), Block(64, 4, 1, 4), Block(64, 7, 1, 2)],
        ),
        attention_plan(
            "577",
            577,
            16,
            [Block(64, 4, 1, 4), Block(128, 4, 1, 3), Block(96, 4, 1, 3), Block(64, 8, 1, 2)],
        ),
    ]
