"""Soft actor-critic in one file of PyTorch, in the manner of CleanRL, whose actor learns through a safeguard.

    python examples/cleanrl_sac_torch.py [--steps 2000] [--seed 0] [--out FILE.json]

A point mass follows a circle that is larger than its room. The safeguard, from the task's own base controller, is a layer of
the actor: what the critic judges, and what the plant gets, is the safe action, and the gradient comes back through it.
Needs the extra `torch`.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from holdfast.backup import BackupPolicy, ImplicitInvariantSet
from holdfast.certify import certify_base_set
from holdfast.interop.torch import TorchSafeguard
from holdfast.safeguards import BackupSource, PerInput, Safeguard
from holdfast.tasks import make_task
from holdfast.types import Status

ENVIRONMENTS, BATCH, MEMORY, HIDDEN = 16, 128, 50_000, 64
DISCOUNT, AVERAGING, RATE, WARM_UP = 0.97, 0.01, 1e-3, 100
PENALTY = 0.1  # on what the safeguard has to change, in half-widths of the input box, squared


def safeguarded(task) -> Safeguard:
    """What keeps the task's constraints: proved, with the base controller for a backup."""
    settings = dict(state_cost=task.safety.state_cost, input_cost=task.safety.input_cost, horizon=task.safety.horizon)
    with jax.enable_x64(True):  # proofs are made in float64, whatever the training runs in
        certified = certify_base_set(task.system, task.safe_set, task.state_box, **settings)
    assert certified.certificate.holds
    implicit = ImplicitInvariantSet(BackupPolicy(certified.base_set), task.safe_set, task.safety.horizon)
    return Safeguard(BackupSource(implicit, certified.acceptance), (PerInput(),))


class Room:
    """`size` plants side by side, NumPy in and out; JAX only computes. Time runs over within an episode."""

    def __init__(self, task, size: int, seed: int):
        self.task, self.size, self.keys = task, size, jax.random.key(seed)

        @jax.jit
        @jax.vmap
        def advance(x, t, u):
            following = task.system.step(x, u)
            return following, task.reward(x, u, following, t, ()), jnp.all(task.safe_set.margin(following) >= 0)

        self._advance, self._observe = advance, jax.jit(jax.vmap(lambda x, t: task.observe(x, t, ())))
        self._start = jax.jit(jax.vmap(task.sample_start))

    def reset(self) -> np.ndarray:
        self.keys, key = jax.random.split(self.keys)
        self.t = np.zeros(self.size, np.int32)
        self.x = np.array(self._start(jax.random.split(key, self.size)), np.float32)
        return self.observation()

    def observation(self) -> np.ndarray:
        return np.array(self._observe(self.x, self.t), np.float32)

    def step(self, u: np.ndarray):
        """Reward, whether the constraints hold, and whether the episode's time is over; all of shape [size]."""
        x, reward, safe = self._advance(self.x, self.t, u)
        self.x, self.t = np.array(x), self.t + 1
        return np.array(reward), np.array(safe), self.t >= self.task.episode_steps


def network(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs)]
    return nn.Sequential(*layers)


class Actor(nn.Module):
    """Observation -> proposed action, a squashed Gaussian over the input box, and its log density."""

    def __init__(self, observations: int, half_widths):
        super().__init__()
        self.net = network(observations, 2 * len(half_widths))
        self.register_buffer("widths", torch.tensor(np.asarray(half_widths), dtype=torch.float32))

    def forward(self, observation, exploring: bool = True):
        mean, log_std = self.net(observation).chunk(2, dim=-1)
        log_std = log_std.clamp(-5, 1)
        noise = torch.randn_like(mean) if exploring else torch.zeros_like(mean)
        raw = mean + log_std.exp() * noise
        squashed = torch.tanh(raw)
        density = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - torch.log(1 - squashed**2 + 1e-6)
        return self.widths * squashed, density.sum(-1)


class Twins(nn.Module):
    """Two critics of (observation, applied action); the lower one counts."""

    def __init__(self, observations: int, half):
        super().__init__()
        self.one, self.two = (network(observations + len(half), 1) for _ in range(2))
        self.half = half

    def forward(self, observation, action):
        both = torch.cat([observation, action / self.half], dim=-1)
        return self.one(both)[:, 0], self.two(both)[:, 0]


class Memory:
    """The last transitions, of which batches are drawn."""

    def __init__(self, **widths: int):
        self.rows = {name: torch.zeros(MEMORY, width) for name, width in widths.items()}
        self.count = 0

    def add(self, **new) -> None:
        size = len(next(iter(new.values())))
        where = (self.count + torch.arange(size)) % MEMORY
        for name, values in new.items():
            self.rows[name][where] = torch.as_tensor(values).reshape(size, -1)
        self.count += size

    def draw(self):
        rows = torch.randint(min(self.count, MEMORY), (BATCH,))
        return {name: values[rows] for name, values in self.rows.items()}


