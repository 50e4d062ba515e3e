"""The peers of a benchmark on a GPU: what they compute with must be there before they start."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from vitc.bench.contenders import peer

COUNT = 49 * 49  # of the indices, as a Swin has them


class Gathers(nn.Module):
    """Looks its weights up through a buffer of indices, as a Swin does; keeps what it read."""

    seen: ClassVar[list[Tensor]] = []  # not an attribute: peers run a copy

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(COUNT))
        self.register_buffer("index", torch.arange(COUNT))

    def forward(self, images: Tensor) -> Tensor:
        if not torch.cuda.is_current_stream_capturing():
            Gathers.seen.append(self.index.clone())
        return images + self.table.sum()


@pytest.mark.usefixtures("nvidia")
def test_a_graph_waits_for_the_copy_of_its_model() -> None:
    """The copy is made on the current stream; while that is busy, its memory holds anything."""
    model, device = Gathers().cuda(), torch.device("cuda")
    images = torch.zeros(1, dtype=torch.float16, device=device)
    for clocks in (1, 1 << 28):  # kernels are loaded by the first run; some 150 ms
        Gathers.seen.clear()
        anything = [torch.full((COUNT,), -7, device=device) for _ in range(64)]
        torch.cuda.synchronize()
        del anything
        torch.cuda._sleep(clocks)
        run = peer("graph", model, torch.float16, device)
        run(images)
        torch.cuda.synchronize()
        assert len(Gathers.seen) == 3
        for index in Gathers.seen:
            assert torch.equal(index, model.index)
