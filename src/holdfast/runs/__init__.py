"""Runs: directories that a kill cannot corrupt, checkpoints without pickle, the physics hash, configs and seeds."""

from holdfast.runs.checkpoint import CheckpointMismatch, load_checkpoint, read_header, save_checkpoint
from holdfast.runs.config import ConfigError, config_from_json, config_to_json
from holdfast.runs.directory import RunDirectory
from holdfast.runs.environment import environment
from holdfast.runs.files import RunError, atomic_write, from_json, read_json, to_json, write_json
from holdfast.runs.physics import physics_hash
from holdfast.runs.seeds import episode_key, seed_keys
from holdfast.runs.sinks import (
    TRACKERS,
    Csv,
    JsonLines,
    Sink,
    Sinks,
    TensorBoard,
    WeightsAndBiases,
    open_trackers,
    require_trackers,
)

__all__ = [
    "TRACKERS",
    "CheckpointMismatch",
    "ConfigError",
    "Csv",
    "JsonLines",
    "RunDirectory",
    "RunError",
    "Sink",
    "Sinks",
    "TensorBoard",
    "WeightsAndBiases",
    "atomic_write",
    "config_from_json",
    "config_to_json",
    "environment",
    "episode_key",
    "from_json",
    "load_checkpoint",
    "open_trackers",
    "physics_hash",
    "read_header",
    "read_json",
    "require_trackers",
    "save_checkpoint",
    "seed_keys",
    "to_json",
    "write_json",
]
