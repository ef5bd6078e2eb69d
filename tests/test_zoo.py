"""Pendulum, cart-pole, double integrator, planar quadrotor: physics against energy and closed forms, proofs at the caps.

That each of them conforms (`check_task`) is in test_testing.py, with all other tasks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from holdfast.cli.build import certify_task
from holdfast.sets import Box
from holdfast.systems import CartPole, DoubleIntegrator, Pendulum, PlanarQuadrotor, System
from holdfast.tasks import make_task
from holdfast.testing import check_system
from systems_for_tests import assert_proved

ZOO = ("pendulum", "cart-pole", "double-integrator", "planar-quadrotor")


def samples(system, scale, count=200):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.0, 1.0, (count, system.state_size)) * np.asarray(scale)
    return x, rng.uniform(system.input_box.lower, system.input_box.upper, (count, system.input_size))


def _name(value):
    return type(value).__name__ if isinstance(value, System) else ""


# Energy and power of each mechanism, from its Lagrangian alone: independent of how the equations of motion are solved.


def pendulum_energy(s, x):
    theta, omega = x
    return s.mass * s.length**2 / 6 * omega**2 + s.mass * s.gravity * s.length / 2 * jnp.cos(theta)


def cart_pole_energy(s, x):
    _, theta, v, omega = x
    length, pole = s.half_length, s.pole_mass
    moving = (s.cart_mass + pole) * v**2 / 2 + pole * length * v * omega * jnp.cos(theta)
    return moving + 2 / 3 * pole * length**2 * omega**2 + pole * s.gravity * length * jnp.cos(theta)


def quadrotor_energy(s, x):
    _, z, _, vx, vz, omega = x
    return s.mass * (vx**2 + vz**2) / 2 + s.inertia * omega**2 / 2 + s.mass * s.gravity * z


def quadrotor_power(s, x, u):
    along = -x[3] * jnp.sin(x[2]) + x[4] * jnp.cos(x[2])
    return u[0] * along + u[1] * x[5]


MECHANISMS = [
    (Pendulum(), pendulum_energy, lambda s, x, u: u[0] * x[1], (3.0, 8.0)),
    (CartPole(), cart_pole_energy, lambda s, x, u: u[0] * x[2], (2.0, 3.0, 5.0, 8.0)),
    (PlanarQuadrotor(), quadrotor_energy, quadrotor_power, (2.0, 2.0, 3.0, 5.0, 5.0, 8.0)),
]


@pytest.mark.parametrize("system, energy, power, scale", MECHANISMS, ids=_name)
def test_energy_changes_by_the_power_of_the_inputs_alone(system, energy, power, scale):
    x, u = samples(system, scale)

    def both(x, u):
        change = jax.jvp(lambda x: energy(system, x), (x,), (system.derivative(x, u, jnp.zeros(0)),))[1]
        return change, power(system, x, u)

    change, given = jax.jit(jax.vmap(both))(x, u)
    np.testing.assert_allclose(change, given, atol=1e-9 * np.max(np.abs(given)))


# One step, in plain numpy: velocities first, positions with the new velocities.


def pendulum_acceleration(x, u, w):
    return np.array([1.5 * 9.81 * np.sin(x[0]) + 3 * u[0] + w])


def cart_pole_acceleration(x, u, w):
    _, theta, _, omega = x
    sin, cos = np.sin(theta), np.cos(theta)
    t = (u[0] + 0.1 * 0.5 * omega**2 * sin) / 1.1
    turning = (9.8 * sin - t * cos) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1)) + w
    return np.array([t - 0.1 * 0.5 * turning * cos / 1.1, turning])


def quadrotor_acceleration(x, u, w):
    thrust = u[0] / 0.486
    return np.array([-thrust * np.sin(x[2]), thrust * np.cos(x[2]) - 9.81, u[1] / 0.00383])


STEPS = [
    (Pendulum(disturbance=Box([-0.1], [0.1])), pendulum_acceleration, 0.05, 0.07),
    (CartPole(disturbance=Box([-0.1], [0.1])), cart_pole_acceleration, 0.02, 0.07),
    (PlanarQuadrotor(), quadrotor_acceleration, 0.02, 0.0),
]


@pytest.mark.parametrize("system, acceleration, dt, w", STEPS, ids=_name)
def test_a_step_is_semi_implicit_euler(system, acceleration, dt, w):
    x, u = samples(system, 3.0, 50)
    disturbed = None if system.disturbance_box is None else jnp.array([w])
    stepped = jax.jit(jax.vmap(lambda x, u: system.step(x, u, disturbed)))(x, u)
    half = x.shape[1] // 2
    for before, action, after in zip(x, u, np.asarray(stepped)):
        velocity = before[half:] + dt * acceleration(before, action, w)
        np.testing.assert_allclose(after, np.concatenate([before[:half] + dt * velocity, velocity]), atol=1e-12)


@pytest.mark.parametrize(
    "system, flip, flip_input",
    [
        (Pendulum(), [-1, -1], [-1]),
        (CartPole(), [-1, -1, -1, -1], [-1]),
        (PlanarQuadrotor(), [-1, 1, -1, -1, 1, -1], [1, -1]),
    ],
    ids=_name,
)
def test_the_mirror_image_moves_alike(system, flip, flip_input):
    flip = np.array(flip, float)
    x, u = samples(system, 2.0)
    step = jax.jit(jax.vmap(system.step))
    np.testing.assert_allclose(
        step(x * flip, u * np.array(flip_input, float)), np.asarray(step(x, u)) * flip, atol=1e-12
    )


@pytest.mark.parametrize("dimensions", [1, 5])
def test_double_integrator_in_any_dimension(dimensions):
    system = DoubleIntegrator(input_box=Box([-1.0] * dimensions, [2.0] * dimensions))
    assert (system.state_size, system.input_size) == (2 * dimensions, dimensions)
    check_system(system)
    x, u = samples(system, 2.0, 20)
    p, v = np.split(x, 2, axis=1)
    for _ in range(3):
        x = jax.vmap(system.step)(x, u)
    time = 3 * system.dt
    exact = np.concatenate([p + time * v + time**2 / 2 * u, v + time * u], axis=1)
    np.testing.assert_allclose(x, exact, atol=1e-12)


def test_double_integrator_kernel_is_what_linear_programming_finds():
    """A state is viable iff some inputs keep every sample in the room and bring it to rest: a linear program an axis."""
    task = make_task("double-integrator")
    dt, steps = task.system.dt, 16
    states = np.asarray(jax.vmap(task.sample_state)(jax.random.split(jax.random.key(0), 60)))
    k = np.arange(1, steps + 1)
    weights = np.tril(dt**2 * (k[:, None] - k[None] + 0.5))

    def axis(p, v):
        room = np.concatenate([1.0 - p - dt * k * v, 1.0 + p + dt * k * v])
        rest = {"A_eq": np.full((1, steps), dt), "b_eq": [-v]}
        found = scipy.optimize.linprog(
            np.zeros(steps), A_ub=np.concatenate([weights, -weights]), b_ub=room, bounds=(-2, 2), **rest
        )
        return found.status == 0

    wanted = [axis(px, vx) and axis(py, vy) for px, py, vx, vy in states]
    assert 10 < sum(wanted) < 50
    np.testing.assert_array_equal(jax.vmap(task.viable)(jnp.asarray(states)), wanted)


# Proofs and tasks.


def cap(base, half_widths):
    """The lower of two levels: an input saturates, or a limit |e_i| <= half_widths[i] is met."""
    inverse = np.linalg.inv(base.ellipsoid.shape_matrix)
    box, gain, rest = base.system.input_box, base.controller.gain, base.controller.equilibrium_input
    room = np.minimum(box.upper - rest, rest - box.lower)
    levels = [*(room**2 / np.diag(gain @ inverse @ gain.T)), *(b**2 / inverse[i, i] for i, b in half_widths.items())]
    return min(levels)


LIMITS = {
    "pendulum": {0: 0.6},
    "cart-pole": {0: 1.0, 1: 0.5},
    "double-integrator": {0: 1.0, 1: 1.0},
    "planar-quadrotor": {0: 2.0, 1: 1.0},
}


@pytest.mark.parametrize("name", ZOO)
def test_base_sets_are_proved_at_their_caps(name):
    task = make_task(name)
    certified = certify_task(task, level=None, horizon=None)
    certificate, level = certified.certificate, certified.base_set.ellipsoid.level
    assert certificate.holds, [(o.name, o.discharge, o.method) for o in certificate.obligations]
    assert_proved(certificate)
    # Containment is bisected to a ten-thousandth.
    assert level >= (1 - 2e-4) * cap(certified.base_set, LIMITS[name])
    if name == "planar-quadrotor":
        assert level >= 12
    # Plans must not be asked for more than a fair part of the room they have.
    margins = certified.acceptance
    rest = np.asarray(task.safe_set.margin(task.system.equilibrium()[0]))
    assert np.all(margins.path < 0.05 * rest[None]) and np.max(margins.base) < 0.5


@pytest.mark.parametrize("name", ZOO)
def test_the_reference_leaves_the_safe_set_at_times_and_fits_itself(name):
    task = make_task(name)
    times = jnp.arange(task.episode_steps + 1)
    reference = jax.vmap(lambda t: task.reference(t, ()))(times)
    inside = np.asarray(jax.vmap(task.safe_set.contains)(reference))
    assert 0.2 < np.mean(inside) < 0.9
    metrics = task.metrics(reference, ())
    assert set(metrics) == set(task.metric_units) and max(map(float, metrics.values())) < 1e-12
    half = {"pendulum": 1, "cart-pole": 2, "double-integrator": 2, "planar-quadrotor": 3}[name]
    moved, velocity = np.diff(reference[:, :half], axis=0) / task.system.dt, reference[:, half:]
    # The mean of two velocities is the slope between them, to second order in dt.
    np.testing.assert_allclose(moved, (velocity[1:] + velocity[:-1]) / 2, atol=0.02)


@pytest.mark.parametrize("name", ZOO)
def test_scenes_keep_their_shapes(name):
    task = make_task(name)
    states = 0.3 * np.random.default_rng(0).normal(size=(task.episode_steps + 1, task.system.state_size))
    futures = {"backup": states[:20], "proposed": states[:30]}
    scenes = [task.scene(states, t, (), futures) for t in (0, 7, task.episode_steps)]
    kinds = [[(type(shape), shape.role) for shape in scene.shapes] for scene in scenes]
    assert kinds[0] == kinds[1] == kinds[2] and scenes[0].window == scenes[2].window
    assert {"body", "reference", "limit", "unsafe", "backup", "proposed"} <= {role for _, role in kinds[0]}
