"""Noise chosen by an adversary: robust safeguards withstand it, and a safeguard that ignores noise is found out."""

import dataclasses
import json
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet, RobustMargins
from holdfast.evaluate import (
    BoundaryHugging,
    GradientChosen,
    HeldVertices,
    Report,
    UniformNoise,
    attack,
    default_adversaries,
    default_disturbances,
    evaluate_noise,
    evaluate_seeds,
    make_report,
)
from holdfast.plots import report_page
from holdfast.safeguards import InvariantSource, Ray, Safeguard
from holdfast.sets import Box, Polytope
from holdfast.systems import ClippedFeedback, System
from holdfast.tasks import RobustSafety, Task, make_task, reset, rollout
from holdfast.tasks.limits import limits
from holdfast.types import Unguarded
from invariant_sets_for_tests import INSIDE, SUCCESSOR, TwoAxes, invariant_set


class Raft(System):
    """x+ = x + dt (u + w): a raft in a current that may come from anywhere."""

    state_names: ClassVar = ("x", "y")
    input_names: ClassVar = ("u_x", "u_y")
    dt: float = 0.1
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))
    current: Box = eqx.field(default_factory=lambda: Box([-0.2, -0.4], [0.4, 0.3]))

    @property
    def disturbance_box(self):
        return self.current

    def step(self, x, u, w=None):
        return x + self.dt * (u + (0.0 if w is None else w))

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(2)


class Pond(Task):
    """Stay in the pond, |x|, |y| <= `edge`, and certified while both are <= 1; the current drives outwards."""

    name: ClassVar = "pond"
    episode_steps: ClassVar = 40
    edge: float = eqx.field(static=True, default=1.0)
    system: Raft = eqx.field(default_factory=Raft)
    state_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))

    @property
    def safe_set(self):
        return limits(x=(0, -self.edge, self.edge, "m"), y=(1, -self.edge, self.edge, "m"))

    @property
    def safety(self):
        normals = np.concatenate([np.eye(2), -np.eye(2)])
        home = ClippedFeedback(-5 * np.eye(2), np.zeros(2), np.zeros(2), self.system.input_box)
        return RobustSafety(Polytope(normals, np.ones(4)), home)

    def sample_start(self, key):
        return self.state_box.sample(key)

    def reward(self, x, u, x_next, t, context):
        return -jnp.sum((x_next - 2.0) ** 2)

    def sample_context(self, key):
        return jnp.outer(jnp.cos(jnp.arange(self.episode_steps)), jnp.array([0.1, -0.1]))

    def disturbance(self, key, t, context):
        """Recorded: a mild day."""
        return context[t % self.episode_steps]


class Jetty(Task):
    """The two axes of the test platform, their inputs askew, within the feasible box of its invariant set."""

    name: ClassVar = "jetty"
    episode_steps: ClassVar = 40
    system: TwoAxes = eqx.field(default_factory=TwoAxes)
    state_box: Box = eqx.field(default_factory=lambda: Box(-np.ones(4), np.ones(4)))

    @property
    def safe_set(self):
        return limits(**{name: (i, -1.0, 1.0, "") for i, name in enumerate(self.system.state_names)})

    def sample_start(self, key):
        return self.state_box.sample(key)

    def reward(self, x, u, x_next, t, context):
        return -jnp.sum(x_next**2)


def guarded(invariant, deaf=False):
    """A safeguard of the set; a deaf one believes that the disturbance is always the centre of its box."""
    if deaf:
        centre = invariant.system.disturbance_box.centre
        name = "current" if isinstance(invariant.system, Raft) else "disturbance"
        system = dataclasses.replace(invariant.system, **{name: Box(centre, centre)})
        invariant = InvariantSet(system, invariant.region, invariant.controller)
    return Safeguard(InvariantSource(invariant, RobustMargins(INSIDE, SUCCESSOR, 0.0)), (Ray(),))


POND, LAKE = Pond(), Pond(3.0)
INVARIANT = InvariantSet(POND.system, POND.safety.region, POND.safety.controller)
GUARD, DEAF = guarded(INVARIANT), guarded(INVARIANT, deaf=True)
NOISE = POND.system.disturbance_box
UNGUARDED = Unguarded(jnp.asarray(POND.system.input_box.lower), jnp.asarray(POND.system.input_box.upper))


def outwards(observation):
    return 5 * observation[:2] + 0.3


