"""Is the check a check? Zeroes each weight in turn and sees verification fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitc.verify.check import verify
from vitc.verify.handle import Compiled
from vitc.verify.reference import reference, relative_error

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class WeightEffect:
    """What zeroing one tensor of the state dict does.

    reference: relative L2 change of the float64 result. caught: whether verification against the
    true weights failed. follows: whether the library agrees with the model with that tensor zeroed.
    """

    name: str
    reference: float
    caught: bool
    follows: bool

    @property
    def inert(self) -> bool:
        """The model itself does not depend on it, as on the bias of keys under a softmax."""
        return self.reference < 1e-12


def weights_matter(
    module: Compiled,
    model: nn.Module,
    images: Tensor,
    *,
    features: bool = False,
    progress: Progress | None = None,
) -> tuple[WeightEffect, ...]:
    """Zeroes every float tensor of the state dict in the library, one at a time, and verifies.

    The library has its own weights again afterwards, also after an error.
    """
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    expected = reference(model, images, features=features)
    names = [name for name, value in state.items() if value.is_floating_point()]
    effects: list[WeightEffect] = []
    try:
        for index, name in enumerate(names):
            if progress is not None:
                progress("weights", index, len(names))
            module.load_weights({**state, name: torch.zeros_like(state[name])})
            seen = verify(module, model, images, features=features, localise=False)
            with _Zeroed(model, name):
                changed = relative_error(reference(model, images, features=features), expected)
                same = verify(module, model, images, features=features, localise=False)
            effects.append(WeightEffect(name, changed, not seen.passed, same.passed))
    finally:
        module.load_weights(state)
    return tuple(effects)


class _Zeroed:
    """The model with one tensor set to zero for the length of a `with` block."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self._tensor = model.state_dict()[name]
        self._saved = self._tensor.clone()

    def __enter__(self) -> None:
        self._tensor.zero_()

    def __exit__(self, *error: object) -> None:
        self._tensor.copy_(self._saved)
