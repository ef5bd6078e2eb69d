"""Learning: phase 1 (a backup that arrives safely), phase 2 (a policy through a guard), one loop for both."""

from holdfast.learn.experience import PolicySettings
from holdfast.learn.loop import Trainer, TrainingDiverged, compiled, initialise, train
from holdfast.learn.normalisation import NormalisedPolicy, RunningNormaliser
from holdfast.learn.policy_trainer import PolicyState, PolicyTrainer
from holdfast.learn.ppo import PpoSettings, PpoState, PpoTrainer
from holdfast.learn.sac import SacSettings, SacState, SacTrainer
from holdfast.learn.safe_arrival import BackupTrainer, SafeArrivalSettings, SafeArrivalState, SafeArrivalTrainer
from holdfast.learn.shac import ShacSettings, ShacState, ShacTrainer
from holdfast.learn.td3 import Td3Settings, Td3State, Td3Trainer

#: Algorithms of phase 2 by name: their trainers and their settings.
ALGORITHMS: dict[str, tuple[type[PolicyTrainer], type[PolicySettings]]] = {
    "shac": (ShacTrainer, ShacSettings),
    "ppo": (PpoTrainer, PpoSettings),
    "sac": (SacTrainer, SacSettings),
}

#: Ways to learn a backup in phase 1 by name: the same.
BACKUP_TRAININGS: dict[str, tuple[type[BackupTrainer], type[SafeArrivalSettings] | type[Td3Settings]]] = {
    "simulator": (SafeArrivalTrainer, SafeArrivalSettings),
    "td3": (Td3Trainer, Td3Settings),
}

__all__ = [
    "ALGORITHMS",
    "BACKUP_TRAININGS",
    "BackupTrainer",
    "NormalisedPolicy",
    "PolicySettings",
    "PolicyState",
    "PolicyTrainer",
    "PpoSettings",
    "PpoState",
    "PpoTrainer",
    "RunningNormaliser",
    "SacSettings",
    "SacState",
    "SacTrainer",
    "SafeArrivalSettings",
    "SafeArrivalState",
    "SafeArrivalTrainer",
    "ShacSettings",
    "ShacState",
    "ShacTrainer",
    "Td3Settings",
    "Td3State",
    "Td3Trainer",
    "Trainer",
    "TrainingDiverged",
    "compiled",
    "initialise",
    "train",
]
