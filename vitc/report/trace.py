"""A profile as a trace for chrome://tracing and ui.perfetto.dev (Chrome's Trace Event Format)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.errors import StorageError

if TYPE_CHECKING:
    from vitc.runtime.context import StepProfile


def write_trace(
    manifest: Mapping[str, Any], profile: Sequence[StepProfile], batch: int, path: Path
) -> Path:
    """Each kernel with its median time, one after the other. Raises StorageError."""
    steps: Sequence[Mapping[str, Any]] = manifest["steps"]
    title = f"{manifest['name']}, {manifest['target']}, {manifest['dtype']}, batch {batch}"
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 0, "tid": 0, "name": "process_name", "args": {"name": title}}
    ]
    start = 0.0
    for index, (step, entry) in enumerate(zip(steps, profile, strict=True)):
        seconds = max(entry.microseconds, 1e-3) * 1e-6
        details = {
            "step": index,
            "module": step.get("module", ""),
            "config": step.get("config", ""),
            "ir": step["ir"],
            "GFLOP/s": round(entry.flops / seconds / 1e9, 1),
            "GB/s": round(entry.bytes / seconds / 1e9, 1),
        }
        events.append(
            {
                "ph": "X",
                "pid": 0,
                "tid": 0,
                "ts": start,
                "dur": entry.microseconds,
                "name": step["name"],
                "cat": step["kernel"],
                "args": details,
            }
        )
        start += entry.microseconds
    try:
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}) + "\n")
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror}") from error
    return path
