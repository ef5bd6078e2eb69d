"""What we do otherwise: base controller and base set, backup policy, its flow, and the implicit invariant set."""

from holdfast.backup.base import BaseController, BaseSet, design_base_controller
from holdfast.backup.flow import Flow, backup_flow
from holdfast.backup.implicit import ImplicitInvariantSet
from holdfast.backup.plan import AcceptanceMargins, Plan
from holdfast.backup.policy import BackupNetwork, BackupPolicy
from holdfast.backup.robust import InvariantSet, RobustMargins, noise_reach, product

__all__ = [
    "AcceptanceMargins",
    "BackupNetwork",
    "BackupPolicy",
    "BaseController",
    "BaseSet",
    "Flow",
    "ImplicitInvariantSet",
    "InvariantSet",
    "Plan",
    "RobustMargins",
    "backup_flow",
    "design_base_controller",
    "noise_reach",
    "product",
]
