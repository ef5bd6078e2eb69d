"""The proof of free space is about the controller that it is given: one that differs in any number gets no certificate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from holdfast.backup import InvariantSet
from holdfast.certify import certify_invariant_set
from holdfast.sets import Box, FreeSpace
from holdfast.systems import Retreat, Seeker

SYSTEM, WALLS = Seeker(), Box([-8.0, -8.0], [8.0, 8.0])
ONE = FreeSpace(WALLS, [[0.0, 0.0]], [1.0])
#: 0.24 m apart.
PAIR = FreeSpace(WALLS, [[-1.12, 0.0], [1.12, 0.0]], [1.0, 1.0])
NOISE = jnp.asarray(list(itertools.product((-0.05, 0.05), repeat=2)))
#: Name: region, what differs in the controller, a state from which some disturbance then leads out.
CASES = {
    "other walls": (ONE, {"region": FreeSpace(Box([-20.0, -20.0], [20.0, 20.0]), [[0.0, 0.0]], [1.0])}, [5.0, -7.999]),
    "believes in more noise": (PAIR, {"noise": 0.5}, [0.0, 0.045]),
    "inputs of its own": (ONE, {"input_box": Box([-0.01, -0.01], [0.01, 0.01])}, [0.7075, 0.7075]),
}


def judged(region, /, **differs):
    controller = Retreat(**{"region": region, "dt": SYSTEM.dt, "noise": 0.05, "input_box": SYSTEM.input_box} | differs)
    certified = certify_invariant_set(InvariantSet(SYSTEM, region, controller), WALLS, physics="test")
    found = [o for o in certified.certificate.obligations if o.name == "invariant under its controller"]
    return controller, found[0].discharge, certified.certificate.holds


@pytest.mark.parametrize("name", list(CASES))
def test_a_controller_that_differs_leads_out_and_gets_no_certificate(name):
    region, differs, state = CASES[name]
    x = jnp.asarray(state)
    for change, stays in ((differs, False), ({}, True)):
        controller, discharge, holds = judged(region, **change)
        assert holds == stays and (discharge == "proved") == stays
        after = jax.vmap(lambda u, w: region.contains(SYSTEM.step(x, u, w)), (None, 0))(controller(x), NOISE)
        assert region.contains(x) and bool(np.all(after)) == stays


def test_an_obstacle_given_twice_is_not_refuted():
    twice = FreeSpace(WALLS, [[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0])
    assert judged(twice)[1] == "not proved"
