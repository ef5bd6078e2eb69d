"""The projection onto exact half-spaces against a differentiable conic layer, and against Clarabel.

Time for each element of a batch, forward alone and forward with the gradient by the proposal, the normals and the
offsets, of the same projections by this library and by cvxpylayers (the extra `conic`: cvxpylayers and torch), the same
instances, the same run, in turns. cvxpylayers canonicalises the problem once, outside the clock, and is given what it
is at home with: float64, torch, all cores it wants; its default solver. Ours is float32, as in training, and called twenty
times in a row for each call of cvxpylayers, as a training calls it: a single call right after torch's threads pays some
200 us to get the cores back, which on 64 elements is more than the projection.

Also: agreement with Clarabel on ten thousand random instances in float64.

Instances are random (one input with 16 rows, two inputs with 100), and those of the balance tasks' invariant sets, or of one
task with `--task`: uniform actions at uniform starts. For those the whole safeguard is timed as well, that is `guard`:
half-spaces from the state, projection, check, and the set's own action where nothing passes.
"""

import importlib.metadata
import time

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from benchmarks._common import interleaved, parser, print_table, quantiles, write_results
from holdfast.backup import InvariantSet, RobustMargins
from holdfast.safeguards import BoundaryProjection, HalfSpaces, InvariantSource, Safeguard
from holdfast.safeguards.boundary_projection import closest
from holdfast.sets import Box
from holdfast.tasks import RobustSafety, make_task

SIZES = {"random, 1 input": (1, 16), "random, 2 inputs": (2, 100)}
"""Inputs and rows of random instances."""
TASKS = ("balance-pendulum", "balance-cartpole", "balance-quadrotor")
ASKED, TOLERANCE = 200, 1e-6
CALLS = 20
"""Of ours, one after the other, for each of the conic layer's."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.set_defaults(task=None)
    arguments.add_argument(
        "--batch", type=int, default=64, help="instances in a batch, as many as environments in training"
    )
    arguments.add_argument("--repetitions", type=int, default=None, help="timed calls of each program")
    arguments.add_argument("--instances", type=int, default=None, help="instances that are compared with Clarabel")
    arguments = arguments.parse_args()
    quick = arguments.quick
    repetitions = arguments.repetitions or (3 if quick else 20)
    count = arguments.instances or (200 if quick else 10_000)
    size = max(arguments.batch, count)
    sources, guards = {}, {}
    if arguments.task is None:
        sources = {name: random_instances(size, *shape) for name, shape in SIZES.items()}
    for task in TASKS if arguments.task is None else (arguments.task,):
        sources[task], guards[task] = instances_of(task, size)
    rows, numbers = [], {}
    for name, (u, A, b) in sources.items():
        found = {"inputs": u.shape[1], "rows": A.shape[1]}
        found["clarabel"] = agreement(u[:count], A[:count], b[:count])
        batch = tuple(each[: arguments.batch] for each in (u, A, b))
        found |= compare(batch, guards.get(name), repetitions)
        for kind in ("forward", "forward_and_gradient"):
            for ours in (each for each in found[kind] if each not in ("cvxpylayers", "ratio")):
                times = found[kind]
                row = (times[ours]["median_us"], times["cvxpylayers"]["median_us"], times["ratio"][ours], ASKED)
                rows.append((name, f"{ours}, {kind}", *row))
        numbers[name] = found
        worst = found["clarabel"]
        print(
            f"{name}: |ours - Clarabel| <= {worst['largest']:.2g} on {worst['instances']} instances, asked {TOLERANCE:g}"
        )
    print_table(("instances", "", "us/element", "cvxpylayers", "ratio", "asked"), rows)
    write_results(
        __spec__.name,
        arguments,
        task=arguments.task,
        settings={
            "batch": arguments.batch,
            "repetitions": repetitions,
            "dtype": {"ours": "float32", "cvxpylayers": "float64"},
            "versions": {
                each: importlib.metadata.version(each) for each in ("cvxpylayers", "cvxpy", "diffcp", "torch")
            },
        },
        numbers={"asked": {"ratio": ASKED, "clarabel": TOLERANCE}, "instances": numbers},
    )


def random_instances(count: int, m: int, p: int, seed: int = 0):
    """(u [B, m], A [B, p, m], b [B, p]) in half-widths: polytopes around a point of the box, u uniform in the box."""
    rng = np.random.default_rng([seed, m, p])
    A, inner = rng.normal(size=(count, p, m)), rng.uniform(-0.6, 0.6, (count, m))
    room = rng.exponential(0.7, (count, p)) + 0.02
    b = np.einsum("bpm,bm->bp", A, inner) - np.linalg.norm(A, axis=2) * room
    return rng.uniform(-1, 1, (count, m)), A, b


def instances_of(name: str, count: int, seed: int = 0):
    """The same from a task: half-spaces of its robust invariant set at its starts, actions uniform in the box. And its
    safeguard, with the states [B, n] and the actions in physical units [B, m]."""
    task = make_task(name)
    if not isinstance(task.safety, RobustSafety):
        raise SystemExit(
            f"--task {name}: it has no robust invariant set; give one of the balance tasks, seeker or household"
        )
    invariant = InvariantSet(task.system, task.safety.region, task.safety.controller)
    # Nothing is applied here: margins for rounding do not matter.
    source = InvariantSource(invariant, RobustMargins(0.0, 0.0, 0.0))
    x = jax.vmap(task.sample_start)(jax.random.split(jax.random.key(seed), count))
    spaces = jax.jit(jax.vmap(lambda x: source.halfspaces(x)))(x)
    box = task.system.input_box
    A = np.asarray(spaces.normals, np.float64) * box.half_widths
    b = np.asarray(spaces.offsets, np.float64) - np.asarray(spaces.normals, np.float64) @ box.centre
    u = np.random.default_rng(seed).uniform(-1, 1, (count, box.dimension))
    guarded = (Safeguard(source, (BoundaryProjection(),)), x, jnp.asarray(box.centre + box.half_widths * u, x.dtype))
    return (u, A, b), guarded


def project_batch(m: int):
    """(u, A, b) -> projections onto A v >= b within [-1, 1]^m, for a batch."""
    box = Box(-np.ones(m), np.ones(m))
    return jax.vmap(lambda u, A, b: jnp.clip(closest(HalfSpaces(A, b), box, u), -1, 1))


def agreement(u, A, b) -> dict:
    """Largest distance to Clarabel's projection, in half-widths, and of those that it polishes least."""
    m = u.shape[1]
    with jax.enable_x64(True):
        ours = np.asarray(jax.jit(project_batch(m))(jnp.asarray(u), jnp.asarray(A), jnp.asarray(b)))
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    eye = np.eye(m)
    distance, solved = np.empty(len(u)), np.ones(len(u), bool)
    begin = time.perf_counter()
    for i in range(len(u)):
        rows, offsets = np.concatenate([A[i], eye, -eye]), np.concatenate([b[i], -np.ones(2 * m)])
        size = np.maximum(np.linalg.norm(rows, axis=1), 1e-300)
        rows, offsets = rows / size[:, None], offsets / size
        cones = [clarabel.NonnegativeConeT(len(rows))]
        answer = clarabel.DefaultSolver(
            sparse.eye(m, format="csc"), -u[i], sparse.csc_matrix(-rows), -offsets, cones, settings
        ).solve()
        distance[i] = np.max(np.abs(np.array(answer.x) - ours[i]))
        solved[i] = answer.status in (clarabel.SolverStatus.Solved, clarabel.SolverStatus.AlmostSolved)
    seconds = time.perf_counter() - begin
    # Where Clarabel says that it did not get there, there is nothing to agree with.
    return {
        "instances": int(solved.sum()),
        "unsolved_by_clarabel": int((~solved).sum()),
        "largest": float(distance[solved].max()),
        "median": float(np.median(distance[solved])),
        "clarabel_us": seconds * 1e6 / len(u),
    }