@pytest.fixture(scope="module")
def withstood():
    return attack(POND, GUARD, steps=60_000, batch=96, policy=outwards, dtype=jnp.float32)


@pytest.fixture(scope="module")
def found_out():
    return attack(POND, DEAF, steps=6_000, batch=96, policy=outwards, dtype=jnp.float32)


def test_a_robust_safeguard_withstands_chosen_noise(withstood):
    assert withstood.violations == 0 and withstood.diverged == 0
    assert withstood.certified_steps == withstood.steps and withstood.statuses["uncertified"] == 0
    assert set(withstood.disturbances) == {"uniform", "vertices", "gradient"}
    assert sum(each["steps"] for each in withstood.disturbances.values()) == withstood.steps
    assert sum(each["steps"] for each in withstood.adversaries.values()) == withstood.steps
    # The worst noise takes what the source allowed for, but no more; uniform noise all but reaches it.
    worst = {name: min(each["worst_margin"].values()) for name, each in withstood.disturbances.items()}
    assert 0 <= worst["gradient"] < 1e-4 and 0 <= worst["vertices"] < 1e-4 and worst["uniform"] < 0.02
    assert not withstood.outside_certificate and "inside the certificate" in withstood.conditions
    json.dumps(withstood.to_json(), allow_nan=False)


def test_a_safeguard_that_ignores_noise_is_found_out_by_every_kind_of_noise(found_out):
    for name, each in found_out.disturbances.items():
        assert each["violations"] > 0 and each["certified_steps"] < each["steps"], name
    shares = {name: each["violations"] / each["steps"] for name, each in found_out.disturbances.items()}
    assert shares["gradient"] == max(shares.values())
    first = found_out.examples[0]
    assert first["noise"] in shares
    x_next = POND.system.step(*(jnp.asarray(first[name]) for name in ("x", "applied", "disturbance")))
    np.testing.assert_allclose(first["x_next"], x_next, rtol=1e-5, atol=1e-6)


def test_facets_askew_and_coupled_noise_are_withstood_or_found_out_too():
    def run(deaf, steps):
        guard = guarded(invariant_set(2), deaf)
        adversaries = [each for each in default_adversaries(Jetty(), guard) if each.name in ("corners", "boundary")]
        return attack(Jetty(), guard, steps=steps, batch=90, adversaries=adversaries, dtype=jnp.float32)

    held, lost = run(False, 30_000), run(True, 5_000)
    assert held.violations == 0 and held.certified_steps == held.steps
    assert held.statuses["corrected"] > 1000
    for name, each in lost.disturbances.items():
        assert each["certified_steps"] < each["steps"], name
    assert lost.violations > 0 and lost.statuses["uncertified"] > 0


def test_leaving_the_certified_set_is_counted_where_nothing_is_violated_yet():
    found = attack(LAKE, DEAF, steps=6_000, batch=96, adversaries=[BoundaryHugging(*_look(DEAF))], dtype=jnp.float32)
    assert found.violations == 0 and found.certified_steps < found.steps
    assert found.disturbances["gradient"]["certified_steps"] < found.disturbances["gradient"]["steps"]


def _look(guard):
    adversary = next(each for each in default_adversaries(POND, guard) if each.name == "boundary")
    return adversary.look, adversary.box


def test_noise_adversaries_choose_vertices_and_hold_them():
    at, u, times = jnp.array([0.9, 0.0]), jnp.zeros(2), jnp.arange(600)
    keys = jax.random.split(jax.random.key(0), 16)
    lower, upper = np.asarray(NOISE.lower), np.asarray(NOISE.upper)
    for adversary in default_disturbances(POND, GUARD):
        along = jax.vmap(adversary, in_axes=(None, None, None, 0, None))
        w = np.asarray(jax.jit(jax.vmap(along, in_axes=(0, None, None, None, None)))(keys, at, u, times, ()))
        assert (w >= lower).all() and (w <= upper).all() and len(np.unique(w[:, :, 1])) > 1, adversary.name
        if isinstance(adversary, UniformNoise):
            np.testing.assert_allclose(w.mean(axis=(0, 1)), NOISE.centre, atol=0.01)
            continue
        assert np.isin(w[..., 0], [lower[0], upper[0]]).all() and np.isin(w[..., 1], [lower[1], upper[1]]).all()
        if isinstance(adversary, GradientChosen):
            assert (w[..., 0] == upper[0]).all()  # towards the near edge; across, nothing is near and it is drawn
        if isinstance(adversary, HeldVertices):
            changes = (np.diff(w, axis=1) != 0).any(axis=2).mean(axis=1)
            assert changes.min() < 0.05 and changes.max() > 0.1  # some loops keep it long, some change it often
            assert 0.3 < (w[..., 0] == upper[0]).mean() < 0.7


