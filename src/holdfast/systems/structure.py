"""What a system may declare about itself, so that proofs become possible or cheap.

Declarations are claims. `shown_by` says where a claim is shown by algebra; without it a certificate checks it on random
samples and says so.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from holdfast.sets import Box

#: How far from its manifold a state may be, in the units of `System.manifold`. Rounding stays far below it.
MANIFOLD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Symmetry:
    """The error step commutes with rotating pairs of errors, and pairs of inputs, by one common angle.

    error_step(T_e e, T_u u) = T_e error_step(e, u), where T_e turns every pair (e[a], e[b]) and T_u every pair
    (u[a], u[b]) by the same angle; with `mirror` also where T_e flips the sign of the second of every pair of errors and
    of `mirrored_errors`, and T_u that of the inputs `mirrored_inputs`. With `mixing` it is mixing @ u that T_u turns and
    flips, instead of u.

    Attributes:
        pairs: indices of errors that turn together.
        input_pairs: indices of inputs that turn with them.
        mirror: whether the reflection is a symmetry too.
        mirrored_inputs: inputs whose sign the reflection flips.
        shown_by: where algebra shows it; empty: it is sampled.
        mirrored_errors: errors in no pair whose sign the reflection flips.
        mixing: invertible matrix [m, m], or None for the identity.
    """

    pairs: tuple[tuple[int, int], ...]
    input_pairs: tuple[tuple[int, int], ...] = ()
    mirror: bool = False
    mirrored_inputs: tuple[int, ...] = ()
    shown_by: str = ""
    mirrored_errors: tuple[int, ...] = ()
    mixing: np.ndarray | None = None

    def error_matrix(self, size: int, angle: float, flip: bool = False) -> np.ndarray:
        """T_e, shape [e, e]."""
        flipped = (*(b for _, b in self.pairs), *self.mirrored_errors) if flip else ()
        return _turn(size, self.pairs, angle, flipped)

    def input_matrix(self, size: int, angle: float, flip: bool = False) -> np.ndarray:
        """T_u, shape [m, m]."""
        turn = self._mixed_turn(size, angle, flip)
        if self.mixing is None:
            return turn
        turn = np.linalg.solve(self.mixing, turn @ self.mixing)
        # Quarter turns and mirrors are exact: small fractions, which rounding would blur.
        return np.round(turn, 12) if _quarters(angle) is not None else turn

    def _mixed_turn(self, size: int, angle: float, flip: bool) -> np.ndarray:
        """What happens to mixing @ u, shape [m, m]."""
        return _turn(size, self.input_pairs, angle, self.mirrored_inputs if flip else ())

    def symmetric_form(self, matrix: np.ndarray) -> np.ndarray:
        """The quadratic form [e, e] closest to a given one that no turn changes."""
        e = matrix.shape[0]
        turns = [self.error_matrix(e, angle, flip) for angle, flip in self._group()]
        return np.mean([T.T @ matrix @ T for T in turns], axis=0)

    def symmetric_gain(self, gain: np.ndarray) -> np.ndarray:
        """The feedback matrix [m, e] closest to a given one with K T_e = T_u K."""
        m, e = gain.shape
        mixing = np.eye(m) if self.mixing is None else self.mixing
        # Averaged where turns only move and flip entries, so that what cancels does so exactly.
        turns = [(self._mixed_turn(m, *g), self.error_matrix(e, *g)) for g in self._group()]
        mixed = np.mean([U.T @ (mixing @ gain) @ T for U, T in turns], axis=0)
        return np.round(np.linalg.inv(mixing), 12) @ mixed

    def _group(self) -> Iterator[tuple[float, bool]]:
        """Quarter turns: what commutes with them commutes with every turn of pairs, and their matrices are exact."""
        for flip in (False, True) if self.mirror else (False,):
            for quarter in range(4):
                yield quarter * np.pi / 2, flip


def _turn(size: int, pairs, angle: float, flipped: tuple[int, ...]) -> np.ndarray:
    matrix = np.eye(size)
    quarters = _quarters(angle)
    if quarters is not None:
        cos, sin = (1.0, 0.0, -1.0, 0.0)[quarters], (0.0, 1.0, 0.0, -1.0)[quarters]
    else:
        cos, sin = np.cos(angle), np.sin(angle)
    for a, b in pairs:
        matrix[np.ix_((a, b), (a, b))] = [[cos, -sin], [sin, cos]]
    mirror = np.ones(size)
    mirror[list(flipped)] = -1.0
    return matrix * mirror


def _quarters(angle: float) -> int | None:
    """How many quarter turns, modulo four; None where it is no whole number."""
    quarters = angle / (np.pi / 2)
    return int(quarters) % 4 if quarters == round(quarters) else None


@dataclass(frozen=True)
class Spread:
    """How one step, and the error, spread the distance between two states.

    With Euclidean norms of the blocks i, j of the state, |F_i(x, u) - F_i(x', u)| <= sum_j gains[i, j] |x_j - x'_j|, and
    |error_k(x) - error_k(x')| <= sum_j error_gains(radii)[k, j] |x_j - x'_j| where both |error| <= radii, for every u of
    the input box and all x, x' on the system's `manifold` to `MANIFOLD_TOLERANCE`.

    Attributes:
        blocks: indices of the state, each in one block.
        gains: shape [b, b]; or a function of the region of states, a `Box` [n], for which it holds.
        error_gains: radii [e] -> [e, b].
        shown_by: why it is so.
    """

    blocks: tuple[tuple[int, ...], ...]
    gains: np.ndarray | Callable[[Box], np.ndarray]
    error_gains: Callable[[np.ndarray], np.ndarray]
    shown_by: str

    def gains_in(self, region: Box) -> np.ndarray:
        """`gains` for two states of a region, shape [b, b]."""
        return self.gains(region) if callable(self.gains) else self.gains

    def norms(self, deviation: np.ndarray) -> np.ndarray:
        """Euclidean norms of the blocks of a deviation [n, ...], shape [b, ...]."""
        return np.stack([np.sqrt((deviation[list(block)] ** 2).sum(0)) for block in self.blocks])

    def entries(self, norms: np.ndarray) -> np.ndarray:
        """Bounds on the entries of a deviation, shape [n], from those on its blocks [b]."""
        bound = np.zeros(sum(len(block) for block in self.blocks))
        for block, norm in zip(self.blocks, norms):
            bound[list(block)] = norm
        return bound
