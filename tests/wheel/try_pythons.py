"""Install a wheel in a bare environment of every Python from 3.10 to 3.14 that is at hand, and train with it.

    python -m tests.wheel.try_pythons dist/lightning_nerf-*.whl

Each environment gets the wheel and what it asks for, in the versions of constraints.txt; then `lightning-nerf doctor` has
to find it whole and the quickstart recipe has to train for some steps. Prints a table; exits with 1 where a Python failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = [f"3.{minor}" for minor in range(10, 15)]
ROOT = Path(__file__).parents[2]
FIT = ["fit", "-c", "synthetic/instant_ngp", "--trainer.max_steps=20", "--data.resolution=32", "--data.n_train=8"]


def interpreters() -> dict[str, str]:
    """Version to executable; pyenv's, which are on no path, too."""
    found: dict[str, str] = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for version in VERSIONS:
        places = [shutil.which(f"python{version}"), *(str(p / "bin/python") for p in sorted(pyenv.glob(f"{version}.*")))]
        for python in filter(None, places):
            says = subprocess.run([python, "-V"], capture_output=True, text=True, check=False)
            if says.returncode == 0 and says.stdout.startswith(f"Python {version}."):  # pyenv's shims may lead nowhere
                found[version] = python
                break
    return found


def attempt(python: str, wheel: Path, folder: Path) -> str:
    """What came of it: "works", or the step that failed and its last words."""
    scripts = folder / "environment/bin"
    steps = {
        "venv": [python, "-m", "venv", str(folder / "environment")],
        "install": [str(scripts / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt"), str(wheel)],
        "doctor": [str(scripts / "lightning-nerf"), "doctor"],
        "fit": [str(scripts / "lightning-nerf"), *FIT],
    }
    for name, command in steps.items():
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"{name} failed: {(done.stderr or done.stdout).strip().splitlines()[-1:]}"
    return "works"


def main(wheel: Path) -> bool:
    """Try all; did all work?"""
    found = interpreters()
    outcomes = {}
    for version in VERSIONS:
        if version in found:
            with tempfile.TemporaryDirectory() as folder:
                outcomes[version] = attempt(found[version], wheel.resolve(), Path(folder))
        print(f"Python {version}: {outcomes.get(version, 'not at hand')}", flush=True)
    return bool(outcomes) and set(outcomes.values()) == {"works"}


if __name__ == "__main__":
    sys.exit(0 if main(Path(sys.argv[1])) else 1)
