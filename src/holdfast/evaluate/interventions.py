"""Why a safeguard intervened: the constraint that the proposed action would have broken, and how soon."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.evaluate.attack import constraint_names
from holdfast.evaluate.episodes import INTERVENED, Trajectories
from holdfast.safeguards import BackupSource, InvariantSource
from holdfast.tasks import Task
from holdfast.types import Status

_CHUNK = 256


@dataclass(frozen=True)
class Intervention:
    """One step on which something else than the proposed action was applied.

    Attributes:
        episode, step: where in the kept trajectories; `time` is step * dt, s.
        status: name of the `Status`.
        constraint: the safe set's name of the first constraint broken, or one of "arrival" (the backup does not reach
            the base set in time), "input box", "not finite", "acceptance margin"; for an invariant set "invariant set", with
            the face in `reason`, or "mask" where the proposal was safe and a mask deformed it all the same.
        reason: the same in a sentence.
        time_to_violation: seconds from this step until a margin is < 0 if the proposed action is applied once and the
            backup policy takes over after it; None where that flow violates nothing.
        proposed, applied: actions, m numbers.
        state: n numbers.
    """

    episode: int
    step: int
    time: float
    status: str
    constraint: str
    reason: str
    time_to_violation: float | None
    proposed: tuple[float, ...]
    applied: tuple[float, ...]
    state: tuple[float, ...]


def explain_interventions(task: Task, safeguard: Any, trajectories: Trajectories) -> list[Intervention]:
    """Explains every intervention in kept trajectories, in order of episode and step; none for other guards.

    The flow is computed anew, so that a proposal rejected by less than rounding may look acceptable here; it is then
    put down to the acceptance margin.

    Args:
        task, safeguard: as evaluated; the safeguard's source must be a `BackupSource` or an `InvariantSource`.
        trajectories: as in `EpisodeResults.trajectories`.
    """
    source = getattr(safeguard, "source", None)
    where = np.argwhere(np.isin(trajectories.status, [int(s) for s in INTERVENED]))
    if not isinstance(source, BackupSource | InvariantSource) or len(where) == 0:
        return []
    episodes, steps = where.T
    x, proposed = trajectories.states[episodes, steps], trajectories.proposed[episodes, steps]
    dt = trajectories.dt
    if isinstance(source, InvariantSource):
        looked = _in_chunks(jax.jit(jax.vmap(lambda x, u: _look_at_rows(source, x, u))), x, proposed)
        explain = partial(_explain_rows, names=task.system.state_names)
    else:
        looked = _in_chunks(jax.jit(jax.vmap(lambda x, u: _look_ahead(task, source, x, u))), x, proposed)
        names = constraint_names(task, task.safe_set.margin(jnp.asarray(x[0])).shape[0])
        explain = partial(_explain, names=names, horizon=source.implicit_set.horizon, dt=dt)
    found = []
    for i, (episode, step) in enumerate(where):
        constraint, reason, after = explain({key: value[i] for key, value in looked.items()})
        found.append(
            Intervention(
                episode=int(episode),
                step=int(step),
                time=float(step * dt),
                status=Status(int(trajectories.status[episode, step])).name,
                constraint=constraint,
                reason=reason,
                time_to_violation=after,
                proposed=tuple(map(float, proposed[i])),
                applied=tuple(map(float, trajectories.applied[episode, step])),
                state=tuple(map(float, x[i])),
            )
        )
    return found


def count_by_constraint(interventions: list[Intervention]) -> dict[str, int]:
    """Interventions by binding constraint, most frequent first."""
    return dict(Counter(each.constraint for each in interventions).most_common())


def _in_chunks(program, x: np.ndarray, proposed: np.ndarray) -> dict[str, np.ndarray]:
    """A program of (x [k, n], u [k, m]) -> numbers by name, over any number of rows; compiled once."""
    parts = []
    for start in range(0, len(x), _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), len(x) - 1)
        parts.append(jax.device_get(program(jnp.asarray(x[rows]), jnp.asarray(proposed[rows]))))
    return {key: np.concatenate([part[key] for part in parts])[: len(x)] for key in parts[0]}


def _look_ahead(task: Task, source: BackupSource, x, u) -> dict:
    """What happens after the proposal u at x, with the backup from then on."""
    box = source.input_box
    flow = source.implicit_set.flow(task.system.step(x, box.clip(u)))
    arrived = flow.base_margins >= 0
    # Nodes after the first arrival are the base set's business.
    counted = jnp.concatenate([jnp.array([True]), jnp.cumsum(arrived)[:-1] == 0])
    bad = counted & ~jnp.all(flow.margins >= 0, axis=1)
    k = jnp.argmax(bad)
    return {
        "finite": jnp.all(jnp.isfinite(u)),
        "inside": box.contains(u),
        "violates": jnp.any(bad),
        "first": k,
        "constraint": jnp.argmin(flow.margins[k]),
        "arrives": jnp.any(arrived),
        "certified": source.implicit_set.plan(flow.states[0], source.acceptance).certified,
    }


def _look_at_rows(source: InvariantSource, x, u) -> dict:
    """Which face of the invariant set the proposal u at x may leave through, whatever the disturbance."""
    box = source.input_box
    at = box.clip(u)
    rows = source.rows(x, at)
    face = jnp.argmin(rows)
    normals, offsets = source.invariant.region.piece(x)
    return {
        "finite": jnp.all(jnp.isfinite(u)),
        "inside": box.contains(u),
        "safe": jnp.all(rows >= 0),
        "normal": normals[face],
        "offset": offsets[face],
    }


def _explain_rows(look: dict, names: tuple[str, ...]) -> tuple[str, str, None]:
    if not look["finite"]:
        return "not finite", "The proposed action held NaN or infinity.", None
    if not look["safe"]:
        terms = " ".join(f"{value:+.3g} {name}" for name, value in zip(names, look["normal"]) if value)
        face = f"{terms} <= {float(look['offset']):.3g}"
        return "invariant set", f"Some disturbance would have taken the next state beyond the face {face}.", None
    if not look["inside"]:
        return "input box", "The proposed action lay outside the input box; its nearest point in the box is safe.", None
    return "mask", "The proposed action was safe; the mask deforms every action.", None


def _explain(look: dict, names: tuple[str, ...], horizon: int, dt: float) -> tuple[str, str, float | None]:
    if not look["finite"]:
        return "not finite", "The proposed action held NaN or infinity.", None
    if look["violates"]:
        # Node 0 of the flow is the state after the proposed action: one period from now.
        after = float((int(look["first"]) + 1) * dt)
        name = names[int(look["constraint"])]
        return name, f"{name} would be violated {after:.3g} s later, whatever the backup policy does then.", after
    if not look["arrives"]:
        return "arrival", f"The backup policy would not arrive in the base set within {horizon} steps.", None
    if look["certified"] and not look["inside"]:
        return "input box", "The proposed action lay outside the input box; its nearest point in the box is safe.", None
    return "acceptance margin", "The backup plan after the proposed action clears its constraints by too little.", None
