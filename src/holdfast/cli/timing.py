"""Wall time by phase, and how much of it was compiling."""

import time
from contextlib import contextmanager

import jax


class Stopwatch:
    """Adds up wall seconds under names: `with watch("policy"): ...`."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


class CompileClock:
    """Seconds that JAX spent tracing and compiling since it was made; these are part of the phases' wall time too."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile"):
            self.seconds += duration_secs
