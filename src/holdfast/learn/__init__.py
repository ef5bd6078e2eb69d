"""Learning: phase 1 (a backup that arrives safely), phase 2 (a policy through a guard), one loop for both."""

from holdfast.learn.experience import PolicySettings
from holdfast.learn.loop import Trainer, TrainingDiverged, compiled, initialise, train
from holdfast.learn.normalisation import NormalisedPolicy, RunningNormaliser
from holdfast.learn.policy_trainer import PolicyState, PolicyTrainer
from holdfast.learn.ppo import PpoSettings, PpoState, PpoTrainer
from holdfast.learn.sac import SacSettings, SacState, SacTrainer
from holdfast.learn.safe_arrival import SafeArrivalSettings, SafeArrivalState, SafeArrivalTrainer
from holdfast.learn.shac import ShacSettings, ShacState, ShacTrainer

#: Algorithms of phase 2 by name: their trainers and their settings.
ALGORITHMS: dict[str, tuple[type[PolicyTrainer], type[PolicySettings]]] = {
    "shac": (ShacTrainer, ShacSettings),
    "ppo": (PpoTrainer, PpoSettings),
    "sac": (SacTrainer, SacSettings),
}

__all__ = [
    "ALGORITHMS",
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
    "Trainer",
    "TrainingDiverged",
    "compiled",
    "initialise",
    "train",
]
