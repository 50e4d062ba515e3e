"""Libraries of one model that differ in the configurations of their kernels, for in_model.py."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from vitc.codegen.build import build_library
from vitc.codegen.kernel import KernelCall, OtherTarget, Rendered, Target
from vitc.codegen.library import LINK_FLAGS, library_source
from vitc.codegen.memory import plan_memory
from vitc.codegen.records import Choice
from vitc.codegen.select import select
from vitc.codegen.sources import Source
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu.sm90_gemm import Sm90Gemm, problem
from vitc.codegen.targets.gpu.sm90_tiles import TILES
from vitc.compiler import toolchain_of
from vitc.ir.graph import Graph
from vitc.ir.op import Array
from vitc.ir.recipes import evaluate_graph
from vitc.options import CompileOptions
from vitc.runtime.artifact import PAGE, Footer, external_weights, read_footer, write_library

Names = Mapping[str, str]  # configurations by key of the choice; the default where there is none
Variant = tuple[Names, Sequence[str]]  # and further flags for the compiler


@dataclass(frozen=True)
class Site:
    """A choice, a call that has it, how many do, and the configuration that compile() takes."""

    choice: Choice
    call: KernelCall
    calls: int
    default: str

    @property
    def work(self) -> int:
        """Floating-point operations of all calls."""
        site = self.call.site
        return self.calls * site.op.flops(site.inputs, site.results)


def sites(
    calls: Sequence[KernelCall], batch: int, only: str = "", every: bool = False
) -> list[Site]:
    """Choices between several configurations, most work first, whose key has one of `only`'s words
    (joined by commas) in it. every: also between tiles of Hopper's GEMM that seem far behind.
    """
    words = only.split(",")

    def named(key: str) -> bool:
        return any(word in key for word in words)

    found: dict[str, tuple[Choice, list[KernelCall]]] = {}
    for call in calls:
        choice = call.kernel.choice(call, batch)
        if choice is not None and every and isinstance(call.kernel, Sm90Gemm):
            tiles = (tile.name for tile in TILES if tile.takes(problem(call.site, batch)))
            choice = replace(choice, names=tuple(dict.fromkeys((*choice.names, *tiles))))
        if choice is not None and len(choice.names) > 1 and named(choice.key):
            found.setdefault(choice.key, (choice, []))[1].append(call)
    made: list[Site] = []
    for choice, (call, *others) in found.values():
        now = call.kernel.render(call)
        same = (n for n in choice.names if call.kernel.render_choice(call, n).body == now.body)
        made.append(Site(choice, call, 1 + len(others), next(same, now.config)))
    return sorted(made, key=lambda site: -site.work)


class Told(OtherTarget):
    """A target of one architecture whose kernels are told their configurations. names: by key of
    the choice. flags: for the compiler, behind those that kernels have.
    """

    def __init__(self, target: Target, batch: int, names: Names, flags: Sequence[str]) -> None:
        super().__init__(target)
        self._batch, self._names = batch, names
        self._flags = tuple(flags)

    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        choice = call.kernel.choice(call, self._batch)
        if choice is None or choice.key not in self._names:
            return super().render(call)
        return {self.isas[0]: call.kernel.render_choice(call, self._names[choice.key])}

    def source(self, name: str, isa: str, text: str) -> Source:
        made = super().source(name, isa, text)
        return Source(made.name, made.text, (*made.flags, *self._flags), made.language)


class Libraries:
    """Compiles one model again and again; the weights lie in one file."""

    def __init__(
        self, graph: Graph, state: Mapping[str, Array], options: CompileOptions, folder: Path
    ) -> None:
        self.options, self.folder = options, folder
        self.batch = options.max_batch
        self.target = find_target(options.target, options.batches)
        self.toolchain = toolchain_of(options)
        self.selection = select(graph, self.target)
        self.plan = plan_memory(self.selection.calls, graph.outputs, options.max_batch)
        self.numbers = itertools.count()
        self.default = self._link({}, (), jobs=0)
        constants = evaluate_graph(self.selection.recipes, state)
        write_library(self.default, constants, self.default, "external")

    def build(self, wanted: Mapping[str, Variant]) -> dict[str, Path | str]:
        """A library for each, or why there is none."""
        cores = os.cpu_count() or 1
        jobs = max(2, cores // max(1, len(wanted)))

        def one(given: Variant) -> Path | str:
            try:
                path = self._link(*given, jobs)
                share_weights(path, self.default)
            except Exception as error:  # noqa: BLE001  the others go on, whatever it is
                return describe(error)
            return path

        with ThreadPoolExecutor(cores) as pool:
            return dict(zip(wanted, pool.map(one, wanted.values()), strict=True))

    def _link(self, names: Names, flags: Sequence[str], jobs: int) -> Path:
        source = library_source(
            self.selection,
            self.plan,
            Told(self.target, self.batch, names, flags),
            batches=self.options.batches,
            weights_mode="external",
            about={"parameters": [], "toolchain": self.toolchain.describe()},
        )
        path = self.folder / f"{next(self.numbers)}.so"
        build_library(
            source.sources, toolchain=self.toolchain, output=path, link_flags=LINK_FLAGS, jobs=jobs
        )
        return path


def share_weights(code: Path, other: Path) -> None:
    """Makes of linked code a library with the weights that lie beside another one."""
    footer, elf = read_footer(other), code.read_bytes()
    assert footer is not None
    padded = elf + bytes(-len(elf) % PAGE)
    digest = hashlib.sha256(elf).digest()[:16]
    made = Footer(len(padded), 0, footer.payload_crc, digest, len(elf))
    code.write_bytes(padded + made.pack())
    external_weights(code).symlink_to(external_weights(other))


def describe(error: BaseException) -> str:
    """On one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
