"""The search for the furthest safe action of each segment: where corrections are found."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from holdfast.safeguards.map import Segments, is_root
from holdfast.safeguards.source import HalfSpaces, Source
from holdfast.sets import Box
from holdfast.solvers import stretch


class Found(eqx.Module):
    """The furthest action found on each of K segments.

    Attributes:
        action: shape [K, m]; meaningful only where `safe`.
        length: where on its segment, in [0, 1]; -1 where nothing safe was found, shape [K].
        commitment: what the source's check of that very action returned, stacked [K, ...].
        safe: whether it passed that check, shape [K].
    """

    action: Float[Array, "K m"]
    length: Float[Array, " K"]
    commitment: Any
    safe: Bool[Array, " K"]


def furthest_inside(
    halfspaces: HalfSpaces, box: Box, base: Float[Array, " m"], target: Float[Array, " m"]
) -> Float[Array, " m"]:
    """The furthest action of a segment that lies in half-spaces, shape [m], in closed form and differentiable by plain JAX.

    The base where there is none; whoever applies it checks it.
    """
    _, last = stretch(halfspaces.normals, halfspaces.offsets, base, target - base)
    action = base + jnp.where(last > 0, jnp.where(last < 1, last, 1.0), 0.0) * (target - base)
    # The end itself where it is reached, whatever rounding does.
    return inside(box, jnp.where(last >= 1, target, action))


def inside(box: Box, action: Float[Array, " m"]) -> Float[Array, " m"]:
    """An action of the box up to rounding, moved into it. `clip` has derivative one half at its own bounds; this has one."""
    lower, upper = box.bounds(action.dtype)
    return jnp.where(action < lower, lower, jnp.where(action > upper, upper, action))


class _Line(eqx.Module):
    """State of one line's search: the bracket [low, high], margins at its ends (NaN: not yet known), any safe action."""

    low: Float[Array, ""]
    high: Float[Array, ""]
    f_low: Float[Array, ""]
    f_high: Float[Array, ""]
    side: Int[Array, ""]
    action: Float[Array, " m"]
    commitment: Any
    safe: Bool[Array, ""]


