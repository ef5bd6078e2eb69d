"""Interval evaluation: soundness for every supported primitive, exact directed rounding, jaxpr handling, slopes."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.certify import interval as iv
from holdfast.certify.interpreter import UnsupportedPrimitive, interval_eval
from holdfast.certify.interval import Interval
from holdfast.certify.slope import interval_jacobian

M = np.array([[1.0, -2.0, 0.0], [0.5, 0.0, 3.0]])


def _scan(x):
    carry, ys = jax.lax.scan(lambda c, t: (0.5 * c + jnp.sin(x[0]) * t, c * x[1]), x[2], jnp.arange(3.0), reverse=True)
    return jnp.append(ys, carry)


@jax.custom_jvp
def _custom(x):
    return x**2


_custom.defjvp(lambda primals, tangents: (_custom(*primals), 2 * primals[0] * tangents[0]))

#: name -> (function of three numbers, lower and upper end of the range from which boxes are drawn, smooth enough for
#: float32 to follow float64). The same table tests enclosures, slopes and rounding errors.
CASES = {
    "add": (lambda x: x + x[::-1], -3, 3),
    "sub_neg": (lambda x: -x - 2.0 * x[1], -3, 3),
    "mul": (lambda x: x * x[::-1] * 0.1, -3, 3),
    "square": (lambda x: jnp.square(x) + x * x, -3, 3),
    "integer_pow": (lambda x: x**3 - 0.1 * x**4, -2, 2),
    "integer_pow_negative": (lambda x: x**-3, 0.5, 2),
    "pow": (lambda x: x**1.7 + x**-0.3, 0.1, 3),
    "div": (lambda x: x[0] / x[1:], 0.2, 3),
    "div_constant": (lambda x: x / 7.3, -3, 3),
    "sqrt": (lambda x: jnp.sqrt(x) + jax.lax.rsqrt(x), 0.01, 5),
    "cbrt": (jnp.cbrt, 0.1, 3),
    "sin": (jnp.sin, -12, 12),
    "cos": (jnp.cos, -12, 12),
    "tan": (jnp.tan, -1.2, 1.2),
    "asin": (jnp.arcsin, -0.95, 0.95),
    "acos": (jnp.arccos, -0.95, 0.95),
    "atan": (jnp.arctan, -5, 5),
    "atan2": (lambda x: jnp.arctan2(x[0], x[1:]), 0.1, 3),
    "atan2_left": (lambda x: jnp.arctan2(x[0], -x[1:]), 0.1, 3),
    "sinh": (jnp.sinh, -3, 3),
    "cosh": (jnp.cosh, -3, 3),
    "asinh": (jnp.arcsinh, -3, 3),
    "tanh": (jnp.tanh, -4, 4),
    "logistic": (jax.nn.sigmoid, -6, 6),
    "softplus": (jax.nn.softplus, -6, 6),
    "exp": (lambda x: jnp.exp(x) + jnp.exp2(x), -3, 3),
    "expm1": (jnp.expm1, -2, 2),
    "log": (jnp.log, 0.1, 5),
    "log1p": (jnp.log1p, -0.5, 3),
    "max": (lambda x: jnp.maximum(x, x[::-1]), -3, 3),
    "min": (lambda x: jnp.minimum(x, 0.3), -3, 3),
    "clip": (lambda x: jnp.clip(2 * x, -1.0, x[0] + 2.0), -3, 3),
    "clamp": (lambda x: jax.lax.clamp(-1.0, 2 * x, 1.5), -3, 3),
    "relu": (jax.nn.relu, -3, 3),
    "abs": (jnp.abs, -3, 3),
    "sign": (jnp.sign, -3, 3),
    "floor": (lambda x: jnp.floor(x) + jnp.ceil(2 * x), -3, 3),
    "round": (lambda x: jnp.round(x), -3, 3),
    "round_away": (lambda x: jax.lax.round(x), -3, 3),
    "truncate": (lambda x: x.astype(int) * 1.5, -3, 3),
    "wrap": (lambda x: x - 2 * jnp.pi * jnp.round(x / (2 * jnp.pi)), -9, 9),
    "rem": (lambda x: jax.lax.rem(x, jnp.full_like(x, 1.3)), -3, 3),
    "mod": (lambda x: jnp.mod(x, 1.3), -3, 3),
    "where": (lambda x: jnp.where(x > 0.5, x**2, 3.0 - x), -3, 3),
    "where_and_or_not": (lambda x: jnp.where((x > 0) & ~(x[0] < 1) | (x[1] == 2.0), x, -x), -3, 3),
    "any_all": (lambda x: jnp.where(jnp.any(x > 2), 1.0, 0.0) + jnp.where(jnp.all(x != 3.0), x, 0.0), -3, 3),
    "bool_to_float": (lambda x: (x >= 0.0) * x, -3, 3),
    "dot": (lambda x: jnp.asarray(M, x.dtype) @ x, -3, 3),
    "dot_self": (lambda x: x @ x, -3, 3),
    "matmul": (lambda x: (jnp.asarray(M, x.dtype) * x[None]) @ jnp.outer(x, x), -2, 2),
    "norm": (lambda x: jnp.linalg.norm(x), 0.2, 3),
    "einsum": (lambda x: jnp.einsum("ij,j,k->ki", jnp.asarray(M, x.dtype), x, x), -2, 2),
    "reduce": (lambda x: jnp.stack([x.sum(), x.max(), x.min(), x.prod(), x.mean()]), -3, 3),
    "cross": (lambda x: jnp.cross(x, jnp.array([1.0, 2.0, 3.0])), -3, 3),
    "indexing": (lambda x: jnp.concatenate([x[jnp.array([2, 0])], x[::-1][1:], jnp.tile(x, 2)]), -3, 3),
    "at_set": (lambda x: jnp.zeros(4).at[1:3].set(x[:2]).at[0].set(x[2]), -3, 3),
    "pad_roll": (lambda x: jnp.roll(jnp.pad(x, (1, 2), constant_values=0.5), 2), -3, 3),
    "dynamic_slice": (lambda x: jax.lax.dynamic_update_slice(x, jax.lax.dynamic_slice(x, (1,), (2,)), (0,)), -3, 3),
    "eye_diag": (lambda x: jnp.diag(x) + jnp.eye(3), -3, 3),
    "scan": (_scan, -3, 3),
    "jit_vmap": (jax.jit(jax.vmap(lambda s: s * jnp.cos(s))), -3, 3),
    "custom_jvp": (_custom, -3, 3),
    "remat": (jax.checkpoint(lambda x: jnp.sin(x) ** 2), -3, 3),
    "stop_gradient": (lambda x: jax.lax.stop_gradient(x) * 2.0, -3, 3),
    "jacobian": (lambda x: jax.jacfwd(lambda z: jnp.sin(z) * z[0])(x), -3, 3),
}
#: JAX's derivative of stop_gradient is zero by intent; the slope is of the function itself, and so is its test.
BOXES, POINTS = 60, 25


def random_boxes(name: str, low: float, high: float):
    """Boxes of all sizes [3, BOXES] and points inside [POINTS, 3, BOXES], corners included."""
    rng = np.random.default_rng(sum(map(ord, name)))
    a, b = rng.uniform(low, high, (2, 3, BOXES))
    width = 10.0 ** rng.uniform(-6, 0, BOXES)
    lo, hi = np.minimum(a, a + width * (b - a)), np.maximum(a, a + width * (b - a))
    share = rng.choice([0.0, 1.0, -1.0], (POINTS, 3, BOXES))
    share = np.where(share < 0, rng.random((POINTS, 3, BOXES)), share)
    return lo, hi, np.clip(lo + share * (hi - lo), lo, hi)


def evaluate(function, points):
    """[POINTS, 3, BOXES] -> [POINTS, ..., BOXES]."""
    batched = jax.jit(jax.vmap(jax.vmap(function, in_axes=-1, out_axes=-1)))
    return np.asarray(batched(points), np.float64)


@pytest.mark.parametrize("name", CASES)
def test_encloses_values_and_differences(name):
    function, low, high = CASES[name]
    lo, hi, points = random_boxes(name, low, high)
    values = evaluate(function, points)
    box = Interval.boxes(lo, hi)
    result = interval_eval(function, box)
    assert result.shape == values.shape[1:-1]
    assert not np.isnan(result.lo).any()
    slack = 1e-13 * (1 + np.abs(values))  # XLA's own rounding at the sample points
    assert (result.lo <= values + slack).all() and (values - slack <= result.hi).all()

    slopes, jump = interval_jacobian(function, box)
    first, second = points, np.roll(points, 1, axis=0)
    d = (first - second).reshape(POINTS, *(1,) * (values.ndim - 2), 3, BOXES)
    reach = np.maximum(slopes.lo * d, slopes.hi * d).sum(-2) + jump
    below = np.minimum(slopes.lo * d, slopes.hi * d).sum(-2) - jump
    change = values - np.roll(values, 1, axis=0)
    slack = 1e-12 * (1 + np.abs(values))
    assert (below - slack <= change).all() and (change <= reach + slack).all()


@pytest.mark.parametrize("name", ["add", "mul", "sin", "div", "tanh", "dot_self", "max", "norm"])
def test_enclosures_are_tight_on_small_boxes(name):
    function, low, high = CASES[name]
    rng = np.random.default_rng(1)
    centre = rng.uniform(low, high, (3, 40))
    result = interval_eval(function, Interval.boxes(centre - 1e-7, centre + 1e-7))
    slope = np.abs(np.asarray(jax.vmap(jax.jacfwd(function), -1, -1)(centre))).sum(-2)
    assert (result.width <= 2e-7 * slope * 1.1 + 1e-12).all()


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "div"])
def test_directed_rounding_against_exact_rationals(operation):
    rng = np.random.default_rng(2)
    a = np.ldexp(rng.uniform(-1, 1, 400), rng.integers(-30, 30, 400))
    b = np.ldexp(rng.uniform(-1, 1, 400), rng.integers(-30, 30, 400))
    a[:20], b[10:30] = 0.0, np.where(operation == "div", 3.0, 0.0)
    result = getattr(iv, operation)(Interval(a, a), Interval(b, b))
    exact = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y,
    }[operation]
    for x, y, lo, hi in zip(a, b, result.lo, result.hi):
        value = exact(Fraction(x), Fraction(y))
        assert Fraction(lo) <= value <= Fraction(hi)
        assert hi <= np.nextafter(np.nextafter(lo, np.inf), np.inf), "at most two units wide"


def test_underflow_and_overflow_stay_enclosed():
    tiny, huge = Interval.constant(1e-200), Interval.constant(1e200)
    product = tiny * tiny
    assert product.lo[0] <= 0 < product.hi[0] < 1e-300
    assert (huge * huge).hi[0] == np.inf and np.isfinite((huge * huge).lo[0])
    assert iv.exp(Interval.constant(1000.0)).lo[0] < np.inf


def test_exact_zeros_stay_exact():
    x = Interval.box([-1.0], [1.0])
    product = x * Interval.constant(np.zeros(1))
    assert product.lo[0] == product.hi[0] == 0


def test_undefined_results_survive_a_clip():
    clipped = interval_eval(lambda x: jnp.clip(jnp.sqrt(x), 0.0, 1.0), Interval.box(-0.1, 0.5))
    assert np.isnan(clipped.lo).all() and np.isnan(clipped.hi).all()
    quotient = interval_eval(lambda x: 1.0 / x, Interval.box(-1.0, 1.0))
    assert quotient.lo[0] == -np.inf and quotient.hi[0] == np.inf
    assert np.isnan(interval_eval(lambda x: x / x, Interval.box(-1.0, 1.0)).lo).all()


def test_atan2_is_conservative_on_its_branch_cut():
    angle = interval_eval(lambda x: jnp.arctan2(x[0], x[1]), Interval.box([-0.1, -2.0], [0.1, -1.0]))
    assert angle.lo[0] <= -np.pi and angle.hi[0] >= np.pi


def test_pytrees_constants_and_several_results():
    def function(state, gain):
        return {"x": state["p"] * gain, "flag": state["v"] > 0.0}

    state = {"p": Interval.box([1.0, 2.0], [1.5, 2.5]), "v": Interval.box(-1.0, 1.0)}
    result = interval_eval(function, state, np.array([2.0, 3.0]))
    np.testing.assert_allclose(result["x"].hi[:, 0], [3.0, 7.5])
    assert not result["flag"].lo[0] and result["flag"].hi[0], "three-valued: maybe"


def test_works_without_the_callers_x64_and_leaves_it_alone():
    with jax.enable_x64(False):
        result = interval_eval(lambda x: x + 1e-9, Interval.box(1.0, 1.0))
        assert not jax.config.jax_enable_x64
    assert result.lo[0] > 1 + 9e-10


def test_unsupported_primitive_is_named():
    def my_plant(x):
        return jnp.linalg.eigvalsh(jnp.outer(x, x))

    with pytest.raises(UnsupportedPrimitive, match=r"my_plant.*'eigh'"):
        interval_eval(my_plant, Interval.box([0.0, 1.0], [1.0, 2.0]))
    with pytest.raises(UnsupportedPrimitive, match="while"):
        interval_eval(lambda x: jax.lax.while_loop(lambda y: y < 3, lambda y: y + 1, x), Interval.box(0.0, 1.0))


def test_box_rejects_nan_and_swapped_bounds():
    for lo, hi in ((np.nan, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="lo <= hi"):
            Interval.box(lo, hi)


def test_slope_of_a_clip_is_decided_by_its_operands():
    slopes, jump = interval_jacobian(lambda x: jnp.clip(x[0], 0.0, 12.0), Interval.box([1.0], [2.0]))
    assert slopes.lo[0, 0] == slopes.hi[0, 0] == 1.0 and jump[0] == 0


def test_slope_of_round_is_a_jump_where_it_crosses_and_nothing_elsewhere():
    wrap = CASES["wrap"][0]
    _, jump = interval_jacobian(lambda x: wrap(x[0]), Interval.boxes([[-1.0, 3.0]], [[1.0, 3.3]]))
    assert jump[0] == 0 and jump[1] >= 2 * np.pi
