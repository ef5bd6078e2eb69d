"""What a system is: a sampled step, an input box, an equilibrium and error coordinates."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.integrators import INTEGRATORS


class System(eqx.Module):
    """x+ = F(x, u, w), sampled with period `dt` in seconds, with u in `input_box`.

    Implement `step` (or subclass `ContinuousSystem` and implement `derivative`), `equilibrium`, and give the fields.
    Physical parameters are ordinary fields, so that a batch of robots is a `vmap` over the system.

    Attributes:
        dt: sampling period, s.
        input_box: admissible inputs, a `Box` with m numbers.
        disturbance_box: bounds of w, a `Box` with d numbers, or None where the model is undisturbed.
        state_names, state_units, input_names, input_units: words for reports and plots.
    """

    dt: eqx.AbstractVar[float]
    input_box: eqx.AbstractVar[Box]
    state_names: eqx.AbstractClassVar[tuple[str, ...]]
    input_names: eqx.AbstractClassVar[tuple[str, ...]]
    state_units: ClassVar[tuple[str, ...]] = ()
    input_units: ClassVar[tuple[str, ...]] = ()

    @property
    def disturbance_box(self) -> Box | None:
        return None

    @property
    def state_size(self) -> int:
        return len(self.state_names)

    @property
    def input_size(self) -> int:
        return len(self.input_names)

    @abc.abstractmethod
    def step(
        self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " n"]:
        """The state one period later, shape [n]. `w=None` is the undisturbed step. u is used as given, not clipped."""

    @abc.abstractmethod
    def equilibrium(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """(x*, u*), with error(F(x*, u*)) = 0. It may be relative: what `error` drops may go on moving."""

    def error(self, x: Float[Array, " n"]) -> Float[Array, " e"]:
        """Coordinates of x about the equilibrium; zero there. Override on manifolds or where numbers do not matter."""
        return x - self.equilibrium()[0].astype(x.dtype)

    def lift(self, e: Float[Array, " e"]) -> Float[Array, " n"]:
        """A state with error(lift(e)) = e."""
        return e + self.equilibrium()[0].astype(e.dtype)

    def error_step(self, e: Float[Array, " e"], u: Float[Array, " m"]) -> Float[Array, " e"]:
        """The step in error coordinates, error(F(lift(e), u)): what regulators and proofs act on."""
        return self.error(self.step(self.lift(e), u))


class ContinuousSystem(System):
    """A system given by x' = f(x, u, w), an integrator, and an optional `post_step` (clip, wrap, renormalise).

    Class attributes:
        integrator: "euler" (default), "semi_implicit_euler" or "runge_kutta_4".
        velocities: indices that move first under semi-implicit Euler.
    """

    integrator: ClassVar[str] = "euler"
    velocities: ClassVar[tuple[int, ...]] = ()

    @abc.abstractmethod
    def derivative(self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"]) -> Float[Array, " n"]:
        """x' = f(x, u, w), shape [n]."""

    def post_step(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """What happens to the integrated state before it is the next state."""
        return x

    def step(
        self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " n"]:
        if w is None:
            box = self.disturbance_box
            w = jnp.zeros(0 if box is None else box.dimension, x.dtype)
        integrate = INTEGRATORS[self.integrator]
        return self.post_step(integrate(self.derivative, self.dt, x, u, w, self.velocities))
