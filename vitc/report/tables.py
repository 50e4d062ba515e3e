"""Results as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vitc.report.units import show_bytes, show_flops, show_seconds, show_share

if TYPE_CHECKING:
    from vitc.bench import BenchReport
    from vitc.bench.ceilings import Ceilings
    from vitc.compiler import CompileReport
    from vitc.doctor import Report
    from vitc.runtime.context import StepProfile
    from vitc.tune import TuneReport
    from vitc.verify import VerifyReport

Manifest = Mapping[str, Any]
NOISY = 1.5  # ratio of the 90th to the 10th percentile from which a table warns


def _table(title: str, *columns: str, numeric: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        right = column in numeric
        justify = "right" if right else "left"
        table.add_column(column, justify=justify, no_wrap=right, overflow="fold")
    return table


def summary_table(manifest: Manifest) -> Table:
    """What a library is, on a few lines."""
    batch = manifest["batch"]
    rows = [
        ("target", _target(manifest)),
        ("dtype", str(manifest["dtype"])),
        ("batch", f"1 to {batch['max']}, tuned for {_join(batch['tuned'])}"),
        ("inputs", _ports(manifest["inputs"])),
        ("outputs", _ports(manifest["outputs"])),
        ("kernels", f"{len(manifest['steps'])} calls of {_distinct(manifest)} functions"),
        ("work", f"{show_flops(sum(_flops(step) for step in manifest['steps']))} per image"),
        ("weights", f"{show_bytes(manifest['weights_bytes'])} {manifest['weights_mode']}"),
        ("workspace", _workspace(manifest)),
        ("graph", str(manifest.get("graph_hash", ""))[:16]),
        ("compiler", _join(list(manifest.get("toolchain", {}).values()))),
    ]
    table = Table(show_header=False, title=str(manifest["name"]), title_justify="left")
    for name, value in rows:
        if value:
            table.add_row(name, escape(value))
    return table


def compile_tables(report: CompileReport) -> list[Table]:
    """Times of the stages, and of the passes."""
    table = _table("stages", "stage", "time", "note", numeric=("time",))
    for name, seconds in report.stages:
        table.add_row(name, show_seconds(seconds), _stage_note(name, report))
    table.add_row("total", show_seconds(report.seconds), "", style="bold")
    return [table]


def _stage_note(stage: str, report: CompileReport) -> str:
    if stage == "passes" and report.passes:
        before, after = report.passes[0].nodes_before, report.passes[-1].nodes_after
        return f"{len(report.passes)} passes, {before} to {after} nodes"
    if stage == "build" and report.build is not None:
        hits, total = report.build.hits, len(report.build.objects)
        return f"{total} objects, {hits} of them cached"
    return ""


def verify_tables(report: VerifyReport) -> list[Table]:
    """The checks, and the kernels when a mismatch was looked for."""
    title = f"{report.name} on {report.target}, {report.dtype}, against timm in float64"
    table = _table(title, "check", "measured", "required", "")
    for check in report.checks:
        mark = Text("ok", style="green") if check.passed else Text("FAILED", style="bold red")
        table.add_row(check.name, check.measured, check.required, mark)
    table.caption = (
        f"eager torch in {report.dtype}: {report.eager_error:.2e}; {report.references} images with "
        f"a reference; {show_seconds(report.seconds)}"
    )
    tables = [table]
    if report.finding is not None and report.finding.steps:
        tables.append(_steps_table(report))
    return tables


def _steps_table(report: VerifyReport) -> Table:
    names = ("step", "name", "module", "kernel", "own error", "bound", "error so far")
    table = _table("kernels, each on the inputs it had", *names, numeric=("step", *names[4:]))
    assert report.finding is not None
    for step in report.finding.steps:
        drift = "-" if step.drift is None else f"{step.drift:.1e}"
        own = step.problem or f"{step.own:.1e}"
        style = None if step.passed else "bold red"
        row = (str(step.index), step.name, step.loc, step.kernel, own, f"{step.bound:.1e}", drift)
        table.add_row(*map(escape, row), style=style)
    return table


def bench_table(report: BenchReport) -> Table:
    """One row per batch: latency and throughput of each contender, then the ratios to the peers."""
    from vitc.bench import OURS

    contenders = report.contenders
    peers = [name for name in contenders if name != OURS]
    columns = ["batch"]
    for name in contenders:
        columns += [f"{name}\nms", f"{name}\nimages/s"]
    columns += [f"faster than\n{name}" for name in peers]
    columns += ["roof\nimages/s", "of roof"]
    title = f"{report.model}, {report.target}, {report.dtype}, {report.threads} threads"
    table = _table(title, *columns, numeric=columns)
    for batch in report.batches:
        row = [str(batch)]
        for name in contenders:
            timing = report.timing(name, batch)
            row += [f"{timing.milliseconds:.2f}", f"{timing.images_per_second:.1f}"]
        ratios = [report.speedup(peer, batch) for peer in peers]
        row += [f"[{'green' if ratio >= 1 else 'red'}]{ratio:.2f}x[/]" for ratio in ratios]
        roof = report.roofs[batch]
        row += [f"{roof:.1f}", show_share(report.timing(OURS, batch).images_per_second, roof)]
        table.add_row(*row)
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    table.caption = (
        f"medians of interleaved runs; verified: error {report.error:.1e}, bound "
        f"{report.bound:.1e}; the roof: each kernel at {_ceilings(report.ceilings)}\n"
        f"{report.machine.device}, {_join(report.machine.features)}, "
        f"{report.machine.cores} cores; {versions}; {report.machine.date}{_noise(report)}"
    )
    return table


def _noise(report: BenchReport) -> str:
    """A warning when the runs of some contender differed much."""
    worst = report.noisiest
    if worst.spread < NOISY:
        return ""
    return (
        f"\n[bold yellow]the machine was disturbed[/] (load {report.machine.load:.1f}): "
        f"{worst.contender} at batch {worst.batch} took {worst.low:.1f} to {worst.high:.1f} ms"
    )


def kernel_table(
    manifest: Manifest,
    profile: Sequence[StepProfile] | None = None,
    ceilings: Ceilings | None = None,
) -> Table:
    """The kernels: work and traffic per image and their shares; with a profile, times and what they
    achieve; with ceilings, as shares of them.
    """
    steps: Sequence[Mapping[str, Any]] = manifest["steps"]
    all_flops, all_bytes = sum(map(_flops, steps)), sum(map(_bytes, steps))
    numeric = ["#", "FLOP", "of all", "bytes"]
    columns = ["#", "name", "kernel", "config", "FLOP", "of all", "bytes"]
    if profile is not None:
        # Times take the place of the configuration, which is long.
        numeric += ["time", "of time", "GFLOP/s", "GB/s", "of peak", "of copy"]
        columns = ["#", "name", "kernel", "FLOP", "bytes", *numeric[4 : 10 if ceilings else 8]]
    table = _table("kernels, per image", *columns, numeric=numeric)
    total = sum(entry.microseconds for entry in profile or ())
    for index, step in enumerate(steps):
        flops, moved = show_flops(_flops(step)), show_bytes(_bytes(step))
        row = [str(index), step["name"], step["kernel"]]
        if profile is None:
            share = show_share(_flops(step), all_flops)
            row += [str(step.get("config", "")), flops, share, moved]
        else:
            row += [flops, moved, *_measured(profile[index], total, ceilings)]
        table.add_row(*map(escape, row))
    table.caption = f"{show_flops(all_flops)}, {show_bytes(all_bytes)}"
    if profile is not None:
        table.caption += f"; {total / 1e3:.3f} ms in kernels"
    if profile is not None and ceilings is not None:
        floor = sum(ceilings.floor(entry.flops, entry.bytes) for entry in profile)
        table.caption += (
            f", {show_share(1e6 * floor, total)} of what the ceilings allow: {_ceilings(ceilings)}"
        )
    return table


def _ceilings(ceilings: Ceilings) -> str:
    return (
        f"{ceilings.flops / 1e12:.3g} TFLOP/s (torch's product in {ceilings.dtype}) or "
        f"{ceilings.bytes / 1e9:.4g} GB/s (torch's copy)"
    )


def _measured(entry: StepProfile, total: float, ceilings: Ceilings | None) -> list[str]:
    seconds = max(entry.microseconds, 1e-3) * 1e-6
    flops, moved = entry.flops / seconds, entry.bytes / seconds
    cells = [
        f"{entry.microseconds:.1f} us",
        show_share(entry.microseconds, total),
        f"{flops / 1e9:.1f}",
        f"{moved / 1e9:.1f}",
    ]
    if ceilings is not None:
        cells += [show_share(flops, ceilings.flops), show_share(moved, ceilings.bytes)]
    return cells


def tune_table(model: str, report: TuneReport) -> Table:
    """What was measured: the configuration that the cost model prefers, and the fastest."""
    numeric = ("size", "batch", "us", "best us", "gain")
    columns = ("kernel", "problem", "size", "batch", "model's choice", "us", "fastest", "best us")
    table = _table(f"{model} on {report.target}", *columns, "gain", numeric=numeric)
    for item in report.tuned:
        choice, default, best = item.work.choice, item.default, item.best
        times = (f"{item.us[default]:.1f}", best, f"{item.us[best]:.1f}", f"{item.gain:.2f}x")
        row = (choice.kernel, choice.problem, str(choice.size), str(item.work.batch), default)
        table.add_row(*map(escape, (*row, *times)))
    turned_down = sum(len(item.wrong) for item in report.tuned)
    table.caption = (
        f"{report.device}, CUDA {report.toolkit}; {report.known} more were measured before; kept "
        f"in {report.path}"
    )
    for item in report.tuned if turned_down else ():
        for name, reason in item.wrong.items():
            table.caption += f"\n[bold red]{item.work.choice.problem}: {name} {escape(reason)}[/]"
    return table


def maps_table(manifest: Manifest) -> Table:
    """Where each index map went: into which kernel's loads or stores."""
    table = _table("index maps", "where it went")
    for line in manifest.get("maps", ()):
        table.add_row(escape(str(line)))
    if not table.row_count:
        table.add_row("none: every kernel reads and writes dense tensors")
    return table


