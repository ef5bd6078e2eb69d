"""Learning: phase 1 (a backup that arrives safely), phase 2 (a policy through a guard), one loop for both."""

from holdfast.learn.experience import PolicySettings, PolicyState, PolicyTrainer
from holdfast.learn.loop import Trainer, TrainingDiverged, initialise, train
from holdfast.learn.normalisation import NormalisedPolicy, RunningNormaliser
from holdfast.learn.safe_arrival import SafeArrivalSettings, SafeArrivalState, SafeArrivalTrainer
from holdfast.learn.shac import ShacSettings, ShacState, ShacTrainer

__all__ = [
    "NormalisedPolicy",
    "PolicySettings",
    "PolicyState",
    "PolicyTrainer",
    "RunningNormaliser",
    "SafeArrivalSettings",
    "SafeArrivalState",
    "SafeArrivalTrainer",
    "ShacSettings",
    "ShacState",
    "ShacTrainer",
    "Trainer",
    "TrainingDiverged",
    "initialise",
    "train",
]
