"""The PyTorch layer: the values of the JAX safeguard bit for bit, its derivatives, and words for every bad tensor."""

import copy
import importlib
import sys
from functools import cache
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.safeguards import Ray, Safeguard, Source
from holdfast.sets import Box
from holdfast.systems import System
from holdfast.types import Status
from systems_for_tests import cart_guard

torch = pytest.importorskip("torch", reason="install the extra 'torch'")
TorchSafeguard = importlib.import_module("holdfast.interop.torch").TorchSafeguard
B = 16


class Drift(System):
    """x+ = x + dt u in the plane."""

    state_names: ClassVar = ("x", "y")
    input_names: ClassVar = ("u", "v")
    dt: float = 0.5
    input_box: Box = eqx.field(default_factory=lambda: Box([-1.0, -1.0], [1.0, 1.0]))

    def step(self, x, u, w=None):
        return x + self.dt * u

    def equilibrium(self):
        return jnp.zeros(2), jnp.zeros(2)


class Held(eqx.Module):
    """A commitment that remembers where it was made, in the very numbers that it was given."""

    x: jax.Array
    margin: jax.Array
    certified: jax.Array


class Disc(Source):
    """Stay within the unit circle; in need, go home. Compiles in a moment."""

    system: Drift = eqx.field(default_factory=Drift)

    @property
    def input_box(self):
        return self.system.input_box

    def init(self, x):
        margin = 1 - jnp.sum(x**2)
        return Held(x, margin, margin >= 0)

    def check(self, x, u):
        return self.init(self.system.step(x, u))

    def fallback(self, x, commitment):
        return self.input_box.clip(-x)

    def after_fallback(self, commitment):
        return commitment

    def rows(self, x, u):
        return (1 - jnp.sum(self.system.step(x, u) ** 2))[None]


GUARD = Safeguard(Disc(), (Ray(),), evaluations=80, resolution=1e-14)


@cache
def in_mode(gradient):
    return TorchSafeguard(GUARD, gradient)


@pytest.fixture(scope="module")
def layer():
    return in_mode("exact")


def points(dtype=torch.float64, count=B):
    """States in the disc and proposals, half of which leave it, away from kinks: no input is at its bound."""
    generator = torch.Generator().manual_seed(3)
    angle = 2 * np.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    direction = torch.stack([angle.cos(), angle.sin()], dim=1)
    x = 0.8 * direction
    side = torch.stack([-angle.sin(), angle.cos()], dim=1)
    out = torch.where(torch.arange(count) % 2 == 0, 0.65, -0.3)[:, None]
    return x.to(dtype), (out * direction + 0.2 * side).to(dtype)


def to_jax(*tensors):
    return tuple(jnp.asarray(tensor.detach().numpy()) for tensor in tensors)


def assert_same_bits(answer, reference):
    for name in ("action", "status", "margin", "correction"):
        found, wanted = getattr(answer, name).detach().numpy(), np.asarray(getattr(reference, name))
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted, err_msg=name)


@pytest.fixture(scope="module")
def cart():
    """(layer, state, x, u) of a cart between walls, with backup plans."""
    guard, rng = cart_guard(), np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (90, 2)) * [0.9, 1.0])
    state = jax.jit(jax.vmap(guard.init))(x)
    keep = np.flatnonzero(state.certified)[:B]
    x, state = jax.tree.map(lambda leaf: leaf[keep], (x, state))
    return TorchSafeguard(guard), state, x, jnp.asarray(rng.uniform(-1.3, 1.3, (B, 1)))


# ------------------------------------------------------------------------------------------------------------- values


def test_the_stateful_form_equals_jax_bit_for_bit_with_backup_plans(cart):
    layer, state, x, u = cart
    reference, following = jax.jit(jax.vmap(layer.safeguard.step))(state, x, u)
    answer, kept = layer.step(state, torch.tensor(np.asarray(x)), torch.tensor(np.asarray(u)))
    assert_same_bits(answer, reference)
    assert {Status.accepted, Status.corrected} <= set(answer.status.tolist())
    for found, wanted in zip(jax.tree.leaves(kept), jax.tree.leaves(following)):
        np.testing.assert_array_equal(found, wanted)
    assert layer.certified(kept).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stateless_form_equals_jax_bit_for_bit(layer, dtype):
    x, u = points(dtype)
    reference = jax.jit(jax.vmap(GUARD.guard))(*to_jax(x, u))
    assert_same_bits(layer.guard(x, u), reference)
    assert (layer.guard(x, u).status == Status.corrected).sum() == B // 2
    assert layer(x, u).dtype == dtype


