"""Dry runs: the dependencies and constraints resolve on every Python that pyproject.toml promises.  Nothing is installed.

uv resolves as if it ran on that Python, but takes packages whose upper bound on Python is too low; pip then looks for a wheel of
every package found, and minds that bound.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
VERSIONS = [c.rpartition(" ")[2] for c in CLASSIFIERS if c.startswith("Programming Language :: Python :: 3.")]


def errors_of(command: list[str]) -> list[str]:
    """Run a command in the project; return what it says if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return [line for line in done.stderr.splitlines() if not line.startswith("WARNING")] if done.returncode else []


def resolves(version: str) -> bool:
    """Tell whether a set of packages exists for a version of Python, and print why not."""
    # The last patch release: some packages exclude the first.
    full = f"{version}.9"
    with tempfile.TemporaryDirectory() as folder:
        found = str(Path(folder, "found.txt"))
        uv = [str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--python-version", full]
        errors = errors_of([*uv, "-c", "constraints.txt", "--all-extras", "pyproject.toml", "-o", found])
        if not errors:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed"]
            wheels = ["--only-binary=:all:", "--python-version", full, "--target", folder]
            errors = errors_of([*pip, *wheels, "-r", found])
    print(f"Python {version}: {'DOES NOT RESOLVE' if errors else 'resolves'}", *errors, sep="\n  ", flush=True)
    return not errors


results = [resolves(version) for version in sys.argv[1:] or VERSIONS]
sys.exit(0 if all(results) else 1)
