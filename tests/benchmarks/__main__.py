"""All benchmarks in one run: this package beside its peers, on the same arrays.

python -m tests.benchmarks OUTPUT [--shape 128,224,224] [--psf 33] [--threads 1] [--peers-python FILE] [--models compact FOLDER]

Writes ``benchmarks.json`` and ``benchmarks.md`` in OUTPUT.  Peers are measured where they are installed, or where another
interpreter has them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bigdeconv.geometry import triple
from tests.benchmarks import suite


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--shape", default="128,224,224", help="of the data, z,y,x")
    parser.add_argument("--psf", type=int, default=33, help="extent of the PSF")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", default=sys.executable, help="interpreter that has the peers")
    parser.add_argument(
        "--models", nargs="*", default=["compact"], help="for convergence: names, model files, folders of pyxudeconv"
    )
    given = parser.parse_args()
    size = suite.Size(shape=triple(given.shape.split(",")), psf=given.psf, priors=("tv", *given.models))
    given.output.mkdir(parents=True, exist_ok=True)
    results = suite.run(given.output, size, threads=given.threads, peers_python=given.peers_python)
    (given.output / "benchmarks.json").write_text(json.dumps(results, indent=1))
    text = suite.markdown(results)
    (given.output / "benchmarks.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