def test_one_state_needs_no_batch(layer):
    x, u = (each[0] for each in points())
    assert_same_bits(layer.guard(x, u), jax.jit(lambda x, u: GUARD.guard(x, u))(*to_jax(x, u)))
    answer, kept = layer.step(layer.init(x), x, u)
    assert answer.action.shape == (2,) and layer.certified(kept).shape == ()


def test_a_closed_loop_threads_its_commitments_and_restarts_some_of_them(layer):
    x, _ = points()
    here, state = to_jax(x)[0], jax.vmap(GUARD.init)(to_jax(x)[0])
    commitment, step = layer.init(x), jax.jit(jax.vmap(GUARD.step))
    generator = torch.Generator().manual_seed(0)
    for t in range(20):
        u = 3 * torch.rand(B, 2, generator=generator, dtype=torch.float64) - 1.5
        answer, commitment = layer.step(commitment, x, u)
        reference, state = step(state, here, *to_jax(u))
        assert_same_bits(answer, reference)
        x, here = x + 0.5 * answer.action, here + 0.5 * reference.action
        assert (x.square().sum(1) <= 1 + 1e-9).all()
        if t == 10:
            begins = torch.arange(B) < 3
            x = torch.where(begins[:, None], 0.1, x)
            here = to_jax(x)[0]
            old, commitment = commitment, layer.restart(commitment, x, begins)
            assert np.all(np.asarray(commitment.x[:3]) == 0.1)
            np.testing.assert_array_equal(commitment.x[3:], old.x[3:])
            state = commitment


def test_views_and_transposes_are_read_like_any_other(layer):
    x, u = points()
    wanted = layer(x, u)
    strided = x.t().contiguous().t()
    assert not strided.is_contiguous()
    assert torch.equal(layer(strided, u), wanted)
    wide = torch.zeros(B + 1, 4, dtype=torch.float64)
    wide[1:, 1:3] = x
    assert torch.equal(layer(wide[1:, 1:3], u), wanted)  # neither contiguous nor aligned


def test_what_was_given_may_be_written_to_afterwards(layer):
    """JAX holds arrays to be constant, and shares the tensor's memory: a commitment must not."""
    for chosen in (slice(None), 0):
        x, u = (each[chosen].clone() for each in points())
        commitment, (before,) = layer.init(x), to_jax(x.clone())
        answer, kept = layer.step(commitment, x, u)
        values = answer.action.clone(), np.array(kept.x)
        x.fill_(7.0), u.fill_(7.0)
        np.testing.assert_array_equal(commitment.x, before)
        assert torch.equal(answer.action, values[0])
        np.testing.assert_array_equal(kept.x, values[1])


def test_numbers_that_are_none_are_answered_and_reported(layer):
    x, u = points()
    u[0, 0], x[1, 1] = torch.nan, torch.inf
    answer, _ = layer.step(layer.init(points()[0]), x, u)
    assert answer.status[0] == Status.bad_action and answer.status[1] == Status.bad_state
    assert answer.action[0].isfinite().all()
    assert (answer.correction[0] == 0).all()


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("gradient", ["exact", "straight_through", "stopped"])
def test_gradients_agree_with_jax_in_every_mode(gradient):
    layer = in_mode(gradient)
    assert layer.safeguard.gradient == gradient
    x, u = points()
    weights = torch.linspace(-1, 1, 2 * B, dtype=torch.float64).reshape(B, 2)
    x.requires_grad_(), u.requires_grad_()
    answer = layer.guard(x, u)
    (answer.action * weights + answer.correction.square()).sum().backward()

    def loss(x, u):
        found = jax.vmap(layer.safeguard.guard)(x, u)
        return jnp.sum(found.action * jnp.asarray(weights.numpy()) + found.correction**2)

    gx, gu = jax.jit(jax.grad(loss, argnums=(0, 1)))(*to_jax(x, u))
    np.testing.assert_allclose(x.grad, gx, atol=1e-5)
    np.testing.assert_allclose(u.grad, gu, atol=1e-5)
    assert not answer.status.requires_grad and not answer.margin.requires_grad
    if gradient == "exact":
        assert x.grad[::2].abs().min() > 0


def test_gradients_agree_with_jax_through_backup_plans(cart):
    layer, state, x, u = cart
    tx, tu = (torch.tensor(np.asarray(each), requires_grad=True) for each in (x, u))
    layer.step(state, tx, tu)[0].action.sum().backward()
    slope = jax.grad(lambda state, x, u: layer.safeguard.step(state, x, u)[0].action.sum(), argnums=(1, 2))
    gx, gu = jax.jit(jax.vmap(slope))(state, x, u)
    np.testing.assert_allclose(tx.grad, gx, atol=1e-5)
    np.testing.assert_allclose(tu.grad, gu, atol=1e-5)


def test_gradcheck_away_from_kinks(layer):
    x, u = points()
    x.requires_grad_(), u.requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, u))
    commitment = layer.init(x)
    assert torch.autograd.gradcheck(lambda x, u: layer.step(commitment, x, u)[0].action, (x, u))