@torch.no_grad()
def evaluate(room: Room, actor: Actor, layer: TorchSafeguard) -> dict[str, float]:
    """One episode on every plant, without exploration: mean return, violated and intervened steps."""
    seen, total, violations, interventions = room.reset(), 0.0, 0, 0
    commitment = layer.init(torch.as_tensor(room.x))
    for _ in range(room.task.episode_steps):
        u, _ = actor(torch.as_tensor(seen), exploring=False)
        answer, commitment = layer.step(commitment, torch.as_tensor(room.x), u)
        reward, safe, _ = room.step(answer.action.numpy())
        seen, total = room.observation(), total + reward.mean()
        violations += int((~safe).sum())
        interventions += int((answer.status != Status.accepted).sum())
    steps = room.size * room.task.episode_steps
    return {"return": float(total), "steps": steps, "violations": violations, "interventions": interventions}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=2000, help=f"updates; {ENVIRONMENTS} steps of the plant each")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, help="write the results here, as JSON")
    arguments = arguments.parse_args()
    begin = time.perf_counter()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(1)

    task = make_task("double-integrator")
    layer = TorchSafeguard(safeguarded(task))
    room, n = Room(task, ENVIRONMENTS, arguments.seed), task.system.state_size
    actor = Actor(task.observation_size, task.system.input_box.half_widths)
    critic, target = (Twins(task.observation_size, actor.widths) for _ in range(2))
    target.load_state_dict(critic.state_dict())
    log_alpha = torch.tensor(-2.0, requires_grad=True)
    optimisers = [torch.optim.Adam(each, RATE) for each in (actor.parameters(), critic.parameters(), [log_alpha])]
    m = task.system.input_size
    memory = Memory(seen=task.observation_size, action=m, reward=1, following=task.observation_size)
    before = evaluate(room, actor, layer)

    seen, violations, statuses = room.reset(), 0, torch.zeros(len(Status), dtype=torch.int64)
    commitment = layer.init(torch.as_tensor(room.x))
    assert layer.certified(commitment).all()
    for step in range(arguments.steps):
        with torch.no_grad():
            proposed, _ = actor(torch.as_tensor(seen))
            answer, commitment = layer.step(commitment, torch.as_tensor(room.x), proposed)
        reward, safe, over = room.step(answer.action.numpy())
        following = room.observation()
        memory.add(seen=seen, action=answer.action, reward=reward, following=following)
        violations += int((~safe).sum())
        statuses += torch.bincount(answer.status, minlength=len(Status))
        seen = following
        if over.all():  # all plants started together; time limits are no terminations, so no value ends here
            seen = room.reset()
            commitment = layer.init(torch.as_tensor(room.x))
        if step < WARM_UP:
            continue

        batch, alpha = memory.draw(), log_alpha.exp().detach()
        with torch.no_grad():
            u, density = actor(batch["following"])
            ahead = torch.minimum(*target(batch["following"], layer(batch["following"][:, :n], u))) - alpha * density
            wanted = batch["reward"][:, 0] + DISCOUNT * ahead
        losses = [(each - wanted).square().mean() for each in critic(batch["seen"], batch["action"])]
        optimisers[1].zero_grad()
        sum(losses).backward()
        optimisers[1].step()

        u, density = actor(batch["seen"])
        answer = layer.guard(batch["seen"][:, :n], u)
        value = torch.minimum(*critic(batch["seen"], answer.action))
        changed = (answer.correction / actor.widths).square().sum(-1)
        optimisers[0].zero_grad()
        (alpha * density - value + PENALTY * changed).mean().backward()
        optimisers[0].step()

        optimisers[2].zero_grad()
        (-log_alpha.exp() * (density.detach().mean() - m)).backward()  # target entropy: -m
        optimisers[2].step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters()):
                slow.lerp_(fast, AVERAGING)
        if (step + 1) % 500 == 0:
            print(
                f"{step + 1:6d} updates: {evaluate(Room(task, 16, 1), actor, layer)}, {violations} violations in training"
            )

    after = evaluate(Room(task, ENVIRONMENTS, arguments.seed + 1), actor, layer)
    found = {
        "command": f"python examples/cleanrl_sac_torch.py --steps {arguments.steps} --seed {arguments.seed}",
        "task": task.name,
        "before": before,
        "after": after,
        "training": {
            "steps": arguments.steps * ENVIRONMENTS,
            "violations": violations,
            "statuses": {status.name: int(statuses[status]) for status in Status},
        },
        "seconds": round(time.perf_counter() - begin, 1),
        "versions": {"torch": torch.__version__, "jax": jax.__version__},
    }
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
