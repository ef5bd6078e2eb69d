"""State feedback, clipped to the input box."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from holdfast.sets import Box


class ClippedFeedback(eqx.Module):
    """u = clip(centre_input + gain (x - centre), input box), in coordinates of the state.

    Attributes:
        gain: shape [m, n].
        centre: shape [n].
        centre_input: shape [m].
        input_box: the clip.

    Raises:
        ValueError: if the shapes do not fit or a number is not finite.
    """

    gain: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    centre: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    centre_input: np.ndarray = eqx.field(converter=lambda v: np.asarray(v, np.float64))
    input_box: Box

    def __check_init__(self):
        parts = (self.gain, self.centre, self.centre_input)
        if not all(isinstance(part, np.ndarray) for part in parts):
            return
        m, n = self.centre_input.size, self.centre.size
        if self.gain.shape != (m, n) or self.input_box.dimension != m:
            raise ValueError(
                f"ClippedFeedback: gain {self.gain.shape}, centre {self.centre.shape}, centre_input "
                f"{self.centre_input.shape}, input_box of {self.input_box.dimension}; give [m, n], [n], [m] and m"
            )
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError("ClippedFeedback: gain, centre and centre_input must be finite")

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The action at x, shape [m]; the centre's input where x is not finite."""
        u = self.unclipped(x)
        return self.input_box.clip(jnp.where(jnp.all(jnp.isfinite(u)), u, jnp.asarray(self.centre_input, x.dtype)))

    def unclipped(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """centre_input + gain (x - centre), shape [m]."""
        gain, from_centre = jnp.asarray(self.gain, x.dtype), x - jnp.asarray(self.centre, x.dtype)
        return jnp.asarray(self.centre_input, x.dtype) + jnp.matmul(gain, from_centre, precision="highest")
