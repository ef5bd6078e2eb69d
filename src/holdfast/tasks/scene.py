"""Scenes: what a task looks like from outside, in simple shapes and world coordinates."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Role = Literal["body", "trail", "reference", "limit", "unsafe", "scenery", "backup", "proposed"]
"""What a shape stands for; whoever draws it picks colour and line by role."""


@dataclass(frozen=True)
class Polyline:
    """Straight lines through points [k, 2], in the scene's units; `filled` makes a polygon of them."""

    points: np.ndarray
    role: Role
    filled: bool = False


@dataclass(frozen=True)
class Circle:
    """A disc about `centre` (2 numbers) with `radius`, in the scene's units."""

    centre: tuple[float, float]
    radius: float
    role: Role


@dataclass(frozen=True)
class Rectangle:
    """A filled rectangle about `centre`, `size` = (length, width), turned by `angle` rad counter-clockwise."""

    centre: tuple[float, float]
    size: tuple[float, float]
    role: Role
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One picture of a task.

    Attributes:
        shapes: drawn in order, the last on top. Their number, kinds and roles stay the same during an episode.
        window: (left, right, bottom, top) in the scene's units, drawn with equal scales; the same during an episode.
        labels: words with units for the horizontal and the vertical axis.
        still: whether the window stands still in the world, so that what was drawn earlier is still where it was.
    """

    shapes: tuple[Polyline | Circle | Rectangle, ...]
    window: tuple[float, float, float, float]
    labels: tuple[str, str]
    still: bool = False
