"""Coefficients of a point in a zonotope: exhibited, so that whoever asks can check them."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def bounded_coefficients(
    G: Float[Array, "n g"], point: Float[Array, " n"], bound: Float[Array, " g"], *, iterations: int = 200
) -> Float[Array, " g"]:
    """beta with G beta = point up to rounding, shape [g]; within |beta| <= bound where the iteration finds such.

    Alternating projections with Dykstra's correction between the solutions of G beta = point and the box, a fixed number
    of times; the last step is onto the solutions, so that the coefficients are the point's whatever their size. The answer
    proves membership where it lies within the bound, and nothing where it does not. Boyle and Dykstra, "A method for
    finding projections onto the intersection of convex sets in Hilbert spaces" (1986).

    Args:
        G: generators that span the space, shape [n, g].
        point: relative to the zonotope's centre, shape [n].
        bound: largest sizes, shape [g]; negative ones leave no room.
        iterations: projections onto either set.
    """
    factor = jax.scipy.linalg.cho_factor(jnp.matmul(G, G.T, precision=lax.Precision.HIGHEST), lower=True)
    room = jnp.maximum(bound, 0.0)

    def onto_solutions(beta):
        left = point - jnp.matmul(G, beta, precision=lax.Precision.HIGHEST)
        return beta + jnp.matmul(G.T, jax.scipy.linalg.cho_solve(factor, left), precision=lax.Precision.HIGHEST)

    def advance(carry, _):
        beta, correction = carry
        # The solutions are an affine set, which needs no correction of its own.
        wanted = onto_solutions(beta) + correction
        inside = jnp.clip(wanted, -room, room)
        return (inside, wanted - inside), None

    start = jnp.zeros_like(bound), jnp.zeros_like(bound)
    (beta, _), _ = lax.scan(advance, start, None, length=iterations)
    # Twice: the second takes back the rounding of the first.
    return onto_solutions(onto_solutions(beta))
