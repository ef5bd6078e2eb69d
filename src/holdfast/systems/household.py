"""A house with a battery, a heat pump and heated floors: three states, one step an hour."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems.base import System

_HOUR = 3600.0


class Household(System):
    """Charge of a battery, temperature of the rooms, and of the water that returns from their floors. Changes in an hour:

        charge     battery power
        indoor     (h_floor (returning - indoor) + h_out (w - indoor)) / (h_out tau)
        returning  (h_floor (indoor - returning) + COP heat-pump power) / c_w

    The disturbance w is the temperature outside. A negative heat-pump power cools. The equilibrium is 21 degrees inside
    at w = 0, which heating holds. Source: arXiv 2506.01665, energy management of a household.

    Attributes:
        floor_transfer, outside_transfer: h_floor, h_out, heat that floors give and walls lose, kW/K.
        time_constant: tau, of the rooms against the outside, h.
        water_capacity: c_w, heat capacity of the water, kWh/K.
        performance: COP, heat moved by the heat pump for each unit of electric energy.
        comfort: indoor temperature at the equilibrium, °C.
        disturbance: bounds of the temperature outside in °C, one number; None: always zero degrees.
    """

    state_names: ClassVar = ("charge", "indoor", "returning")
    state_units: ClassVar = ("kWh", "°C", "°C")
    input_names: ClassVar = ("battery", "heat_pump")
    input_units: ClassVar = ("kW", "kW")

    dt: float = _HOUR
    floor_transfer: float = 1.1
    outside_transfer: float = 0.26
    time_constant: float = 240.0
    water_capacity: float = 1.1625
    performance: float = 3.01
    comfort: float = 21.0
    input_box: Box = eqx.field(default_factory=lambda: Box([-2.0, -2.5], [2.0, 2.5]))
    disturbance: Box | None = eqx.field(default_factory=lambda: Box([-10.0], [40.0]))

    @property
    def disturbance_box(self) -> Box | None:
        return self.disturbance

    def step(
        self, x: Float[Array, " 3"], u: Float[Array, " 2"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " 3"]:
        charge, indoor, returning = x
        battery, heat_pump = u
        hours = self.dt / _HOUR
        capacity = self.outside_transfer * self.time_constant
        losing = (self.floor_transfer + self.outside_transfer) / capacity
        warming = self.floor_transfer / capacity * returning - losing * indoor
        if w is not None and w.shape[0]:
            warming = warming + w[0] / self.time_constant
        flowing = self.floor_transfer / self.water_capacity * (indoor - returning)
        heating = self.performance / self.water_capacity * heat_pump
        return jnp.stack([charge + hours * battery, indoor + hours * warming, returning + hours * (flowing + heating)])

    def equilibrium(self) -> tuple[Float[Array, " 3"], Float[Array, " 2"]]:
        returning = (self.floor_transfer + self.outside_transfer) / self.floor_transfer * self.comfort
        heat_pump = self.floor_transfer / self.performance * (returning - self.comfort)
        return jnp.stack([5.0, self.comfort, returning]), jnp.stack([0.0, heat_pump])
