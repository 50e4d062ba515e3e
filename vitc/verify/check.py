"""`verify`: runs a library and holds its results against float64."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from vitc.errors import VitcError
from vitc.verify.handle import (
    Compiled,
    device_of,
    image_shape,
    max_batch,
    run,
    torch_dtype,
)
from vitc.verify.localise import find
from vitc.verify.redraw import images as draw_images
from vitc.verify.reference import eager, reference, relative_error
from vitc.verify.report import Check, VerifyReport

FLOAT32_BOUND = 1e-5  # relative L2 against float64
EAGER_FACTOR = 1.5  # times the error of eager torch in float16 or bfloat16; float16 for tf32
REFERENCES = 16  # images compared with float64; the others of a large batch are compared by rows

Progress = Callable[[str, int, int], None]


def verify(
    module: Compiled,
    model: nn.Module,
    images: Tensor | None = None,
    *,
    features: bool | None = None,
    bound: float | None = None,
    batches: Sequence[int] = (),
    references: int = REFERENCES,
    localise: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compares a library with the model it came from; both must hold the same weights.

    images: [N, C, H, W]; None draws as many as the library takes at once. Batches 1, 2 and N run
        (N at most the library's largest), and `batches` beside them.
    features: compare with `forward_features`; None takes what the manifest says.
    bound: allowed relative L2 error; None takes 1e-5 for float32 and 1.5 times the error of eager
        torch for float16 and bfloat16.
    references: how many images are also computed in float64.
    localise: on a mismatch, find the first op that differs.
    progress: called with (what, done, total).

    Returns a report that tells whether all checks passed; `.require()` raises if not.
    Raises VitcError when model and library cannot be compared.
    """
    start = time.perf_counter()
    tell = progress or _silent
    given = draw_images(max_batch(module), image_shape(module), seed) if images is None else images
    case = _prepare(module, model, given, features, bound, references, tell)
    sizes = sorted({1, min(2, case.count), case.count} | {b for b in batches if b <= case.count})
    runs: list[_Run] = []
    for index, batch in enumerate(sizes):
        tell("batches", index, len(sizes))
        runs.append(_check_run(case, run(module, case.images[:batch]), batch))
    tell("batches", len(sizes), len(sizes))
    checks = [check for one in runs for check in one.checks]
    manifest = module.manifest
    report = VerifyReport(
        name=str(manifest["name"]),
        target=str(manifest["target"]),
        dtype=str(manifest["dtype"]),
        graph_hash=str(manifest.get("graph_hash", "")),
        batches=tuple(sizes),
        references=len(case.expected),
        error=max(one.error for one in runs),
        bound=case.bound,
        eager_error=case.eager_error,
        checks=(*checks, _permutation(module, case, seed)),
        seconds=0.0,
    )
    failed = [one.batch for one in runs if not all(check.passed for check in one.checks)]
    if failed and localise:
        tell("localise", 0, 1)
        finding = find(module, model, case.images[: failed[0]], features=case.features)
        report = replace(report, finding=finding)
        tell("localise", 1, 1)
    return replace(report, seconds=time.perf_counter() - start)


def _silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class _Case:
    """Images with their references; the first len(expected) images have one."""

    images: Tensor
    expected: Tensor
    bound: float
    eager_error: float
    eager_top1: Tensor
    features: bool

    @property
    def count(self) -> int:
        return len(self.images)


