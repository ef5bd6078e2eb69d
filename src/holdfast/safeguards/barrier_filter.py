"""The safety filter that is written by hand: a quadratic program under control barrier rows."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.safeguards.shield import Outlook
from holdfast.safeguards.source import HalfSpaces
from holdfast.sets import Box
from holdfast.solvers import SolverStatus, project
from holdfast.types import Safeguarded, Status


class BarrierFilter(eqx.Module):
    """The admissible action nearest to the proposal (in half-widths of the box) under rows A(x) u >= b(x), which whoever
    knows the system has derived by hand from barrier functions. Source: Ames et al., "Control barrier functions: theory and
    applications" (ECC 2019, arXiv 1903.11199); for higher relative degree Xiao and Belta (CDC 2019, arXiv 1903.04706).

    **What it does not promise.** The rows are conditions in continuous time, held over a sampling period; and nothing says
    that they can be met together with the box. Where they cannot, all of them are relaxed by the same slack, as little as
    `relaxation` resolves, and it says `uncertified`.

    Attributes:
        rows: x [n] -> the half-spaces, R rows.
        input_box: admissible inputs.
        relaxation: slacks that are tried, as multiples of 1 + |b|, ascending; after the last one the action that `resort`
            gives.
        resort: x [n] -> the action where no slack helps, shape [m].
    """

    rows: Callable[[Float[Array, " n"]], HalfSpaces]
    input_box: Box
    resort: Callable[[Float[Array, " n"]], Float[Array, " m"]]
    relaxation: tuple[float, ...] = eqx.field(static=True, default=(0.01, 0.1, 1.0, 10.0))

    def init(self, x: Float[Array, " n"]) -> Outlook:
        return Outlook(jnp.all(jnp.isfinite(x)))

    def step(self, state: Outlook, x: Float[Array, " n"], u: Float[Array, " m"]) -> tuple[Safeguarded, Outlook]:
        """As `types.Guard`. Total; `uncertified` where the rows could not be met."""
        box = self.input_box
        half = jnp.asarray(box.half_widths, u.dtype)
        lower, upper = box.bounds(u.dtype)
        finite_x, finite_u = jnp.all(jnp.isfinite(x)), jnp.all(jnp.isfinite(u))
        at = jnp.where(finite_x, x, 0.0)
        resort = box.clip(self.resort(at))
        proposal = box.clip(jnp.where(finite_u, u, resort))
        rows = self.rows(at)
        slack = rows.normals @ proposal - rows.offsets
        free = jnp.all(slack >= 0) & finite_u & finite_x
        action, met = resort, jnp.asarray(False)
        # From the loosest to the tightest: the last one that can be met stands.
        for relaxed in (*reversed(self.relaxation), 0.0):
            offsets = rows.offsets - relaxed * (1 + jnp.abs(rows.offsets))
            found = project(proposal / half, rows.normals * half[None], offsets, lower / half, upper / half)
            good = (found.status == SolverStatus.solved) & jnp.all(jnp.isfinite(found.value))
            action = jnp.where(good, box.clip(found.value * half), action)
            met = good
        action = jnp.where(free, proposal, jnp.where(finite_x, action, resort))
        certified = free | (met & finite_x)
        status = jnp.select(
            [free & jnp.all(proposal == u), free, ~certified, ~finite_u],
            [Status.accepted, Status.corrected, Status.uncertified, Status.bad_action],
            Status.corrected,
        ).astype(jnp.int32)
        margin = jnp.where(certified, jnp.min(rows.normals @ action - rows.offsets), -jnp.inf)
        correction = jnp.where(finite_u, action - jnp.where(finite_u, u, 0.0), 0.0)
        return Safeguarded(action, status, margin, correction), Outlook(certified)
