"""The three robots of examples/, each a file of at most 30 lines: verified, trained, evaluated and attacked.

Writes docs/pillars.png too, the picture of the tutorial: `python -m benchmarks.examples`, or `--picture` for it alone.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from benchmarks._common import ROOT, guard_of, load, parser, policy_of, print_table, write_results
from holdfast.evaluate import attack
from holdfast.plots import LIGHT, to_png
from holdfast.plots.scene_view import SceneView
from holdfast.plots.theme import figure_legend, new_figure
from holdfast.tasks.scene import Circle, Polyline, Rectangle, Scene

EXAMPLES = {"pillars": "Pillars", "cart_pole": "ShortTrack", "annulus": "Annulus"}
QUICK = ("--backup-updates", "20", "--updates", "20", "--environments", "8", "--window", "4", "--episodes", "20")


def directory(name: str, quick: bool) -> Path:
    """Where the run of an example is."""
    return ROOT / "runs" / f"bench-example-{name}{'-quick' * quick}"


def measure(name: str, steps: int, quick: bool) -> dict:
    """Verifies, trains (unless it is there already), evaluates and attacks one example."""
    file, path = ROOT / "examples" / f"{name}.py", directory(name, quick)
    spec, begin = f"{file}:{EXAMPLES[name]}", time.perf_counter()
    if not (path / "report.json").is_file():
        options = ["--out", str(path), *(["--resume"] if (path / "config.json").is_file() else []), *QUICK * quick]
        subprocess.run([sys.executable, "-m", "holdfast", "train", spec, *options], check=True, stdout=sys.stderr)
    report = json.loads((path / "report.json").read_text(encoding="utf-8"))
    trained = load(path)
    found = attack(trained.task, guard_of(trained), steps=steps, policy=policy_of(trained), dtype=jnp.float32).to_json()
    task = trained.task
    level = trained.certified.certificate["base set invariant"].numbers["level"]
    coverage = report["coverage"]
    return {
        "lines": len(file.read_text(encoding="utf-8").splitlines()),
        "states": task.system.state_size,
        "certificate": {o.name: o.discharge for o in trained.certified.certificate.obligations},
        "derived": {
            "state_box": [task.state_box.lower.tolist(), task.state_box.upper.tolist()],
            "state_cost": list(task.safety.state_cost),
            "input_cost": list(task.safety.input_cost),
            "horizon": task.safety.horizon,
            "level": level,
        },
        "certified": {key: coverage[key] for key in ("certified", "analytic", "base_set", "starts_certified")},
        "return": report["metrics"]["return"]["mean"],
        "safety": {
            key: report["safety"][key] for key in ("steps", "violations", "interventions", "uncertified_starts")
        },
        "training_safety": {key: report["training_safety"][key] for key in ("steps", "violations")},
        "wall_seconds": report["wall_seconds"],
        "attack": {key: found[key] for key in ("steps", "violations", "certified_steps", "worst_margin", "statuses")},
        "seconds": time.perf_counter() - begin,
    }


def picture(path: Path) -> bytes:
    """The yard of examples/pillars.py from above, with the kept episodes of a run, as PNG."""
    with np.load(path / "trajectories.npz") as data:
        states = data["states"]
    pillars = tuple(Circle(centre, 0.5, "unsafe") for centre in ((1.3, 0.8), (2.3, -0.8), (3.2, 0.9)))
    walls = (Rectangle((-1.25, 0.0), (0.5, 5.0), "unsafe"), Rectangle((4.25, 0.0), (0.5, 5.0), "unsafe"))
    walls += (Rectangle((1.5, 2.25), (5.0, 0.5), "unsafe"), Rectangle((1.5, -2.25), (5.0, 0.5), "unsafe"))
    paths = tuple(Polyline(episode[:, :2], "trail") for episode in states)
    marks = (Circle((0.0, 0.0), 0.06, "reference"), Circle((3.5, 0.0), 0.06, "body"))
    scene = Scene((*walls, *pillars, *paths, *marks), (-1.5, 4.5, -2.5, 2.5), ("x (m)", "y (m)"))
    figure, axes = new_figure(LIGHT, "narrow", 1, 1, row_height=3.4)
    view = SceneView(axes[0, 0], scene, LIGHT)
    for artist, words in ((view.artists[0], "unsafe"), (view.artists[7], "four episodes")):
        artist.set_label(words)
    figure_legend(figure, LIGHT, "narrow")
    return to_png(figure, dpi=110)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=float, default=None, help="attacked steps of each, 1e5 by default")
    arguments.add_argument("--picture", action="store_true", help="only the picture, from the run that is there")
    arguments = arguments.parse_args()
    steps = int(arguments.steps or (5e3 if arguments.quick else 1e5))
    numbers = {} if arguments.picture else {name: measure(name, steps, arguments.quick) for name in EXAMPLES}
    if not arguments.quick:
        (ROOT / "docs" / "pillars.png").write_bytes(picture(directory("pillars", False)))
    if arguments.picture:
        return
    rows = [
        (name, each["lines"], each["certified"]["certified"], each["certified"]["analytic"], each["return"],
         each["attack"]["steps"], each["attack"]["violations"], each["seconds"])
        for name, each in numbers.items()
    ]  # fmt: skip
    print_table(("example", "lines", "certified", "base controller", "return", "attacked", "violations", "s"), rows)
    write_results(__spec__.name, arguments, settings={"steps": steps, "examples": EXAMPLES}, numbers=numbers)
    if any(each["attack"]["violations"] or each["safety"]["violations"] for each in numbers.values()):
        raise SystemExit("the safeguard was broken")


if __name__ == "__main__":
    main()
