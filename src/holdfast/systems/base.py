"""What a system is: a sampled step, an input box, an equilibrium and error coordinates."""

import abc
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.angles import wrap
from holdfast.systems.integrators import INTEGRATORS
from holdfast.systems.structure import Spread, Symmetry


class System(eqx.Module):
    """x+ = F(x, u, w), sampled with period `dt` in seconds, with u in `input_box`.

    Implement `step` (or subclass `ContinuousSystem` and implement `derivative`), `equilibrium`, and give the fields.
    Physical parameters are ordinary fields, so that a batch of robots is a `vmap` over the system.

    Attributes:
        dt: sampling period, s.
        input_box: admissible inputs, a `Box` with m numbers.
        disturbance_box: bounds of w, a `Box` with d numbers, or None where the model is undisturbed.
        state_names, state_units, input_names, input_units: words for reports and plots.
        angles: indices of coordinates in rad that mean the same one turn further; they stay within [-pi, pi].
        reduction_shown_by: where algebra shows that error(F(x, u)) = error_step(error(x), u); empty: a certificate shows
            it for errors that drop nothing, and samples it otherwise.

    A system on a manifold, or with an error of fewer numbers than its state, may declare more about itself (`symmetry`,
    `spread`, `manifold`, `fibre_box` with `lift_along`): see `Quadrotor`. None of it is needed to run or to learn.
    """

    dt: eqx.AbstractVar[float]
    input_box: eqx.AbstractVar[Box]
    state_names: eqx.AbstractClassVar[tuple[str, ...]]
    input_names: eqx.AbstractClassVar[tuple[str, ...]]
    state_units: ClassVar[tuple[str, ...]] = ()
    input_units: ClassVar[tuple[str, ...]] = ()
    angles: ClassVar[tuple[int, ...]] = ()
    reduction_shown_by: ClassVar[str] = ""

    @property
    def disturbance_box(self) -> Box | None:
        return None

    @property
    def noise_box(self) -> Box:
        """`disturbance_box`, or a box of d = 0 numbers where the model is undisturbed."""
        return Box([], []) if self.disturbance_box is None else self.disturbance_box

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

    def disturbed_step(self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"]) -> Float[Array, " n"]:
        """`step` under a disturbance of `noise_box`, shape [n]: the undisturbed step where d = 0."""
        return self.step(x, u, w) if w.shape[0] else self.step(x, u)

    def unwrapped_step(
        self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " n"]:
        """`step` before the angles are wrapped, shape [n]. It has no jump where an angle passes pi."""
        if self.angles:
            raise NotImplementedError(
                f"{type(self).__name__} names `angles`: subclass ContinuousSystem, which wraps them, or override "
                "`unwrapped_step` and let `step` wrap what it gives"
            )
        return self.step(x, u, w)

    @abc.abstractmethod
    def equilibrium(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        """(x*, u*), with error(F(x*, u*)) = 0. It may be relative: what `error` drops may go on moving."""

    def error(self, x: Float[Array, " n"]) -> Float[Array, " e"]:
        """Coordinates of x about the equilibrium, angles the short way round; zero there. Override on manifolds or where
        numbers do not matter."""
        return self._wrapped(x - self.equilibrium()[0].astype(x.dtype))

    def _wrapped(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return jnp.stack([wrap(x[i]) if i in self.angles else x[i] for i in range(x.shape[0])]) if self.angles else x

    def lift(self, e: Float[Array, " e"]) -> Float[Array, " n"]:
        """A state with error(lift(e)) = e."""
        return e + self.equilibrium()[0].astype(e.dtype)

    def error_step(self, e: Float[Array, " e"], u: Float[Array, " m"]) -> Float[Array, " e"]:
        """The step in error coordinates, error(F(lift(e), u)), shape [e]: what regulators and proofs act on.

        Override with an algebraically equal, shorter form where intervals would be too wide.
        """
        return self.error(self.step(self.lift(e), u))

    def features(self, x: Float[Array, " n"]) -> Float[Array, " f"]:
        """What a learned backup sees, shape [f]: the error. Override where a chart is singular; bounded is best."""
        return self.error(x)

    def bounded_error(self, x: Float[Array, " n"]) -> Float[Array, " e"]:
        """The error for training losses, shape [e]: close to `error` near zero, without a chart's singularities."""
        return self.error(x)

    def manifold(self, x: Float[Array, " n"]) -> Float[Array, " k"]:
        """Zero, shape [k], exactly for the states that there are; k = 0 where every vector is a state."""
        return jnp.zeros(0, x.dtype)

    @property
    def fibre_box(self) -> Box:
        """Range of the coordinates that `error` drops and that its rounding may depend on; empty if there are none."""
        return Box([], [])

    def lift_along(self, e: Float[Array, " e"], fibre: Float[Array, " k"]) -> Float[Array, " n"]:
        """A state with error(lift_along(e, fibre)) = e and the dropped coordinates `fibre` from `fibre_box`."""
        return self.lift(e)

    @property
    def spread(self) -> Spread | None:
        """How a step spreads the distance of two states; None: interval Jacobians have to do."""
        return None

    @property
    def symmetry(self) -> Symmetry | None:
        """A symmetry of `error_step`, worth orders of magnitude in proofs; None where there is none."""
        return None


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
        return self._wrapped(self.unwrapped_step(x, u, w))

    def unwrapped_step(
        self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " n"]:
        if w is None:
            box = self.disturbance_box
            w = jnp.zeros(0 if box is None else box.dimension, x.dtype)
        integrate = INTEGRATORS[self.integrator]
        return self.post_step(integrate(self.derivative, self.dt, x, u, w, self.velocities))
