"""Where a library runs: the CPU, or one GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitc.errors import DeviceError


@dataclass(frozen=True)
class Place:
    """The device whose memory a library works on.

    Attributes:
        kind: of device, as in `torch.device`.
        index: which of them; 0 on the CPU.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    def __str__(self) -> str:
        return "the CPU" if self.kind == "cpu" else self.torch_name

    @property
    def torch_name(self) -> str:
        """As torch writes it: `cpu`, `cuda:1`."""
        return "cpu" if self.kind == "cpu" else f"{self.kind}:{self.index}"


def place_of(target: str, device: str | int | None) -> Place:
    """Where to run a library of this target.

    Args:
        target: of the manifest: `cpu`, `cuda:sm_80+sm_90`, or `cuda:sm_80:emulated`, which runs GPU
            kernels on the CPU.
        device: an index, or `cpu`, `cuda`, `cuda:1`; None means the first.

    Raises:
        DeviceError: the library is not for that device, or this vitc cannot run its target.
    """
    kind = "cpu" if target.endswith(":emulated") else target.partition(":")[0]
    if kind != "cpu" and kind != "cuda":
        raise DeviceError(f"this vitc cannot run libraries for {target}")
    if device is None:
        return Place(kind)
    if isinstance(device, int):
        return Place(kind, device)
    name, _, index = device.partition(":")
    if name != kind or not (index or "0").isdecimal():
        raise DeviceError(
            f"cannot run on device '{device}': the library was compiled for {target}",
            hint=f"pass device='{kind}' or compile with target='{name}'",
        )
    return Place(kind, int(index or "0"))
