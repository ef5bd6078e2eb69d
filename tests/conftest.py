"""Strict JAX for every test: 64-bit, rank promotion raises, warnings are errors (pyproject)."""

import os
from pathlib import Path

# Compile time is the suite's main cost, and this takes away a third of it. `XLA_FLAGS= make test` runs as the compiler is
# set by itself; the committed attacks (benchmarks/attack.py) do so always.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiled programs are shared between runs and workers.
jax.config.update(
    "jax_compilation_cache_dir",
    os.environ.get("HOLDFAST_TEST_CACHE", str(Path(__file__).parents[1] / ".cache" / "jax-tests")),
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
