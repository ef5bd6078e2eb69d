"""Derivatives of the safeguard, region by region, against central differences in float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.safeguards import BoundaryProjection, PerInput, Ray, Safeguard
from holdfast.types import Status
from systems_for_tests import HALF, TASK, bang_bang, certified_states, lane_source, safeguard

COUNT, STEP = 512, 1e-6
# Searched and projected to the last bit, so that differences see the exact map and not its tolerance.
EXACT = {"ray": Ray(), "per_input": PerInput(), "boundary_projection": BoundaryProjection(repeats=20, backoff=1e-9)}


@cache
def _difference_table(name: str, backup: str):
    """Step, errors |FD - AD| / (1 + |FD|) [5, count] (NaN on kinks) for (x, u), and actions."""
    x, state = certified_states(backup, COUNT)
    u = bang_bang(len(x)) * jax.random.uniform(jax.random.key(5), (len(x), 2), minval=0.3, maxval=1.2)
    guard = Safeguard(lane_source(backup), (EXACT[name],), evaluations=80, resolution=1e-14)
    c = jax.random.normal(jax.random.key(4), (len(x), 2))

    def look(state, x, u, c):
        answer, _ = guard.step(state, x, u)
        return answer.action, answer.status, jnp.argmin(guard.source.rows(x, answer.action)), answer.action @ c

    look = jax.jit(jax.vmap(look))
    slope = jax.jit(jax.vmap(jax.grad(lambda state, x, u, c: guard.step(state, x, u)[0].action @ c, argnums=(1, 2))))
    action, status, row, value = map(np.asarray, look(state, x, u, c))
    exact = np.concatenate(slope(state, x, u, c), axis=1).T
    errors = []
    for k, e in enumerate(STEP * np.eye(5)):
        up = [np.asarray(v) for v in look(state, x + e[:3][None], u + e[3:][None], c)]
        down = [np.asarray(v) for v in look(state, x - e[:3][None], u - e[3:][None], c)]
        forward, backward = (up[3] - value) / STEP, (value - down[3]) / STEP
        smooth = np.abs(forward - backward) <= 1e-3 * (1 + np.abs(forward))
        for there in (up, down):
            smooth &= (there[1] == status) & (there[2] == row)
        middle = 0.5 * (forward + backward)
        errors.append(np.where(smooth, np.abs(middle - exact[k]) / (1 + np.abs(middle)), np.nan))
    return np.asarray(u), action, status, np.array(errors)


def _region(name, u, action, status):
    inside = np.all(np.abs(u) <= HALF[None], axis=1)
    clipped = np.clip(u, -HALF, HALF)
    moved = np.any(action != clipped, axis=1) & (status == Status.corrected)
    held = np.any(np.abs(action) >= HALF[None], axis=1)
    return {
        "accepted": status == Status.accepted,
        "clip_only": (status == Status.corrected) & ~moved,
        "corrected": moved & inside & ~held,
        "corrected_and_clipped": moved & ~inside,
        "corrected_at_the_box": moved & held,
    }[name]


@pytest.mark.parametrize(
    "name, backup", [("ray", "lqr"), ("per_input", "smooth"), ("boundary_projection", "lqr"), ("ray", "smooth")]
)
def test_gradients_match_finite_differences_in_every_region(name, backup):
    u, action, status, errors = _difference_table(name, backup)
    regions = ["accepted", "clip_only", "corrected", "corrected_and_clipped"]
    if name != "ray":
        regions.append("corrected_at_the_box")
    for region in regions:
        mask = _region(region, u, action, status)
        found = errors[:, mask]
        assert mask.sum() >= 3, f"{region}: {mask.sum()} states; the test sees nothing of it"
        assert np.isfinite(found).mean() > 0.8, f"{region}: nearly all states were taken for kinks"
        limit = 1e-4
        # Where the projection jumped back along its segment, the derivative is approximate by declaration.
        approximate = 0.05 if name == "boundary_projection" else 0.0
        assert np.mean(found[np.isfinite(found)] > limit) <= approximate, f"{region}: worst {np.nanmax(found)}"


def test_gradient_of_a_held_input_is_zero_and_of_the_free_one_is_not():
    u, action, status, _ = _difference_table("boundary_projection", "lqr")
    x, state = certified_states("lqr", COUNT)
    guard = safeguard("boundary_projection")
    mask = _region("corrected_and_clipped", u, action, status) & (np.abs(u[:, 0]) > HALF[0])
    assert mask.sum() >= 3
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda s, x, u: guard.step(s, x, u)[0].action, argnums=2)))
    J = np.asarray(jacobian(*jax.tree.map(lambda leaf: leaf[np.flatnonzero(mask)[:16]], (state, x, jnp.asarray(u)))))
    assert np.all(J[:, :, 0] == 0), "the clipped input still passes a gradient"


@pytest.mark.parametrize("gradient, expected", [("straight_through", 1.0), ("stopped", 0.0)])
def test_other_gradient_modes(gradient, expected):
    x, state = certified_states("lqr", 128)
    u = bang_bang(len(x))
    guard = safeguard("ray", gradient=gradient)
    status = np.asarray(jax.jit(jax.vmap(guard.step))(state, x, u)[0].status)
    grad = jax.jit(jax.vmap(jax.grad(lambda s, x, u: guard.step(s, x, u)[0].action.sum(), argnums=(1, 2))))
    gx, gu = map(np.asarray, grad(state, x, u))
    assert np.all(gx == 0)
    assert np.all(gu[status == Status.accepted] == 1)
    intervened = status != Status.accepted
    assert intervened.sum() > 3
    assert np.all(gu[intervened] == expected)


def test_a_committed_action_is_a_constant():
    x, state = certified_states("lqr", 128)
    guard = safeguard("ray")
    grad = jax.jit(jax.grad(lambda s, x, u: jnp.nansum(guard.step(s, x, u)[0].action), argnums=(1, 2)))
    one = jax.tree.map(lambda leaf: leaf[0], state)
    gx, gu = grad(one, x[0], jnp.array([jnp.nan, 0.0]))
    np.testing.assert_array_equal(gx, 0)
    np.testing.assert_array_equal(gu, 0)


def test_gradient_through_a_scan_over_a_batch_over_seeds_equals_the_loop():
    """vmap (seeds) of grad of scan of vmap (environments), as training nests them."""
    x, state = certified_states("lqr", 24)
    x, state = jax.tree.map(lambda leaf: leaf[:24].reshape(2, 12, *leaf.shape[1:]), (x, state))
    guard = safeguard("ray")
    gains = jnp.array([[3.0, 2.0], [6.0, -2.0]])

    def loss(gain, x, state):
        def advance(carry, _):
            x, state = carry
            u = gain[None] * jnp.stack([x[:, 0], x[:, 2]], axis=1)
            answer, state = jax.vmap(guard.step)(state, x, u)
            x = jax.vmap(TASK.system.step)(x, answer.action)
            return (x, state), (jnp.sum(x**2), answer.status)

        _, (cost, status) = jax.lax.scan(advance, (x, state), None, length=4)
        return jnp.sum(cost), status

    together = jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))
    (value, status), gradient = together(gains, x, state)
    assert np.any(np.asarray(status) == Status.corrected)
    alone = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for i in range(2):
        (v, s), g = alone(gains[i], x[i], jax.tree.map(lambda leaf, i=i: leaf[i], state))
        np.testing.assert_array_equal(s, status[i])
        np.testing.assert_allclose(v, value[i], rtol=1e-9)
        np.testing.assert_allclose(g, gradient[i], rtol=1e-6, atol=1e-9)
