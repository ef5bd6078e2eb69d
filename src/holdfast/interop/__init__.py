"""Plugging in elsewhere: PyTorch, and controllers that run without holdfast.

`holdfast.interop.torch` needs an extra and is imported by its own name. The rest is imported when it is asked for: a robot
that loads a controller must not load what trained it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.interop.controller import Controller, Refused, load_controller
    from holdfast.interop.export import Agreement, NotExportable, agreement, export_controller

__all__ = ["Agreement", "Controller", "NotExportable", "Refused", "agreement", "export_controller", "load_controller"]


def __getattr__(name: str) -> Any:
    if name in ("Controller", "Refused", "load_controller"):
        from holdfast.interop import controller as where
    elif name in __all__:
        from holdfast.interop import export as where
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(where, name)
