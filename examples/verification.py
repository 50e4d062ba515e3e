"""Compiles models and compares them with timm in float64: a table of errors and bounds.

Every weight is redrawn so that it matters, the images are distinct and normalised, and a model
counts as verified only within the bound of its dtype: float32 1e-5, bfloat16 1.5 times the error
of eager torch in bfloat16 on the same images. Exits with 1 when a model does not verify.

    python examples/verification.py
    python examples/verification.py --models vit_base_patch16_224 --dtypes float32 --batch 8
"""

from __future__ import annotations

import argparse

import timm
from rich.console import Console
from rich.table import Table

import vitc
from vitc.errors import VitcError
from vitc.verify import VerifyReport, redraw, verify

MODELS = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "levit_128s",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "vit_small_patch14_reg4_dinov2",
)


def check(name: str, dtype: str, batch: int, depth: int | None) -> VerifyReport:
    options = {} if depth is None else {"depth": depth}
    model = timm.create_model(name, **options).eval()
    redraw(model, seed=0)
    with vitc.compile(model, batch=batch, dtype=dtype, name=name) as module:
        return verify(module, model)


def row(report: VerifyReport) -> tuple[str, ...]:
    top1 = [check for check in report.checks if check.name.endswith("top-1")]
    return (
        f"{report.error:.1e}",
        f"{report.bound:.1e}",
        f"{report.eager_error:.1e}",
        top1[-1].measured if top1 else "-",
        "[green]verified[/]" if report.passed else "[bold red]FAILED[/]",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--dtypes", nargs="+", default=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--depth", type=int, help="blocks; fewer are quicker")
    options = parser.parse_args()
    console = Console()
    titles = ("model", "dtype", "error", "bound", "eager torch", "top-1", "")
    table = Table(*titles, title="against timm in float64", title_justify="left")
    failed = 0
    for name in options.models:
        for dtype in options.dtypes:
            try:
                with console.status(f"{name} {dtype}"):
                    report = check(name, dtype, options.batch, options.depth)
            except VitcError as error:
                table.add_row(
                    name, dtype, "", "", "", str(error).splitlines()[0], "[red]refused[/]"
                )
                failed += 1
                continue
            table.add_row(name, dtype, *row(report))
            failed += not report.passed
            if report.finding is not None:
                console.print(f"{name} {dtype}: {report.finding.message}", highlight=False)
    console.print(table)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
