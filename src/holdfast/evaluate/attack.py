"""Attacks: long closed loops in which adversaries push a safeguarded plant against its constraints."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from holdfast.evaluate.adversaries import Adversary, default_adversaries
from holdfast.evaluate.attack_result import AttackResult, conditions_of, names_of
from holdfast.evaluate.disturbances import Disturbance, default_disturbances, looked_at_again
from holdfast.evaluate.episodes import split
from holdfast.tasks import Task
from holdfast.types import Guard, Status

_LOOK_EVERY = 32  # steps between two looks at the device: seldom enough to keep it busy, often enough for a clock


class _Plants(eqx.Module):
    """State of all plants [B] and what was counted on each. Lives on the device; read once at the end."""

    x: Any
    start: Any
    pending: Any
    reset: Any
    violations: Any
    certified: Any
    lapsed: Any
    diverged: Any
    worst: Any
    statuses: Any
    first_step: Any
    first_x: Any
    first_proposed: Any
    first_applied: Any
    first_disturbance: Any
    first_next: Any


def attack(
    task: Task,
    safeguard: Guard,
    *,
    steps: int,
    seed: int = 0,
    adversaries: Sequence[Adversary] | None = None,
    disturbances: Sequence[Disturbance] | None = None,
    batch: int = 1024,
    policy: Callable | None = None,
    model_error: float = 0.0,
    noise: float = 0.0,
    delay: int = 0,
    dtype=None,
    progress: Callable[[int, int, int], bool | None] | None = None,
) -> AttackResult:
    """Closed loops of about `steps` plant steps in all, each plant under one adversary; counts every violation.

    Plant and safeguard are compiled as two programs, so they do not share rounding, and every plant step moves each
    component of the state by -1, 0 or +1 unit in the last place (but not out of what the system itself clips). Half of
    the plants start from `task.sample_state`, half from `task.sample_start`, all of them certified.

    Args:
        task, safeguard: what is attacked. A guard without `source` (`types.Unguarded`) is attacked through the safe
            set's own margins.
        steps: attacked steps of all plants together, rounded up to a multiple of the number of plants.
        seed: of everything random.
        adversaries: `default_adversaries` where None. They share the plants evenly.
        disturbances: who chooses the disturbance within the system's box, whatever the task's own noise;
            `default_disturbances` where None. They share the plants of every adversary evenly.
        batch: number of plants; at least one for each pair of adversaries.
        policy: a trained policy, attacked with noise on its actions (only with the default adversaries).
        model_error: the plant's inputs act as u (1 +- model_error), sign drawn for each plant and input.
        noise: the safeguard sees x + noise * (half-widths of task.state_box) * U(-1, 1).
        delay: steps by which the applied action comes late; until then, the equilibrium input.
        dtype: float type, JAX's default one by default.
        progress: called now and then with (steps done, steps in all, violations so far); a true answer stops the
            attack, and the result then covers the steps done.

    Raises:
        ValueError: if no state can be certified, or a number is out of range.
    """
    if steps < 1 or batch < 1 or delay < 0 or model_error < 0 or noise < 0:
        raise ValueError(
            f"attack: steps = {steps}, batch = {batch}, model_error = {model_error}, noise = {noise}, delay = {delay}; "
            "give steps and batch >= 1 and the others >= 0"
        )
    dtype = jax.dtypes.canonicalize_dtype(float if dtype is None else dtype)
    if adversaries is None:
        adversaries = default_adversaries(task, safeguard, policy)
    if disturbances is None:
        disturbances = default_disturbances(task, safeguard)
    if disturbances and task.system.disturbance_box is None:
        raise ValueError(
            f"attack: disturbances for task {task.name!r}, whose system has no disturbance_box; leave them out"
        )
    batch = max(batch, len(adversaries) * max(1, len(disturbances)))
    shares = [len(part) for part in np.array_split(np.arange(batch), len(adversaries))]
    # In turns within every adversary's share, so that each meets all the noise.
    turns = np.concatenate([np.arange(share) % max(1, len(disturbances)) for share in shares])

    begin = time.perf_counter()
    start_key, plant_key, control_key = jax.random.split(jax.random.key(seed), 3)
    x, guard_state, uncertified = _starts(task, safeguard, start_key, batch, dtype)
    plants = _initial(task, x, delay, dtype)
    (arrays, static) = split(safeguard, tuple(adversaries))
    control = _control_program(task, static, shares, noise)
    noise_arrays, noise_static = split(tuple(disturbances))
    step_plants = _plant_program(task, model_error, noise_static, turns, dtype)
    t = jnp.zeros((), jnp.int32)
    proposed = jnp.zeros((batch, task.system.input_size), dtype)
    control = jax.jit(control).lower(arrays, guard_state, guard_state, plants.reset, x, proposed, t, control_key)
    control = control.compile()
    answer, _ = jax.eval_shape(jax.vmap(safeguard.step), guard_state, x, proposed)
    certified = jax.ShapeDtypeStruct((batch,), bool)
    step_plants = jax.jit(step_plants).lower(
        noise_arrays, plants, proposed, answer.action, answer.status, certified, t, plant_key
    )
    step_plants = step_plants.compile()
    recertified = looked_at_again(safeguard)
    if recertified:
        look_again = jax.jit(_recertification(safeguard)).lower(plants, certified).compile()
    compiled = time.perf_counter()

    rounds = -(-steps // batch)
    first_guard_state = guard_state
    for k in range(rounds):
        t = jnp.asarray(k, jnp.int32)
        guard_state, proposed, action, status, certified = control(
            arrays, guard_state, first_guard_state, plants.reset, plants.x, proposed, t, control_key
        )
        plants = step_plants(noise_arrays, plants, proposed, action, status, certified, t, plant_key)
        if recertified:
            plants = look_again(plants, certified)
        if k % _LOOK_EVERY == _LOOK_EVERY - 1:
            plants.violations.block_until_ready()
            so_far = int(np.sum(np.asarray(plants.violations), dtype=np.int64))
            if progress is not None and progress((k + 1) * batch, rounds * batch, so_far):
                rounds = k + 1
                break
    plants = jax.device_get(plants)
    seconds = time.perf_counter() - compiled

    outside, conditions = conditions_of(task, safeguard, disturbances, model_error, noise, delay)
    who = np.repeat(names_of(adversaries), shares)
    noisy = np.array(names_of(disturbances))[turns] if disturbances else np.array([])
    return AttackResult(
        task=task.name,
        seed=seed,
        steps=rounds * batch,
        plants=batch,
        **_totals(task, plants),
        statuses={s.name: int(plants.statuses[:, s].sum(dtype=np.int64)) for s in Status},
        uncertified_starts=uncertified,
        diverged=int(plants.diverged.sum(dtype=np.int64)),
        adversaries=_by_name(task, plants, who, rounds),
        disturbances=_by_name(task, plants, noisy, rounds),
        examples=_examples(plants, who, noisy),
        outside_certificate=outside,
        conditions=conditions,
        precision=np.dtype(dtype).name,
        seconds=seconds,
        compile_seconds=compiled - begin,
    )


def _starts(task: Task, guard: Guard, key, batch: int, dtype):
    """Certified states [B, n], the guard's commitments there, and how many task starts were not certified."""
    count = 8 * batch
    state_key, start_key = jax.random.split(key)

    @jax.jit
    def look(keys, start_keys):
        states = jax.vmap(task.sample_state)(keys).astype(dtype)
        starts = jax.vmap(task.sample_start)(start_keys).astype(dtype)
        x = jnp.concatenate([starts, states])
        inside = jax.vmap(task.safe_set.contains)(x) & jnp.all(jnp.isfinite(x), axis=1)
        commitments = jax.vmap(guard.init)(x)
        return x, commitments, inside & getattr(commitments, "certified", True)

    x, commitments, certified = look(jax.random.split(state_key, count), jax.random.split(start_key, batch))
    certified = np.asarray(certified)
    from_start, from_box = np.flatnonzero(certified[:batch]), batch + np.flatnonzero(certified[batch:])
    if from_start.size + from_box.size == 0:
        raise ValueError(
            f"attack: the safeguard certifies none of {count + batch} states of task {task.name!r}, so there is no "
            "promise to attack; train a better backup policy, use a longer horizon or a larger base set"
        )
    chosen = np.concatenate([from_start[: batch // 2], from_box, from_start[batch // 2 :]])
    # Too few certified states: start several plants from one; their adversaries and noise differ.
    chosen = np.resize(chosen, batch)
    # Starts and states in turns, or the first adversaries would get all the task starts.
    chosen = np.random.default_rng(0).permutation(chosen)
    x, commitments = jax.tree.map(lambda leaf: leaf[chosen], (x, commitments))
    return x, commitments, int(np.sum(~certified[:batch]))


def _initial(task: Task, x, delay: int, dtype) -> _Plants:
    batch, m = x.shape[0], task.system.input_size
    margins = jax.vmap(task.safe_set.margin)(x)
    zeros, off = jnp.zeros(batch, jnp.int32), jnp.zeros(batch, bool)
    action = jnp.zeros((batch, m), dtype)
    still = jnp.zeros((batch, task.system.noise_box.dimension), dtype)
    rest = jnp.broadcast_to(jnp.asarray(task.system.equilibrium()[1], dtype)[None, None], (batch, delay, m))
    statuses = jnp.zeros((batch, len(Status)), jnp.int32)
    counts = zeros, zeros, zeros, zeros
    return _Plants(x, x, rest, off, *counts, margins, statuses, zeros - 1, x, action, action, still, x)


def _control_program(task: Task, static, shares: list[int], noise: float):
    """All adversaries' proposals and the safeguard's answers to them, for all plants."""
    stops = np.cumsum(shares)

    def control(arrays, guard_state, first_guard_state, reset, x, proposed, t, key):
        guard, adversaries = eqx.combine(arrays, static)
        guard_state = _select(reset, first_guard_state, guard_state)
        adversary_key, noise_key = jax.random.split(jax.random.fold_in(key, t))
        keys = jax.random.split(adversary_key, x.shape[0])
        parts = []
        for adversary, stop, share in zip(adversaries, stops, shares):
            rows = slice(int(stop) - share, int(stop))
            parts.append(jax.vmap(adversary, in_axes=(0, 0, 0, None))(keys[rows], x[rows], proposed[rows], t))
        proposed = jnp.concatenate(parts)
        measured = x
        if noise:
            half = jnp.asarray(task.state_box.half_widths, x.dtype)
            measured = x + noise * half[None] * jax.random.uniform(noise_key, x.shape, x.dtype, -1.0, 1.0)
        answer, guard_state = jax.vmap(guard.step)(guard_state, measured, proposed)
        certified = jnp.asarray(getattr(guard_state, "certified", jnp.zeros(x.shape[0], bool)))
        return guard_state, proposed, answer.action, answer.status, certified

    return control


def _plant_program(task: Task, model_error: float, noise_static, turns: np.ndarray, dtype):
    """One step of all plants, with their disturbances, model error, delay and noise in the last place; and the counting."""
    system = task.system

    def advance(x, u, w, key):
        stepped = task.system.disturbed_step(x, u, w)
        direction = jax.random.randint(key, stepped.shape, -1, 2)
        target = jnp.where(direction > 0, jnp.inf, -jnp.inf).astype(stepped.dtype)
        moved = jnp.where(direction == 0, stepped, jnp.nextafter(stepped, target))
        post_step = getattr(system, "post_step", None)
        # What the system clips stays clipped: noise that its own post_step takes back exactly is taken back.
        return moved if post_step is None else jnp.where(post_step(moved) == stepped, stepped, moved)

    def disturb(noise_arrays, x, applied, t, key):
        (disturbances,) = eqx.combine(noise_arrays, noise_static)
        box = system.noise_box
        w = jnp.zeros((x.shape[0], box.dimension), dtype)
        # What was recorded gives way to what is chosen: one context does for all.
        context = task.sample_context(jax.random.key(0)) if disturbances else ()
        for i, choose in enumerate(disturbances):
            rows = np.flatnonzero(turns == i)
            keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)
            chosen = jax.vmap(choose, in_axes=(0, 0, 0, None, None))(keys, x[rows], applied[rows], t, context)
            w = w.at[rows].set(jax.vmap(box.clip)(chosen.astype(dtype)))
        return w

    def step_plants(noise_arrays, plants: _Plants, proposed, action, status, certified, t, key):
        batch = action.shape[0]
        queue = jnp.concatenate([plants.pending, action[:, None]], axis=1)
        applied, pending = queue[:, 0], queue[:, 1:]
        if model_error:
            # One draw for the whole attack: a wrong model stays wrong in the same way.
            sign = jax.random.rademacher(jax.random.fold_in(key, 2**31), applied.shape, dtype)
            applied = applied * (1 + model_error * sign)
        w = disturb(noise_arrays, plants.x, applied, t, jax.random.fold_in(key, 2**31 + 1))
        keys = jax.random.split(jax.random.fold_in(key, t), batch)
        x_next = jax.vmap(advance)(plants.x, applied, w, keys)
        margins = jax.vmap(task.safe_set.margin)(x_next)
        finite = jnp.all(jnp.isfinite(x_next), axis=1)
        violates = ~(jnp.all(margins >= 0, axis=1) & finite)
        # XLA's min drops NaN, so a state that is not finite says -inf instead.
        seen = jnp.where(finite[:, None] & jnp.isfinite(margins), margins, -jnp.inf)
        first = violates & (plants.first_step < 0)
        return _Plants(
            x=jnp.where(finite[:, None], x_next, plants.start),
            start=plants.start,
            pending=pending,
            reset=~finite,
            violations=plants.violations + violates,
            certified=plants.certified + certified,
            lapsed=plants.lapsed,
            diverged=plants.diverged + ~finite,
            worst=jnp.minimum(plants.worst, seen),
            statuses=plants.statuses + (status[:, None] == jnp.arange(len(Status))[None]),
            first_step=jnp.where(first, t, plants.first_step),
            first_x=_select(first, plants.x, plants.first_x),
            first_proposed=_select(first, proposed, plants.first_proposed),
            first_applied=_select(first, applied, plants.first_applied),
            first_disturbance=_select(first, w, plants.first_disturbance),
            first_next=_select(first, x_next, plants.first_next),
        )

    return step_plants


def _recertification(guard: Guard):
    """Counts the promises that did not come true: the guard held one, and the new state is not certified anew.

    A program of its own: what it sees is what was stored, as the safeguard will.
    """

    def look_again(plants: _Plants, certified):
        again = jax.vmap(guard.init)(plants.x).certified & ~plants.reset
        return eqx.tree_at(lambda p: p.lapsed, plants, plants.lapsed + (certified & ~again))

    return look_again


def _select(mask, yes, no):
    def pick(a, b):
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)


def _totals(task: Task, plants: _Plants, rows: Any = slice(None)) -> dict:
    worst = plants.worst[rows].min(axis=0)
    return {
        "violations": int(plants.violations[rows].sum(dtype=np.int64)),
        "violating_plants": int(np.sum(plants.violations[rows] > 0)),
        "certified_steps": int((plants.certified - plants.lapsed)[rows].sum(dtype=np.int64)),
        "worst_margin": dict(zip(constraint_names(task, worst.shape[0]), map(float, worst))),
    }


def _by_name(task: Task, plants: _Plants, names: np.ndarray, rounds: int) -> dict[str, dict]:
    """What happened to the plants under each of the names, one name a plant."""
    found = {}
    for name in dict.fromkeys(names):
        rows = np.flatnonzero(names == name)
        found[str(name)] = {"plants": rows.size, "steps": rows.size * rounds} | _totals(task, plants, rows)
    return found


def _examples(plants: _Plants, names: np.ndarray, noisy: np.ndarray) -> list[dict]:
    violating = np.flatnonzero(plants.first_step >= 0)
    # One of each adversary first, then others, up to as many as there are adversaries and at least five.
    _, distinct = np.unique(names[violating], return_index=True)
    most = max(5, len(set(names)))
    chosen = np.concatenate([violating[np.sort(distinct)], np.delete(violating, distinct)])[:most]

    def noise(row):
        return {"noise": str(noisy[row]), "disturbance": plants.first_disturbance[row].tolist()} if noisy.size else {}

    return [
        {
            "adversary": str(names[row]),
            "step": int(plants.first_step[row]),
            "x": plants.first_x[row].tolist(),
            "proposed": plants.first_proposed[row].tolist(),
            "applied": plants.first_applied[row].tolist(),
            "x_next": plants.first_next[row].tolist(),
        }
        | noise(row)
        for row in chosen
    ]


def constraint_names(task: Task, count: int) -> tuple[str, ...]:
    """The safe set's names, or numbered ones where it has none."""
    names = getattr(task.safe_set, "names", ())
    return tuple(names) if len(names) == count else tuple(f"constraint {i}" for i in range(count))