def _with_gradient(function, arguments):
    """The function's values and pulled-back ones, compiled: values too, or XLA would leave out what the gradient does not
    need."""

    @jax.jit
    def both(*each):
        value, pull_back = jax.vjp(function, *each)
        return value, pull_back(jnp.ones_like(value))

    return _in_a_row(both, arguments)


def _in_a_row(program, arguments):
    """`CALLS` calls, as a training makes them: one alone would mostly be the way back from another library's threads."""

    def calls():
        for _ in range(CALLS):
            found = jax.block_until_ready(program(*arguments))
        return found

    return calls


def compare(batch, guarded, repetitions: int) -> dict:
    """Times for each element of the batch, ours and the conic layer's, forward and with the gradient."""
    u, A, b = batch
    size, m = u.shape
    single = tuple(jnp.asarray(each, jnp.float32) for each in batch)
    project = project_batch(m)
    forward = jax.jit(project)
    ours = {"projection": (_in_a_row(forward, single), _with_gradient(project, single))}
    if guarded is not None:
        guard, x, proposed = guarded[0], guarded[1][:size], guarded[2][:size]
        act = jax.vmap(lambda x, u: guard.guard(x, u).action)
        acting = jax.jit(act)
        ours["safeguard"] = (_in_a_row(acting, (x, proposed)), _with_gradient(act, (x, proposed)))
    layer, tensors = conic_layer(u, A, b)

    def theirs():
        return layer(*tensors)[0].detach().numpy()

    def theirs_with_gradient():
        for each in tensors:
            each.grad = None
        layer(*tensors)[0].sum().backward()
        return tensors[0].grad.numpy()

    found = {"distance_to_cvxpylayers": float(np.max(np.abs(theirs() - np.asarray(forward(*single)))))}
    for place, (kind, conic) in enumerate({"forward": theirs, "forward_and_gradient": theirs_with_gradient}.items()):
        programs = {name: each[place] for name, each in ours.items()} | {"cvxpylayers": conic}
        times = interleaved(programs, repetitions=repetitions)
        times = {name: each / (1 if name == "cvxpylayers" else CALLS) for name, each in times.items()}
        found[kind] = {name: quantiles(seconds, per=size) for name, seconds in times.items()}
        slow = np.median(times["cvxpylayers"])
        found[kind]["ratio"] = {name: float(slow / np.median(times[name])) for name in ours}
    return found


def conic_layer(u, A, b):
    """The same projection as a CvxpyLayer, and its parameters as tensors that ask for gradients."""
    import cvxpy
    import torch
    from cvxpylayers.torch import CvxpyLayer

    _, p, m = A.shape
    v, u_, A_, b_ = cvxpy.Variable(m), cvxpy.Parameter(m), cvxpy.Parameter((p, m)), cvxpy.Parameter(p)
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(v - u_)), [A_ @ v >= b_, v >= -1, v <= 1])
    layer = CvxpyLayer(problem, parameters=[u_, A_, b_], variables=[v])
    return layer, [torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in (u, A, b)]


if __name__ == "__main__":
    main()
