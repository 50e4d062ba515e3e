"""What verification found, as data; `vitc.report` shows it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vitc.errors import VitcError


class VerificationError(VitcError):
    """A compiled model does not agree with its reference; `report` says where."""

    def __init__(self, report: VerifyReport) -> None:
        lines = [f"'{report.name}' does not agree with timm in float64:"]
        lines += [f"  - {check}" for check in report.failures]
        if report.finding is not None:
            lines.append(f"  {report.finding.message}")
        super().__init__("\n".join(lines))
        self.report = report


@dataclass(frozen=True)
class Check:
    """One requirement.

    measured, required: in words or numbers, as shown to people.
    """

    name: str
    passed: bool
    measured: str
    required: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured} (required: {self.required})"


Stage = Literal["frontend", "pass", "kernel", "memory plan", "accumulation", "unknown"]


@dataclass(frozen=True)
class StepError:
    """How one kernel of a library did on the inputs that it really had.

    own: relative L2 error of its results against its IR meaning in float64, on the values that the
        library's earlier kernels left; inf when it cannot be told, `problem` then says why.
    drift: error of its results against float64 all the way from the images, or None.
    bound: what `own` may be.
    loc: module path of the op, and its source line.
    """

    index: int
    name: str
    kernel: str
    ir: str
    loc: str
    own: float
    drift: float | None
    bound: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem and self.own <= self.bound


@dataclass(frozen=True)
class Finding:
    """Where a mismatch comes from.

    step: the first kernel at fault, when it is a kernel. steps: all that were compared.
    """

    stage: Stage
    message: str
    step: StepError | None = None
    steps: tuple[StepError, ...] = ()


@dataclass(frozen=True)
class VerifyReport:
    """The outcome of one verification.

    error: the largest relative L2 error against float64 over the batches that ran.
    bound: what it may be. eager_error: that of eager torch in the library's dtype, same images.
    batches: the batch sizes that ran. references: images that had a float64 reference.
    graph_hash: of the library; a benchmark of it quotes this report.
    """

    name: str
    target: str
    dtype: str
    graph_hash: str
    batches: tuple[int, ...]
    references: int
    error: float
    bound: float
    eager_error: float
    checks: tuple[Check, ...]
    seconds: float
    finding: Finding | None = field(default=None)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> VerifyReport:
        """The report itself. Raises VerificationError unless everything passed."""
        if not self.passed:
            raise VerificationError(self)
        return self

    def to_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}
