"""The seeker's course: free space, tangents, the controller that keeps its distance; and points drawn from polytopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet
from holdfast.certify import certify_invariant_set
from holdfast.safeguards import InvariantSource
from holdfast.sets import Box, FreeSpace, Polytope
from holdfast.systems import Retreat, Seeker
from holdfast.tasks import episode_context, make_task, reset
from holdfast.types import Unguarded

TASK = make_task("seeker")
REGION, RETREAT = TASK.safety.region, TASK.safety.controller
PLANTS, STEPS = 64, 400


@pytest.fixture(scope="module")
def certified():
    return certify_invariant_set(InvariantSet(TASK.system, REGION, RETREAT), TASK.state_box, physics="")


def test_every_point_of_a_tangent_piece_is_free():
    rng = np.random.default_rng(0)
    pieces = jax.jit(jax.vmap(REGION.piece))
    x = jnp.asarray(rng.uniform(-8, 8, (400, 2)))
    x = x[np.asarray(jax.vmap(REGION.contains)(x))]
    normals, offsets = (np.asarray(part) for part in pieces(x))
    z = rng.uniform(-8, 8, (2000, 2))
    inside = np.all(np.einsum("kpn,zn->kzp", normals, z) <= offsets[:, None], axis=2)
    free = np.all(np.linalg.norm(z[:, None] - REGION.centres, axis=2) >= REGION.radii, axis=1)
    assert inside.any(axis=1).all() and not np.any(inside & ~free[None])
    # x itself is in its piece, but for the shortening of its normals.
    assert np.all(np.einsum("kpn,kn->kp", normals, np.asarray(x)) <= offsets + 1e-5)


@pytest.mark.parametrize("noise", [0.05, 0.0], ids=["knows the noise", "forgets the noise"])
def test_the_retreat_keeps_free_space_against_the_worst_corner(certified, noise):
    """Float32, 25,600 steps, the corner of the disturbance that takes most from the nearest face; sabotaged, it fails."""
    retreat = Retreat(REGION, TASK.system.dt, noise, TASK.system.input_box)
    source = InvariantSource(certified.invariant, certified.acceptance)

    @jax.jit
    def loop(x):
        def step(x, _):
            normals, offsets = REGION.piece(x)
            nearest = normals[jnp.argmin(offsets - normals @ x)]
            x = TASK.system.step(x, retreat(x), 0.05 * jnp.sign(nearest))
            return x, (jnp.min(REGION.margin(x)), source.init(x).certified)

        return jax.lax.scan(step, x, None, length=STEPS)[1]

    starts = jax.vmap(REGION.sample)(jax.random.split(jax.random.key(1), PLANTS)).astype(jnp.float32)
    margins, still = jax.jit(jax.vmap(loop))(starts)
    assert bool(jnp.all(margins >= 0) & jnp.all(still)) == (noise > 0)


def test_a_gap_that_is_too_narrow_is_named():
    walls = Box([-8.0, -8.0], [8.0, 8.0])
    region = FreeSpace(walls, [[0.0, 0.0], [2.1, 0.0]], [1.0, 1.0])
    system = Seeker()
    controller = Retreat(region, system.dt, 0.05, system.input_box)
    found = certify_invariant_set(InvariantSet(system, region, controller), walls, physics="")
    obligation = found.certificate["invariant under its controller"]
    assert obligation.discharge == "not proved" and "the gap between obstacle 0" in obligation.method
    assert np.all(np.isinf(found.acceptance.successor))


def test_rewards_and_starts_are_what_they_should_be(certified):
    x, x_next, goal = jnp.array([1.0, 6.0]), jnp.array([1.1, 6.0]), jnp.array([4.1, 2.0])
    assert TASK.reward(x, jnp.zeros(2), x_next, 0, goal) == pytest.approx(-10.0)
    starts = jax.jit(jax.vmap(TASK.sample_start))(jax.random.split(jax.random.key(0), 512))
    assert bool(jnp.all(jax.vmap(REGION.contains)(starts)))
    assert TASK.observe(starts[0], 0, goal).shape == (TASK.observation_size,)


def test_the_goal_of_an_episode_is_found_again_from_its_key():
    key = jax.random.fold_in(jax.random.key(5), 3)
    box = TASK.system.input_box
    episode = reset(TASK, Unguarded(box.lower, box.upper), key)
    np.testing.assert_array_equal(episode_context(TASK, key, episode.x), episode.context)


def test_points_of_a_polytope_are_nearly_uniform():
    """Against rejection: the shares of the four quarters of a slanted quadrilateral."""
    polytope = Polytope([[1.0, 0.0], [-1.0, 0.0], [0.2, 1.0], [-0.4, -1.0]], [3.0, 1.0, 1.0, 0.8])
    drawn = np.asarray(jax.jit(jax.vmap(polytope.sample))(jax.random.split(jax.random.key(0), 8000)))
    assert np.all(drawn @ polytope.normals.T <= polytope.offsets + 1e-6)
    box = polytope.bounding_box()
    trial = np.random.default_rng(0).uniform(box.lower, box.upper, (60_000, 2))
    trial = trial[np.all(trial @ polytope.normals.T <= polytope.offsets, axis=1)]
    for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
        for level in (0.25, 0.5, 0.75):
            cut = np.quantile(trial @ np.array(direction), level)
            assert np.mean(drawn @ np.array(direction) <= cut) == pytest.approx(level, abs=0.025)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([1.0, -2.0, 1.0, 1.0], "empty"), ([1.0, np.inf, 1.0, 1.0], r"unbounded in the direction -x\[0\]")],
)
def test_empty_and_unbounded_polytopes_have_no_box(offsets, message):
    normals = [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]
    if not np.all(np.isfinite(offsets)):
        normals, offsets = (
            [n for n, d in zip(normals, offsets) if np.isfinite(d)],
            [d for d in offsets if np.isfinite(d)],
        )
    with pytest.raises(ValueError, match=message):
        Polytope(normals, offsets).bounding_box()
