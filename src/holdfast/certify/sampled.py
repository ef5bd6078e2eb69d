"""A base set that was tried instead of proved, for a step that interval arithmetic cannot enter or not in the time there is.

Its certificate says `sampled` for everything that rests on a proof elsewhere, and does not hold (`Certificate.holds`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.backup import AcceptanceMargins, BackupPolicy, BaseSet, backup_flow, design_base_controller
from holdfast.certify.base_set import CertifiedBaseSet, require_safe_equilibrium
from holdfast.certify.certificate import ARITHMETIC, Certificate, Obligation
from holdfast.sets import Box, SuperlevelSet
from holdfast.systems import System

#: What was seen to differ between two precisions is multiplied by this to make an acceptance margin.
_FACTOR = 10.0
#: Plans that are replayed in another precision, and the shares of the samples on the border of the set.
_REPLAYS, _ON_BORDER = 256, 0.5


def sample_base_set(
    system: System,
    safe_set: SuperlevelSet,
    state_box: Box,
    *,
    level: float,
    samples: int,
    state_cost,
    input_cost,
    horizon: int,
    seed: int = 0,
    physics: str = "",
) -> CertifiedBaseSet:
    """Designs the base controller and tries its base set at random states.

    Args:
        system, safe_set, state_box, state_cost, input_cost, horizon, physics: as `certify_base_set`.
        level: c, to be chosen: sampling finds no largest one.
        samples: states of the base set that are tried; half of them on its border.
        seed: of the states.

    Returns: the base set. What fails at a sample is refuted with that state, and the acceptance margins are infinite;
        what fails at none is `sampled`, and acceptance margins are ten times what was seen to differ.

    Raises:
        NotProvable: if the equilibrium violates the safe set.
        ValueError: if samples is not positive, or the linearisation is unusable.
    """
    if samples < 1:
        raise ValueError(f"samples = {samples}; give a positive number of states")
    base = design_base_controller(system, state_cost, input_cost).at_level(float(np.float32(level)))
    require_safe_equilibrium(base, safe_set)
    with jax.enable_x64(True):
        tried = _tried(base, safe_set, samples, seed)
        replayed, names = _replayed(base, safe_set, state_box, horizon, seed), safe_set.names
    refuted = any(each.discharge == "refuted" for each in tried)
    at = {"samples": samples, "seed": seed}
    obligations = (
        *tried,
        Obligation(
            "reduced coordinates",
            "The error after a step depends on the state only through the error.",
            "assumed",
            "not looked at for a base set that is sampled",
        ),
        Obligation(
            "rounding along a plan",
            f"Two programs that replay one plan of {horizon} steps stay so close that no margin differs by more than the "
            "acceptance margin a plan has to clear.",
            "sampled",
            f"plans of {replayed['plans']} random states, replayed in float32 and in float64; {_FACTOR:g} times what was seen",
            {"seed": seed, "plans": replayed["plans"], "names": list(names), "path": replayed["path"][-1].tolist()},
        ),
        Obligation(
            "recursive feasibility",
            "A committed plan can always be carried on, at its end by the base controller for ever.",
            "not proved" if refuted else "sampled",
            "algebra, from the invariance of the base set; and that is not proved",
            at,
        ),
        Obligation(
            "every action",
            f"Before an action is accepted or corrected to, the backup flow from the state it leads to is rolled out for up "
            f"to {horizon} steps, and must clear the acceptance margins and arrive in the base set.",
            "checked",
            "at run time, in the program that acts",
        ),
        Obligation(
            "model", "The plant is the model: x+ = F(x, u), and nothing disturbs it.", "assumed", "not shown here"
        ),
        ARITHMETIC,
    )
    margins = AcceptanceMargins(replayed["path"], replayed["base"], state_box)
    if refuted:
        margins = AcceptanceMargins(np.full(replayed["path"].shape[1], np.inf), np.inf)
    subject = f"{type(system).__name__} in {{{', '.join(names) or 'h >= 0'}}}, sampled"
    return CertifiedBaseSet(base, margins, Certificate(subject, physics, obligations))


def _tried(base: BaseSet, safe_set: SuperlevelSet, samples: int, seed: int) -> list[Obligation]:
    """Invariance and safety of the base set at random states of it."""
    P, level = base.ellipsoid.shape_matrix, base.ellipsoid.level
    rng, n = np.random.default_rng(seed), len(P)
    y = rng.normal(size=(samples, n))
    radius = np.where(rng.uniform(size=samples) < _ON_BORDER, 1.0, rng.uniform(size=samples) ** (1 / n))
    y *= radius[:, None] / np.linalg.norm(y, axis=1, keepdims=True)
    errors = np.sqrt(level) * y @ np.linalg.inv(np.linalg.cholesky(P))

    def look(e):
        return base.ellipsoid.value(base.closed_loop(e)), jnp.min(safe_set.margin(base.system.lift(e)))

    after, margin = (np.asarray(each) for each in jax.jit(jax.vmap(look))(errors))
    bound = f"at {samples} random states (seed {seed}); none failed, so with 95 % confidence fewer than "
    bound += f"{3 / samples:.2g} of such states do"
    found = []
    for name, claim, good, value in (
        (
            "base set invariant",
            f"Whenever V(e) = e'Pe <= {level:.6g}, one step under the clipped base controller gives V <= {level:.6g}.",
            level - after,
            "largest",
        ),
        ("base set safe", f"Every state with V(e) <= {level:.6g} satisfies every constraint.", margin, "least"),
    ):
        worst = int(np.argmin(np.where(np.isnan(good), -np.inf, good)))
        holds = bool(good[worst] >= 0)
        numbers: dict = {"level": level, "samples": samples, "seed": seed, "least_room": float(good[worst])}
        if not holds:
            state = np.asarray(base.system.lift(jnp.asarray(errors[worst])))
            numbers["counterexample"] = {"error": errors[worst].tolist(), "state": state.tolist()}
        method = bound if holds else f"a state was found where it fails, by {-good[worst]:.3g} ({value})"
        found.append(Obligation(name, claim, "sampled" if holds else "refuted", method, numbers))
    return found


def _replayed(base: BaseSet, safe_set: SuperlevelSet, state_box: Box, horizon: int, seed: int) -> dict:
    """Acceptance margins from plans of random states of the state box, in float32 and replayed in float64."""
    states = np.random.default_rng(seed + 1).uniform(state_box.lower, state_box.upper, (_REPLAYS, state_box.dimension))
    states = states.astype(np.float32)
    policy, system = BackupPolicy(base), base.system

    def plan(x):
        flow = backup_flow(policy, safe_set, x, horizon)
        return flow.states, flow.actions, flow.margins, flow.base_margins

    def replay(x, actions):
        last, path = jax.lax.scan(lambda x, u: (system.step(x, u), x), x, actions)
        path = jnp.concatenate([path, last[None]])
        return jax.vmap(safe_set.margin)(path), jax.vmap(base.margin)(path)

    flows, actions, margins, inside = (np.asarray(each) for each in jax.jit(jax.vmap(plan))(states))
    exact, exactly = jax.jit(jax.vmap(replay))(states.astype(np.float64), actions.astype(np.float64))
    # Only while a plan stays where plans live: what happens to one that leaves is nobody's margin.
    stays = ((flows >= state_box.lower) & (flows <= state_box.upper)).all(axis=2)
    counts = np.cumprod(stays, axis=1).astype(bool)
    path = np.abs(margins - np.asarray(exact)) * counts[..., None]
    at_base = np.abs(inside - np.asarray(exactly)) * (counts & (inside >= -1))
    return {
        "plans": _REPLAYS,
        "path": _margin(np.maximum.accumulate(path.max(axis=0), axis=0)),
        "base": _margin(np.maximum.accumulate(at_base.max(axis=0))),
    }


def _margin(seen: np.ndarray) -> np.ndarray:
    """What was seen, times a factor, and not less than what a step may round, in float32 numbers."""
    return np.maximum(_FACTOR * seen, 1e-6).astype(np.float32).astype(np.float64)
