"""A newcomer's path, timed from docs/getting_started.md alone: a fresh clone and environment, empty caches.

    python -m benchmarks.newcomer

Two paths, each with its share of the installation: to a safeguarded run of Stable-Baselines3, and to a verified and attacked
robot of one's own. What is typed is what stands on the page.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._common import ROOT, parser, print_table, write_results

PAGE = ROOT / "docs" / "getting_started.md"
#: Stage: the command as it stands on the page.
STAGES = {
    "install PyTorch": "pip install torch --index-url https://download.pytorch.org/whl/cpu",
    "install": "pip install '.[sb3]'",
    "verify": "holdfast verify cart.py:Stay",
    "attack": "holdfast attack cart.py:Stay",
    "run": "python run.py",
}
INSTALLING = ("install PyTorch", "install")
PATHS = {"safeguarded SB3 run": (*INSTALLING, "run"), "verified robot of one's own": (*INSTALLING, "verify", "attack")}


def measure(page: str, torch: str | None) -> dict[str, dict[str, float]]:
    """Wall and processor seconds of each stage."""
    files = dict(re.findall(r'^```python title="(.+?)"\n(.*?)^```$', page, flags=re.DOTALL | re.MULTILINE))
    with tempfile.TemporaryDirectory() as folder:
        place, bin = Path(folder), Path(folder) / "venv" / "bin"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place / "clone")], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
        for name, text in files.items():
            (place / name).write_text(text, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX"))}
        environment |= {"PATH": f"{bin}:{os.environ['PATH']}", "HOLDFAST_CACHE": str(place / "jax")}
        environment |= {"PIP_CACHE_DIR": str(place / "pip"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        found = {}
        for stage, command in STAGES.items():
            if command not in page and stage != "run":
                raise SystemExit(f"{PAGE.name} does not say {command!r} any more; mend STAGES")
            if stage == "install PyTorch" and torch:
                command = f"pip install {torch}"
            begin, before = time.perf_counter(), os.times()
            where = place / "clone" if stage in INSTALLING else place
            subprocess.run(shlex.split(command), cwd=where, env=environment, check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            spent = after.children_user - before.children_user + after.children_system - before.children_system
            found[stage] = {"wall_seconds": time.perf_counter() - begin, "processor_seconds": spent}
            print(stage, found[stage], file=sys.stderr, flush=True)
    return found


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--torch", help="another requirement for PyTorch, where its own index cannot be reached")
    arguments = arguments.parse_args()
    stages = measure(PAGE.read_text(encoding="utf-8"), arguments.torch)
    minutes = {name: sum(stages[stage]["wall_seconds"] for stage in path) / 60 for name, path in PATHS.items()}
    print_table(("path", "minutes"), minutes.items())
    settings = {"commands": STAGES, "paths": PATHS, "torch": arguments.torch}
    numbers = {"stages": stages, "minutes": minutes}
    write_results(__spec__.name, arguments, settings=settings, numbers=numbers)


if __name__ == "__main__":
    main()
