"""What all tests share: goldens, and skips that say why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("vitc", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("vitc")

TESTS = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the goldens instead of comparing to them",
    )


class Golden:
    """Compares text with a file beside the test: <folder>/golden/<test
    file>/<test>[-<part>]<suffix>.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._update = bool(request.config.getoption("--update-golden"))
        path = Path(request.node.path)
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in request.node.name).strip(
            "-"
        )
        self._stem = (
            path.parent / "golden" / path.stem.removeprefix("test_") / name.removeprefix("test_")
        )

    def check(self, text: str, *, part: str = "", suffix: str = ".txt") -> None:
        """Fails when `text` differs from the golden; with --update-golden, writes it."""
        path = self._stem.with_name(self._stem.name + (f"-{part}" if part else "") + suffix)
        if self._update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        shown = path.relative_to(TESTS.parent) if path.is_relative_to(TESTS.parent) else path
        if not path.exists():
            pytest.fail(
                f"no golden {shown}: look at the text, then run pytest --update-golden",
                pytrace=False,
            )
        golden = path.read_text(encoding="utf-8")
        assert text == golden, f"differs from {shown}; if that is meant: pytest --update-golden"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The goldens of this test."""
    return Golden(request)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A skip without a reason is a failure: nobody could tell what was not tested."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and not _reason(report):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} is skipped without a reason: say what is missing"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = text.removeprefix("Skipped").removeprefix(":").strip()
    return "" if reason == "unconditional skip" else reason


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests each folder skipped, by reason."""
    counts: Counter[tuple[str, str]] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        parts = Path(report.nodeid.split("::")[0]).parts
        counts["/".join(parts[:2]), _reason(report)] += 1
    if counts:
        terminalreporter.section("skipped")
        for (folder, reason), count in sorted(counts.items()):
            terminalreporter.line(f"{folder}: {count} × {reason}")
