"""An exported controller, loaded and run. This file needs JAX and NumPy and nothing else: copy it to the robot, if you like.

controller = load_controller("run/export", physics="5f0c...")
commitment = controller.init(x)
while True:
    action, status, margin, commitment = controller.step(commitment, x, observation)
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

HEADER = "controller.json"
FORMAT, VERSION = "holdfast-controller", 1


class Refused(ValueError):
    """An exported controller, or what it was given, is not what it has to be. The text says what, and how to mend it."""


class Step(NamedTuple):
    """What the controller answers.

    Attributes:
        action: to be applied now, shape [m].
        status: a key of `Controller.statuses`, 0 where the policy's own action was applied.
        margin: smallest margin along the committed plan; -inf where nothing is promised.
        commitment: to be handed to the next step.
    """

    action: np.ndarray
    status: int
    margin: float
    commitment: tuple[jax.Array, ...]


class Controller:
    """A policy with its safeguard, as compiled programs. Stateless: whoever calls keeps the commitment.

    Attributes:
        header: everything that was written beside the programs: certificate, physics, names, units, shapes.
        statuses: status -> its name, cause and remedy.
    """

    def __init__(self, header: dict[str, Any], programs: dict[str, export.Exported]):
        self.header = header
        self.statuses = {int(code): words for code, words in header["statuses"].items()}
        self._programs = {name: jax.jit(program.call) for name, program in programs.items()}
        self._x, self._input = _shape(header["state"]), _shape(header["input"])
        self._commitment = tuple(_shape(leaf) for leaf in header["commitment"])
        self._certified = [leaf["name"] for leaf in header["commitment"]].index(".certified")
        self._warm_up()

    def _warm_up(self) -> None:
        """Everything is compiled and run once, so that the first call of a control loop is no slower than the others."""
        x, given = (np.zeros(*shape) for shape in (self._x, self._input))
        for _ in range(3):
            self.step(self.init(x), x, given)
            if "observe" in self._programs:
                self.observe(x, 0)

    def init(self, x: np.ndarray) -> tuple[jax.Array, ...]:
        """The commitment at the start of an episode at the state x, shape [n]."""
        return self._programs["init"](_checked("init: x", x, self._x))

    def certified(self, commitment: tuple[jax.Array, ...]) -> bool:
        """Whether something is promised: look at it once after `init`."""
        return bool(commitment[self._certified])

    def step(self, commitment: tuple[jax.Array, ...], x: np.ndarray, given: np.ndarray) -> Step:
        """The action at the state x [n] and the next commitment.

        Args:
            commitment: from `init` or the last step.
            x: the state, shape [n].
            given: what the policy sees, shape [o]; the proposed action [m] where the header's input is an action.
        """
        if not isinstance(commitment, tuple) or len(commitment) != len(self._commitment):
            raise Refused(
                "step: the commitment is none of this controller; give what `init` or the last `step` returned"
            )
        for leaf, (shape, dtype) in zip(commitment, self._commitment):
            if leaf.shape != shape or leaf.dtype != dtype:
                raise Refused(
                    f"step: the commitment holds {leaf.dtype}{list(leaf.shape)} where this controller has {dtype}{list(shape)}; "
                    "give what its own `init` or last `step` returned"
                )
        x, given = (
            _checked("step: x", x, self._x),
            _checked(f"step: {self.header['input']['kind']}", given, self._input),
        )
        action, status, margin, commitment = self._programs["step"](commitment, x, given)
        return Step(np.asarray(action), int(status), float(margin), commitment)

    def observe(self, x: np.ndarray, t: int) -> np.ndarray:
        """What the policy sees at the state x [n] at time step t, shape [o].

        Raises:
            Refused: where the observation needs more than that: compute it yourself, as the header's task does.
        """
        if "observe" not in self._programs:
            raise Refused(
                f"observe: the observations of {self.header['task']} need more than state and time; compute them"
            )
        return np.asarray(self._programs["observe"](_checked("observe: x", x, self._x), np.int32(t)))


def load_controller(directory: str | Path, physics: str | None = None) -> Controller:
    """The controller that `holdfast.interop.export_controller` wrote.

    Args:
        directory: with controller.json and the programs.
        physics: hash of the physics that the robot is known to have; a controller that was certified for others is refused.

    Raises:
        Refused: if a file is missing or was changed, the physics differ, or this process cannot run the programs.
    """
    directory = Path(directory)
    header = _read_header(directory / HEADER)
    known = header["certificate"]["physics"]
    if physics is not None and physics != known:
        raise Refused(
            f"{directory}: certified for the physics {known[:12]}, but {physics[:12]} were asked for; export a run that was "
            "trained and verified with those"
        )
    wide = header["state"]["dtype"] == "float64"
    if wide and not jax.config.read("jax_enable_x64"):
        raise Refused(
            f'{directory}: computes in float64; call jax.config.update("jax_enable_x64", True) first, or export in float32'
        )
    if jax.default_backend() not in header["platforms"]:
        raise Refused(
            f"{directory}: was exported for {header['platforms']}, but JAX runs on {jax.default_backend()} here; set "
            f"JAX_PLATFORMS={header['platforms'][0]}, or export for this platform"
        )
    programs = {name: _read_program(directory, entry) for name, entry in header["programs"].items()}
    return Controller(header, programs)


def header_digest(header: dict[str, Any]) -> str:
    """SHA-256 of a header without its own digest, in hexadecimal."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _read_header(file: Path) -> dict[str, Any]:
    again = "restore it, or export again"
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{file} does not exist; give a directory that `holdfast export` wrote") from None
    except ValueError as error:
        raise Refused(f"{file} is not JSON ({error}); {again}") from None
    if not isinstance(header, dict) or (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise Refused(f"{file}: not a {FORMAT} of version {VERSION}; export again with this version of holdfast")
    if header.get("sha256") != header_digest(header):
        raise Refused(f"{file}: its contents are not those that were exported (sha256 differs); {again}")
    return header


def _read_program(directory: Path, entry: dict[str, Any]) -> export.Exported:
    file = directory / entry["file"]
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise Refused(f"{file} does not exist; restore it, or export again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        raise Refused(
            f"{file}: sha256 is {found[:12]}, but the header says {entry['sha256'][:12]}; restore it, or export again"
        )
    try:
        return export.deserialize(bytearray(data))
    except ImportError as error:
        raise ImportError(f"{file} is read with FlatBuffers: pip install flatbuffers ({error})") from error
    except Exception as error:
        raise Refused(
            f"{file}: JAX {jax.__version__} cannot read it ({error}); export again with the JAX that is to run it"
        ) from error


def _shape(entry: dict[str, Any]) -> tuple[tuple[int, ...], np.dtype]:
    return tuple(entry["shape"]), np.dtype(entry["dtype"])


def _checked(name: str, value: Any, wanted: tuple[tuple[int, ...], np.dtype]) -> Any:
    """`value` itself, if it is an array of the right shape and precision: nothing is converted behind one's back."""
    shape, dtype = wanted
    if getattr(value, "dtype", None) == dtype and value.shape == shape:
        return value
    seen = f"{value.dtype}{list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
    raise Refused(f"{name} is {seen}; give a NumPy array {dtype}{list(shape)}, as np.asarray(..., np.{dtype})")
