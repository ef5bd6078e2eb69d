"""Coordinates in which a quadratic base set is a ball and the linear closed loop is as decoupled as it can be.

For V(e) = e'Pe and the linearisation A of the closed loop, coordinates y with e = S y are chosen so that V(e) ~ |y|^2
and V(Ae) ~ sum_i q_i y_i^2. All matrices are ordinary float64 matrices: the proof is made for the *floats*, and what
they miss of the ideal identities is enclosed in intervals and paid for:

    S'PS = I + E,  |E| <= mu   gives   (1 - mu) |y|^2 <= V(S y) <= (1 + mu) |y|^2, and that S is invertible and P > 0;
    T S = I + F,   |F| <= phi  gives   V(x) <= (1 + mu) / (1 - phi)^2 |T x|^2 for every x, as x = S y and
                                       |y| <= |T x| + phi |y|.

So V(step(S y)) is bounded through g(y) = T step(S y), and {V <= c} lies in the ball |y|^2 <= c / (1 - mu).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from holdfast.certify import linear
from holdfast.certify.interval import Interval


@dataclass(frozen=True)
class RotationSymmetry:
    """A declared symmetry of the closed loop: it commutes with a common rotation of several coordinate pairs.

    Rotating every pair (e[a], e[b]) by one angle, and with `mirror` also flipping the sign of every e[b] and of the
    `mirrored` coordinates, maps solutions to solutions and leaves V unchanged. Every state can then be turned so that one
    coordinate is zero and one (with `mirror` two) non-negative, and only those states need a proof. This saves two to three
    of the dimensions to be split.

    The matrix P must have the symmetry exactly (`symmetrise` makes it so). That `step` has it is checked numerically,
    at sampled points: in a certificate it stays an obligation of its own, to be shown by algebra.
    """

    pairs: tuple[tuple[int, int], ...]
    mirror: bool = False
    mirrored: tuple[int, ...] = ()

    def blocks(self, n: int) -> tuple[list[int], list[int], list[int]]:
        """Indices of the first members, the second members and the rest."""
        first, second = [a for a, _ in self.pairs], [b for _, b in self.pairs]
        return first, second, [i for i in range(n) if i not in first and i not in second]

    def cut(self, lo: np.ndarray, hi: np.ndarray) -> None:
        """Cut a box lo..hi [n], in place, down to states that stand for all others; the first pairs gain most."""
        first, second, _ = self.blocks(len(lo))
        lo[first[0]] = lo[second[0]] = hi[second[0]] = 0.0
        if self.mirror and len(second) > 1:
            lo[second[1]] = 0.0

    def symmetrise(self, matrix: np.ndarray) -> np.ndarray:
        """The nearest matrix [n, n] of the form that the symmetry demands."""
        matrix = np.asarray(matrix, np.float64)
        first, second, rest = self.blocks(matrix.shape[0])
        result = np.zeros_like(matrix)
        result[np.ix_(rest, rest)] = matrix[np.ix_(rest, rest)]
        mean = 0.5 * (matrix[np.ix_(first, first)] + matrix[np.ix_(second, second)])
        result[np.ix_(first, first)] = result[np.ix_(second, second)] = mean
        if self.mirror:
            # What the mirror flips has nothing to do with what it leaves.
            flipped = np.isin(np.arange(len(matrix)), self.mirrored)
            result[np.ix_(rest, rest)] *= (flipped[rest][:, None] == flipped[rest][None]).astype(float)
        return result

    def check(self, step: Callable, P: np.ndarray, level: float, samples: int = 64) -> None:
        """Raise ValueError where P (exactly) or `step` (at sampled points, to 1e-9) lacks the symmetry."""
        n = P.shape[0]
        if not np.array_equal(self.symmetrise(P), P):
            raise ValueError("P does not have the declared symmetry exactly; pass symmetry.symmetrise(P)")
        rng = np.random.default_rng(0)
        sphere = rng.normal(size=(samples, n))
        e = sphere / np.sqrt(np.einsum("bi,ij,bj->b", sphere, P, sphere))[:, None] * np.sqrt(level)
        angle = rng.uniform(-np.pi, np.pi, samples)
        flip = np.where(rng.random(samples) < 0.5, -1.0, 1.0) if self.mirror else np.ones(samples)

        def turn(x):
            x = x.copy()
            for i in self.mirrored:
                x[:, i] *= flip
            for a, b in self.pairs:
                u, v = x[:, a].copy(), flip * x[:, b]
                x[:, a], x[:, b] = np.cos(angle) * u - np.sin(angle) * v, np.sin(angle) * u + np.cos(angle) * v
            return x

        with jax.enable_x64(True):
            batched = jax.jit(jax.vmap(step))
            difference = np.abs(np.asarray(batched(turn(e))) - turn(np.asarray(batched(e))))
        if not difference.max() <= 1e-9 * max(1.0, np.abs(e).max()):
            raise ValueError(f"step does not have the declared symmetry: it misses by {difference.max():.3g}")


@dataclass(frozen=True)
class NormalCoordinates:
    """e = S y; see the module. Matrices [n, n] and weights [n] are floats, `mu`, `phi`, `rest` rounded-up bounds."""

    S: np.ndarray
    T: np.ndarray
    A: np.ndarray  #: linear part used for the split g(y) = A y + r(y); any matrix is sound
    q: np.ndarray  #: |A y|^2 <= sum_i q_i y_i^2 + rest |y|^2
    rest: float
    mu: float
    phi: float

    def ball(self, level: float) -> float:
        """{V <= level} lies in |y|^2 <= this."""
        return float(level / (1 - self.mu) * (1 + 4e-15))

    def target(self, level: float) -> float:
        """|T x|^2 <= this implies V(x) <= level."""
        return float(level * (1 - self.phi) ** 2 / (1 + self.mu) * (1 - 4e-15))


def _norm(matrix: Interval) -> float:
    """Upper bound on the spectral norm of every [n, n] matrix in the enclosure: sqrt of row times column sums."""
    size = matrix.magnitude[..., 0]
    return float(np.sqrt(size.sum(0).max() * size.sum(1).max()) * (1 + 1e-12))


def _diagonalise(A: np.ndarray, P: np.ndarray) -> np.ndarray:
    """S with S'PS = I and S'A'PAS diagonal, up to rounding."""
    root = np.linalg.cholesky(0.5 * (P + P.T)).T  # P = root' root
    inverse = np.linalg.inv(root)
    image = root @ A @ inverse
    _, rotation = np.linalg.eigh(image.T @ image)
    return inverse @ rotation


