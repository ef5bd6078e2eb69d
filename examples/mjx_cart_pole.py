"""A MuJoCo cart-pole on a short track: MJX's own step is what is safeguarded (`pip install "holdfast[mjx]"`)."""

import jax.numpy as jnp

from holdfast.interop.mjx import MjxSystem
from holdfast.tasks import Box, SafetySettings, SuperlevelSet, Task

XML = """
<mujoco>
  <option timestep="0.02"><flag contact="disable"/></option>
  <worldbody>
    <body>
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom type="box" size=".1 .1 .05" mass="1"/>
      <body>
        <joint name="theta" type="hinge" axis="0 1 0"/>
        <geom type="capsule" fromto="0 0 0 0 0 1" size=".02" mass=".1"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor name="force" joint="x" ctrlrange="-10 10"/></actuator>
</mujoco>"""


class ShortTrack(Task):
    system = MjxSystem.from_xml(XML)
    safe_set = SuperlevelSet(
        lambda x: jnp.stack([1 - x[0], 1 + x[0], 0.5 - x[1], 0.5 + x[1]]),
        ("right end", "left end", "falls right", "falls left"),
    )
    state_box, start_box = Box([-1, -0.5, -3, -5], [1, 0.5, 3, 5]), Box([-0.3, -0.1, -0.2, -0.2], [0.3, 0.1, 0.2, 0.2])
    safety = SafetySettings((1.0, 3.7, 0.2, 0.8), (0.062,), horizon=60, level=10.0, samples=20_000)
    name, episode_steps = "mjx-cart-pole", 400

    def reward(self, x, u, x_next, t, context):
        return -((x_next[0] - 0.9) ** 2) - 0.1 * x_next[1] ** 2 - 0.001 * u[0] ** 2
