"""The stateful, total, differentiable safeguard."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from holdfast.safeguards.backup_cbf import LayerFirst
from holdfast.safeguards.centres import CENTRES
from holdfast.safeguards.compaction import where_needed
from holdfast.safeguards.map import Map, Segments, look_around
from holdfast.safeguards.ray_mask import RayMask, no_halfspaces
from holdfast.safeguards.search import Found, furthest_inside, furthest_safe
from holdfast.safeguards.source import HalfSpaces, SafeActionSet, Source
from holdfast.sets import Box
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
        maps: what proposes corrections; with none, what is not accepted gives way to the committed action.
        gradient: derivative of a corrected action. "exact" (implicit function theorem), "straight_through" (identity),
            "stopped" (zero). An accepted action always passes the gradient; a committed one is constant unless
            "straight_through". The commitment that `step` is given is held constant.
        evaluations: most checks on a segment of a correction.
        resolution: where its search stops, as a fraction of the segment.
        mask: deforms every proposal first, safe ones too; what comes out is then accepted, corrected or refused like any
            proposal. Its derivative is part of "exact". A ray mask, or a layer that is verified in this way.

    Raises:
        ValueError: for an unknown gradient, or a mask whose centre the source cannot give.
    """

    source: Source
    maps: tuple[Map, ...]
    gradient: GradientMode = eqx.field(static=True, default="exact")
    evaluations: int = eqx.field(static=True, default=4)
    resolution: float = eqx.field(static=True, default=1e-3)
    mask: RayMask | LayerFirst | None = None

    def __check_init__(self):
        if self.gradient not in ("exact", "straight_through", "stopped"):
            raise ValueError(f"Safeguard: gradient = {self.gradient!r}; give 'exact', 'straight_through' or 'stopped'")
        if isinstance(self.mask, RayMask) and CENTRES[self.mask.centre] is not None and not self.source.exact:
            raise ValueError(no_halfspaces(self.source, self.mask))

    def init(self, x: Float[Array, " n"]) -> Any:
        """The commitment at the start of an episode at x [n]; its `certified` tells whether x is certified."""
        # Frozen before, too: looking for a plan is a loop that knows no reverse mode.
        return _frozen(self.source.init(_frozen(self._state(x))))

    def step(self, state: Any, x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, Any]:
        """The admissible action for a proposal u [m] at x [n], and the next commitment. Total: never raises on numbers.

        Raises:
            ValueError: while tracing, if x or u has the wrong shape.
        """
        return self._step(state, self._state(x), self._proposal(u), None)

    def _step(self, state: Any, x: Float[Array, " n"], u: Float[Array, " m"], checked: Any) -> tuple[Safeguarded, Any]:
        """`step`, with what `source.check` says of the proposal where that is known."""
        state, wanted, corrections, halfspaces = _frozen(state), u, None, None
        if self.mask is not None or self.source.exact:
            actions = _frozen(self)._actions(state, x)
            halfspaces = actions.halfspaces
        if self.mask is not None:
            masked = self.mask(actions, _admissible(self.source.input_box, u, actions.known_safe))
            # What is checked is what is applied, bit for bit: no program may compute it twice.
            wanted = jax.lax.optimization_barrier(jnp.where(jnp.all(jnp.isfinite(u)), masked, u))
        if halfspaces is not None and self.mask is None:
            corrections = jax.lax.optimization_barrier(self._corrections(actions, halfspaces, wanted))
        decision = _decide(_frozen((self, state, x, wanted, halfspaces, corrections, checked)))
        action = self._with_gradient(decision, state, x, u, wanted, corrections)
        if self.mask is not None:
            deformed = (decision.status == Status.accepted) & jnp.any(wanted != u)
            status = jnp.where(deformed, Status.corrected, decision.status).astype(jnp.int32)
            decision = eqx.tree_at(lambda d: d.status, decision, status)
        finite = jnp.all(jnp.isfinite(u))
        correction = jnp.where(finite, action - jnp.where(finite, u, 0.0), 0.0)
        return Safeguarded(action, decision.status, decision.margin, correction), decision.commitment

    def guard(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Safeguarded:
        """One step from a fresh commitment: for gradients and replay buffers. Claims no recursion.

        A commitment is looked for only where the proposal fails its check.
        """
        source, x, u = self.source, self._state(x), self._proposal(u)
        if self.mask is not None or source.exact:
            return self.step(self.init(x), x, u)[0]
        seen = _frozen((x, u))
        checked = source.check(seen[0], _admissible(source.input_box, seen[1], jnp.zeros_like(seen[1])))
        usable = checked.certified & jnp.all(jnp.isfinite(seen[0])) & jnp.all(jnp.isfinite(seen[1]))
        blank = jax.tree.map(jnp.zeros_like, checked)
        state = where_needed(~usable, _fresh, blank, (_frozen(source), seen[0]))
        return self._step(state, x, u, checked)[0]

    def _actions(self, state, x) -> SafeActionSet:
        # Double where: a state that cannot be read has no derivative, and 0 * NaN is NaN.
        x = jnp.where(jnp.all(jnp.isfinite(x)), x, 0.0)
        source = self.source
        known_safe = source.fallback(x, _frozen(source.standing(x, state)))
        unknown = jnp.full((), jnp.nan, known_safe.dtype)
        return SafeActionSet(source, x, known_safe, unknown, source.halfspaces(x) if source.exact else None)

    def _corrections(self, actions: SafeActionSet, halfspaces: HalfSpaces, u) -> Float[Array, "K m"]:
        """What the maps propose where the source has exact half-spaces: the furthest action of each of their segments, in
        closed form. Cheap enough for every state of a batch, and differentiated by plain JAX."""
        box = self.source.input_box
        proposal = _admissible(box, u, actions.known_safe)
        segments = [each.segments(actions, proposal, actions.known_margin) for each in self.maps]
        segments = jax.tree.map(lambda *parts: jnp.concatenate(parts), *segments)
        furthest = jax.vmap(furthest_inside, in_axes=(None, None, 0, 0))
        return furthest(halfspaces, box, segments.base, segments.target)

    def _with_gradient(self, decision: "_Decision", state, x, u, wanted, corrections) -> Float[Array, " m"]:
        passes = decision.status == Status.accepted
        if self.gradient == "stopped":
            return jnp.where(passes & jnp.all(wanted == u), u, decision.action)
        if self.gradient == "straight_through":
            return _straight_through(u, decision.action)
        if not self.source.exact:
            return _exact((x, wanted), _frozen(self), state, decision)
        kept = _admissible(self.source.input_box, wanted, decision.known_safe)
        if corrections is None:
            # What a mask makes is refused for rounding, or where there is no room: the correction's derivative is lost.
            moved = decision.action
        else:
            moved = corrections[jnp.maximum(decision.choice, 0)] if len(corrections) > 1 else corrections[0]
        action = jnp.where(decision.choice >= 0, moved, jnp.where(decision.choice == -1, kept, decision.action))
        return jnp.where(passes, wanted, action)

    def _state(self, x) -> Float[Array, " n"]:
        if jnp.ndim(x) != 1 or self.source.state_size not in (None, len(x)):
            size = "a vector" if self.source.state_size is None else f"({self.source.state_size},)"
            raise ValueError(
                f"Safeguard.step: the state has shape {jnp.shape(x)}; give one state, {size}. For a batch use jax.vmap"
            )
        return _floating(x)

    def _proposal(self, u) -> Float[Array, " m"]:
        m = self.source.input_box.dimension
        if jnp.shape(u) != (m,):
            raise ValueError(
                f"Safeguard.step: the action has shape {jnp.shape(u)}; the input box has {m} inputs, so give ({m},). "
                "For a batch use jax.vmap(safeguard.step)"
            )
        return _floating(u)


def _floating(numbers):
    """As floating point numbers: a state or an action of whole numbers is one, too."""
    numbers = jnp.asarray(numbers)
    return numbers if jnp.issubdtype(numbers.dtype, jnp.floating) else numbers.astype(jnp.result_type(float))


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
    safeguard, state, x, u, halfspaces, corrections, checked = operands
    source = safeguard.source
    box = source.input_box
    finite_u, finite_x = jnp.all(jnp.isfinite(u)), jnp.all(jnp.isfinite(x))
    state = source.standing(x, state)
    known_safe = source.fallback(x, state)
    inside = box.contains(u)
    proposal = _admissible(box, u, known_safe)
    checked = source.check(x, proposal) if checked is None else checked
    verified = checked.certified & finite_u & finite_x
    kept = source.after_fallback(state)

    none = (known_safe, kept, jnp.asarray(-2, jnp.int32), jnp.zeros((), proposal.dtype))
    rejected = ~verified & finite_u & finite_x
    if corrections is None:
        action, commitment, choice, length = where_needed(
            rejected,
            _correct,
            none,
            (safeguard, x, proposal, known_safe, halfspaces, checked.margin, state.certified, kept),
        )
    else:
        # One check each: less than it costs to gather the states that need it.
        checks = jax.vmap(source.check, in_axes=(None, 0))(x, corrections)
        found = Found(corrections, jnp.ones(len(corrections), proposal.dtype), checks, checks.certified)
        nearest = _nearest(box, proposal, known_safe, found, state.certified, kept)
        action, commitment, choice, length = jax.tree.map(lambda a, b: jnp.where(rejected, a, b), nearest, none)
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


def _fresh(operands):
    source, x = operands
    return source.init(x)


def _correct(operands):
    """The nearest action found on the maps' segments, else the committed one (choice -2)."""
    safeguard, x, proposal, known_safe, halfspaces, margin, certified, kept = operands
    source, maps = safeguard.source, safeguard.maps
    # Its own check would tell nothing new: where nothing better is found, it is replayed.
    known_margin = jnp.where(certified & jnp.isfinite(kept.margin), kept.margin.astype(margin.dtype), jnp.nan)
    actions = SafeActionSet(source, x, known_safe, known_margin, halfspaces)
    segments = [each.segments(actions, proposal, margin) for each in maps]
    if not any(each.from_known_safe for each in maps):
        # The known safe action itself: where nothing is promised yet, a promise may start with it.
        unknown = jnp.full((1,), jnp.nan, margin.dtype)
        segments.append(Segments(known_safe[None], known_safe[None], unknown, unknown))
    segments = jax.tree.map(lambda *parts: jnp.concatenate(parts), *segments)
    found = furthest_safe(source, x, segments, kept, safeguard.evaluations, safeguard.resolution)
    return _nearest(source.input_box, proposal, known_safe, found, certified, kept)


def _nearest(box: Box, proposal, known_safe, found: Found, certified, kept):
    """(action, commitment, choice, length) of the action found that is nearest to the proposal, in half-widths."""
    half = jnp.asarray(box.half_widths, proposal.dtype)
    distance = jnp.sum(((found.action - proposal[None]) / half[None]) ** 2, axis=1)
    best = jnp.argmin(jnp.where(found.safe, distance, jnp.inf)).astype(jnp.int32)
    action, safe = found.action[best], found.safe[best]
    # The known safe action is replayed, not promised again; only where nothing is promised yet its check counts.
    falls_back = ~safe | jnp.all(action == known_safe)
    renewed = safe & ~(falls_back & certified)
    commitment = jax.tree.map(lambda new, old: jnp.where(renewed, new[best], old), found.commitment, kept)
    choice = jnp.where(falls_back, -2, best)
    return jnp.where(falls_back, known_safe, action), commitment, choice, found.length[best]


def _admissible(box: Box, u, otherwise):
    """u, clipped to the box; `otherwise` where u is not finite. Clipping has derivative zero where it acts, one elsewhere."""
    clipped = box.clip(jnp.where(jnp.all(jnp.isfinite(u)), u, otherwise))
    return jnp.where(u == clipped, u, jax.lax.stop_gradient(clipped))


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
    proposal = _admissible(box, u, decision.known_safe)
    # Kept proposals pass the cotangent; committed actions are constants; corrections ask their map.
    kept = jnp.where(decision.choice == -1, cotangent, 0.0)
    x_bar, u_bar = jnp.zeros_like(x), kept
    if safeguard.maps:
        # A state that nothing is differentiated by (a replayed one) needs no reverse pass through the flow.
        pull_back = _pull_back if perturbed[0] else _pull_back_action
        operands = (safeguard, state, x, proposal, decision, cotangent)
        x_bar, u_bar = where_needed(decision.choice >= 0, pull_back, (x_bar, u_bar), operands)
    # Clipping to the box has derivative zero where it acted, one elsewhere.
    u_bar = jnp.where((proposal == u) | (decision.status == Status.accepted), u_bar, 0.0)
    return x_bar, u_bar


def _pull_back_action(operands):
    """Cotangent of the proposal alone, and zero for x."""
    adjoint, _ = _adjoint(operands)
    return jnp.zeros_like(operands[2]), adjoint.u


def _adjoint(operands):
    """The chosen map's adjoint, and whether any map is curved."""
    safeguard, _, x, proposal, decision, cotangent = operands
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
    return adjoint, curved


def _pull_back(operands):
    """Cotangents of x and of the proposal: the maps' adjoints in turn, then one reverse pass of the margins."""
    safeguard, state, x, _, decision, _ = operands
    source, action = safeguard.source, decision.action
    adjoint, curved = _adjoint(operands)

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