def furthest_safe(
    source: Source,
    x: Float[Array, " n"],
    segments: Segments,
    like: Any,
    evaluations: int,
    resolution: float,
) -> Found:
    """Searches K segments at once, `evaluations` checks a line at most.

    First the target, unless it is known to be unsafe; then the base, unless a commitment vouches for it; then regula falsi
    with the Illinois rule on the margin, bisection where a margin is -inf, until the bracket is shorter than `resolution` of
    the segment. Every
    evaluation is the source's exact check of the very action that may be returned, so nothing has to be verified
    afterwards. A base that fails its check does not end the search: the known safe action often sits on the acceptance
    boundary, where rounding decides, with safe actions beside it.

    Args:
        source: checks.
        x: the state, shape [n].
        segments: K lines.
        like: any commitment of the source, for shapes and types.
        evaluations: most checks on a line.
        resolution: shortest bracket, as a fraction of the segment.
    """
    box = source.input_box

    def undecided(line: _Line):
        unknown = jnp.isnan(line.f_low) | jnp.isnan(line.f_high)
        return (line.low < 1) & (unknown | (line.high - line.low > resolution))

    def look(line: _Line, base, target) -> _Line:
        at_target = jnp.isnan(line.f_high)
        at_base = ~at_target & jnp.isnan(line.f_low)
        low, high, f_low, f_high = line.low, line.high, line.f_low, line.f_high
        usable = jnp.isfinite(f_high) & jnp.isfinite(f_low)
        secant = low + (high - low) * jnp.where(usable, f_low / jnp.where(usable, f_low - f_high, 1.0), 0.5)
        # Aim a little short of the root: the safe end of the bracket is the result, and it should come close.
        width = high - low
        trial = jnp.clip(secant - 0.5 * resolution * width, low + 0.02 * width, high - 0.02 * width)
        trial = jnp.where(at_target, 1.0, jnp.where(at_base, 0.0, trial))
        action = jnp.where(at_target, target, base + trial * (target - base))
        # Actions of a segment are combinations of points of the box: clipping only takes their rounding back.
        action = box.clip(jnp.where(at_base, base, action))
        check = source.check(x, action)
        safe = check.certified & jnp.all(jnp.isfinite(action))
        f = jnp.where(jnp.isnan(check.margin), -jnp.inf, check.margin)
        # Illinois: an end that stays twice has its value halved, or regula falsi creeps.
        f_high = jnp.where(safe, jnp.where(line.side == 1, 0.5 * f_high, f_high), f)
        f_low = jnp.where(safe, f, jnp.where(line.side == -1, 0.5 * f_low, f_low))
        inside = ~at_target & ~at_base
        new = _Line(
            jnp.where(safe, trial, low),
            jnp.where(safe | at_base, high, trial),
            # At the target nothing is learnt about the base, and the other way round.
            jnp.where(at_target & ~safe, line.f_low, jnp.where(at_base & ~safe, -jnp.inf, f_low)),
            jnp.where(at_base, line.f_high, f_high),
            jnp.where(inside, jnp.where(safe, 1, -1), 0).astype(jnp.int32),
            jnp.where(safe, action, line.action),
            jax.tree.map(lambda a, b: jnp.where(safe, a, b), check, line.commitment),
            line.safe | safe,
        )
        return jax.tree.map(lambda a, b: jnp.where(undecided(line), a, b), new, line)

    def start(base, target_margin, base_margin) -> _Line:
        nought, one = jnp.zeros((), base.dtype), jnp.ones((), base.dtype)
        zero = jnp.zeros((), jnp.int32)
        margins = base_margin.astype(base.dtype), target_margin.astype(base.dtype)
        return _Line(nought, one, *margins, zero, base, like, jnp.asarray(False))

    lines = jax.vmap(start)(segments.base, segments.target_margin, segments.base_margin)
    _, lines = jax.lax.while_loop(
        lambda carry: (carry[0] < evaluations) & jnp.any(jax.vmap(undecided)(carry[1])),
        lambda carry: (carry[0] + 1, jax.vmap(look)(carry[1], segments.base, segments.target)),
        (jnp.zeros((), jnp.int32), lines),
    )
    return Found(lines.action, jnp.where(lines.safe, lines.low, -1.0), lines.commitment, lines.safe)


@eqx.filter_custom_jvp
def reach(x, base, target, source: Source, evaluations: int, resolution: float) -> Float[Array, ""]:
    """How far a segment of actions is safe, as a fraction of it in [0, 1], shape []: what the search finds from its base.

    The derivative is that of the active margin's root, and zero where the margin jumps there. Zero where nothing is safe.
    """
    unknown = jnp.full((1,), jnp.nan, base.dtype)
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(source.check, x, base))
    found = furthest_safe(
        source, x, Segments(base[None], target[None], unknown, unknown), like, evaluations, resolution
    )
    return jnp.maximum(found.length[0], 0.0)


@reach.def_jvp
def _reach_jvp(primals, tangents):
    x, base, target, source, *_ = primals
    length = reach(*primals)
    direction = target - base
    action = base + length * direction
    value, slope = jax.jvp(lambda u: source.rows(x, u), (action,), (direction,))
    active = jnp.argmin(value)
    rooted = (length > 0) & (length < 1) & is_root(value[active], slope[active])
    dx, dbase, dtarget = (jnp.zeros_like(v) if t is None else t for v, t in zip((x, base, target), tangents))
    moved = (1 - length) * dbase + length * dtarget
    _, change = jax.jvp(lambda x, u: source.rows(x, u)[active], (x, action), (dx, moved))
    return length, jnp.where(rooted, -change / jnp.where(rooted, slope[active], 1.0), 0.0)