def test_gradient_chosen_noise_is_the_worst_vertex_of_a_margin_affine_in_it():
    rng = np.random.default_rng(0)
    normals, offsets, x = rng.normal(size=(7, 3)), rng.uniform(1, 2, 7), rng.normal(size=(64, 3))
    box = Box([-0.3, -0.1, 0.0], [0.2, 0.5, 0.4])
    choose = GradientChosen(lambda x, u, w: jnp.asarray(offsets) - jnp.asarray(normals) @ (x + w), box)
    program = jax.jit(jax.vmap(lambda x: choose(jax.random.key(0), x, jnp.zeros(1), jnp.asarray(0), ())))
    reached = np.min(offsets - (x + np.asarray(program(x))) @ normals.T, axis=1)
    corners = np.stack(np.meshgrid(*zip(box.lower, box.upper), indexing="ij"), axis=-1).reshape(-1, 3)
    least = np.min(offsets - (x[:, None] + corners) @ normals.T, axis=(1, 2))
    np.testing.assert_allclose(reached, least, atol=1e-12)


def test_an_episode_holds_the_vertices_that_were_chosen_for_it():
    def episode(key):
        return rollout(POND, UNGUARDED, outwards, reset(POND, UNGUARDED, key), 40, HeldVertices(NOISE))[1].disturbance

    w = np.asarray(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(3), 12)))
    changes = (np.diff(w, axis=1) != 0).any(axis=2).sum(axis=1)
    assert changes.min() <= 2 and changes.max() >= 8 and len(np.unique(w[:, 0], axis=0)) == 4


def test_noise_for_a_system_without_any():
    lane = make_task("lane-keeping")
    assert default_disturbances(lane, UNGUARDED) == ()
    with pytest.raises(ValueError, match="no disturbance_box"):
        attack(lane, UNGUARDED, steps=1, disturbances=[HeldVertices(NOISE)])


def test_reports_count_violations_and_lapses_under_each_noise(tmp_path):
    def noisy(task, guard):
        own = evaluate_seeds(task, [guard], [outwards], episodes=32, batch=32)
        return own, evaluate_noise(task, [guard], [outwards], episodes=32, batch=32)

    (own, noise), (deaf_own, deaf_noise) = noisy(POND, GUARD), noisy(LAKE, DEAF)
    for results in (own, *noise.values()):
        assert results[0].violations.sum() == results[0].lapses.sum() == 0
    assert list(noise) == ["uniform", "vertices", "gradient"]
    assert noise["gradient"][0].worst_margin.min() < noise["uniform"][0].worst_margin.min()
    # Same starts as under the task's own noise, which is recorded and far milder.
    np.testing.assert_array_equal(noise["uniform"][0].trajectories.states[:, 0], own[0].trajectories.states[:, 0])
    assert own[0].worst_margin.min() > noise["uniform"][0].worst_margin.min()
    assert all(found[0].lapses.sum() > 0 and found[0].violations.sum() == 0 for found in deaf_noise.values())
    report = make_report(LAKE, deaf_own, algorithm="shac", safeguard="deaf", seeds=[0], noise=deaf_noise)
    report.write(tmp_path / "report.json")
    again = Report.read(tmp_path / "report.json")
    assert again.safety["noise"]["gradient"]["lapses"] == deaf_noise["gradient"][0].lapses.sum()
    assert any("gradient-chosen noise: 0 violations" in note for note in again.notes)
    page = report_page(again, [])
    assert "evaluation, noise: gradient" in page and "nothing was promised any more" in page


def test_a_page_does_not_praise_what_chosen_noise_broke():
    own = evaluate_seeds(POND, [UNGUARDED], [lambda o: -o[:2]], episodes=4, batch=4, steps=3)
    report = make_report(POND, own, algorithm="shac", safeguard="none", seeds=[0], noise={"gradient": own})
    safety = report.safety | {"noise": {"gradient": report.safety["noise"]["gradient"] | {"violations": 7}}}
    assert "violated 7 times under chosen noise" in report_page(dataclasses.replace(report, safety=safety), [])
