"""Safeguards: sources of safe actions, maps onto them, and the stateful total safeguard that combines both."""

from holdfast.safeguards.action_zonotope import ActionZonotope
from holdfast.safeguards.backup_cbf import LAYERS, BackupCBF, LayerAnswer, LayerFirst
from holdfast.safeguards.backup_source import BackupSource
from holdfast.safeguards.barrier_filter import BarrierFilter
from holdfast.safeguards.boundary_projection import BoundaryProjection
from holdfast.safeguards.centres import CENTRES
from holdfast.safeguards.explicit import Promise
from holdfast.safeguards.gatekeeper import GatekeeperSource
from holdfast.safeguards.invariant_source import InvariantSource
from holdfast.safeguards.map import Map
from holdfast.safeguards.per_input import PerInput
from holdfast.safeguards.ray import Ray
from holdfast.safeguards.ray_mask import MASKS, RayMask
from holdfast.safeguards.safeguard import Safeguard
from holdfast.safeguards.shield import ModelPredictiveShield
from holdfast.safeguards.source import HalfSpaces, SafeActionSet, Source
from holdfast.safeguards.zonotope_source import ZonotopeSource

MAPS = {"ray": Ray, "boundary_projection": BoundaryProjection, "per_input": PerInput}
"""Every map by the name that the command line gives it."""

__all__ = [
    "CENTRES",
    "LAYERS",
    "MAPS",
    "MASKS",
    "ActionZonotope",
    "BackupCBF",
    "BackupSource",
    "BarrierFilter",
    "BoundaryProjection",
    "GatekeeperSource",
    "HalfSpaces",
    "InvariantSource",
    "LayerAnswer",
    "LayerFirst",
    "Map",
    "ModelPredictiveShield",
    "PerInput",
    "Promise",
    "Ray",
    "RayMask",
    "SafeActionSet",
    "Safeguard",
    "Source",
    "ZonotopeSource",
]
