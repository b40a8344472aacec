"""Table 1 on several phantoms: the gain of GARL, with settings of its own choosing, over the best of RL and of TV.

    python examples/report/seeds.py [--seeds 0 1 2 3 4] [--models compact large] [--given FILE,SIGMA,STRENGTH ...] [--small]

GARL runs at its defaults: the model's noise level, and the strength that the measurements choose.  RL gets the best of its
iterations and TV the best of its iterations and strengths, both by the truth, which GARL does not see.  A model that was not
trained for this package's prior may need other settings: ``--given`` runs it with SIGMA in 1/255 of the intensity scale and
STRENGTH as τ times the photons there; the best of these by the truth counts.
"""

from __future__ import annotations

import argparse

import phantom
from reconstruct import MARKS, Method, automatic, iterates, scores
from run import FULL, SMALL

from bigdeconv import models

RL_MARKS = (10, 15, *MARKS)
TV_STRENGTHS = (1.0, 3.0, 10.0)


def compare(seed: int, sizes, names: list[str], given: list[str]) -> dict[str, float]:
    """Print the rows of one phantom; return the gain of GARL with each model over the best of RL, of TV, and of ``given``."""
    scene = phantom.microtubules(seed, sizes.views, sizes.reported)

    def row(label: str, method: Method, marks=MARKS) -> dict[int, float]:
        found = scores(scene, iterates(scene, method, marks))
        print(f"{seed:4}  {label:34}", *(f"{k}: {v:.2f}" for k, v in found.items()), sep="  ", flush=True)
        return found

    best = {"RL": max(row("RL", Method("RL"), RL_MARKS).values())}
    best["TV"] = max(max(row(f"TV {s:g}", Method("TV", s)).values()) for s in TV_STRENGTHS)
    others = []
    for text in given:
        name, sigma, strength = text.rsplit(",", 2)
        method = Method("GARL", float(strength), float(sigma) / 255, models.resolve(name))
        others.append(max(row(f"{method.model.card['name']}, σ {sigma}/255, {strength}", method).values()))
    if others:
        best["given"] = max(others)
    gains = {}
    for name in names:
        method = automatic(scene, Method("GARL", model=models.resolve(name)))
        last = row(f"GARL {name}, {method.strength:.0f}", method)[MARKS[-1]]
        gains |= {f"{name} over {other}": last - value for other, value in best.items()}
    return gains


def main() -> None:
    """Compare on every phantom, then on average."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="*", default=["compact", "large"], help="names or model files")
    parser.add_argument("--given", nargs="*", default=[], metavar="FILE,SIGMA,STRENGTH")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes")
    options = parser.parse_args()
    sizes = SMALL if options.small else FULL
    found = [compare(seed, sizes, options.models, options.given) for seed in options.seeds]
    for name in found[0]:
        gains = [gain[name] for gain in found]
        print(f"{name}: {min(gains):+.2f} to {max(gains):+.2f}, {sum(gains) / len(gains):+.2f} dB on average")


if __name__ == "__main__":
    main()
