"""Systems: integrators by their order, error coordinates, wrapping, linearisation."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.sets import Box
from holdfast.systems import ContinuousSystem, Unicycle, linearise, wrap
from holdfast.testing import check_system
from systems_for_tests import Cart


class Oscillator(ContinuousSystem):
    """x'' = -x + u + w, exact solution known."""

    state_names: ClassVar = ("x", "v")
    input_names: ClassVar = ("u",)
    velocities: ClassVar = (1,)
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0], [1.0]))

    @property
    def disturbance_box(self):
        return Box([-0.1], [0.1])

    def derivative(self, x, u, w):
        return jnp.stack([x[1], -x[0] + u[0] + w[0]])

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(1)


class SemiImplicit(Oscillator):
    integrator: ClassVar = "semi_implicit_euler"


class RungeKutta(Oscillator):
    integrator: ClassVar = "runge_kutta_4"


def _error_after_one_second(system_class, steps):
    system = system_class(dt=1.0 / steps)
    x = jnp.array([1.0, 0.3])
    u = jnp.array([0.2])
    advance = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda _, x: system.step(x, u), x))
    c, s = np.cos(1.0), np.sin(1.0)
    exact = np.array([0.2 + 0.8 * c + 0.3 * s, -0.8 * s + 0.3 * c])
    return np.linalg.norm(advance(x) - exact)


@pytest.mark.parametrize("system_class, order", [(Oscillator, 1), (SemiImplicit, 1), (RungeKutta, 4)])
def test_integrators_have_their_order(system_class, order):
    errors = [_error_after_one_second(system_class, steps) for steps in (20, 40, 80)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, order, atol=0.15)


def test_semi_implicit_euler_is_symplectic_and_explicit_euler_is_not():
    def determinant(system):
        return np.linalg.det(jax.jacfwd(system.step)(jnp.array([0.3, 0.1]), jnp.zeros(1)))

    np.testing.assert_allclose(determinant(SemiImplicit()), 1.0, rtol=1e-12)
    np.testing.assert_allclose(determinant(Oscillator()), 1.01, rtol=1e-12)


def test_disturbance_enters_and_none_is_zero():
    system, x, u = Oscillator(), jnp.array([0.1, 0.2]), jnp.array([0.3])
    np.testing.assert_array_equal(system.step(x, u), system.step(x, u, jnp.zeros(1)))
    np.testing.assert_allclose(system.step(x, u, jnp.array([0.1])) - system.step(x, u), [0, 0.01], atol=1e-12)


def test_wrap():
    angles = jnp.asarray([0.0, 3.0, -3.0, 3.5, -3.5, 10.0, 100.0])
    np.testing.assert_allclose(wrap(angles), np.arctan2(np.sin(angles), np.cos(angles)), atol=1e-12)
    inside = jnp.linspace(-3.1, 3.1, 101)
    np.testing.assert_array_equal(wrap(inside), inside)
    np.testing.assert_array_equal(jax.vmap(jax.grad(wrap))(angles), 1.0)
    assert np.isnan(wrap(jnp.nan))


def test_unicycle_as_published():
    car = Unicycle()
    y, v, psi = 0.3, 4.0, 0.2
    after = car.step(jnp.array([y, v, psi]), jnp.array([-2.0, 0.5]))
    np.testing.assert_allclose(after, [y + 0.05 * v * np.sin(psi), v - 0.1, psi + 0.025], rtol=1e-12)
    np.testing.assert_allclose(car.step(jnp.array([0.0, 0.1, 3.14]), jnp.array([-5.0, 1.0]))[1], 0.0)
    np.testing.assert_allclose(car.step(jnp.array([0.0, 11.9, 0.0]), jnp.array([5.0, 0.0]))[1], 12.0)
    assert car.step(jnp.array([0.0, 1.0, 3.14]), jnp.array([0.0, 1.0]))[2] < 0


@pytest.mark.parametrize("system", [Unicycle(), Cart(), RungeKutta()])
def test_error_and_lift_are_inverse_and_systems_conform(system):
    e = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, system.error(system.equilibrium()[0]).shape))
    np.testing.assert_allclose(system.error(system.lift(e)), e, atol=1e-12)
    np.testing.assert_allclose(system.error(system.equilibrium()[0]), 0, atol=1e-12)
    check_system(system)


def test_linearise_equals_differences():
    A, B = linearise(Unicycle())
    np.testing.assert_allclose(A, [[1, 0, 0.25], [0, 1, 0], [0, 0, 1]], atol=1e-12)
    np.testing.assert_allclose(B, [[0, 0], [0.05, 0], [0, 0.05]], atol=1e-12)
    A, B = linearise(Cart())
    np.testing.assert_allclose(np.hstack([A, B]), [[1, 0.1, 0], [0, 1, 0.1]], atol=1e-12)


def test_parameters_are_leaves_so_that_a_batch_of_robots_is_a_vmap():
    dts = jnp.array([0.05, 0.1, 0.2])
    x, u = jnp.array([0.0, 1.0]), jnp.array([0.5])
    after = jax.vmap(lambda dt: Cart(dt=dt).step(x, u))(dts)
    np.testing.assert_allclose(after, np.stack([dts, 1 + 0.5 * dts], axis=1), rtol=1e-12)


class Disc(ContinuousSystem):
    """A driven pendulum on a disc: its first number is an angle."""

    state_names, input_names, angles = ("phi", "w"), ("a",), (0,)
    dt, input_box = 0.05, Box([-5.0], [5.0])

    def derivative(self, x, u, w):
        return jnp.stack([x[1], jnp.sin(x[0]) + u[0]])

    def equilibrium(self):
        return jnp.array([3.0, 0.0]), -jnp.sin(jnp.array([3.0]))


def test_angles_go_the_short_way_round():
    disc = Disc()
    np.testing.assert_allclose(disc.error(jnp.array([-3.0, 1.0])), [2 * np.pi - 6, 1.0], atol=1e-12)
    np.testing.assert_allclose(disc.error(jnp.array([3.1 + 2 * np.pi, 0.0])), [0.1, 0.0], atol=1e-12)
    after = disc.step(jnp.array([3.1, 2.0]), jnp.zeros(1))
    assert -np.pi <= after[0] < -3.0
