"""Training of one's own in plain JAX: nothing of holdfast's but the safeguard. A network, Optax, a loop.

    python examples/plain_jax.py [--updates 150] [--seed 0] [--out FILE.json]

A trolley on a rail of one metre to either side is asked for a place behind the right end. The return is differentiated through
the plant and through the safeguard (`Safeguard.step` in a `lax.scan` in a `vmap`), as in any JAX code.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import certify_base_set
from holdfast.safeguards import BackupSource, Ray, Safeguard
from holdfast.tasks import Box, ContinuousSystem, SuperlevelSet
from holdfast.types import Status

ROBOTS, STEPS, HORIZON = 64, 60, 25


class Trolley(ContinuousSystem):
    """What the safeguard has to know: how the plant moves, and its bounds."""

    state_names, input_names = ("p", "v"), ("a",)
    dt, input_box = 0.1, Box([-1.0], [1.0])

    def derivative(self, x, u, w):
        return jnp.stack([x[1], u[0]])

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(1)


def safeguarded(trolley: Trolley) -> Safeguard:
    rail = SuperlevelSet(lambda x: jnp.stack([1 - x[0], 1 + x[0]]), ("right end", "left end"), ("m", "m"))
    reach = Box([-1.0, -1.5], [1.0, 1.5])
    with jax.enable_x64(True):  # a proof is made in float64
        proof = certify_base_set(trolley, rail, reach, state_cost=(1.0, 1.0), input_cost=(1.0,), horizon=HORIZON)
    assert proof.certificate.holds
    return Safeguard(
        BackupSource(ImplicitInvariantSet(BackupPolicy(proof.base_set), rail, HORIZON), proof.acceptance), (Ray(),)
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--updates", type=int, default=150)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="write the results here, as JSON")
    arguments = arguments.parse_args()
    begin, trolley = time.perf_counter(), Trolley()
    guard = safeguarded(trolley)

    def plant(x, u):  # one's own simulator, in closed form
        return jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * u[0]])

    def policy(parameters, x):
        for weight, bias in parameters[:-1]:
            x = jnp.tanh(x @ weight + bias)
        weight, bias = parameters[-1]
        return x @ weight + bias

    def episode(parameters, x):
        """Return, violations and statuses of one episode."""

        def advance(carry, _):
            x, commitment = carry
            answer, commitment = guard.step(commitment, x, policy(parameters, x))
            x = plant(x, answer.action)
            reward = -((x[0] - 1.2) ** 2) - 0.01 * answer.action[0] ** 2 - 0.05 * answer.correction[0] ** 2
            return (x, commitment), (reward, jnp.abs(x[0]) > 1, answer.status)

        _, (rewards, violated, statuses) = jax.lax.scan(advance, (x, guard.init(x)), None, length=STEPS)
        return rewards.sum(), (violated.sum(), statuses)

    def loss(parameters, key):
        starts = jax.random.uniform(key, (ROBOTS, 2), minval=jnp.array([-0.8, -0.2]), maxval=jnp.array([0.4, 0.2]))
        returns, (violations, statuses) = jax.vmap(episode, in_axes=(None, 0))(parameters, starts)
        return -returns.mean(), (violations.sum(), jnp.bincount(statuses.ravel(), length=len(Status)))

    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    @jax.jit
    def update(parameters, state, key):
        (value, counts), gradient = jax.value_and_grad(loss, has_aux=True)(parameters, key)
        changes, state = optimiser.update(gradient, state)
        return optax.apply_updates(parameters, changes), state, -value, counts

    key = jax.random.key(arguments.seed)
    sizes = [(2, 16), (16, 16), (16, 1)]
    parameters = [
        (jax.random.normal(jax.random.fold_in(key, i), s) / s[0] ** 0.5, jnp.zeros(s[1])) for i, s in enumerate(sizes)
    ]
    state, returns, violations, statuses = optimiser.init(parameters), [], 0, np.zeros(len(Status), int)
    for number in range(arguments.updates):
        parameters, state, value, (violated, seen) = update(parameters, state, jax.random.fold_in(key, 100 + number))
        returns.append(float(value))
        violations, statuses = violations + int(violated), statuses + np.asarray(seen)
    found = {
        "command": f"python examples/plain_jax.py --updates {arguments.updates} --seed {arguments.seed}",
        "return": {"first": returns[0], "last": returns[-1]},
        "steps": arguments.updates * ROBOTS * STEPS,
        "violations": violations,
        "statuses": {status.name: int(statuses[status]) for status in Status},
        "seconds": round(time.perf_counter() - begin, 1),
    }
    print(text := json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
