"""Ray masks: all admissible actions, deformed onto the safe ones along rays from a safe centre."""

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.safeguards.centres import CENTRES, interval
from holdfast.safeguards.search import inside, reach
from holdfast.safeguards.source import HalfSpaces, SafeActionSet
from holdfast.solvers import stretch

MaskShape = Literal["linear", "hyperbolic"]
MaskCentre = Literal["zonotope", "chord", "chebyshev", "backup"]

#: Up to so many half-spaces are all looked at; of more, so many.
_ALL, _KEPT = 40, 24


class RayMask(eqx.Module):
    """Every action u is moved along its ray from a safe centre c: with the direction r = (u - c)/|u - c|, the distances
    l_a = |u - c|, l_s to the safe boundary and l_A to that of the input box along r, all in half-widths,

        c + r l_s w,    w = l_a / l_A (linear),    w = tanh(l_a / l_s) / tanh(l_A / l_s) (hyperbolic).

    Safe actions are moved too, by definition, so that no two actions become one and no gradient is lost: the derivative
    keeps rank m where a projection loses the normals of active rows. Source: arXiv 2506.01665.

    A mask is put in front of a safeguard, which checks what comes out like any proposal. Where the source has exact
    half-spaces the distances are ratios in closed form. Elsewhere l_s is searched along the ray from the known safe
    action, as the first boundary that the search finds; what lies between need not be safe, and the check decides.
    Where no safe action is known the proposal is left as it is.

    Attributes:
        shape: "linear" or "hyperbolic", which leaves the middle nearly as it is and bends near the boundary.
        centre: a name of `CENTRES`; for one input all but "backup" are the middle of the interval.
        evaluations: most checks along a ray, where it is searched.
        resolution: where that search stops, as a fraction of l_A.
    """

    shape: MaskShape = eqx.field(static=True, default="linear")
    centre: MaskCentre = eqx.field(static=True, default="zonotope")
    evaluations: int = eqx.field(static=True, default=12)
    resolution: float = eqx.field(static=True, default=1e-3)

    preserves_safe: ClassVar[bool] = False
    idempotent: ClassVar[bool] = False
    non_expansive: ClassVar[bool] = False
    bijective: ClassVar[bool] = True

    def __check_init__(self):
        for name, value, known in (
            ("shape", self.shape, ("linear", "hyperbolic")),
            ("centre", self.centre, tuple(CENTRES)),
        ):
            if value not in known:
                raise ValueError(f"RayMask: {name} = {value!r}; give one of {', '.join(map(repr, known))}")

    def __call__(self, actions: SafeActionSet, u: Float[Array, " m"]) -> Float[Array, " m"]:
        """The deformed action, shape [m]; u lies in the box, and stays bit for bit where nothing moves it."""
        box = actions.source.input_box
        middle, half = jnp.asarray(box.centre, u.dtype), jnp.asarray(box.half_widths, u.dtype)
        scaled, eye = (u - middle) / half, jnp.eye(u.shape[0], dtype=u.dtype)
        walls = HalfSpaces(jnp.concatenate([eye, -eye]), -jnp.ones(2 * u.shape[0], u.dtype))
        known_safe = (actions.known_safe - middle) / half
        polytope, usable = None, jnp.asarray(True)
        if actions.halfspaces is not None:
            normals = actions.halfspaces.normals
            rows = _deepest(normals * half[None], actions.halfspaces.offsets - jnp.sum(normals * middle[None], axis=1))
            polytope = HalfSpaces(
                jnp.concatenate([rows.normals, walls.normals]), jnp.concatenate([rows.offsets, walls.offsets])
            )
            usable = jnp.all(jnp.isfinite(polytope.normals)) & jnp.all(jnp.isfinite(polytope.offsets))
        find = CENTRES[self.centre]
        if find is None:
            centre = known_safe
        elif polytope is None:
            raise ValueError(no_halfspaces(actions.source, self))
        else:
            centre = (interval if u.shape[0] == 1 else find)(polytope, scaled)
        away = scaled - centre
        # At the centre itself no direction is given: any will do, as nothing moves along it.
        length = jnp.max(jnp.abs(away))
        moving = length > 0
        direction = jnp.where(moving, away / jnp.where(moving, length, 1.0), 1.0)
        _, to_wall = stretch(walls.normals, walls.offsets, centre, direction)
        if polytope is None:
            base, target = actions.known_safe, inside(box, middle + half * (centre + to_wall * direction))
            share = reach(actions.x, base, target, actions.source, self.evaluations, self.resolution)
            to_boundary = share * to_wall
        else:
            first, to_boundary = stretch(polytope.normals, polytope.offsets, centre, direction)
            # A centre on the boundary is one, up to rounding; one that is outside is none.
            usable = usable & (first <= 0.01) & (to_boundary >= -0.01)
        usable = usable & jnp.isfinite(to_boundary) & (to_wall > 0)
        factor = self._factor(length, jnp.where(usable, to_boundary, 1.0), jnp.where(usable, to_wall, 1.0))
        moved = inside(box, middle + half * (centre + factor * away))
        return jnp.where(usable & (factor != 1.0), moved, u)

    def _factor(self, length, to_boundary, to_wall) -> Float[Array, ""]:
        """By what u - c is multiplied: l_s w / l_a, finite for every l_a >= 0 and l_s >= 0."""
        room = to_boundary > 0
        if self.shape == "linear":
            return jnp.where(room, to_boundary, 0.0) / to_wall
        to_boundary = jnp.where(room, to_boundary, 1.0)
        q = length / to_boundary
        small = q < 1e-2
        # tanh(q)/q, with its series where the quotient would be 0/0.
        quotient = jnp.where(small, 1 - q**2 / 3, jnp.tanh(q) / jnp.where(small, 1.0, q))
        return jnp.where(room, quotient / jnp.tanh(to_wall / to_boundary), 0.0)


def _deepest(normals: Float[Array, "R m"], offsets: Float[Array, " R"]) -> HalfSpaces:
    """The half-spaces that cut deepest into the box [-1, 1]^m, `_KEPT` of more than `_ALL`. Few of hundreds cut at all; where a
    left out one would have counted, the check refuses what it forbids."""
    if len(offsets) <= _ALL:
        return HalfSpaces(normals, offsets)
    frozen, level = jax.lax.stop_gradient((normals, offsets))
    length = jnp.sqrt(jnp.sum(frozen**2, axis=1))
    depth = jnp.where(
        length > 0, (level + jnp.sum(jnp.abs(frozen), axis=1)) / jnp.where(length > 0, length, 1.0), -jnp.inf
    )
    # What cannot be read comes first, so that the mask sees that it is there.
    _, kept = jax.lax.top_k(jnp.where(jnp.isfinite(level) & jnp.isfinite(length), depth, jnp.inf), _KEPT)
    return HalfSpaces(normals[kept], offsets[kept])


def no_halfspaces(source, mask: RayMask) -> str:
    """What is wrong with a mask whose centre the source cannot give."""
    return (
        f"RayMask: centre = {mask.centre!r} needs the half-spaces of an exact source, which a {type(source).__name__} has "
        "not; give centre='backup'"
    )


MASKS: dict[str, MaskShape] = {"ray_mask": "linear", "hyperbolic_ray_mask": "hyperbolic"}
"""Shape of every mask by the name that the command line gives it."""
