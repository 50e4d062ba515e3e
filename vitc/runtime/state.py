"""From a state dict to the final constants of a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitc.errors import WeightsError
from vitc.runtime.payload import WeightArray, WeightSpec
from vitc.runtime.tensors import to_numpy

_MOST_SHOWN = 20


def check_state(parameters: Sequence[Mapping[str, Any]], state: Mapping[str, Any]) -> None:
    """Compares a state dict with the manifest's "parameters".

    Raises:
        WeightsError: lists every missing and unexpected name and every wrong shape.
    """
    wanted = {entry["name"]: tuple(entry["shape"]) for entry in parameters}
    problems = [f"missing: {name}" for name in wanted if name not in state]
    problems += [f"unexpected: {name}" for name in state if name not in wanted]
    for name, shape in wanted.items():
        if name in state and (given := tuple(getattr(state[name], "shape", ()))) != shape:
            problems.append(f"{name} has shape {list(given)}, the model has {list(shape)}")
    if problems:
        shown = problems[:_MOST_SHOWN]
        if len(problems) > len(shown):
            shown.append(f"and {len(problems) - len(shown)} more")
        raise WeightsError(
            "the state dict does not fit the compiled model:\n"
            + "\n".join(f"  - {line}" for line in shown),
            hint="load the state dict of the model that was compiled",
        )


def final_constants(
    manifest: Mapping[str, Any], state: Mapping[str, Any]
) -> dict[str, WeightArray]:
    """Evaluates the manifest's "recipes" on a state dict that check_state accepted.

    Returns:
        Every constant of the manifest's "weights", in that order.

    Raises:
        WeightsError: a tensor is of no known kind, or the recipes do not give what kernels need.
    """
    # Imported here: only new weights need the IR, and vitc.load must do without the rest of vitc.
    from vitc.ir import recipes

    arrays = {name: to_numpy(name, value) for name, value in state.items()}
    try:
        made = recipes.evaluate(manifest["recipes"], arrays)
    except ValueError as error:
        raise WeightsError(f"cannot calculate the library's constants: {error}") from error
    constants: dict[str, WeightArray] = {}
    for entry in manifest["weights"]:
        name, spec = entry["name"], WeightSpec(entry["dtype"], tuple(entry["shape"]))
        if name not in made:
            raise WeightsError(f"the library's recipes do not make its constant '{name}'")
        if made[name].spec != spec:
            raise WeightsError(f"constant '{name}' comes out as {made[name].spec}, not {spec}")
        constants[name] = made[name]
    return constants
