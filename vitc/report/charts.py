"""PNG charts. They need matplotlib, which `pip install vitc[plot]` brings."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.errors import StorageError, VitcError

if TYPE_CHECKING:
    from vitc.bench import BenchReport

_COLOURS = ("#0b6e4f", "#8d99ae", "#e07a5f", "#3d5a80", "#f2cc8f", "#9d4edd", "#5c4033")


def bench_chart(report: BenchReport, path: Path) -> Path:
    """Images per second, a group of bars per batch. Raises VitcError, StorageError."""
    figure, axes = _figure(8.0, 4.5)
    contenders = report.contenders
    width = 0.8 / len(contenders)
    for index, name in enumerate(contenders):
        places = [place + index * width for place in range(len(report.batches))]
        timings = [report.timing(name, batch) for batch in report.batches]
        rates = [timing.images_per_second for timing in timings]
        bars = axes.bar(places, rates, width, label=name, color=_COLOURS[index % len(_COLOURS)])
        labels = [f"{timing.milliseconds:.1f} ms" for timing in timings]
        axes.bar_label(bars, labels, fontsize=7, padding=2)
    middle = 0.8 / 2 - width / 2
    axes.set_xticks([place + middle for place in range(len(report.batches))])
    axes.set_xticklabels([f"batch {batch}" for batch in report.batches])
    axes.set_ylabel("images/s (higher is better)")
    axes.set_title(
        f"{report.model}, {report.target}, {report.dtype}, {report.threads} threads\n"
        f"{report.machine.device}, {report.machine.date[:10]}",
        fontsize=10,
    )
    axes.legend(frameon=False)
    axes.margins(y=0.12)
    return _save(figure, path)


def rates_chart(panels: Mapping[str, Mapping[str, Mapping[int, float]]], path: Path) -> Path:
    """Images per second against the batch, both in powers of two: a panel for each title, a line
    for each contender; "roof" is dotted. Raises VitcError, StorageError.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, _ = _figure(4.5 * columns, 3.4 * rows + 0.4)
    figure.clear()
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    drawn: dict[str, Any] = {}
    for index, (title, series) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1, title=title, xlabel="batch")
        axes.title.set_fontsize(8)
        axes.set_ylabel("images/s")
        for name, points in series.items():
            style: dict[str, Any] = {"color": "black", "linestyle": ":"}
            if name != "roof":
                style = {"color": _COLOURS[names.index(name) % len(_COLOURS)], "marker": "o"}
            batches = sorted(points)
            rates = [points[batch] for batch in batches]
            (drawn[name],) = axes.plot(batches, rates, markersize=4, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:,.0f}")
        axes.grid(visible=True, alpha=0.25)
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=3, fontsize=8)
    return _save(figure, path)


def memory_chart(manifest: Mapping[str, Any], path: Path) -> Path:
    """The memory plan: a box per buffer, steps by bytes. Raises VitcError, StorageError."""
    figure, axes = _figure(10.0, 5.0)
    workspace = manifest["workspace"]
    mib = 2.0**20
    for index, buffer in enumerate(workspace["buffers"]):
        span = buffer["last"] - buffer["first"] + 1
        axes.broken_barh(
            [(buffer["first"] - 0.5, span)],
            (buffer["offset"] / mib, buffer["bytes"] / mib),
            facecolors=_COLOURS[index % len(_COLOURS)],
            edgecolor="white",
            linewidth=0.5,
        )
    axes.axhline(workspace["bytes"] / mib, color="black", linewidth=1, label="planned")
    bound = workspace["lower_bound"] / mib
    axes.axhline(bound, color="black", linewidth=1, linestyle=":", label="lower bound")
    axes.set_xlabel("step")
    axes.set_ylabel(f"workspace, MiB at batch {manifest['batch']['max']}")
    axes.set_title(str(manifest["name"]), fontsize=10)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncol=2)
    return _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise VitcError("charts need matplotlib", hint="pip install 'vitc[plot]'") from error
    # A Figure of one's own needs neither a display nor pyplot's global state.
    figure = figures.Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror}") from error
    return path
