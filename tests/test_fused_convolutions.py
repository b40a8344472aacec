"""The learned prior's kernels for GPUs, by Triton's interpreter on a CPU; ``test_cuda.py`` runs them on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.full

PROGRAM = """
import json, sys, torch
from bigdeconv import models
from bigdeconv.numerics.priors.filters import SequentialConvolutions
from bigdeconv.numerics.priors.fused_convolutions import FusedConvolutions, trial_difference
from bigdeconv.numerics.priors.wcrr import Wcrr

def gradient(model, make, x):
    prior = Wcrr(model, sigma=model.sigma_default, mu_max=3.0, dtype=x.dtype, filters=make)
    return prior.gradient(x).double()

found = {"trial": trial_difference("cpu")}
for name in ("compact", "large"):
    model, noise = models.resolve(name), torch.rand((9, 10, 19), generator=torch.Generator().manual_seed(1))
    for kind, x in {"noise": noise, "bright": 20.0 + 0.02 * noise, "thin": noise[:7, :7, :7], "too thin": noise[:6]}.items():
        fused, exact = gradient(model, FusedConvolutions, x), gradient(model, SequentialConvolutions, x.double())
        found[f"{name}, {kind}"] = float((fused - exact).norm() / exact.norm().clamp(min=1e-30))
    part = gradient(model, FusedConvolutions, noise[:, :, 2:])
    found[f"{name}, elsewhere"] = float((part - gradient(model, FusedConvolutions, noise)[:, :, 2:])[:, :, 6:-6].abs().max())
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def differences():
    # The interpreter is chosen when the kernels are defined: in a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("model", ["compact", "large"])
@pytest.mark.parametrize(("kind", "bound"), [("noise", 1e-5), ("thin", 1e-5), ("bright", 3e-4), ("too thin", 0.0)])
def test_the_gradient_is_that_of_the_convolutions(differences, model, kind, bound):
    assert differences[f"{model}, {kind}"] <= bound


def test_the_trial_trusts_right_kernels(differences):
    from bigdeconv.numerics.priors.fused_convolutions import MAX_DIFFERENCE

    assert differences["trial"] < MAX_DIFFERENCE / 2


@pytest.mark.parametrize("model", ["compact", "large"])
def test_a_voxel_is_the_same_in_every_window(differences, model):
    assert differences[f"{model}, elsewhere"] == 0.0


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (1e-6, None),
        (0.3, "wrong on this GPU, by 3e-01"),
        (float("nan"), "wrong"),
        (RuntimeError("no\nC compiler"), "no C compiler"),
    ],
)
def test_kernels_that_fail_or_are_wrong_are_not_used(monkeypatch, outcome, problem):
    from bigdeconv.numerics.priors import fused_convolutions

    def trial(_):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(fused_convolutions, "trial_difference", trial)
    found = fused_convolutions.problem_here.__wrapped__()
    assert found is None if problem is None else problem in found
