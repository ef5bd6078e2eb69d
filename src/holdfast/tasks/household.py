"""Running a household's battery and heat pump through a month: comfort first, then the electricity bill."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import Household
from holdfast.tasks.base import RobustSafety, Task
from holdfast.tasks.household_year import HOURS, HouseholdYear, household_year, price_of_hour
from holdfast.tasks.limits import limits
from holdfast.tasks.scene import Polyline, Rectangle, Scene
from holdfast.tasks.shipped import shipped_safety

CAPACITY = 10.0
INDOOR, RETURNING = (18.0, 24.0), (10.0, 100.0)
FEED_IN = 0.08
#: Hours ahead for which load, sun and temperature outside are forecast.
_AHEAD = (0, 1, 2, 3, 6, 12)


class HouseholdMonth(Task):
    """Charge from 0 to 10 kWh, 18 to 24 °C inside and water from 10 to 100 °C, whatever the weather between -10 and 40 °C.

    A month begins at any hour of the year, its context. The disturbance is the year's temperature outside. Physics,
    feasible box, prices and reward as published (arXiv 2506.01665): minus the hour's cost and 100 times the squared
    distance of the indoor temperature, at the successor, from 21 °C. Year and invariant set are ours.

    Attributes:
        year: what was used, shone and measured, hour by hour.
    """

    name: ClassVar = "household"
    episode_steps: ClassVar = 720
    metric_units: ClassVar = {"indoor_rmse": "K"}
    training: ClassVar = {
        "updates": 520,
        "environments": 40,
        "window": 48,
        "discount": 0.9,
        "actor_rate": 3e-3,
        "restart": 0.01,
    }

    system: Household = eqx.field(default_factory=Household)
    safe_set: SuperlevelSet = eqx.field(
        default_factory=lambda: limits(
            charge=(0, 0.0, CAPACITY, "kWh"), indoor=(1, *INDOOR, "°C"), returning=(2, *RETURNING, "°C")
        )
    )
    state_box: Box = eqx.field(
        default_factory=lambda: Box([0.0, INDOOR[0], RETURNING[0]], [CAPACITY, INDOOR[1], RETURNING[1]])
    )
    safety: RobustSafety = eqx.field(default_factory=lambda: shipped_safety(HouseholdMonth.name, Household().input_box))
    year: HouseholdYear = eqx.field(default_factory=household_year)

    def sample_context(self, key):
        """The hour of the year with which the episode begins, shape []."""
        return jax.random.randint(key, (), 0, HOURS)

    def disturbance(self, key, t, context):
        return self.system.noise_box.clip(self._at(self.year.outdoor, t, context)[None])

    def observe(self, x, t, context):
        of_day = 2 * np.pi * ((context + t) % 24) / 24
        clock = jnp.stack([jnp.sin(of_day), jnp.cos(of_day), self.price(t, context)])
        series = [self._at(each, t + ahead, context) for each in self.year for ahead in _AHEAD]
        return jnp.concatenate([x, clock.astype(x.dtype), jnp.stack(series).astype(x.dtype)])

    def price(self, t, context):
        """Of electric energy in the hour after step t, 1/kWh, shape []."""
        return jnp.asarray(price_of_hour())[(context + t) % 24]

    def reward(self, x, u, x_next, t, context):
        load, solar = (self._at(series, t, context).astype(x.dtype) for series in (self.year.load, self.year.solar))
        bought = jnp.sum(u) + load - solar
        price = self.price(t, context).astype(x.dtype)
        cost = jnp.where(bought >= 0, price * bought, FEED_IN * bought)
        return -cost - 100 * (x_next[1] - self.system.comfort) ** 2

    def metrics(self, states, context):
        return {"indoor_rmse": jnp.sqrt(jnp.mean((states[1:, 1] - self.system.comfort) ** 2))}

    def scene(self, states, t, context, futures):
        """Gauges between their limits: temperature of the rooms, charge of the battery, and the hour's own column between
        them, how far the sun covers what the house uses without battery and heat pump."""
        charge, indoor, _ = states[t]
        hour = (int(context) + t) % HOURS
        load, solar = float(self.year.load[hour]), float(self.year.solar[hour])
        shares = (indoor - INDOOR[0]) / (INDOOR[1] - INDOOR[0]), solar / max(load, solar), charge / CAPACITY
        low, high, shapes = 0.5, 3.5, ()
        for centre, share, role in zip((1.0, 3.0, 5.0), shares, ("body", "scenery", "body")):
            level = low + (high - low) * float(np.clip(share, 0.001, 1.0))
            shapes += (Rectangle((centre, (low + level) / 2), (1.0, level - low), role),)
            sides = (centre - 0.5, low), (centre - 0.5, high), (centre + 0.5, high), (centre + 0.5, low)
            shapes += (Polyline(np.array([*sides, sides[0]]), "limit"),)
        wanted = low + (high - low) * (self.system.comfort - INDOOR[0]) / (INDOOR[1] - INDOOR[0])
        shapes += (Polyline(np.array([[0.4, wanted], [1.6, wanted]]), "reference"),)
        return Scene(shapes, (0.0, 6.0, 0.0, 4.0), ("rooms 18 to 24 °C · sun for load · battery 0 to 10 kWh", ""))

    def _at(self, series, t, context):
        return jnp.asarray(series)[(context + t) % HOURS]
