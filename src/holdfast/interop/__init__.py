"""Plugging in elsewhere: Gymnasium and Stable-Baselines3.

`holdfast.interop.stable_baselines3` needs an extra and is imported by its own name, as is `holdfast.interop.gymnasium`.
The rest is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.interop.analytic import analytic_safeguard

__all__ = ["analytic_safeguard"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from holdfast.interop import analytic

    return getattr(analytic, name)
