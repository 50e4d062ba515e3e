"""The results of benchmarks/models.py: rows merged by key, their table and charts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitc.report import rates_chart

Row = dict[str, Any]

OURS = "vitc"
_NAMES = {
    "eager": "eager",
    "graph": "eager in a CUDA graph",
    "compile": "torch.compile",
    "autotune": "max-autotune",
    "autotune-cudnn": "max-autotune, cuDNN attention",
}
# Charts: file, and how the names of its models begin.
_FAMILIES = {"vit": "vit_", "swin": "swin", "levit": "levit"}
_CHARTED = ("cuda:sm_90a", "cpu")  # targets


class Results:
    """rows: one contender at one batch each. profiles: the kernels of a library at a batch."""

    def __init__(self, path: Path) -> None:
        """Takes what `path` holds, if it is there."""
        data = json.loads(path.read_text()) if path.exists() else {"rows": [], "profiles": []}
        self.rows: list[Row] = data["rows"]
        self.profiles: list[Row] = data["profiles"]

    def add_rows(self, new: Iterable[Row]) -> None:
        """A row takes the place of an older one with its key."""
        self.rows = _merged(self.rows, new, ("library", "batch", "contender"))

    def add_profile(self, new: Row) -> None:
        self.profiles = _merged(self.profiles, [new], ("library", "batch"))

    def row(self, library: str, batch: int, contender: str) -> Row | None:
        """The measurement, unless it failed."""
        for row in self.rows:
            if (row["library"], row["batch"], row["contender"]) == (library, batch, contender):
                return None if "failed" in row else row
        return None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [
            f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]"
            for name, rows in (("rows", self.rows), ("profiles", self.profiles))
        ]
        path.write_text("{" + ",\n".join(parts) + "}\n")

    def libraries(self) -> list[str]:
        return list(dict.fromkeys(row["library"] for row in self.rows))

    def batches(self, library: str) -> list[int]:
        return sorted({row["batch"] for row in self.rows if row["library"] == library})


def _merged(old: list[Row], new: Iterable[Row], key: tuple[str, ...]) -> list[Row]:
    found = {tuple(row[name] for name in key): row for row in old}
    found |= {tuple(row[name] for name in key): row for row in new}
    return list(found.values())


def markdown(results: Results) -> str:
    """One line a library and batch. A peer's ratio is to vitc in the same run."""
    present = {row["contender"] for row in results.rows}
    peers = [name for name in _NAMES if name in present]
    heads = ["library", "batch", "vitc ms", "images/s", "of roof", *(_NAMES[p] for p in peers)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for library in results.libraries():
        for batch in results.batches(library):
            ours = results.row(library, batch, OURS)
            if ours is None:
                continue
            roof = ours.get("roof")
            share = f"{100 * ours['images_per_second'] / roof:.0f} %" if roof else ""
            cells = [library, str(batch), f"{ours['ms']:.3f}", f"{ours['images_per_second']:.0f}"]
            cells += [share, *(_peer(results.row(library, batch, peer)) for peer in peers)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*_about(results), "", *lines, ""])


def _peer(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['ms']:.3f} ({row['ms'] / row['vitc_ms']:.2f}x)"


def _about(results: Results) -> list[str]:
    """Where and with what the rows were measured; several lines where they differ."""
    names = ("device", "driver", "compiler", "torch", "timm")
    found: dict[tuple[str, ...], set[str]] = {}
    for row in results.rows:
        if "failed" not in row:
            key = tuple(str(row[name]) for name in names)
            found.setdefault(key, set()).add(row["date"][:10])
    return [
        "Median ms of a batch, outputs verified. In brackets: how many times vitc's time the peer",
        "took in one run. Roof: each kernel at the speed of torch's large product or copy.",
        "",
        *(
            f"* {device}, driver {driver}, {compiler}, torch {torch}, timm {timm}; "
            f"{', '.join(sorted(dates))}"
            for (device, driver, compiler, torch, timm), dates in found.items()
        ),
    ]


def charts(results: Results, folder: Path) -> list[Path]:
    """Images per second against the batch: a file for each family, a panel for each library that
    was measured at three batches or more.
    """
    made: list[Path] = []
    for name, prefix in _FAMILIES.items():
        panels = {
            library: series
            for library in results.libraries()
            if library.startswith(prefix)
            and library.endswith(_CHARTED)
            and len((series := _series(results, library)).get(OURS, {})) >= 3
        }
        if panels:
            made.append(rates_chart(panels, folder / f"{name}.png"))
    return made


def _series(results: Results, library: str) -> Mapping[str, Mapping[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for batch in results.batches(library):
        for contender in (OURS, *_NAMES):
            row = results.row(library, batch, contender)
            if row is not None:
                name = _NAMES.get(contender, contender)
                found.setdefault(name, {})[batch] = row["images_per_second"]
            if row is not None and row.get("roof"):
                found.setdefault("roof", {})[batch] = row["roof"]
    return found
