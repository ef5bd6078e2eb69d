"""The stateful, total, differentiable safeguard."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from holdfast.safeguards.compaction import where_needed
from holdfast.safeguards.map import Map, Segments, look_around
from holdfast.safeguards.search import furthest_safe
from holdfast.safeguards.source import SafeActionSet, Source
from holdfast.types import Safeguarded, Status

GradientMode = Literal["exact", "straight_through", "stopped"]


class Safeguard(eqx.Module):
    """Whatever is proposed, applies an admissible action that keeps a certified state certified.

    1. *Accept*: if the source's exact check passes, the action is applied bit for bit and its commitment is kept.
    2. *Correct*: otherwise the maps propose segments of actions, which are searched together for the furthest action
       that passes the same check; the nearest one to the proposal (in units of the half-widths of the box) is applied.
    3. *Fall back*: otherwise the committed action is applied; nothing is re-evaluated to keep a promise.

    Steps 1 and 3 carry the proof, step 2 decides the quality. Write for one state and `jax.vmap`: in a batch only the
    rejected rows pay for the correction.

    Attributes:
        source: where safe actions come from.
        maps: what proposes corrections.
        gradient: derivative of a corrected action. "exact" (implicit function theorem), "straight_through" (identity),
            "stopped" (zero). An accepted action always passes the gradient; a committed one is constant unless
            "straight_through". The commitment that `step` is given is held constant.
        evaluations: most checks on a segment of a correction.
        resolution: where its search stops, as a fraction of the segment.
    """

    source: Source
    maps: tuple[Map, ...]
    gradient: GradientMode = eqx.field(static=True, default="exact")
    evaluations: int = eqx.field(static=True, default=4)
    resolution: float = eqx.field(static=True, default=1e-3)

    def __check_init__(self):
        if self.gradient not in ("exact", "straight_through", "stopped"):
            raise ValueError(f"Safeguard: gradient = {self.gradient!r}; give 'exact', 'straight_through' or 'stopped'")

    def init(self, x: Float[Array, " n"]) -> Any:
        """The commitment at the start of an episode at x [n]; its `certified` tells whether x is certified."""
        # Frozen before, too: looking for a plan is a loop that knows no reverse mode.
        return _frozen(self.source.init(_frozen(x)))

    def step(self, state: Any, x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, Any]:
        """The admissible action for a proposal u [m] at x [n], and the next commitment. Total: never raises on numbers.

        Raises:
            ValueError: while tracing, if x or u has the wrong shape.
        """
        self._check_shapes(x, u)
        decision = _decide(_frozen((self, state, x, u)))
        action = self._with_gradient(decision, state, x, u)
        finite = jnp.all(jnp.isfinite(u))
        correction = jnp.where(finite, action - jnp.where(finite, u, 0.0), 0.0)
        return Safeguarded(action, decision.status, decision.margin, correction), decision.commitment

    def guard(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Safeguarded:
        """One step from a fresh commitment: for gradients and replay buffers. Claims no recursion."""
        return self.step(self.init(x), x, u)[0]

    def _with_gradient(self, decision: "_Decision", state, x, u) -> Float[Array, " m"]:
        passes = decision.status == Status.accepted
        if self.gradient == "stopped":
            return jnp.where(passes, u, decision.action)
        if self.gradient == "straight_through":
            return _straight_through(u, decision.action)
        return _exact((x, u), _frozen(self), _frozen(state), decision)

    def _check_shapes(self, x, u) -> None:
        m = self.source.input_box.dimension
        if jnp.shape(u) != (m,):
            raise ValueError(
                f"Safeguard.step: the action has shape {jnp.shape(u)}; the input box has {m} inputs, so give ({m},). "
                "For a batch use jax.vmap(safeguard.step)"
            )
        if jnp.ndim(x) != 1:
            raise ValueError(
                f"Safeguard.step: the state has shape {jnp.shape(x)}; give one state, a vector. For a batch use jax.vmap"
            )


def _frozen(tree):
    """The tree with no derivative through its JAX arrays. NumPy leaves stay: a `Box` rounds those inwards."""

    def freeze(leaf):
        return jax.lax.stop_gradient(leaf) if isinstance(leaf, jax.Array) and eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(freeze, tree)


class _Decision(eqx.Module):
    """What was decided: everything the derivative needs to know about it.

    `choice` counts segments over all maps, `length` tells where on it; -1: the proposal or its clip, -2: the committed
    action.
    """

    action: Float[Array, " m"]
    status: Int[Array, ""]
    margin: Float[Array, ""]
    commitment: Any
    known_safe: Float[Array, " m"]
    choice: Int[Array, ""]
    length: Float[Array, ""]


def _decide(operands) -> _Decision:
    safeguard, state, x, u = operands
    source = safeguard.source
    box = source.input_box
    finite_u, finite_x = jnp.all(jnp.isfinite(u)), jnp.all(jnp.isfinite(x))
    state = source.standing(x, state)
    known_safe = source.fallback(x, state)
    inside = box.contains(u)
    proposal = jnp.where(inside, u, box.clip(jnp.where(finite_u, u, known_safe)))
    checked = source.check(x, proposal)
    verified = checked.certified & finite_u & finite_x
    kept = source.after_fallback(state)

    none = (known_safe, kept, jnp.asarray(-2, jnp.int32), jnp.zeros((), proposal.dtype))
    rejected = ~verified & finite_u & finite_x
    action, commitment, choice, length = where_needed(
        rejected, _correct, none, (safeguard, x, proposal, known_safe, checked.margin, state.certified, kept)
    )
    corrected = rejected & (choice >= 0)
    promised = state.certified | commitment.certified
    status = jnp.select(
        [verified & inside, verified | corrected, ~promised, ~finite_x, ~finite_u],
        [Status.accepted, Status.corrected, Status.uncertified, Status.bad_state, Status.bad_action],
        Status.fell_back,
    ).astype(jnp.int32)
    pick = lambda a, b: jnp.where(verified, a, b)  # noqa: E731
    commitment = jax.tree.map(pick, checked, commitment)
    margin = jnp.where(commitment.certified, commitment.margin, -jnp.inf)
    choice = jnp.where(verified, -1, choice)
    return _Decision(pick(proposal, action), status, margin, commitment, known_safe, choice, length)


def _correct(operands):
    """The nearest action found on the maps' segments, else the committed one (choice -2)."""
    safeguard, x, proposal, known_safe, margin, certified, kept = operands
    source, maps = safeguard.source, safeguard.maps
    half = jnp.asarray(source.input_box.half_widths, proposal.dtype)
    # Its own check would tell nothing new: where nothing better is found, it is replayed.
    known_margin = jnp.where(certified & jnp.isfinite(kept.margin), kept.margin.astype(margin.dtype), jnp.nan)
    actions = SafeActionSet(source, x, known_safe, known_margin)
    segments = [each.segments(actions, proposal, margin) for each in maps]
    if not any(each.from_known_safe for each in maps):
        # The known safe action itself: where nothing is promised yet, a promise may start with it.
        unknown = jnp.full((1,), jnp.nan, margin.dtype)
        segments.append(Segments(known_safe[None], known_safe[None], unknown, unknown))
    segments = jax.tree.map(lambda *parts: jnp.concatenate(parts), *segments)
    found = furthest_safe(source, x, segments, kept, safeguard.evaluations, safeguard.resolution)
    distance = jnp.sum(((found.action - proposal[None]) / half[None]) ** 2, axis=1)
    best = jnp.argmin(jnp.where(found.safe, distance, jnp.inf)).astype(jnp.int32)
    action, safe = found.action[best], found.safe[best]
    # The known safe action is replayed, not promised again; only where nothing is promised yet its check counts.
    falls_back = ~safe | jnp.all(action == known_safe)
    renewed = safe & ~(falls_back & certified)
    commitment = jax.tree.map(lambda new, old: jnp.where(renewed, new[best], old), found.commitment, kept)
    choice = jnp.where(falls_back, -2, best)
    return jnp.where(falls_back, known_safe, action), commitment, choice, found.length[best]


