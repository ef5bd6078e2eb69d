"""Robust control invariant sets as JSON files: what tasks ship, and what `holdfast synthesise` writes."""

import json
from pathlib import Path

from holdfast.backup import InvariantSet
from holdfast.certify import synthesise_invariant_set
from holdfast.runs import atomic_write
from holdfast.sets import Box, Zonotope
from holdfast.systems import System

#: Task -> options of the synthesis that made its shipped set. Others are made with the defaults.
RECIPES: dict[str, dict] = {
    "balance-cartpole": {
        # The reward's weights, the cart's position a little less so: that makes the set larger, and the best feedback still
        # fits in.
        "surfaces": ((0.04, 1.0, 0.1, 0.1),),
        "thicknesses": (0.05, 0.055, 0.06),
        "scales": (0.16,),
    },
    "balance-quadrotor": {"costs": (0.003, 0.01), "emphases": (1.0,)},
}


def synthesise_for(name: str, system: System, feasible: Box) -> InvariantSet:
    """The set of a task by its name: with the recipe of the shipped file, where there is one.

    Raises:
        NotSynthesised: as `synthesise_invariant_set`.
    """
    return synthesise_invariant_set(system, feasible, **RECIPES.get(name, {}))


def invariant_set_to_json(invariant: InvariantSet, made_by: str) -> dict:
    """The numbers of a set and its controller: "normals" [p, n] and "offsets" [p] of S = {N x <= d}; "generators" [n, g] of
    the same set about "centre" where it is a symmetric polygon, else null; "gain" [m, n], "centre" [n] and
    "centre_input" [m] of the clipped feedback; "made_by", in words."""
    region, control = invariant.polytope, invariant.feedback
    try:
        generators = Zonotope.from_polygon(region, 1e-5).generators.tolist()
    except ValueError:
        generators = None
    return {
        "normals": region.normals.tolist(),
        "offsets": region.offsets.tolist(),
        "generators": generators,
        "centre": control.centre.tolist(),
        "gain": control.gain.tolist(),
        "centre_input": control.centre_input.tolist(),
        "made_by": made_by,
    }


def write_invariant_set(path: Path, invariant: InvariantSet, made_by: str) -> None:
    """Writes the JSON file of a set, one facet a line."""
    parts = []
    for key, value in invariant_set_to_json(invariant, made_by).items():
        nested = isinstance(value, list) and value and isinstance(value[0], list)
        text = "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n ]" if nested else json.dumps(value)
        parts.append(f' "{key}": {text}')
    atomic_write(path, ("{\n" + ",\n".join(parts) + "\n}\n").encode())