def weights_table(manifest: Manifest) -> Table:
    """The constants that the kernels read."""
    table = _table("weights", "name", "dtype", "shape", "bytes", numeric=("bytes",))
    for weight in manifest["weights"]:
        shape = "x".join(map(str, weight["shape"])) or "scalar"
        table.add_row(escape(weight["name"]), weight["dtype"], shape, show_bytes(weight["bytes"]))
    table.add_row("total", "", "", show_bytes(manifest["weights_bytes"]), style="bold")
    return table


def doctor_tables(report: Report) -> list[Table]:
    """What the machine has, and which targets that makes possible."""
    colours = {"ok": "green", "missing": "red", "warning": "yellow"}
    found = _table("this machine", "group", "what", "state", "found", "to do")
    for row in report.rows:
        state = Text(row.state, style=colours[row.state])
        found.add_row(row.group, row.name, state, escape(row.value), escape(row.fix or ""))
    targets = _table("targets", "target", "compiles", "runs", "missing")
    for target in report.targets:
        missing = escape("; ".join(target.missing))
        targets.add_row(target.name, _yes(target.compiles), _yes(target.runs), missing)
    return [found, targets]


def _yes(value: bool) -> Text:
    return Text("yes", style="green") if value else Text("no", style="red")


def _flops(step: Mapping[str, Any]) -> int:
    return int(step.get("flops", 0))


def _bytes(step: Mapping[str, Any]) -> int:
    return int(step.get("bytes", 0))


def _join(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _ports(ports: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(
        f"{port['name']} {port['dtype']}[{', '.join(map(str, port['shape']))}]" for port in ports
    )


def _target(manifest: Manifest) -> str:
    levels = manifest.get("isas") or manifest.get("archs") or ()
    return f"{manifest['target']} ({_join(levels)})" if levels else str(manifest["target"])


def _distinct(manifest: Manifest) -> int:
    return len({step["symbol"] for step in manifest["steps"]})


def _workspace(manifest: Manifest) -> str:
    workspace = manifest["workspace"]
    bound = int(workspace["lower_bound"])
    over = workspace["bytes"] / bound if bound else 1.0
    return f"{show_bytes(workspace['bytes'])}, {over:.2f} times the lower bound {show_bytes(bound)}"
