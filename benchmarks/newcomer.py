"""A newcomer's path, timed from docs/getting_started.md alone: a fresh clone, a fresh environment, an empty cache of pip and of JAX.

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
    "install": "pip install '.[sb3]'",
    "verify": "holdfast verify cart.py:Stay",
    "attack": "holdfast attack cart.py:Stay",
    "run": "python run.py",
}
PATHS = {"safeguarded SB3 run": ("install", "run"), "verified robot of one's own": ("install", "verify", "attack")}


def measure(page: str) -> dict[str, dict[str, float]]:
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
            begin, before = time.perf_counter(), os.times()
            where = place / "clone" if stage == "install" else place
            subprocess.run(shlex.split(command), cwd=where, env=environment, check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            spent = after.children_user - before.children_user + after.children_system - before.children_system
            found[stage] = {"wall_seconds": time.perf_counter() - begin, "processor_seconds": spent}
            print(stage, found[stage], file=sys.stderr, flush=True)
    return found


def main() -> None:
    arguments = parser(__doc__).parse_args()
    stages = measure(PAGE.read_text(encoding="utf-8"))
    minutes = {name: sum(stages[stage]["wall_seconds"] for stage in path) / 60 for name, path in PATHS.items()}
    print_table(("path", "minutes"), minutes.items())
    settings = {"commands": STAGES, "paths": PATHS}
    numbers = {"stages": stages, "minutes": minutes}
    write_results(__spec__.name, arguments, settings=settings, numbers=numbers)


if __name__ == "__main__":
    main()
