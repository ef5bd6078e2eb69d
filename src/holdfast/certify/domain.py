"""What a domain of abstract values provides, and what it means that one has no rule for a primitive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from holdfast.certify.interval import Interval


class UnsupportedPrimitive(NotImplementedError):
    """A function uses a JAX primitive for which a domain has no rule."""

    def __init__(self, primitive: str, function: str, detail: str = ""):
        self.primitive = primitive
        super().__init__(
            f"{function} uses the JAX primitive '{primitive}'{detail}, for which there is no enclosure rule, so "
            f"nothing can be proved about it. Rewrite that part of {function} with supported operations (arithmetic, "
            "powers, sqrt, exp, log, trigonometric and hyperbolic functions, min, max, clip, where, round, matrix "
            "products, sums, indexing with fixed indices, scan of fixed length, Cholesky), or add a rule in holdfast.certify."
        )


class Domain(Protocol):
    """What a domain of abstract values provides. A value's arrays have shape ``value_shape + tail``."""

    rules: dict[str, Callable[..., Any]]  #: primitive name -> rule(*values, **params)

    def constant(self, array: np.ndarray) -> Any:
        """A float constant [...]."""

    def gather(self, values: list[Any], sizes: list[int], index: np.ndarray) -> Any:
        """Entries `index` [...] of the values, flattened and laid end to end."""

    def enclosure(self, value: Any) -> Interval:
        """What comparisons see."""
        ...

    def select(self, which: Interval, if_false: Any, if_true: Any) -> Any: ...

    def total(self, terms: list[Any]) -> Any:
        """Sum of the terms, in whatever order the compiler likes."""
