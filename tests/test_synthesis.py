"""Synthesis of robust control invariant sets."""

import json

import numpy as np
import pytest
import scipy.linalg

from holdfast.certify import NotSynthesised, certify_invariant_set, synthesise_invariant_set
from holdfast.cli.synthesis import write_invariant_set
from holdfast.sets import Box
from holdfast.systems import Pendulum, PlanarQuadrotor
from systems_for_tests import NoisyCart

FEASIBLE = Box([-np.pi, -8.0], [np.pi, 8.0])


def area(region, box, count=20_000):
    x = np.random.default_rng(0).uniform(box.lower, box.upper, (count, box.dimension))
    return np.mean((x @ region.normals.T <= region.offsets).all(axis=1))


def test_pendulum_fills_its_feasible_box_and_is_the_same_again(tmp_path):
    system = Pendulum(disturbance=Box([-0.1], [0.1]))
    made = [synthesise_invariant_set(system, FEASIBLE, costs=(0.1,), emphases=(1.0,)) for _ in range(2)]
    np.testing.assert_array_equal(made[0].region.offsets, made[1].region.offsets)
    assert area(made[0].region, FEASIBLE) > 0.95
    assert certify_invariant_set(made[0], FEASIBLE, physics="").certificate.holds
    write_invariant_set(tmp_path / "set.json", made[0], "a test")
    data = json.loads((tmp_path / "set.json").read_text())
    G, N, d = (np.array(data[key]) for key in ("generators", "normals", "offsets"))
    np.testing.assert_allclose(np.abs(N @ G).sum(axis=1), d, rtol=1e-4)


def test_double_integrator_reaches_most_of_what_braking_allows():
    """The viability kernel is known: v^2 / 2 over the braking 0.9 that noise leaves; a tenth may be lost to sampling."""
    box = Box([-1.0, -1.0], [1.0, 1.0])
    made = synthesise_invariant_set(NoisyCart(), box, costs=(0.01, 0.1), emphases=(1.0,))
    x = np.random.default_rng(0).uniform(-1, 1, (20_000, 2))
    viable = np.mean(np.abs(x[:, 0] + x[:, 1] * np.abs(x[:, 1]) / 1.8) <= 1)
    assert area(made.region, box) > 0.85 * viable


def test_modal_box():
    made = synthesise_invariant_set(
        NoisyCart(), Box([-1.0, -1.0], [1.0, 1.0]), time_constants=((0.6, 1.0, 2.0), (0.3, 0.6, 1.0))
    )
    assert len(made.region.offsets) == 4


def test_a_slab_leaves_its_own_lqr_free():
    """The best feedback that gave the surface never leaves the slab, though it saturates, so no safeguard would correct it."""
    box, dt = Box([-1.0, -1.0], [1.0, 1.0]), NoisyCart().dt
    weights = (1.0, 1.0)
    made = synthesise_invariant_set(NoisyCart(), box, surfaces=(weights,), thicknesses=(0.2, 0.4))
    assert certify_invariant_set(made, box, physics="").certificate.holds
    N, d = made.polytope.normals, made.polytope.offsets
    assert len(d) <= 12 and area(made.region, box) > 0.2
    A, B = np.array([[1, dt], [0, 1]]), np.array([[dt**2], [dt]])
    P = scipy.linalg.solve_discrete_are(A, B, np.diag(weights), [[1e-4]])
    K = -np.linalg.solve(1e-4 + B.T @ P @ B, B.T @ P @ A)
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (20_000, 2))
    x = x[(x @ N.T <= d).all(axis=1)]
    assert np.abs(x @ K.T).max() > 1.2
    for _ in range(100):
        x = x @ A.T + (np.clip(x @ K.T, -1, 1) + 0.1 * random.choice([-1.0, 1.0], (len(x), 1))) @ B.T
        assert (x @ N.T <= d).all()


def test_slabs_are_for_one_input():
    with pytest.raises(ValueError, match="2 inputs; sliding surfaces are for one"):
        synthesise_invariant_set(
            PlanarQuadrotor(), Box([-2.0] * 6, [2.0] * 6), surfaces=((1.0,) * 6,), thicknesses=(0.1,)
        )


def test_too_much_noise_is_named():
    with pytest.raises(NotSynthesised, match=r"no set absorbs disturbances of \+-\[1\.2\].*can be absorbed"):
        synthesise_invariant_set(NoisyCart(noise=1.2), Box([-1.0] * 2, [1.0] * 2), costs=(0.1,), emphases=(1.0,))


def test_a_centre_outside_the_feasible_box_is_refused():
    with pytest.raises(NotSynthesised, match="strictly inside"):
        synthesise_invariant_set(
            NoisyCart(), Box([0.5, -1.0], [1.0, 1.0]), centre=np.zeros(2), centre_input=np.zeros(1)
        )


def test_growth_enlarges_a_modal_box():
    box, options = Box([-1.0, -1.0], [1.0, 1.0]), {"time_constants": ((1.0,), (0.6,))}
    small, large = (synthesise_invariant_set(NoisyCart(), box, growth=k, **options) for k in (0, 3))
    assert area(large.region, box) > area(small.region, box)
    assert certify_invariant_set(large, box, physics="").certificate.holds
