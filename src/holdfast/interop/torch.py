"""A JAX safeguard as a PyTorch layer: in the policy, batched, differentiable; tensors cross by DLPack without copies.

layer = TorchSafeguard(safeguard)
action = layer(x, actor(observation))              # stateless: replay buffers, gradients
commitment = layer.init(x)                         # stateful: acting in closed loop
answer, commitment = layer.step(commitment, x, u)
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from holdfast.interop.spaces import state_size
from holdfast.safeguards import Safeguard

try:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.autograd.function import once_differentiable  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(
        "holdfast.interop.torch needs PyTorch, which is not installed: pip install holdfast[torch] "
        "(for a machine without a GPU: pip install torch --index-url https://download.pytorch.org/whl/cpu)"
    ) from error

_DTYPES = (torch.float32, torch.float64)
_PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}


class Answer(NamedTuple):
    """`holdfast.types.Safeguarded` in tensors, for a batch [B, ...] or one state.

    Attributes:
        action: the admissible action, shape [B, m]; differentiable in x and u by the safeguard's gradient mode.
        status: a `holdfast.types.Status` as int32, shape [B]; not differentiable.
        margin: smallest margin along the committed plan, shape [B]; not differentiable.
        correction: action - u, zero where u was not finite, shape [B, m]; differentiable.
    """

    action: torch.Tensor
    status: torch.Tensor
    margin: torch.Tensor
    correction: torch.Tensor


class TorchSafeguard(torch.nn.Module):
    """A `Safeguard` between a torch actor and the plant, or in its loss: x [B, n] or [n], u [B, m] or [m].

    Values come from the very program `jax.jit(jax.vmap(safeguard.step))`, so they equal JAX's bit for bit. Each form is
    compiled once for every batch shape and precision, and its derivative, a `jax.vjp`, when it is first asked for: keep batch
    sizes constant. The backward pass decides again from the same numbers; where rounding decides between two statuses, its
    program may take the other one. Second derivatives are refused.

    The layer has no parameters and an empty `state_dict`. It is shared, not copied, by `copy.deepcopy`. Inputs may be written to
    after a call; what the layer returned as a commitment is JAX's and not to be changed.

    Args:
        safeguard: the JAX safeguard; what it holds (a backup network) is constant.
        gradient: "exact", "straight_through" or "stopped", in place of the safeguard's own mode.

    Raises:
        TypeError, ValueError: where a tensor has another dtype, device or shape than it should; says which and what to give.
    """

    def __init__(self, safeguard: Safeguard, gradient: str | None = None):
        super().__init__()
        if not isinstance(safeguard, Safeguard):
            raise TypeError(
                f"TorchSafeguard: safeguard is a {type(safeguard).__name__}; give a holdfast.safeguards.Safeguard"
            )
        if gradient is not None:
            safeguard = dataclasses.replace(safeguard, gradient=gradient)
        self.safeguard = safeguard
        self._programs = {1: _Programs(safeguard, batched=False), 2: _Programs(safeguard, batched=True)}

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The admissible action of `guard`, alone."""
        return self.guard(x, u).action

    def guard(self, x: torch.Tensor, u: torch.Tensor) -> Answer:
        """The answer to u at x from a fresh commitment: for gradients and replay buffers. Claims no recursion."""
        programs, x, u = self._admitted("guard", x, u)
        return _through(x, u, programs, None)[0]

    def init(self, x: torch.Tensor) -> Any:
        """The commitments of episodes that start at x: a JAX pytree, to be handed to `step` and kept from it."""
        programs, x = self._admitted("init", x)
        return jax.block_until_ready(programs.init(_to_jax(x)))

    def step(self, commitment: Any, x: torch.Tensor, u: torch.Tensor) -> tuple[Answer, Any]:
        """The answer to u at x, and the commitment that holds after the answer's action was applied."""
        programs, x, u = self._admitted("step", x, u)
        programs.require(commitment, x)
        return _through(x, u, programs, commitment)

    def restart(self, commitment: Any, x: torch.Tensor, where: torch.Tensor) -> Any:
        """The commitments with those of new episodes, which start at x [B, n] where `where` [B] is true, made anew."""
        programs, x = self._admitted("restart", x)
        programs.require(commitment, x)
        if where.dtype != torch.bool or where.shape != x.shape[:-1]:
            raise ValueError(
                f"TorchSafeguard.restart: where is {where.dtype} of shape {tuple(where.shape)}; give torch.bool of shape "
                f"{tuple(x.shape[:-1])}, true where an episode begins"
            )
        return jax.block_until_ready(programs.restart(commitment, _to_jax(x), jnp.asarray(where.cpu().numpy())))

    def certified(self, commitment: Any) -> torch.Tensor:
        """Whether something is promised, shape [B], bool: look at it once after `init`."""
        return _to_torch(commitment.certified)

    def __deepcopy__(self, memo):
        # Target networks are deep copies of actors. There is nothing to train here, and a copy would compile again.
        return self

    def _admitted(self, method: str, x: torch.Tensor, u: torch.Tensor | None = None) -> tuple:
        """The programs for the tensors' rank and the tensors, contiguous, or an error that says what to give."""
        where = f"TorchSafeguard.{method}"
        given = {"x": x} if u is None else {"x": x, "u": u}
        for name, tensor in given.items():
            _require_readable(where, name, tensor)
        n, m = state_size(self.safeguard), self.safeguard.source.input_box.dimension
        if x.ndim not in (1, 2) or (n is not None and x.shape[-1] != n) or 0 in x.shape:
            size = "n" if n is None else n
            raise ValueError(
                f"{where}: x has shape {tuple(x.shape)}; give states of shape [B, {size}], or one of [{size}]"
            )
        if u is None:
            return self._programs[x.ndim], x.contiguous()
        if u.shape != (*x.shape[:-1], m):
            raise ValueError(
                f"{where}: u has shape {tuple(u.shape)}; the states have shape {tuple(x.shape)} and the input box has {m} "
                f"inputs, so give {(*x.shape[:-1], m)}"
            )
        if u.dtype != x.dtype or u.device != x.device:
            raise TypeError(
                f"{where}: x is {x.dtype} on {x.device}, u is {u.dtype} on {u.device}; give both in one dtype on one device, "
                f"as u.to(x)"
            )
        return self._programs[x.ndim], x.contiguous(), u.contiguous()


