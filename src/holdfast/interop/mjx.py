"""A MuJoCo model as a `System`: its step is MJX's own discrete step, so that what is safeguarded is what MuJoCo simulates.

system = MjxSystem.from_xml("cart_pole.xml", dt=0.02)      # state (qpos, qvel), inputs ctrl, bounded by ctrlrange
plant = MujocoPlant("cart_pole.xml", dt=0.02)              # the same model in MuJoCo's C engine, to compare with

A model of a few joints without contacts is a straight program of arithmetic, which interval arithmetic enters; but its
enclosures are wide, and no base set of such a model has been proved yet. `holdfast.certify.sample_base_set` tries one instead,
and its certificate says `sampled` and does not hold (docs/mjx.md).
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box
from holdfast.systems import System

try:
    with contextlib.redirect_stdout(sys.stderr):  # MJX prints what else it could use; stdout belongs to `--json`
        # By name, as their stubs do not know what their extension modules hold.
        mujoco: Any = importlib.import_module("mujoco")
        mjx: Any = importlib.import_module("mujoco.mjx")
except ImportError as error:
    raise ImportError(
        'holdfast.interop.mjx needs MuJoCo and MJX, which are not installed: pip install "holdfast[mjx]"'
    ) from error

#: dt may differ from a whole number of the model's time steps by this share: decimal numbers are no binary ones.
_WHOLE = 1e-9
_UNITS = {mujoco.mjtJoint.mjJNT_SLIDE: "m", mujoco.mjtJoint.mjJNT_HINGE: "rad"}


class MjxSystem(System):
    """x = (qpos, qvel), u = ctrl, held for dt; the step is `mjx.step`, as often as dt holds the model's time step.

    Made by `from_xml` or `from_model`. Physical parameters are leaves, kept in float64 and cast to the state's precision.

    Attributes:
        model, data: MJX's model, and its data of a model at rest, as NumPy arrays.
        substeps: steps of the simulator in one of the system.
        rest, rest_input: the equilibrium, shapes [n] and [m].
    """

    model: Any
    data: Any
    dt: float
    input_box: Box
    rest: np.ndarray
    rest_input: np.ndarray
    substeps: int = eqx.field(static=True)
    names: tuple[tuple[str, ...], ...] = eqx.field(static=True)

    @classmethod
    def from_xml(
        cls,
        xml: str | os.PathLike,
        *,
        dt: float | None = None,
        rest: Sequence[float] | None = None,
        rest_input: Sequence[float] | None = None,
    ) -> "MjxSystem":
        """From MJCF, as text or as a file; see `from_model`."""
        return cls.from_model(_read(xml), dt=dt, rest=rest, rest_input=rest_input)

    @classmethod
    def from_model(
        cls,
        model: "mujoco.MjModel",
        *,
        dt: float | None = None,
        rest: Sequence[float] | None = None,
        rest_input: Sequence[float] | None = None,
    ) -> "MjxSystem":
        """From a compiled model.

        Args:
            model: joints that slide or turn about one axis, actuators without a state of their own, no constraints.
            dt: sampling period, s, a whole number of the model's time steps; one of them if not given.
            rest: qpos of the equilibrium, nq numbers, its velocities being zero; the model's `qpos0` if not given.
            rest_input: ctrl that holds it there, nu numbers; zero if not given.

        Raises:
            ValueError: if the state would not hold all that the model remembers, if a constraint is enabled, if an actuator
                has no bounds, if dt is no multiple, or if MJX does not support the model; with what would be right.
        """
        _require_smooth(model)
        box, substeps = _input_box(model), _substeps(model, dt)
        joints = [model.joint(i).name or f"joint {i}" for i in range(model.njnt)]
        units = [_UNITS[mujoco.mjtJoint(kind)] for kind in model.jnt_type]
        with jax.enable_x64(True):
            try:
                on_device = mjx.put_model(model, impl="jax")
            except NotImplementedError as error:
                raise ValueError(f"model: MJX does not support it: {error}. Leave that out of the model") from error
            parts = [jax.tree.map(np.asarray, part) for part in (on_device, mjx.make_data(on_device, impl="jax"))]
        return cls(
            *parts,
            dt=substeps * float(model.opt.timestep),
            input_box=box,
            rest=_numbers("rest", rest, model.qpos0, model.nv),
            rest_input=_numbers("rest_input", rest_input, np.zeros(model.nu), 0),
            substeps=substeps,
            names=(
                (*joints, *(f"{name} velocity" for name in joints)),
                (*units, *(f"{unit}/s" for unit in units)),
                tuple(model.actuator(i).name or f"actuator {i}" for i in range(model.nu)),
            ),
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.names[0]

    @property
    def state_units(self) -> tuple[str, ...]:
        return self.names[1]

    @property
    def input_names(self) -> tuple[str, ...]:
        return self.names[2]

    def step(
        self, x: Float[Array, " n"], u: Float[Array, " m"], w: Float[Array, " d"] | None = None
    ) -> Float[Array, " n"]:
        half = x.shape[0] // 2
        model, data = (_cast(part, x.dtype) for part in (self.model, self.data))

        def advance(x, _):
            with jax.numpy_rank_promotion("allow"):  # whoever asks for strictness asks it of us, not of MJX
                after = mjx.step(model, data.replace(qpos=x[:half], qvel=x[half:], ctrl=u.astype(x.dtype)))
            return jnp.concatenate([after.qpos, after.qvel]).astype(x.dtype), None

        return jax.lax.scan(advance, x, None, length=self.substeps)[0] if self.substeps > 1 else advance(x, None)[0]

    def equilibrium(self) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
        return jnp.asarray(self.rest), jnp.asarray(self.rest_input)


class MujocoPlant:
    """The model in MuJoCo's C engine, in float64: a plant to compare with, on the host.

    Args:
        model: MJCF as text or a file, or a compiled model.
        dt: as for `MjxSystem`.
    """

    def __init__(self, model: "str | os.PathLike | mujoco.MjModel", dt: float | None = None):
        self.model: Any = model if isinstance(model, mujoco.MjModel) else _read(model)
        self.substeps = _substeps(self.model, dt)
        self._data = mujoco.MjData(self.model)

    def step(self, x: np.ndarray, u: np.ndarray) -> np.ndarray:
        """The state [n] one period after x [n] under u [m]."""
        half, data = self.model.nq, self._data
        mujoco.mj_resetData(self.model, data)
        data.qpos[:], data.qvel[:], data.ctrl[:] = x[:half], x[half:], u
        mujoco.mj_step(self.model, data, self.substeps)
        return np.concatenate([data.qpos, data.qvel])


def _read(xml: str | os.PathLike) -> "mujoco.MjModel":
    text = os.fspath(xml)
    if text.lstrip().startswith("<"):
        return mujoco.MjModel.from_xml_string(text)
    if not os.path.isfile(text):
        raise ValueError(f"xml = {text!r}: there is no such file; give the path of one, or MJCF as text (<mujoco>...)")
    return mujoco.MjModel.from_xml_path(text)


def _cast(part: Any, dtype) -> Any:
    """Floats in a precision; whole numbers in JAX's own."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.asarray(leaf), part
    )


