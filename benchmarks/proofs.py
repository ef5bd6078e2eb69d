"""What `holdfast verify` proves of every task: the base set's level against its cap, the work it took, every obligation.

The cap is the lower of the level at which an input first saturates and the largest level inside the safe set. A search
may go beyond the first of them. Seconds include tracing, and compiling the falsifier, in a process that runs all tasks
one after the other; kept compiled programs are not used.
"""

import time

import jax
import numpy as np

from benchmarks._common import parser, print_table, write_results
from holdfast.certify import NotProvable, largest_inside_level
from holdfast.cli.build import certify_task
from holdfast.tasks import make_task, task_names

MAX_SECONDS = 600.0
"""Budget of each search: large, so that a busy machine makes a proof slow and not impossible."""


def caps(base, safe_set) -> dict[str, float]:
    """The levels of a base set that its inputs and its safe set allow."""
    P, gain, box = base.ellipsoid.shape_matrix, base.controller.gain, base.system.input_box
    u_star = base.controller.equilibrium_input
    room = np.minimum(box.upper - u_star, u_star - box.lower)
    # The largest |K_i e| over e'Pe <= c is sqrt(c K_i P^-1 K_i').
    with np.errstate(divide="ignore"):
        unsaturated = float(np.min(room**2 / np.einsum("ij,jk,ik->i", gain, np.linalg.inv(P), gain)))
    inside = largest_inside_level(lambda e: safe_set.margin(base.system.lift(e)), P, 100 * unsaturated)
    return {"unsaturated": unsaturated, "inside_safe_set": inside.level}


def prove(name: str) -> dict:
    """One task's certificate, in numbers."""
    task, begin = make_task(name), time.monotonic()
    try:
        certified = certify_task(task, level=None, horizon=None, max_seconds=MAX_SECONDS)
    except NotProvable as error:
        return {"holds": False, "reason": str(error), "seconds": round(time.monotonic() - begin, 3)}
    seconds = time.monotonic() - begin
    base, certificate = certified.base_set, certified.certificate
    invariance = certificate["base set invariant"].numbers
    levels = caps(base, task.safe_set)
    radii = base.ellipsoid.bounding_radii()
    return {
        "errors": len(radii),
        "level": invariance["level"],
        "cap": min(levels.values()),
        "caps": levels,
        "boxes": invariance["boxes"],
        "proof_seconds": invariance["seconds"],
        "seconds": round(seconds, 3),
        "radii": radii.tolist(),
        "weights": {"state_cost": list(task.safety.state_cost), "input_cost": list(task.safety.input_cost)},
        "holds": certificate.holds,
        "obligations": {each.name: each.discharge for each in certificate.obligations},
    }


def main() -> None:
    arguments = parser(__doc__).parse_args()
    jax.config.update("jax_enable_x64", True)
    found = {name: prove(name) for name in (task_names()[:1] if arguments.quick else task_names())}
    print_table(
        ("task", "errors", "level", "cap", "boxes", "seconds", "holds"),
        [
            (name, *(each.get(key, "-") for key in ("errors", "level", "cap", "boxes", "seconds")), str(each["holds"]))
            for name, each in found.items()
        ],
    )
    write_results(__spec__.name, arguments, settings={"tasks": list(found), "max_seconds": MAX_SECONDS}, numbers=found)
    broken = [name for name, each in found.items() if not each["holds"]]
    if broken:
        raise SystemExit(f"the certificate does not hold: {', '.join(broken)}")


if __name__ == "__main__":
    main()
