"""The household: its year, its steps and rewards against plain numpy, the weather in the rollout.

That the task conforms (`check_task`) is in test_testing.py, with all other tasks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.tasks import make_task, reset, rollout
from holdfast.tasks.household_year import household_year, price_of_hour
from holdfast.types import Unguarded

TASK = make_task("household")
YEAR = household_year(0)
HOURS = np.arange(8760)
OF_DAY, DAY = HOURS % 24, HOURS // 24


def numpy_step(x, u, outdoor):
    """As published; one hour."""
    h_fh, h_out, tau, c_w, cop = 1.1, 0.26, 240, 1.1625, 3.01
    c0, c1, c2, c4 = (h_fh + h_out) / (h_out * tau), h_fh / (h_out * tau), h_fh / c_w, cop / c_w
    charge, indoor, returning = x
    return np.array(
        [
            charge + u[0],
            indoor - c0 * indoor + c1 * returning + outdoor / 240,
            returning + c2 * (indoor - returning) + c4 * u[1],
        ]
    )


def numpy_reward(u, indoor, hour):
    power = u[0] + u[1] + YEAR.load[hour] - YEAR.solar[hour]
    price = {True: 0.2, False: 0.5 if 17 <= hour % 24 < 21 else 0.4}[hour % 24 >= 22 or hour % 24 < 6]
    return -(power * price if power >= 0 else 0.08 * power) - 100 * (indoor - 21) ** 2


@pytest.fixture(scope="module")
def month():
    """(first episode, transitions) of 16 months under a policy that uses all of its inputs, in single precision."""
    box = TASK.system.input_box
    guard = Unguarded(box.lower, box.upper)

    def policy(observation):
        wave = jnp.sin(7 * jnp.sum(observation) + jnp.arange(2))
        return box.clip((box.half_widths * wave).astype(observation.dtype))

    def drive(key):
        episode = reset(TASK, guard, key, jnp.float32)
        return episode, rollout(TASK, guard, policy, episode, TASK.episode_steps)[1]

    return jax.jit(jax.vmap(drive))(jax.random.split(jax.random.key(0), 16))


# The year.


def test_a_year_depends_on_its_seed_alone():
    again, other = household_year(0), household_year(1)
    for first, second, third in zip(YEAR, again, other):
        np.testing.assert_array_equal(first, second)
        assert np.mean(first == third) < 0.6  # night is night in every year


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_year_is_within_its_bounds(seed):
    load, solar, outdoor = household_year(seed)
    assert load.shape == solar.shape == outdoor.shape == (8760,)
    assert np.all(load > 0) and np.max(load) < 8 and 3500 < np.sum(load) < 6500
    assert np.all(solar >= 0) and np.max(solar) <= 5 and 3500 < np.sum(solar) < 6500
    assert np.all(outdoor >= -10) and np.all(outdoor <= 40) and np.max(outdoor) > 28 and np.min(outdoor) < -3
    assert np.max(np.abs(np.diff(outdoor))) < 4


def test_seasons_days_and_weekends():
    load, solar, outdoor = YEAR
    winter, summer = (DAY < 45) | (DAY > 334), (DAY > 151) & (DAY < 243)
    assert np.mean(outdoor[summer]) - np.mean(outdoor[winter]) > 12
    assert np.sum(solar[summer]) > 4 * np.sum(solar[winter]) and np.mean(load[winter]) > 1.1 * np.mean(load[summer])
    assert np.mean(outdoor[OF_DAY == 15]) - np.mean(outdoor[OF_DAY == 4]) > 4
    assert np.all(solar[(OF_DAY < 4) | (OF_DAY >= 21)] == 0) and 11 <= np.argmax(solar) % 24 <= 13
    weekend = DAY % 7 >= 5
    by_hour = [[np.mean(load[(h == OF_DAY) & days]) for h in range(24)] for days in (~weekend, weekend)]
    assert np.argmax(by_hour[0]) in (18, 19, 20) and by_hour[0][7] > 2 * by_hour[0][3]
    assert by_hour[0][7] > by_hour[1][7] and by_hour[1][12] > by_hour[0][12]
    # Clouds and fronts stay: hours and days resemble their neighbours, weeks do not.
    noon = outdoor[OF_DAY == 12] - np.convolve(outdoor[OF_DAY == 12], np.ones(45) / 45, mode="same")
    assert np.corrcoef(noon[:-1], noon[1:])[0, 1] > 0.4 and abs(np.corrcoef(noon[:-14], noon[14:])[0, 1]) < 0.3


def test_prices_are_the_published_three():
    prices = price_of_hour()
    assert sorted(set(prices)) == [0.2, 0.4, 0.5] and prices.shape == (24,)
    assert prices[3] == prices[23] == 0.2 and prices[12] == 0.4 and prices[19] == 0.5


# The task.


def test_steps_and_rewards_are_the_published_ones(month):
    first, seen = month
    for episode in range(4):
        for t in range(0, 720, 7):
            hour = (int(first.context[episode]) + t) % 8760
            x, u = np.asarray(seen.x[episode, t], float), np.asarray(seen.applied[episode, t], float)
            wanted = numpy_step(x, u, YEAR.outdoor[hour])
            np.testing.assert_allclose(seen.x_next[episode, t], wanted, rtol=2e-6, atol=1e-5)
            reward = numpy_reward(u, float(seen.x_next[episode, t, 1]), hour)
            assert seen.reward[episode, t] == pytest.approx(reward, rel=1e-4, abs=1e-4)


def test_the_weather_is_the_years_own_and_within_its_box(month):
    first, seen = month
    box, w = TASK.system.disturbance_box, np.asarray(seen.disturbance)[..., 0]
    assert (box.lower[0], box.upper[0]) == (-10, 40) and np.all(w >= -10) and np.all(w <= 40)
    hours = (np.asarray(first.context)[:, None] + np.arange(720)) % 8760
    np.testing.assert_allclose(w, YEAR.outdoor[hours], rtol=1e-6, atol=1e-6)
    assert len(np.unique(np.asarray(first.context))) > 12


def test_what_a_policy_sees(month):
    first, seen = month
    hour = (int(first.context[2]) + 5) % 8760
    wanted = [*seen.x[2, 5], np.sin(2 * np.pi * hour / 24), np.cos(2 * np.pi * hour / 24), price_of_hour()[hour % 24]]
    for series in YEAR:
        wanted += [series[(hour + ahead) % 8760] for ahead in (0, 1, 2, 3, 6, 12)]
    np.testing.assert_allclose(seen.observation[2, 5], wanted, rtol=1e-5, atol=1e-5)


def test_starts_lie_in_the_invariant_set_and_that_in_the_feasible_box(month):
    x = np.asarray(month[0].x)
    assert np.all(np.asarray(jax.vmap(TASK.safety.region.contains)(x)))
    assert np.all(x >= [0, 18, 10]) and np.all(x <= [10, 24, 100]) and len(np.unique(x, axis=0)) == 16


def test_a_step_is_affine_in_input_and_weather_and_the_equilibrium_is_comfortable():
    step, rng = TASK.system.step, np.random.default_rng(1)
    x = rng.uniform([0, 18, 10], [10, 24, 100], (64, 3))
    v, far = rng.normal(size=(2, 64, 3)) * 10
    bend = jax.jit(jax.vmap(lambda x, v, f: step(x, (v + f)[:2], (v + f)[2:]) + step(x, (v - f)[:2], (v - f)[2:])))
    here = jax.jit(jax.vmap(lambda x, v: step(x, v[:2], v[2:])))
    np.testing.assert_allclose(bend(x, v, far), 2 * here(x, v), atol=1e-10)
    rest, idle = TASK.system.equilibrium()
    np.testing.assert_allclose(numpy_step(np.asarray(rest), np.asarray(idle), 0.0), rest, atol=1e-12)
    assert rest[1] == 21


def test_a_kilowatt_hour_sold_earns_less_than_one_bought():
    noon = int(np.argmax(YEAR.solar - YEAR.load))
    t, x = jnp.asarray(0), jnp.array([5.0, 21.0, 26.0])
    surplus = float(YEAR.solar[noon] - YEAR.load[noon])
    sold = TASK.reward(x, jnp.zeros(2), x, t, jnp.asarray(noon))
    assert sold == pytest.approx(0.08 * surplus, rel=1e-9)
    bought = TASK.reward(x, jnp.array([surplus + 1.0, 0.0]), x, t, jnp.asarray(noon))
    assert bought == pytest.approx(-price_of_hour()[noon % 24], rel=1e-9)


def test_scenes_keep_their_shapes(month):
    first, seen = month
    states = np.asarray(seen.x[0])
    scenes = [TASK.scene(states, t, first.context[0], {}) for t in (0, 13, 700)]
    kinds = [[(type(shape), shape.role) for shape in scene.shapes] for scene in scenes]
    assert kinds[0] == kinds[1] == kinds[2] and scenes[0].window == scenes[2].window