class _Programs:
    """The compiled forms of one safeguard, for one state or a batch."""

    def __init__(self, safeguard: Safeguard, *, batched: bool):
        self.lift = jax.vmap if batched else lambda function: function
        init, step, guard = self.lift(safeguard.init), self.lift(safeguard.step), self.lift(safeguard.guard)

        def restart(commitment, x, where):
            def renew(old, new):
                return jnp.where(where.reshape(where.shape + (1,) * (old.ndim - where.ndim)), new, old)

            return jax.tree.map(renew, commitment, init(_owned(x)))

        def pull_back(commitment, x, u, cotangents):
            def outputs(x, u):
                answer = guard(x, u) if commitment is None else step(commitment, x, u)[0]
                return answer.action, answer.correction

            return jax.vjp(outputs, x, u)[1](cotangents)

        self.init = jax.jit(lambda x: init(_owned(x)))
        self.step = jax.jit(lambda commitment, x, u: step(commitment, *_owned((x, u))))
        self.guard = jax.jit(lambda x, u: guard(*_owned((x, u))))
        self.restart, self.pull_back = jax.jit(restart), jax.jit(pull_back)
        self._shapes: dict[Any, Any] = {}

    def require(self, commitment: Any, x: torch.Tensor) -> None:
        """That a commitment belongs to states like x, before a program says it in its own words."""
        key = tuple(x.shape), x.dtype
        if key not in self._shapes:
            like = jax.ShapeDtypeStruct(key[0], np.float64 if x.dtype == torch.float64 else np.float32)
            self._shapes[key] = _description(jax.eval_shape(self.init, like))
        wanted, seen = self._shapes[key], _description(commitment)
        if seen != wanted:
            raise ValueError(
                f"TorchSafeguard.step: the commitment holds {seen[1]}, but states of shape {key[0]} in {x.dtype} need "
                f"{wanted[1]}; give what `init` or the last `step` returned for the same batch"
            )


def _owned(tree: Any) -> Any:
    """Without this, a result that is an argument would be the caller's memory, which the caller may write to."""
    return jax.lax.optimization_barrier(tree)


def _description(commitment: Any) -> tuple[Any, list[str]]:
    """Structure, and each array's dtype and shape in words."""
    leaves, structure = jax.tree.flatten(commitment)
    return structure, [f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(jnp.shape(leaf))}" for leaf in leaves]


def _require_readable(where: str, name: str, tensor: Any) -> None:
    """That JAX can read a tensor where it lies, in its precision."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"{where}: {name} is a {type(tensor).__name__}; give a torch.Tensor, as torch.as_tensor({name})"
        )
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"{where}: {name} is {tensor.dtype}; give torch.float32 or torch.float64, as {name}.float()")
    if tensor.dtype == torch.float64 and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        raise TypeError(
            f"{where}: {name} is torch.float64, but JAX computes in 32 bits here; call "
            f'jax.config.update("jax_enable_x64", True) before the first use of JAX, or give {name}.float()'
        )
    if tensor.layout != torch.strided:
        raise TypeError(f"{where}: {name} has the layout {tensor.layout}; give {name}.to_dense()")
    platform = _PLATFORMS.get(tensor.device.type)
    try:
        known = platform is not None and bool(jax.devices(platform))
    except RuntimeError:
        known = False
    if not known:
        raise TypeError(
            f"{where}: {name} is on {tensor.device}, but JAX runs on {jax.default_backend()} here; give {name}.cpu(), or "
            "install JAX for that device (pip install 'jax[cuda13]')"
        )


def _to_jax(tensor: torch.Tensor) -> jax.Array:
    return jnp.from_dlpack(tensor.detach())


def _to_torch(array: jax.Array) -> torch.Tensor:
    return torch.from_dlpack(array)


def _through(x: torch.Tensor, u: torch.Tensor, programs: _Programs, commitment: Any) -> tuple[Answer, Any]:
    action, correction, status, margin, following = _Step.apply(x, u, programs, commitment)
    return Answer(action, status, margin, correction), following


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, u, programs, commitment):
        if commitment is None:
            answer, following = programs.guard(_to_jax(x), _to_jax(u)), None
        else:
            answer, following = programs.step(commitment, _to_jax(x), _to_jax(u))
        # The caller may write to x and u as soon as this returns.
        answer, following = jax.block_until_ready((answer, following))
        ctx.save_for_backward(x, u)
        ctx.programs, ctx.commitment = programs, commitment
        action, correction = _to_torch(answer.action), _to_torch(answer.correction)
        status, margin = _to_torch(answer.status), _to_torch(answer.margin)
        ctx.mark_non_differentiable(status, margin)
        return action, correction, status, margin, following

    @staticmethod
    @once_differentiable
    def backward(ctx, action_bar, correction_bar, *_):
        x, u = ctx.saved_tensors
        cotangents = _to_jax(action_bar.contiguous()), _to_jax(correction_bar.contiguous())
        pulled = ctx.programs.pull_back(ctx.commitment, _to_jax(x), _to_jax(u), cotangents)
        x_bar, u_bar = jax.block_until_ready(pulled)
        return _to_torch(x_bar), _to_torch(u_bar), None, None