def _prepare(
    module: Compiled,
    model: nn.Module,
    images: Tensor,
    features: bool | None,
    bound: float | None,
    references: int,
    tell: Progress,
) -> _Case:
    shape = image_shape(module)
    if tuple(images.shape[1:]) != shape or len(images) < 1:
        raise VitcError(f"images are {list(images.shape)}, the library takes [B, *{list(shape)}]")
    wants_features = bool(module.manifest.get("features")) if features is None else features
    dtype = str(module.manifest["dtype"])
    # The reference sees the images that the library sees: rounding them is not its error.
    rounded = images[: max_batch(module)].to(device_of(module), torch_dtype(module.inputs[0].dtype))
    first = rounded[: max(1, references)]
    tell("float64 reference", 0, 2)
    expected = reference(model, first, features=wants_features)
    tell("float64 reference", 1, 2)
    # tf32 rounds operands to as many bits as float16 has, and exists on GPUs alone.
    kind = torch.float16 if dtype == "tf32" else torch_dtype(dtype)
    twin = eager(model, first, kind, features=wants_features)
    tell("float64 reference", 2, 2)
    eager_error = relative_error(twin, expected)
    allowed = _bound(dtype, eager_error) if bound is None else bound
    return _Case(rounded, expected, allowed, eager_error, twin.argmax(-1), wants_features)


def _bound(dtype: str, eager_error: float) -> float:
    if dtype == "float32":
        # A few deep stems (ResNet-50) lose more than that in eager torch too.
        return max(FLOAT32_BOUND, EAGER_FACTOR * eager_error)
    if dtype in ("float16", "bfloat16", "tf32"):
        return EAGER_FACTOR * eager_error
    raise VitcError(f"no error bound is defined for {dtype}", hint="pass bound=")


@dataclass(frozen=True)
class _Run:
    """One batch that ran."""

    batch: int
    error: float
    checks: tuple[Check, ...]


def _check_run(case: _Case, result: Tensor, batch: int) -> _Run:
    expected = case.expected[:batch]
    where = f"batch {batch}"
    if result.shape != (batch, *expected.shape[1:]):
        shown, wanted = str(list(result.shape)), str([batch, *expected.shape[1:]])
        return _Run(batch, float("inf"), (Check(f"{where}: shape", False, shown, wanted),))
    finite = bool(torch.isfinite(result).all())
    error = relative_error(result[: len(expected)], expected)
    fits = error <= case.bound
    checks = [
        Check(f"{where}: finite", finite, "yes" if finite else "no", "yes"),
        Check(f"{where}: error", fits, f"{error:.2e}", f"at most {case.bound:.2e}"),
    ]
    if expected.ndim == 2 and expected.shape[1] > 1:
        checks.append(_top1(case, result[: len(expected)], expected, where))
    return _Run(batch, error, tuple(checks))


def _top1(case: _Case, result: Tensor, expected: Tensor, where: str) -> Check:
    """Classes must agree where the reference's margin is wider than the bound can move."""
    best = expected.topk(2, -1)
    margin = best.values[:, 0] - best.values[:, 1]
    # An error of length e moves the difference of two entries by at most sqrt(2) e.
    reach = 2**0.5 * case.bound * expected.square().sum(-1).sqrt()
    decided = margin > reach
    same = result.argmax(-1).to(expected.device) == best.indices[:, 0]
    right, total = int((same & decided).sum()), int(decided.sum())
    eager_same = int((case.eager_top1[: len(expected)] == best.indices[:, 0]).sum())
    shown = (
        f"{right} of {total} with a clear margin "
        f"(of all {len(expected)}: {int(same.sum())}, eager {eager_same})"
    )
    return Check(f"{where}: top-1", right == total, shown, f"{total} of {total}")


def _permutation(module: Compiled, case: _Case, seed: int) -> Check:
    """Rows must not see each other: permuting images permutes results, bit for bit."""
    rng = np.random.default_rng(seed)
    start = int(rng.integers(1, case.count)) if case.count > 1 else 0
    # A shuffle could leave a row in its place; a rotated reversal moves the images far and leaves
    # at most two.
    order = [(start - i) % case.count for i in range(case.count)]
    plain = run(module, case.images)
    moved = run(module, case.images[order])
    kept = [_same_bits(moved[i], plain[j]) for i, j in enumerate(order)]
    name = f"batch {case.count}: permutation" if case.count > 1 else "batch 1: repeatable"
    return Check(name, all(kept), f"{sum(kept)} of {len(kept)} rows equal", "all, bit for bit")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
