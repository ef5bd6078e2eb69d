"""What a report says about where its numbers come from: versions, device, precision. Never who or which machine."""

import importlib.metadata
import os
import platform
from typing import Any

import jax

_PACKAGES = ("holdfast", "jax", "jaxlib", "equinox", "optax", "numpy", "scipy", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, operating system, device, precision and CPU count, ready for JSON.

    Holds no host name, no path and no user name. Calling it initialises JAX's backend.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    devices = jax.devices()
    affinity = getattr(os, "sched_getaffinity", None)  # not on every operating system
    return {
        "versions": versions,
        "system": platform.system(),
        "machine": platform.machine(),
        "device": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "precision": "float64" if jax.config.read("jax_enable_x64") else "float32",
        "cpus": len(affinity(0)) if affinity else os.cpu_count(),
    }