@jax.custom_jvp
def _straight_through(u, action):
    return action


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return primals[1], tangents[0]


@eqx.filter_custom_vjp
def _exact(point, safeguard: Safeguard, state, decision: _Decision):
    _x, u = point
    # `where` hands an accepted proposal through untouched, so that bit identity is visible in one line.
    return jnp.where(decision.status == Status.accepted, u, decision.action)


@_exact.def_fwd
def _exact_forward(perturbed, point, safeguard: Safeguard, state, decision: _Decision):
    return _exact(point, safeguard, state, decision), None


@_exact.def_bwd
def _exact_backward(_, cotangent, perturbed, point, safeguard: Safeguard, state, decision: _Decision):
    x, u = point
    box = safeguard.source.input_box
    finite = jnp.all(jnp.isfinite(u))
    inside = box.contains(u)
    proposal = jnp.where(inside, u, box.clip(jnp.where(finite, u, decision.known_safe)))
    # Kept proposals pass the cotangent; committed actions are constants; corrections ask their map.
    kept = jnp.where(decision.choice == -1, cotangent, 0.0)
    x_bar, u_bar = where_needed(
        decision.choice >= 0,
        _pull_back,
        (jnp.zeros_like(x), kept),
        (safeguard, state, x, proposal, decision, cotangent),
    )
    # Clipping to the box has derivative zero where it acted, one elsewhere.
    u_bar = jnp.where((proposal == u) | (decision.status == Status.accepted), u_bar, 0.0)
    return x_bar, u_bar


def _pull_back(operands):
    """Cotangents of x and of the proposal: the maps' adjoints in turn, then one reverse pass of the margins."""
    safeguard, state, x, proposal, decision, cotangent = operands
    source, action, known_safe = safeguard.source, decision.action, decision.known_safe
    actions = SafeActionSet(source, x, known_safe, jnp.full((), jnp.nan, action.dtype))
    curved = any(each.curved for each in safeguard.maps)
    local = look_around(actions.rows, action, curved)
    chosen, start = [], 0
    for each in safeguard.maps:
        stop = start + each.count(proposal.shape[0])
        index = jnp.clip(decision.choice - start, 0, stop - start - 1)
        part = each.adjoint(actions, local, proposal, action, index, decision.length, cotangent)
        mine = (decision.choice >= start) & (decision.choice < stop)
        chosen.append((mine, part))
        start = stop
    _, adjoint = chosen[0]
    for mine, part in chosen[1:]:
        adjoint = jax.tree.map(lambda a, b, mine=mine: jnp.where(mine, a, b), part, adjoint)

    def weighted(x):
        if not curved:
            return adjoint.rows @ source.rows(x, action)
        value, slope = jax.jvp(lambda a: source.rows(x, a), (action,), (adjoint.direction,))
        return adjoint.rows @ value + adjoint.slopes @ slope

    x_bar = jax.grad(weighted)(x)
    _, fallback_pullback = jax.vjp(lambda x: source.fallback(x, state), x)
    x_bar = x_bar + fallback_pullback(adjoint.known_safe)[0]
    # Where rows weigh nothing their derivative may still be inf, and 0 * inf is NaN: such a length is held too.
    x_bar = jnp.where(jnp.all(jnp.isfinite(x_bar)), x_bar, 0.0)
    return x_bar, adjoint.u