def _require_smooth(model: "mujoco.MjModel") -> None:
    """That (qpos, qvel) is all that the model remembers, and that nothing of it is a constraint."""
    joint = next((model.joint(i) for i in range(model.njnt) if model.jnt_type[i] not in map(int, _UNITS)), None)
    if joint is not None:
        raise ValueError(
            f"joint {joint.name!r} is free or a ball: its position is a quaternion, which the state (qpos, qvel) cannot hold "
            "as numbers that add up; use slides and hinges"
        )
    if model.nv == 0 or model.nu == 0:
        raise ValueError(f"model: it has {model.nv} joints and {model.nu} actuators; give it at least one of each")
    for count, what in ((model.na, "an activation"), (getattr(model, "nhistory", 0), "a delay")):
        if count:
            raise ValueError(
                f"model: an actuator has {what} ({count} numbers), which the state (qpos, qvel) does not hold; use "
                '<motor>, <position> or <velocity> with dyntype="none" and without delay'
            )
    if model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONSTRAINT:
        return
    contacts = not model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_CONTACT
    if contacts and (model.npair or (model.geom_contype | model.geom_conaffinity).any()):
        raise ValueError(
            'model: contacts are enabled, whose impacts nothing here bounds; set <option><flag contact="disable"/></option>, '
            "and say in the safe set what must not touch"
        )
    disabled = model.opt.disableflags
    limits = not disabled & mujoco.mjtDisableBit.mjDSBL_LIMIT
    friction = not disabled & mujoco.mjtDisableBit.mjDSBL_FRICTIONLOSS
    equality = not disabled & mujoco.mjtDisableBit.mjDSBL_EQUALITY
    for on, what, flag in (
        (
            limits and (model.jnt_limited.any() or model.tendon_limited.any()),
            "a limit (range) of a joint or tendon",
            "limit",
        ),
        (
            friction and (model.dof_frictionloss.any() or model.tendon_frictionloss.any()),
            "frictionloss",
            "frictionloss",
        ),
        (equality and model.neq > 0, "an equality", "equality"),
    ):
        if on:
            raise ValueError(
                f"model: {what} is enabled, a constraint that is solved iteratively; leave it out or set <option><flag "
                f'{flag}="disable"/></option> (a range belongs into the safe set, friction into damping)'
            )


def _input_box(model: "mujoco.MjModel") -> Box:
    for i in range(model.nu):
        if not model.actuator_ctrllimited[i]:
            name = model.actuator(i).name or str(i)
            raise ValueError(
                f'actuator {name!r} has no bounds; give it ctrlrange="-1 1", say: the input box is what a safeguard chooses from'
            )
    return Box(model.actuator_ctrlrange[:, 0], model.actuator_ctrlrange[:, 1])


def _substeps(model: "mujoco.MjModel", dt: float | None) -> int:
    timestep = float(model.opt.timestep)
    ratio = 1.0 if dt is None else dt / timestep
    whole = max(1, round(ratio)) if np.isfinite(ratio) else 1
    if not abs(ratio - whole) <= _WHOLE * whole:
        raise ValueError(
            f"dt = {dt} is not a whole number of the model's time steps of {timestep:g} s; give dt = {whole * timestep:g}, or "
            f'<option timestep="{dt / max(1, round(ratio)):g}"/>'
            if dt is not None and dt > 0 and np.isfinite(dt)
            else f"dt = {dt}; give a positive number of seconds, a multiple of the model's time step of {timestep:g} s"
        )
    return whole


def _numbers(name: str, given: Sequence[float] | None, default: np.ndarray, zeros: int) -> np.ndarray:
    values = np.asarray(default if given is None else given, np.float64)
    if values.shape != default.shape or not np.isfinite(values).all():
        raise ValueError(f"{name} = {given}; give {default.size} finite numbers")
    return np.concatenate([values, np.zeros(zeros)])