def test_gradcheck_has_teeth():
    x, u = points()
    u.requires_grad_()
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda u: in_mode("straight_through")(x, u), u)


def test_writing_to_an_input_before_its_gradient_is_refused(layer):
    x, u = points()
    u.requires_grad_()
    action = layer(x, u)
    x.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        action.sum().backward()


def test_second_derivatives_are_refused(layer):
    x, u = points()
    u.requires_grad_()
    (slope,) = torch.autograd.grad((layer(x, u) ** 2).sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_an_actor_learns_through_the_layer(layer):
    """Asked for what lies outside, it learns the nearest inside; the layer has nothing to learn itself."""
    torch.manual_seed(0)
    x, _ = points(torch.float32)
    actor = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam([*actor.parameters(), *layer.parameters()], 0.05)
    assert not list(layer.parameters()) and not layer.state_dict()
    wanted = torch.tensor([0.9, 0.0])

    def loss():
        return (x + 0.5 * layer(x, actor(x)) - wanted).square().sum(1).mean()

    before = loss().item()
    for _ in range(40):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
    assert loss().item() < 0.8 * before


def test_a_copied_actor_shares_the_layer_and_nothing_compiles_twice(layer):
    x, u = points()
    actor = torch.nn.Sequential(torch.nn.Linear(2, 2), layer)
    assert copy.deepcopy(actor)[1] is layer
    layer(x, u)
    programs = layer._programs[2]
    before = programs.guard._cache_size()
    copy.deepcopy(actor)[1](x + 0.01, u)
    assert programs.guard._cache_size() == before


# ---------------------------------------------------------------------------------------------------------- bad input


BAD = {
    "a numpy array": (lambda x, u: (x.numpy(), u), TypeError, ["x is a ndarray", "torch.as_tensor(x)"]),
    "half precision": (lambda x, u: (x, u.half()), TypeError, ["u is torch.float16", "u.float()"]),
    "integers": (lambda x, u: (x.long(), u), TypeError, ["x is torch.int64", "x.float()"]),
    "two precisions": (lambda x, u: (x, u.float()), TypeError, ["torch.float64", "torch.float32", "u.to(x)"]),
    "another device": (lambda x, u: (x, u.to("meta")), TypeError, ["u is on meta", "JAX runs on", "u.cpu()"]),
    "sparse": (lambda x, u: (x.to_sparse(), u), TypeError, ["sparse_coo", "to_dense()"]),
    "other states": (lambda x, u: (x[:, :1], u), ValueError, ["x has shape (16, 1)", "[B, 2]"]),
    "a batch of batches": (lambda x, u: (x[None], u[None]), ValueError, ["x has shape (1, 16, 2)"]),
    "an empty batch": (lambda x, u: (x[:0], u[:0]), ValueError, ["x has shape (0, 2)"]),
    "other inputs": (lambda x, u: (x, u[:, :1]), ValueError, ["u has shape (16, 1)", "2 inputs", "(16, 2)"]),
    "other batches": (lambda x, u: (x, u[:3]), ValueError, ["u has shape (3, 2)", "(16, 2)"]),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_tensor_is_named_with_what_to_give(layer, wrong):
    change, error, words = BAD[wrong]
    with pytest.raises(error) as caught:
        layer.guard(*change(*points()))
    for word in words:
        assert word in str(caught.value)


def test_float64_needs_a_jax_of_64_bits(layer):
    x, u = points()
    with jax.enable_x64(False), pytest.raises(TypeError, match=r"x is torch.float64, .*jax_enable_x64.* x.float\(\)"):
        layer(x, u)


def test_a_commitment_of_another_batch_or_precision_is_refused(layer):
    x, u = points()
    commitment = layer.init(x)
    for other in (x[:4], x.float()):
        with pytest.raises(ValueError, match=r"the commitment holds .*16, 2.* need .*what `init` or the last `step`"):
            layer.step(commitment, other, u[: len(other)].to(other))
    with pytest.raises(ValueError, match=r"where is torch.float32 of shape \(3,\); give torch.bool of shape \(16,\)"):
        layer.restart(commitment, x, torch.zeros(3))


def test_other_things_than_safeguards_and_modes_are_refused():
    with pytest.raises(TypeError, match="safeguard is a Disc; give a "):
        TorchSafeguard(GUARD.source)
    with pytest.raises(ValueError, match="gradient = 'smooth'"):
        TorchSafeguard(GUARD, "smooth")


def test_a_missing_extra_names_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "holdfast.interop.torch")
    with pytest.raises(ImportError, match=r"pip install holdfast\[torch\]"):
        importlib.import_module("holdfast.interop.torch")