def normal_coordinates(step: Callable, P: np.ndarray, symmetry: RotationSymmetry | None = None) -> NormalCoordinates:
    """Choose the coordinates for the closed loop `step` (e [n] -> e_next [n]) around 0 and V = e'Pe.

    Errors: ValueError when P is not positive definite, or too ill conditioned for float64.
    """
    P = np.asarray(P, np.float64)
    n = P.shape[0]
    if P.shape != (n, n) or not np.isfinite(P).all() or np.linalg.eigvalsh(0.5 * (P + P.T)).min() <= 0:
        raise ValueError("P must be a finite positive definite matrix [n, n]")
    with jax.enable_x64(True):
        A = np.asarray(jax.jacfwd(step)(np.zeros(n)), np.float64)
    if A.shape != (n, n):
        raise ValueError(f"step must map [{n}] to [{n}]; its Jacobian at 0 has shape {A.shape}")
    A = np.where(np.isfinite(A), A, 0.0)
    S = np.zeros((n, n))
    if symmetry is None:
        S = _diagonalise(A, P)
    else:
        first, second, rest = symmetry.blocks(n)
        A = symmetry.symmetrise(A)
        for indices in (first, rest):
            if indices:
                block = np.ix_(indices, indices)
                S[block] = _diagonalise(A[block], P[block])
        S[np.ix_(second, second)] = S[np.ix_(first, first)]
    T = np.linalg.inv(S)
    exact = lambda matrix: Interval.constant(matrix)  # noqa: E731
    identity = exact(np.eye(n))
    form = linear.matmul(linear.matmul(exact(S.T), exact(P)), exact(S))
    form = Interval(0.5 * (form.lo + form.lo.swapaxes(0, 1)), 0.5 * (form.hi + form.hi.swapaxes(0, 1)))
    mu = _norm(form - identity) + 1e-15
    phi = _norm(linear.matmul(exact(T), exact(S)) - identity) + 1e-15
    if not (mu < 1e-3 and phi < 1e-3):
        raise ValueError("P is too ill conditioned for a proof in float64: rescale the error coordinates")
    drift = T @ A @ S
    gram = linear.matmul(exact(drift.T), exact(drift))
    q = np.diag(gram.midpoint[..., 0]).copy()
    remainder = _norm(gram - exact(np.diag(q)))
    return NormalCoordinates(S, T, drift, q, remainder, mu, phi)
