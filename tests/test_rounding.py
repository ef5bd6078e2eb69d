"""Running error analysis: never below the measured float32 deviation, never absurdly above it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.certify.interpreter import UNARY
from holdfast.certify.interval import Interval
from holdfast.certify.rounding import flow_deviation, rounding_error
from holdfast.certify.slope import DERIVATIVES
from test_interval import CASES, POINTS, random_boxes
from test_invariance_proof import INPUT_LIMITS, unicycle_step

#: The result jumps, and float32 can land on the other side: the bound then is the jump, not a rounding.
JUMPING = {"sign", "floor", "round", "round_away", "truncate", "wrap", "rem", "mod", "where"}
JUMPING |= {"where_and_or_not", "any_all", "bool_to_float"}


def deviation(function, *points):
    """|float32 run - float64 run| on float32 inputs, [POINTS, ..., boxes]; numpy's 64-bit run stands for exact."""
    points = [np.asarray(p, np.float32) for p in points]
    batched = jax.jit(jax.vmap(jax.vmap(function, in_axes=-1, out_axes=-1)))
    with jax.enable_x64(False):
        single = np.asarray(jax.jit(batched.__wrapped__)(*points))
    assert single.dtype == np.float32
    double = np.asarray(batched(*(p.astype(np.float64) for p in points)))
    return np.abs(single.astype(np.float64) - double)


@pytest.mark.parametrize("name", CASES)
def test_bounds_the_measured_deviation(name):
    function, low, high = CASES[name]
    lo, hi, points = random_boxes(name, low, high)
    points = np.asarray(points, np.float32)
    box = Interval.boxes(np.minimum(lo, points.min(0)), np.maximum(hi, points.max(0)))
    bound = rounding_error(function, box)
    measured = deviation(function, points)
    assert measured.shape == (POINTS, *bound.shape)
    assert (measured <= bound + 1e-14).all()
    if name not in JUMPING and measured.max() > 0:
        assert bound.max() < 100 * measured.max()


def test_plain_box_and_float64():
    single = rounding_error(jnp.sin, (0.5, 1.0))
    double = rounding_error(jnp.sin, (0.5, 1.0), dtype=np.float64)
    assert single.shape == () and 0 < single < 1e-6
    np.testing.assert_allclose(double / single, 2.0**-29, rtol=1e-3)


def test_constants_are_rounded_to_the_running_type():
    assert rounding_error(lambda x: x + 0.1, (0.0, 0.0)) >= abs(float(np.float32(0.1)) - 0.1)
    assert rounding_error(lambda x: jnp.maximum(x, 0.5), (0.0, 1.0)) == 0


def test_fused_and_reassociated_programs_stay_inside():
    """a b + c with one rounding, and the three orders of a sum of three, against the bound of one of them."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.uniform(-3, 3, 2000).astype(np.float32) for _ in range(3))
    exact = a.astype(np.float64) * b + c
    bound = rounding_error(lambda x, y, z: x * y + z, *(Interval.boxes(v, v) for v in (a, b, c)))
    assert (np.abs(exact.astype(np.float32) - exact) <= bound).all()
    total = a.astype(np.float64) + b + c
    bound = rounding_error(lambda x, y, z: (x + y) + z, *(Interval.boxes(v, v) for v in (a, b, c)))
    for order in ((a + b) + c, a + (b + c), (a + c) + b):
        assert (np.abs(order - total) <= bound).all()


def test_wrap_costs_rounding_inside_and_a_jump_across():
    wrap = CASES["wrap"][0]
    assert rounding_error(wrap, (-3.0, 3.0)) < 2e-6
    assert rounding_error(wrap, (3.0, 3.3)) >= 6.2


@pytest.mark.parametrize("name", sorted(UNARY.keys() & DERIVATIVES.keys() - {"neg", "abs", "square"}))
def test_assumed_accuracy_of_functions_holds_here(name):
    """The trusted base, probed: XLA's float32 functions against float64, near their zeros and extremes too."""
    rng = np.random.default_rng(0)
    near = np.arange(-7, 8)[:, None] * np.pi / 2 + rng.choice([-1, 1], (15, 2000)) * 10 ** rng.uniform(
        -8, -2, (15, 2000)
    )
    x = np.concatenate([rng.uniform(-12, 12, 50_000), near.ravel(), 10 ** rng.uniform(-8, 0, 20_000)])
    x = x.astype(np.float32)
    function = getattr(jax.lax, name)
    if name in ("asin", "acos"):
        x = x[np.abs(x) <= 1]
    elif name in ("log", "sqrt", "rsqrt"):
        x = x[x > 1e-6]
    elif name == "log1p":
        x = x[x > -0.9]
    measured = deviation(function, x[:, None, None])[:, 0, 0]
    bound = rounding_error(function, Interval.boxes(x, x))
    assert (measured <= bound).all(), x[np.argmax(measured - bound)]


STATE_BOX = (np.array([-1.8, 0.0, -1.1]), np.array([1.8, 12.0, 1.1]))


def test_flow_deviation_bounds_replays_in_two_programs():
    """The same inputs through an eager single-state program and a compiled batched one, and through float64."""
    horizon, flows = 40, 64
    bound = flow_deviation(unicycle_step, STATE_BOX, (-INPUT_LIMITS, INPUT_LIMITS), horizon)
    assert bound.shape == (horizon + 1, 3) and (bound[0] == 0).all() and (np.diff(bound, axis=0) > 0).all()
    assert bound[-1].max() < 1e-3

    rng = np.random.default_rng(3)
    start = rng.uniform([-0.5, 3.0, -0.2], [0.5, 7.0, 0.2], (flows, 3)).astype(np.float32)
    inputs = (rng.uniform(-1, 1, (horizon, flows, 2)) * INPUT_LIMITS).astype(np.float32)

    def scanned(x, u):
        return jax.lax.scan(lambda x, u: (unicycle_step(x, u),) * 2, x, u)[1]

    with jax.enable_x64(False):
        together = np.asarray(jax.jit(jax.vmap(scanned, (0, 1), 1))(start, inputs), np.float64)
        single = jax.jit(unicycle_step)
        x, alone = start[0], []
        for k in range(horizon):
            x = single(x, inputs[k, 0])
            alone.append(np.asarray(x, np.float64))
    exact = np.asarray(jax.jit(jax.vmap(scanned, (0, 1), 1))(start.astype(float), inputs.astype(float)))
    inside = ((together >= STATE_BOX[0]) & (together <= STATE_BOX[1])).all(-1).cumprod(0).astype(bool)
    assert inside.mean() > 0.5
    assert (np.abs(together - exact) <= bound[1:, None])[inside].all()
    assert (np.abs(together[:, 0] - np.array(alone)) <= bound[1:])[inside[:, 0]].all()


def test_flow_deviation_reports_the_jump_of_a_wrap():
    lo, hi = STATE_BOX
    bound = flow_deviation(
        unicycle_step, (lo - np.array([0, 0, 3]), hi + np.array([0, 0, 3])), (-INPUT_LIMITS, INPUT_LIMITS), 3
    )
    assert not (bound[1, 2] < 6)


def test_noise_is_added_every_step():
    bound = flow_deviation(lambda x, u: x + u, ([0.0], [1.0]), ([0.0], [1.0]), 5, noise=0.1)
    np.testing.assert_allclose(bound[:, 0], 0.1 * np.arange(6), atol=1e-5)
