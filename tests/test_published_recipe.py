"""Phase 2 as published: its settings, its layer by name, and a warm start that refuses what does not fit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from command_line import command
from holdfast.certify import Certificate
from holdfast.cli.build import certify_task, load_task, make_guard, policy_trainer
from holdfast.cli.config import TrainConfig
from holdfast.cli.training import Trained, _blank, warm_start, warmed
from holdfast.learn import SacSettings, SacTrainer
from holdfast.runs import RunDirectory, RunError
from holdfast.safeguards import BackupCBF, LayerFirst, Safeguard
from holdfast.tasks import make_task
from learning_for_tests import UNGUARDED, Reach

TASK = make_task("lane-keeping")
PUBLISHED = TrainConfig("lane-keeping", algorithm="sac", recipe="published", level=1.05, horizon=4)


def test_the_recipe_is_the_published_one_and_gives_way_to_what_is_given():
    settled = PUBLISHED.for_task(TASK)
    trainer = policy_trainer(TASK, UNGUARDED, settled)
    found = trainer.settings
    assert settled.safeguard == "backup_cbf" and found.placement == "policy"
    assert (found.batch, found.discount, found.target_smoothing, found.hidden) == (64, 0.99, 0.005, (128, 128))
    assert trainer.steps_per_update == 8 * found.gradient_steps
    assert found.updates * trainer.steps_per_update >= 1e6 > (found.updates - 1) * trainer.steps_per_update
    given = replace(PUBLISHED, updates=3, hidden=(256, 256), safeguard="ray").for_task(TASK)
    assert (given.safeguard, policy_trainer(TASK, UNGUARDED, given).settings.updates) == ("ray", 3)
    assert policy_trainer(TASK, UNGUARDED, given).settings.hidden == (256, 256)
    assert replace(PUBLISHED, algorithm="ppo").for_task(TASK).steps == 1e6
    own = TrainConfig("lane-keeping", algorithm="sac").for_task(TASK)
    assert policy_trainer(TASK, UNGUARDED, own).settings.batch == SacSettings().batch


@pytest.fixture(scope="module")
def certified():
    return certify_task(TASK, level=1.05, horizon=4)


def test_one_name_apart_the_layer_is_alone_or_verified(certified):
    settled = replace(PUBLISHED, safe_gain=3.0, gradient="relaxed").for_task(TASK)
    alone = make_guard(TASK, certified, None, settled)
    assert isinstance(alone, BackupCBF)
    assert (alone.safe_gain, alone.base_gain, alone.gradient, alone.implicit_set.horizon) == (3.0, 2.0, "relaxed", 4)
    verified = make_guard(TASK, certified, None, replace(settled, safeguard="backup_cbf_verified"))
    assert isinstance(verified, Safeguard) and isinstance(verified.mask, LayerFirst) and verified.maps == ()
    assert verified.mask.layer.safe_gain == 3.0


def test_its_certificate_says_what_is_not_proved(certified):
    base = certified.certificate
    found = BackupCBF.certificate(base)
    assert base.holds and not found.holds
    open_ones = {each.name for each in found.obligations if each.discharge == "not proved"}
    assert open_ones == {
        "rows are met",
        "rows between samples",
        "rows where the backup switches",
        "tolerance",
        "recursion",
    }
    # What the base set's proof says stays; what is said about replayed plans is no matter of a layer.
    assert {each.name for each in found.obligations} - open_ones == {"base set invariant", "base set safe"}
    assert Certificate.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    "options, words",
    [
        (("--recipe", "published"), "recipe = 'published' with algorithm = 'shac'"),
        (("--safe-gain", "0"), "safe_gain = 0.0; give a number > 0"),
        (("--hidden", "0"), "hidden = (0,); give sizes >= 1"),
        (("--warm-start", "nowhere"), "nowhere does not exist"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_left(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = command("train", "lane-keeping", *options)
    assert answer.code == 2 and words in answer.err


def test_gradients_and_tasks_that_have_no_layer_are_refused(certified):
    settled = replace(PUBLISHED, safeguard="ray", gradient="relaxed").for_task(TASK)
    with pytest.raises(ValueError, match="gradient = 'relaxed' is of the published layer"):
        make_guard(TASK, certified, None, settled)
    pendulum = load_task("balance-pendulum")
    robust = certify_task(pendulum, level=None, horizon=None)
    asked = TrainConfig("balance-pendulum", safeguard="backup_cbf").for_task(pendulum)
    with pytest.raises(ValueError, match="robust control invariant set and has no backup to look at"):
        make_guard(pendulum, robust, None, asked)


@pytest.mark.parametrize(
    "other, words",
    [
        (TrainConfig("double-integrator", algorithm="sac"), "is a run of task 'double-integrator', not 'lane-keeping'"),
        (TrainConfig("lane-keeping", algorithm="ppo"), "has algorithm = ppo, and this run sac"),
        (TrainConfig("lane-keeping", algorithm="sac", hidden=(8,)), r"has hidden = \(8,\), and this run \(128, 128\)"),
        (replace(PUBLISHED, seeds=2), "has 2 seeds, and this run 3"),
        (PUBLISHED, "stopped before it had a policy"),
    ],
)
def test_a_warm_start_from_something_else_is_refused(other, words, tmp_path):
    run = RunDirectory.create(tmp_path / "other", other.for_task(load_task(other.task)))
    with pytest.raises(RunError, match=words):
        warm_start(replace(PUBLISHED, seeds=3, warm_start=str(run.path)).for_task(TASK), TASK)


def test_a_warm_start_takes_over_what_was_learned_and_nothing_else():
    def state(seeds, value, **settings):
        small = SacSettings(updates=2, environments=2, window=2, batch=4, warm_up=2, replay=8, **settings)
        blank = _blank(SacTrainer(Reach(), UNGUARDED, small), jax.random.split(jax.random.key(0), seeds))

        def fill(leaf):
            known = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
            return jnp.full_like(leaf, value) if known else leaf

        return jax.tree.map(fill, blank)

    def trained(policy):
        return Trained(TASK, PUBLISHED.for_task(TASK), None, None, policy, True, {})  # pyright: ignore[reportArgumentType]

    def values(tree):
        return {float(v) for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array) for v in np.ravel(leaf)}

    found = warmed(state(3, 1.0, hidden=(4,)), trained(state(1, 2.0, hidden=(4,))), "other")
    for part in (found.actor, found.critic, found.target, found.log_temperature, found.experience.normaliser):
        assert values(part) == {2.0}
    assert found.actor.network.layers[0][0].shape[0] == 3
    assert values(found.replay.rows) == {1.0} and values(found.experience.episodes.x) == {1.0}
    with pytest.raises(RunError, match=r"has shape \(\d+, 5\) for each seed, and this run \(\d+, 4\)"):
        warmed(state(1, 1.0, hidden=(4,)), trained(state(1, 2.0, hidden=(5,))), "other")
