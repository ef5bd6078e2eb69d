"""Safe actions from a robust invariant zonotope with too many facets for half-spaces: coefficients are exhibited instead."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from holdfast.backup import noise_reach
from holdfast.safeguards.explicit import Promise, controlled
from holdfast.safeguards.source import Source, columns
from holdfast.sets import Box
from holdfast.solvers import bounded_coefficients
from holdfast.systems import System


class Exhibited(eqx.Module):
    """What a zonotope promises, with the evidence.

    Attributes:
        certified: whether it is so, shape [].
        margin: smallest margin of a coefficient, shape []; -inf where one was not finite.
        coefficients: of the state, or of the successor of the promised action without its disturbance, shape [g].
        own: whether the set's own action was applied, after which the theorem is the evidence, shape [].
    """

    certified: Bool[Array, ""]
    margin: Float[Array, ""]
    coefficients: Float[Array, " g"]
    own: Bool[Array, ""]

    @staticmethod
    def of(room: Float[Array, " g"], beta: Float[Array, " g"], also: Bool[Array, ""]) -> "Exhibited":
        """|beta| <= room, and `also`."""
        promise = Promise.of(room - jnp.abs(beta))
        return Exhibited(promise.certified & also, promise.margin, beta, jnp.asarray(False))


class ZonotopeSource(Source):
    """u is safe at x in S = {c + G beta, |beta| <= 1} if beta and Gamma are found with, for w = w_c + v, |v| <= h,

        F(x, u, w_c) = c + G beta,    dF/dw = G Gamma,    |beta| + |Gamma| h + successor <= 1,

    for then every F(x, u, w) has coefficients of at most one: beta + Gamma v. That F is affine in w, that the controller
    keeps S and that the margins cover rounding is the caller's word: no certificate of ours is of this source. It is
    sufficient, not necessary. What was found is checked as it is, and decides; how it was found does not matter. Slower than
    half-spaces by the iterations that look for beta, and local: rows are a margin to search by, not the half-spaces of the
    safe actions.

    Attributes:
        system: what moves.
        centre, generators: c [n] and G [n, g], which must span the state space.
        controller: k, x [n] -> u [m], admissible for any x, which keeps S.
        inside, successor: margins for rounding, in units of coefficients: those that a state has to show to be in S, and
            those that an action has to show so that the successor which the plant computes shows `inside`.
        iterations: of the search for coefficients.

    Raises:
        ValueError: if the shapes do not fit, or the generators do not span the space.
    """

    system: System
    centre: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    generators: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    controller: Callable[[Float[Array, " n"]], Float[Array, " m"]]
    inside: float = eqx.field(static=True)
    successor: float = eqx.field(static=True)
    iterations: int = eqx.field(static=True, default=100)

    def __check_init__(self):
        c, G = self.centre, self.generators
        if not (isinstance(c, np.ndarray) and isinstance(G, np.ndarray)):
            return
        n = self.system.state_size
        if c.shape != (n,) or G.ndim != 2 or G.shape[0] != n:
            raise ValueError(f"ZonotopeSource: centre {c.shape} and generators {G.shape}; give [{n}] and [{n}, g]")
        if not np.all(np.isfinite(G)) or np.linalg.matrix_rank(G) < n:
            raise ValueError("ZonotopeSource: the generators do not span the state space; give n that are independent")

    @property
    def input_box(self) -> Box:
        return self.system.input_box

    @property
    def state_size(self) -> int:
        return self.system.state_size

    def init(self, x: Float[Array, " n"]) -> Exhibited:
        room = jnp.full(self.generators.shape[1], 1.0 - self.inside, x.dtype)
        return Exhibited.of(room, self._coefficients(x, room), jnp.asarray(True))

    def standing(self, x: Float[Array, " n"], commitment: Exhibited) -> Exhibited:
        """Where coefficients of x are exhibited: those that were promised, moved by the least norm as the disturbance moved
        the state, which is how they were promised; else those that are found anew. After the set's own action the theorem
        is the evidence, for states that it can be about: those in the hull of the set."""
        fresh = self.init(x)
        room = jnp.full(self.generators.shape[1], 1.0 - self.inside, x.dtype)
        kept = Exhibited.of(room, self._moved(commitment.coefficients, x), commitment.certified)
        found = jax.tree.map(lambda a, b: jnp.where(kept.certified, a, b), kept, fresh)
        theorem = commitment.certified & commitment.own & self._near(x)
        return eqx.tree_at(lambda c: c.certified, found, found.certified | theorem)

    def check(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Exhibited:
        room, beta = self._successor(x, u)
        return Exhibited.of(room, beta, self._near(x))

    def _near(self, x) -> Bool[Array, ""]:
        """Whether x lies in the set's hull, about which rounding is bounded; not of a state that cannot be read."""
        reach = np.sum(np.abs(self.generators), axis=1) * (1 + 1e-6)
        return jnp.all(jnp.abs(x - jnp.asarray(self.centre, x.dtype)) <= jnp.asarray(reach, x.dtype))

    def after_fallback(self, commitment: Exhibited) -> Exhibited:
        return Exhibited(
            commitment.certified, jnp.zeros_like(commitment.margin), commitment.coefficients, jnp.asarray(True)
        )

    def fallback(self, x: Float[Array, " n"], commitment: Exhibited) -> Float[Array, " m"]:
        return controlled(self.system, self.controller, x)

    def rows(self, x: Float[Array, " n"], u: Float[Array, " m"]) -> Float[Array, " g"]:
        """1 - successor - |Gamma| h - |beta|, shape [g]."""
        room, beta = self._successor(x, u)
        return room - jnp.abs(beta)

    def _successor(self, x, u) -> tuple[Float[Array, " g"], Float[Array, " g"]]:
        """What disturbances leave of one, and the coefficients of F(x, u, w_c), shape [g] each."""
        w, half = noise_reach(self.system.noise_box, x.dtype)
        step = self.system.unwrapped_step
        room = jnp.full(self.generators.shape[1], 1.0 - self.successor, x.dtype)
        if not w.shape[0]:
            return room, self._coefficients(step(x, u), room)
        moved, spread = columns(lambda w: step(x, u, w), w)
        # Those of least norm; what their rounding leaves over is for `successor` to pay.
        gamma = jnp.matmul(self._inverse(x.dtype), spread, precision="highest")
        room = room - jnp.matmul(jnp.abs(gamma), half, precision="highest")
        return room, self._coefficients(moved, room)

    def _moved(self, beta, x) -> Float[Array, " g"]:
        """beta, moved by the least norm to coefficients of x."""
        G, centre = jnp.asarray(self.generators, x.dtype), jnp.asarray(self.centre, x.dtype)
        left = x - centre - jnp.matmul(G, beta, precision="highest")
        return beta + jnp.matmul(self._inverse(x.dtype), left, precision="highest")

    def _inverse(self, dtype) -> Float[Array, "g n"]:
        return jnp.asarray(np.linalg.pinv(self.generators), dtype)

    def _coefficients(self, point, bound) -> Float[Array, " g"]:
        G, centre = jnp.asarray(self.generators, point.dtype), jnp.asarray(self.centre, point.dtype)
        return bounded_coefficients(G, point - centre, bound, iterations=self.iterations)
