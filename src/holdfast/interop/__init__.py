"""Plugging in elsewhere: Gymnasium, Stable-Baselines3, PyTorch, MuJoCo MJX, and controllers that run without holdfast.

`holdfast.interop.stable_baselines3`, `holdfast.interop.torch` and `holdfast.interop.mjx` need extras and are imported by
their own names, as is `holdfast.interop.gymnasium`. The rest is imported when it is asked for: a robot that loads a
controller must not load what trained it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.interop.analytic import analytic_safeguard
    from holdfast.interop.completion import complete_task
    from holdfast.interop.controller import Controller, Refused, load_controller
    from holdfast.interop.export import Agreement, NotExportable, agreement, export_controller
    from holdfast.interop.task_proof import certify_task, physics_of

__all__ = [
    "Agreement",
    "Controller",
    "NotExportable",
    "Refused",
    "agreement",
    "analytic_safeguard",
    "certify_task",
    "complete_task",
    "export_controller",
    "load_controller",
    "physics_of",
]

_ELSEWHERE = {"Controller": "controller", "Refused": "controller", "load_controller": "controller"}
_ELSEWHERE |= {"analytic_safeguard": "analytic", "complete_task": "completion"}
_ELSEWHERE |= {"certify_task": "task_proof", "physics_of": "task_proof"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"holdfast.interop.{_ELSEWHERE.get(name, 'export')}"), name)
