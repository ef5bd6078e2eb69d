"""The proved safeguard of any task, for anybody's pipeline: base sets and invariant sets through one door."""

import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.certify import CertifiedBaseSet
from holdfast.certify.duality import bounding_box
from holdfast.interop import analytic_safeguard, certify_task, complete_task, physics_of
from holdfast.interop.gymnasium import TaskEnv
from holdfast.interop.task_proof import robust_safety, safe_states
from holdfast.safeguards import BackupSource, InvariantSource
from holdfast.tasks import RobustSafety, SuperlevelSet, Task, make_task, task_names
from systems_for_tests import Cart

ROBUST = [name for name in task_names() if isinstance(make_task(name).safety, RobustSafety)]


class Stay(Task):
    system = Cart()
    safe_set = SuperlevelSet(lambda x: jnp.stack([1 - x[0], 1 + x[0]]), ("right wall", "left wall"))

    def reward(self, x, u, x_next, t, context):
        return -jnp.sum((x_next - 1.2) ** 2)


def pushed(env, steps):
    """Costs of an episode under held corners of the input box, outside of it, and NaN."""
    rng, box = np.random.default_rng(0), env.task.system.input_box
    _, info = env.reset(seed=0)
    assert info["safety"]["certified"]
    costs = []
    for t in range(steps):
        if t % 15 == 0:
            u = box.centre + np.sign(rng.normal(size=box.dimension)) * box.half_widths * rng.choice([1, 1, 50, np.nan])
        costs.append(env.step(u)[-1]["cost"])
    return costs


@pytest.mark.parametrize("name", ROBUST)
def test_the_states_of_every_shipped_set_satisfy_the_tasks_constraints(name):
    task = make_task(name)
    assert safe_states(task, task.safety.region).discharge == "proved"


def test_a_set_that_reaches_beyond_the_constraints_accepts_nothing():
    cooler = SuperlevelSet(lambda x: jnp.stack([23.9 - x[1]]), ("cooler",))
    stricter = make_task("household").completed(safe_set=cooler)
    found = certify_task(stricter)
    assert found.certificate["safe"].discharge == "not proved" and np.all(np.isinf(found.acceptance.inside))
    with pytest.raises(ValueError, match="not proved: safe"):
        analytic_safeguard(stricter)


def test_a_box_around_a_polytope_ends_where_its_walls_do():
    rng = np.random.default_rng(1)
    walls = np.concatenate([np.eye(3), -np.eye(3) * [1.0, 3.0, 0.7], rng.normal(size=(4, 3))])
    offsets = np.concatenate([[1.0, 2.0, 0.3], [0.0, 0.1, 10.0], 100 * np.ones(4)])
    lower, upper = bounding_box(walls, offsets)
    np.testing.assert_array_equal(upper, [1.0, 2.0, 0.3])
    assert lower[0] == 0.0 and -lower[1] >= 0.1 / 3 and -lower[2] >= 10 / 0.7
    np.testing.assert_allclose(lower, [0, -0.1 / 3, -10 / 0.7], rtol=1e-14)


def test_a_task_with_an_invariant_set_gets_its_safeguard():
    guard = analytic_safeguard("household", maps=("boundary_projection",))
    assert isinstance(guard.source, InvariantSource)
    assert not any(pushed(TaskEnv("household", guard), 150))
    assert robust_safety(make_task("household")).region is not None
    with pytest.raises(TypeError, match="kept by a backup"):
        robust_safety(make_task("pendulum"))
    with pytest.raises(
        ValueError, match="horizon = 9; household is kept by a robust control invariant set, which has none"
    ):
        certify_task(make_task("household"), horizon=9)


def test_a_task_of_ones_own_is_completed_proved_and_kept():
    task = complete_task(Stay())
    guard = analytic_safeguard(Stay())
    assert isinstance(guard.source, BackupSource) and task.name == "Stay" and task.safety.horizon
    found = certify_task(task)
    assert isinstance(found, CertifiedBaseSet) and found.certificate.physics == physics_of(task)
    assert not any(pushed(TaskEnv(task, guard), 150))
    with pytest.raises(AssertionError):  # nothing is promised without one
        pushed(TaskEnv(task), 1)
