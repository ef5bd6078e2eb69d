"""What a task is."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from holdfast.sets import Box, LocallyConvex, SuperlevelSet
from holdfast.systems import System
from holdfast.tasks.scene import Role, Scene


class SafetySettings(eqx.Module):
    """Plain numbers from which the safety of a task is built. What is left out is derived (`certify.derive_defaults`).

    Attributes:
        state_cost, input_cost: diagonals of Q [e] and R [m] of the base controller (discrete LQR); empty: by Bryson's
            rule.
        horizon: N, steps of the backup flow; 0: from the time that the base controller takes to arrive.
        level: c of the base set; None asks for the largest level that can be proved.
        samples: random states at which the base set is tried instead of proved, where intervals cannot enter the step; its
            certificate then says so and does not hold. It needs a level. 0: proved.
    """

    state_cost: tuple[float, ...] = eqx.field(static=True, default=())
    input_cost: tuple[float, ...] = eqx.field(static=True, default=())
    horizon: int = eqx.field(static=True, default=0)
    level: float | None = eqx.field(static=True, default=None)
    samples: int = eqx.field(static=True, default=0)


class RobustSafety(eqx.Module):
    """A robust control invariant set that comes with a task instead of a backup: whatever the disturbance, the controller
    keeps a state of the region in it. What is given here is a claim; `holdfast verify` proves it or refutes it.

    Attributes:
        region: the set, in coordinates of the state.
        controller: x [n] -> u [m], admissible for any x: what is applied where nothing else is known to be safe.
    """

    region: LocallyConvex
    controller: Callable[[Float[Array, " n"]], Float[Array, " m"]]


class Task(eqx.Module):
    """A system, the set it must stay in, and what is asked of it. Task state is (x, t, context).

    A task of one's own gives `system`, `safe_set` and `reward`. All else has a default; those that are empty here (name,
    state_box, start_box, safety, episode_steps) are derived from the system and the safe set by
    `holdfast.interop.complete_task`, which the command line calls for every FILE.py:NAME.

    Attributes:
        system: what moves.
        safe_set: C, margins >= 0 inside, with names and units.
        state_box: the region in which plans live, a `Box` with n numbers: rounding is bounded there, and a plan that
            leaves it is not accepted. States for training the backup and for measuring coverage are drawn from it, too,
            unless `sample_state` says otherwise.
        start_box: errors of the starts, a `Box` with e numbers, unless `sample_start` says otherwise.
        safety: settings of base controller and backup horizon, or a robust control invariant set.
        name: as on the command line.
        episode_steps: length of an episode.
        finite: whether the task is over then (a termination: a manoeuvre that was flown), rather than merely watched no
            longer (a truncation, whose value still counts).
        training: settings of training that suit this task better than the library's defaults, by the names that
            `holdfast train` gives them.
        metric_units: metric name -> unit.
        published: metric name -> published value to compare with, if there is one.
        optimal_control: "return" or a metric's name -> its mean under open-loop optimal control from the task's starts,
            to compare with, if it was computed (`python -m benchmarks.optimal_control`).
    """

    system: eqx.AbstractVar[System]
    safe_set: eqx.AbstractVar[SuperlevelSet]
    # Not fields: a subclass may give them with or without an annotation, and `completed` fills them in.
    state_box = Box([], [])
    start_box = Box([], [])
    safety = SafetySettings()
    name = ""
    episode_steps = 0
    finite: ClassVar[bool] = False
    training: ClassVar[dict[str, Any]] = {}
    metric_units: ClassVar[dict[str, str]] = {}
    published: ClassVar[dict[str, float]] = {}
    optimal_control: ClassVar[dict[str, float]] = {}

    def sample_start(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """A start state, shape [n]: by default with an error uniform in `start_box`, or uniform in the invariant set."""
        if isinstance(self.safety, RobustSafety) and not self.start_box.dimension:
            return self.safety.region.sample(key)
        return self.system.lift(self.start_box.sample(key))

    @abc.abstractmethod
    def reward(
        self,
        x: Float[Array, " n"],
        u: Float[Array, " m"],
        x_next: Float[Array, " n"],
        t: Int[Array, ""],
        context: Any,
    ) -> Float[Array, ""]:
        """Reward of the step from time t, shape []. `u` is the applied action."""

    def sample_context(self, key: Key[Array, ""]) -> Any:
        """What stays fixed within an episode (a recorded series, obstacles); nothing by default."""
        return ()

    def context_at(self, x: Float[Array, " n"], context: Any) -> Any:
        """The context of an episode that starts at x, from the one that was drawn: the same by default. Override where
        what is asked for depends on the start, as coming back to it; keep shapes and types."""
        return context

    def disturbance(self, key: Key[Array, ""], t: Int[Array, ""], context: Any) -> Float[Array, " d"]:
        """What disturbs the step at time t, shape [d]: uniform over the system's disturbance box by default, d = 0 without
        one. Override for recorded data; a safeguard answers for any sequence in the box."""
        box = self.system.noise_box
        return box.clip(box.sample(key))

    def reference(self, t: Int[Array, ""], context: Any) -> Float[Array, " n"]:
        """The state asked for at time step t, shape [n]; the equilibrium by default. It need not be safe."""
        return self.system.equilibrium()[0]

    def observe(self, x: Float[Array, " n"], t: Int[Array, ""], context: Any) -> Float[Array, " o"]:
        """What a policy sees, shape [o]: the state and the reference by default."""
        return jnp.concatenate([x, self.reference(t, context).astype(x.dtype)])

    def nominal(self, observation: Float[Array, " o"]) -> Float[Array, " m"]:
        """The input that a policy starts from and learns to correct, shape [m]: the equilibrium's by default. Override
        where it is known what input the reference needs (a feed-forward); it need be neither safe nor stable."""
        return self.system.equilibrium()[1].astype(observation.dtype)

    def sample_state(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """A state from the region where the backup must work, shape [n]: uniform over `state_box` by default."""
        return self.state_box.sample(key)

    def sample_practice(self, key: Key[Array, ""]) -> tuple[Float[Array, " n"], Int[Array, ""]]:
        """Where a training episode may begin besides a start: a state [n] and its time step, by default a start at any
        time. Override where a policy should meet the later parts of an episode before it can reach them."""
        start, when = jax.random.split(key)
        return self.sample_start(start), jax.random.randint(when, (), 0, self.episode_steps)

    def metrics(self, states: Float[Array, "T1 n"], context: Any) -> dict[str, Float[Array, ""]]:
        """Tracking metrics of one episode from its states x_0..x_T, by name; none by default."""
        return {}

    def viable(self, x: Float[Array, " n"]) -> Bool[Array, ""] | None:
        """Whether any input sequence keeps x safe for ever, where that is known in closed form; else None."""
        return None

    def possibly_viable(self, x: Float[Array, " n"]) -> Bool[Array, ""] | None:
        """An upper bound of `viable`: False proves that no input sequence keeps x safe, True proves nothing.

        None where no such bound is known, or nothing beyond `viable`.
        """
        return None

    def scene(self, states: np.ndarray, t: int, context: Any, futures: dict[Role, np.ndarray]) -> Scene | None:
        """What the task looks like at step t of an episode, for animations; None where states over time must do.

        Runs on the host, in numpy.

        Args:
            states: x_0..x_T of the whole episode, shape [T+1, n].
            t: the step to show.
            context: of the episode.
            futures: state sequences [K+1, n] that start at x_t, by role: "backup" is the backup plan from there,
                "proposed" what would follow the proposed action. Those that are not known are left out.
        """
        return None

    def completed(self, **missing: Any) -> "Task":
        """The same task with class attributes given that it left out, as `state_box` or `name`."""
        kind = type(self)
        # A class of its own, so that what was filled in is constant, like what a class gives itself. The instance is
        # copied field by field, as transformations of pytrees do, because a task may have an `__init__` of its own.
        filled = type(kind)(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__} | missing)
        task = object.__new__(filled)
        for field in dataclasses.fields(self):
            object.__setattr__(task, field.name, missing.get(field.name, getattr(self, field.name)))
        return task

    @property
    def observation_size(self) -> int:
        x = jax.ShapeDtypeStruct((self.system.state_size,), jnp.float32)
        context = jax.eval_shape(self.sample_context, jax.random.key(0))
        return jax.eval_shape(self.observe, x, jax.ShapeDtypeStruct((), jnp.int32), context).shape[0]
